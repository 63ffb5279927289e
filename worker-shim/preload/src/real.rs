//! The libc functions behind the hooks: `real::close` is visibly not our `close`.
//!
//! **Promises** that a call ends in libc (or the next preloaded library). Addresses are looked up
//! before main(); a hook that runs even earlier looks up its own. **Never** calls a null address: what
//! the C library does not have fails with `ENOSYS`.

use libc::{FILE, c_char, c_int, c_long, c_uint, c_void, sockaddr, socklen_t};
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// One function of libc, looked up once.
struct Symbol {
    name: &'static CStr,
    at: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Self {
        Self { name, at: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn address(&self) -> *mut c_void {
        let known = self.at.load(Relaxed);
        if !known.is_null() {
            return known;
        }
        let name: *const c_char = self.name.as_ptr();
        // SAFETY: `name` is a C string; RTLD_NEXT is valid in a shared library.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name) };
        self.at.store(found, Relaxed);
        found
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) -> $returned:ty;)*) => {
        $(
            /// libc's function of this name.
            ///
            /// # Safety
            /// As libc's.
            pub(crate) unsafe fn $name($($argument: $type),*) -> $returned {
                type Function = unsafe extern "C" fn($($type),*) -> $returned;
                let address = symbols::$name.address();
                if address.is_null() {
                    set_errno(libc::ENOSYS);
                    return -1;
                }
                #[expect(clippy::disallowed_methods, reason = "the only way from dlsym to a function")]
                // SAFETY: dlsym found this name, and libc declares it with this type.
                let function = unsafe { std::mem::transmute::<*mut c_void, Function>(address) };
                // SAFETY: the caller's promise.
                unsafe { function($($argument),*) }
            }
        )*

        #[expect(non_upper_case_globals, reason = "named as the functions")]
        mod symbols {
            use super::{CStr, Symbol};

            $(pub(super) static $name: Symbol = Symbol::new(
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                },
            );)*
        }

        /// Looks all of them up.
        pub(crate) fn resolve() {
            $(symbols::$name.address();)*
        }
    };
}

functions! {
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    dup2(old: c_int, new: c_int) -> c_int;
    dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fclose(file: *mut FILE) -> c_int;
    syscall(
        number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long
    ) -> c_long;
}

/// closefrom(3), which returns nothing. Where glibc is too old to have it, no program calls it.
///
/// # Safety
/// As libc's.
pub(crate) unsafe fn closefrom(low: c_int) {
    static CLOSEFROM: Symbol = Symbol::new(c"closefrom");
    type Function = unsafe extern "C" fn(c_int);
    let address = CLOSEFROM.address();
    if !address.is_null() {
        #[expect(clippy::disallowed_methods, reason = "the only way from dlsym to a function")]
        // SAFETY: dlsym found this name, and libc declares it with this type.
        let function = unsafe { std::mem::transmute::<*mut c_void, Function>(address) };
        // SAFETY: the caller's promise.
        unsafe { function(low) }
    }
}

/// This thread's errno.
pub(crate) fn errno() -> c_int {
    // SAFETY: libc's own place for it, which always exists.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place }
}

/// Sets this thread's errno.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: libc's own place for it, which always exists.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place = errno };
}
