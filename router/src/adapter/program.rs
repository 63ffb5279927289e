//! Which file a command executes, and what kind of program it is in the end.
//!
//! Promises: follows `PATH` and `#!` lines as the kernel and env(1) do; reads a few headers of the
//! binary, never all of it. Never does: execute anything.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use elf::ElfStream;
use elf::abi::PT_INTERP;
use elf::endian::AnyEndian;
use nix::unistd::{AccessFlags, access};

use crate::config::Ids;

/// `#!` lines that the kernel follows (`BINPRM_BUF`, exec(2)); env(1) may add as many.
const SCRIPTS_MAX: usize = 5;
/// Bytes of the first line that the kernel reads.
const SHEBANG_MAX: usize = 256;
/// Longest interpreter path that is read.
const INTERPRETER_MAX: u64 = 4096;

/// Why a command cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file.
    #[error("{}: command not found{}", .word.to_string_lossy(), if *searched { " in PATH" } else { "" })]
    NotFound {
        /// As it was given.
        word: OsString,
        /// It was looked for in `PATH`.
        searched: bool,
    },
    /// A file that cannot be executed.
    #[error("{}: cannot be executed: {why}", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// A script whose interpreter cannot be found or executed.
    #[error("{}: its first line wants {interpreter}, which cannot be executed: {why}", script.display())]
    Interpreter {
        /// The script.
        script: PathBuf,
        /// The word after `#!` (or after env).
        interpreter: String,
        /// Why.
        why: String,
    },
}

/// The ELF file that runs in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// What its headers say.
    pub kind: Kind,
}

/// What kind of program this is, as far as `LD_PRELOAD` is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Dynamically linked with glibc.
    Dynamic,
    /// No dynamic linker.
    Static,
    /// Go, linked either way: makes system calls without libc.
    Go,
    /// Dynamically linked with musl.
    Musl,
    /// For another processor, or 32 bits.
    Foreign,
}

/// Why the preload library cannot serve a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// See [`Kind::Static`].
    Static,
    /// See [`Kind::Go`].
    Go,
    /// See [`Kind::Musl`].
    Musl,
    /// See [`Kind::Foreign`].
    Foreign,
    /// Runs as its owner: ld.so ignores `LD_PRELOAD`.
    Setuid,
    /// Runs with its group.
    Setgid,
    /// Has file capabilities.
    Setcap,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "it is statically linked and loads no preload library",
            Self::Go => "it is a Go program, which makes system calls without libc",
            Self::Musl => "it is linked with musl, and the preload library with glibc",
            Self::Foreign => "it is for another processor than the preload library",
            Self::Setuid => "it is setuid, so the system ignores preload libraries",
            Self::Setgid => "it is setgid, so the system ignores preload libraries",
            Self::Setcap => "it has file capabilities, so the system ignores preload libraries",
        })
    }
}

impl Binary {
    /// What keeps the preload library from serving it when a worker runs as `ids`.
    #[must_use]
    pub fn obstacle(&self, ids: Option<&Ids>) -> Option<Obstacle> {
        match self.kind {
            Kind::Static => Some(Obstacle::Static),
            Kind::Go => Some(Obstacle::Go),
            Kind::Musl => Some(Obstacle::Musl),
            Kind::Foreign => Some(Obstacle::Foreign),
            Kind::Dynamic => self.privilege(ids),
        }
    }

    /// ld.so runs in secure mode only when executing changes who one is (AT_SECURE, getauxval(3)):
    /// a setuid-root program under root is an ordinary one.
    fn privilege(&self, ids: Option<&Ids>) -> Option<Obstacle> {
        const SETUID: u32 = 0o4000;
        const SETGID_AND_EXECUTABLE: u32 = 0o2010;
        let (uid, gid) = match ids {
            Some(ids) => (ids.uid, ids.gid),
            None => (nix::unistd::getuid(), nix::unistd::getgid()),
        };
        let found = std::fs::metadata(&self.path).ok()?;
        if found.mode() & SETUID != 0 && found.uid() != uid.as_raw() {
            return Some(Obstacle::Setuid);
        }
        if found.mode() & SETGID_AND_EXECUTABLE == SETGID_AND_EXECUTABLE
            && found.gid() != gid.as_raw()
        {
            return Some(Obstacle::Setgid);
        }
        // An absent attribute is an error; its length is all we want to know of a present one.
        let capabilities =
            rustix::fs::getxattr(&self.path, "security.capability", &mut [0_u8; 64]).is_ok();
        (capabilities && !uid.is_root()).then_some(Obstacle::Setcap)
    }
}

/// The file that execvp(3) would execute for `word`, as an absolute path.
///
/// # Errors
/// [`ProgramError`].
pub fn find(word: &OsStr, search: &OsStr) -> Result<PathBuf, ProgramError> {
    if word.as_bytes().contains(&b'/') {
        let path = PathBuf::from(word);
        return match executable(&path) {
            Ok(()) => Ok(absolute(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ProgramError::NotFound { word: word.to_owned(), searched: false })
            }
            Err(error) => Err(ProgramError::NotExecutable { why: advice(&path, &error), path }),
        };
    }
    let mut refused = None;
    for folder in std::env::split_paths(search) {
        let path = folder.join(word);
        match executable(&path) {
            Ok(()) => return Ok(absolute(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                refused.get_or_insert_with(|| (advice(&path, &error), path));
            }
        }
    }
    match refused {
        Some((why, path)) => Err(ProgramError::NotExecutable { path, why }),
        None => Err(ProgramError::NotFound { word: word.to_owned(), searched: true }),
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn executable(path: &Path) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(access(path, AccessFlags::X_OK)?)
}

fn advice(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    if error.kind() == io::ErrorKind::IsADirectory {
        "it is a directory".into()
    } else if error.kind() == io::ErrorKind::PermissionDenied && path.is_file() {
        format!("permission denied; chmod +x {shown}, or name its interpreter before it")
    } else {
        error.to_string()
    }
}

/// Follows `#!` lines, and env(1) in them, to the binary that runs.
///
/// # Errors
/// [`ProgramError`].
pub fn binary_of(program: &Path, search: &OsStr) -> Result<Binary, ProgramError> {
    let mut path = program.to_path_buf();
    for _ in 0..SCRIPTS_MAX {
        let mut start = Vec::with_capacity(SHEBANG_MAX);
        let read = File::open(&path)
            .and_then(|file| file.take(SHEBANG_MAX as u64).read_to_end(&mut start));
        if read.is_err() {
            // Executable but not readable: nothing can be told; the kernel runs it all the same.
            return Ok(Binary { path, kind: Kind::Dynamic });
        }
        if start.starts_with(elf::abi::ELFMAGIC.as_slice()) {
            let kind = kind_of(&path).map_err(|why| ProgramError::NotExecutable {
                path: path.clone(),
                why: format!("its ELF headers are broken: {why}"),
            })?;
            return Ok(Binary { path, kind });
        }
        let Some(words) = shebang(&start) else {
            return Err(ProgramError::NotExecutable {
                path,
                why: "it is neither a binary nor a script with #! in its first line".into(),
            });
        };
        path = interpreter(&path, &words, search)?;
    }
    Err(ProgramError::NotExecutable {
        path: program.to_path_buf(),
        why: "its #! lines lead from script to script without end".into(),
    })
}

/// The words of a `#!` line. Empty: `#!` and nothing.
fn shebang(start: &[u8]) -> Option<Vec<OsString>> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words = line.split(|byte| b" \t\r".contains(byte)).filter(|word| !word.is_empty());
    Some(words.map(|word| OsStr::from_bytes(word).to_owned()).collect())
}

fn interpreter(script: &Path, words: &[OsString], search: &OsStr) -> Result<PathBuf, ProgramError> {
    let first = words.first().map(OsString::as_os_str).unwrap_or_default();
    let by_env = Path::new(first).file_name() == Some(OsStr::new("env"));
    let wanted = if by_env {
        let skipped =
            |word: &&OsString| word.as_bytes().starts_with(b"-") || word.as_bytes().contains(&b'=');
        words.iter().skip(1).find(|word| !skipped(word)).map_or(first, OsString::as_os_str)
    } else {
        first
    };
    find(wanted, search).map_err(|error| ProgramError::Interpreter {
        script: script.to_path_buf(),
        interpreter: wanted.to_string_lossy().into_owned(),
        why: match error {
            ProgramError::NotFound { .. } => "there is no such program".into(),
            ProgramError::NotExecutable { why, .. } | ProgramError::Interpreter { why, .. } => why,
        },
    })
}

/// Reads the headers of an ELF file.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn kind_of(path: &Path) -> Result<Kind, elf::ParseError> {
    let file = File::open(path).map_err(elf::ParseError::IOError)?;
    let mut file = ElfStream::<AnyEndian, _>::open_stream(file)?;
    if file.ehdr.e_machine != OWN_MACHINE || file.ehdr.class != OWN_CLASS {
        return Ok(Kind::Foreign);
    }
    // Also a Go program that is linked dynamically makes its system calls itself.
    if file.section_header_by_name(".go.buildinfo")?.is_some() {
        return Ok(Kind::Go);
    }
    let Some(segment) = file.segments().iter().find(|one| one.p_type == PT_INTERP).copied() else {
        return Ok(Kind::Static);
    };
    if segment.p_filesz > INTERPRETER_MAX {
        return Ok(Kind::Dynamic);
    }
    let linker = file.segment_data(&segment)?;
    let musl = linker.windows(b"ld-musl".len()).any(|part| part == b"ld-musl");
    Ok(if musl { Kind::Musl } else { Kind::Dynamic })
}

#[cfg(target_pointer_width = "64")]
const OWN_CLASS: elf::file::Class = elf::file::Class::ELF64;
#[cfg(target_pointer_width = "32")]
const OWN_CLASS: elf::file::Class = elf::file::Class::ELF32;

#[cfg(target_arch = "x86_64")]
const OWN_MACHINE: u16 = elf::abi::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const OWN_MACHINE: u16 = elf::abi::EM_AARCH64;
#[cfg(target_arch = "riscv64")]
const OWN_MACHINE: u16 = elf::abi::EM_RISCV;
#[cfg(target_arch = "powerpc64")]
const OWN_MACHINE: u16 = elf::abi::EM_PPC64;
#[cfg(target_arch = "s390x")]
const OWN_MACHINE: u16 = elf::abi::EM_S390;
#[cfg(target_arch = "arm")]
const OWN_MACHINE: u16 = elf::abi::EM_ARM;
#[cfg(target_arch = "x86")]
const OWN_MACHINE: u16 = elf::abi::EM_386;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use nix::unistd::{Gid, Uid};

    use super::*;

    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn path() -> OsString {
        std::env::var_os("PATH").unwrap()
    }

    #[test]
    fn finds_programs_as_execvp_does() {
        let folder = tempfile::tempdir().unwrap();
        let own = script(folder.path(), "tool", "#!/bin/sh\n");
        let search = std::env::join_paths([Path::new("/nowhere"), folder.path()]).unwrap();
        assert_eq!(find("tool".as_ref(), &search).unwrap(), own);
        assert_eq!(find(own.as_os_str(), "".as_ref()).unwrap(), own);
        let missing = find("tool".as_ref(), "/nowhere".as_ref()).unwrap_err();
        assert_eq!(missing.to_string(), "tool: command not found in PATH");
        let missing = find("./no/tool".as_ref(), &search).unwrap_err();
        assert_eq!(missing.to_string(), "./no/tool: command not found");
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "text").unwrap();
        let refused = find("plain".as_ref(), &search).unwrap_err();
        assert!(refused.to_string().contains("chmod +x"), "{refused}");
        let refused = find(folder.path().as_os_str(), &search).unwrap_err();
        assert!(refused.to_string().contains("it is a directory"), "{refused}");
    }

    #[test]
    fn follows_first_lines_to_the_binary() {
        let folder = tempfile::tempdir().unwrap();
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        let real = |binary: Binary| std::fs::canonicalize(binary.path).unwrap();
        let direct = script(folder.path(), "direct", "#!/bin/sh -e\n");
        assert_eq!(real(binary_of(&direct, &path()).unwrap()), shell);
        let by_env = script(folder.path(), "by-env", "#! /usr/bin/env -S A=1 sh -x\r\n");
        assert_eq!(real(binary_of(&by_env, &path()).unwrap()), shell);
        let nested = script(folder.path(), "nested", &format!("#!{}\n", direct.display()));
        assert_eq!(real(binary_of(&nested, &path()).unwrap()), shell);
        let ring = script(folder.path(), "ring", &format!("#!{}/ring\n", folder.path().display()));
        assert!(binary_of(&ring, &path()).unwrap_err().to_string().contains("without end"));
        let lost = script(folder.path(), "lost", "#!/usr/bin/env no-such-interpreter\n");
        let error = binary_of(&lost, &path()).unwrap_err().to_string();
        assert!(error.contains("its first line wants no-such-interpreter"), "{error}");
        for text in ["echo", "", "#!", "#!\n"] {
            let bad = script(folder.path(), "bad", text);
            assert!(binary_of(&bad, &path()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn tells_static_from_dynamic() {
        assert_eq!(kind_of(Path::new("/bin/true")).unwrap(), Kind::Dynamic);
        assert_eq!(kind_of(&std::env::current_exe().unwrap()).unwrap(), Kind::Dynamic);
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.c");
        std::fs::write(&source, "int main(void) { return 0; }").unwrap();
        for flag in ["-static", "-static-pie"] {
            let program = folder.path().join("a");
            let built = Command::new("cc").arg(flag).arg("-o").arg(&program).arg(&source).status();
            assert!(built.unwrap().success(), "cc {flag}");
            let binary = binary_of(&program, &path()).unwrap();
            assert_eq!(binary.kind, Kind::Static, "{flag}");
            assert_eq!(binary.obstacle(None), Some(Obstacle::Static));
        }
        std::fs::write(folder.path().join("a"), b"\x7fELF garbage").unwrap();
        assert!(kind_of(&folder.path().join("a")).is_err());
    }

    /// A program with one more section, or another interpreter, as `objcopy` and `ld` can make it.
    fn built(folder: &Path, arguments: &[&str]) -> PathBuf {
        let source = folder.join("b.c");
        let text =
            "__attribute__((section(\".go.buildinfo\"))) int x = 1; int main(void) { return x; }";
        let plain = "int main(void) { return 0; }";
        let text = if arguments.is_empty() { text } else { plain };
        std::fs::write(&source, text).unwrap();
        let program = folder.join("b");
        let status =
            Command::new("cc").args(arguments).arg("-o").arg(&program).arg(&source).status();
        assert!(status.unwrap().success());
        program
    }

    #[test]
    fn tells_go_and_musl() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kind_of(&built(folder.path(), &[])).unwrap(), Kind::Go);
        let musl = built(folder.path(), &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]);
        assert_eq!(kind_of(&musl).unwrap(), Kind::Musl);
        let mut foreign = std::fs::read(&musl).unwrap();
        foreign[18] ^= 0xff;
        std::fs::write(&musl, foreign).unwrap();
        assert_eq!(kind_of(&musl).unwrap(), Kind::Foreign);
    }

    #[test]
    fn privileges_matter_only_where_they_change_something() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("true");
        std::fs::copy("/bin/true", &program).unwrap();
        let own = Ids {
            uid: nix::unistd::getuid(),
            gid: nix::unistd::getgid(),
            groups: Vec::new(),
            user_name: None,
            home: None,
        };
        let other = Ids { uid: Uid::from_raw(54321), gid: Gid::from_raw(54321), ..own.clone() };
        let obstacle = |mode, ids: &Ids| {
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
            binary_of(&program, &path()).unwrap().obstacle(Some(ids))
        };
        assert_eq!(obstacle(0o4755, &own), None);
        assert_eq!(obstacle(0o4755, &other), Some(Obstacle::Setuid));
        assert_eq!(obstacle(0o2755, &other), Some(Obstacle::Setgid));
        assert_eq!(obstacle(0o2745, &other), None, "setgid without x means locking");
        assert_eq!(obstacle(0o755, &other), None);
        // Only root may set file capabilities, and not on every file system.
        let set = Command::new("setcap").arg("cap_net_bind_service=+ep").arg(&program).output();
        if set.is_ok_and(|output| output.status.success()) {
            assert_eq!(obstacle(0o755, &other), Some(Obstacle::Setcap));
        }
        let said = Obstacle::Setcap.to_string();
        assert!(said.starts_with("it has file capabilities, so the system ignores"), "{said}");
    }
}
