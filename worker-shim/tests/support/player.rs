//! A worker that plays the part its first argument names, for tests of what a server rarely does.
//! It stands with the examples only so that cargo builds it beside the tests.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]
#![expect(clippy::print_stdout, reason = "the test reads what the player says")]

use croupier_wire::room::{LOOK_EVERY, monotonic};
use croupier_worker::{TcpListener, worker};
use nix::sys::resource::{Resource, setrlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Barrier;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (part, address) = (arguments.next().unwrap(), arguments.next().unwrap());
    match part.as_str() {
        "crowd" => crowd(&address),
        "nonblocking" => nonblocking(&address),
        "clones" => clones(&address),
        "keeper" => keeper(&address),
        "beside" => beside(&address),
        "again" => again(&address),
        "crowded-out" => crowded_out(&address),
        "versions" => println!("{}", TcpListener::bind(&address).unwrap_err()),
        "unreachable" => unreachable_primary(&address),
        "over" => over(&address),
        "who" => who(),
        "told" => told(),
        other => panic!("no part is called {other}"),
    }
    println!("done");
}

/// Four threads accept on one listener; none lets go before all have a connection.
fn crowd(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    let all = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (mut stream, peer) = listener.accept().unwrap();
                assert_eq!(stream.peer_addr().unwrap(), peer);
                all.wait();
                stream.write_all(b"x").unwrap();
            });
        }
    });
}

/// An empty channel would block; a connection that the primary made non-blocking comes out blocking.
fn nonblocking(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(listener.local_addr().unwrap(), address.parse::<SocketAddr>().unwrap());
    assert!(listener.take_error().unwrap().is_none());
    listener.set_nonblocking(false).unwrap();
    println!("empty");
    let (mut stream, _) = listener.accept().unwrap();
    // Nothing was sent: on a non-blocking stream this read would fail.
    println!("reading");
    stream.read_exact(&mut [0; 1]).unwrap();
    stream.write_all(b"x").unwrap();
}

/// The listener ends with its last clone, not before.
fn clones(address: &str) {
    let first = TcpListener::bind(address).unwrap();
    let second = first.try_clone().unwrap();
    drop(first);
    let (mut stream, _) = second.accept().unwrap();
    stream.write_all(b"x").unwrap();
    drop(second);
    worker().unwrap().ready().unwrap();
}

/// The descriptor alone: nobody tells the primary when it is closed.
fn keeper(address: &str) {
    let fd = OwnedFd::from(TcpListener::bind(address).unwrap());
    drop(fd);
    worker().unwrap().ready().unwrap();
}

/// Addresses that are not dealt, and port 0, are this process's own.
fn beside(address: &str) {
    let dealt = TcpListener::bind(address).unwrap();
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = own.local_addr().unwrap().port();
    drop(own);
    let passed = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (_, peer) = passed.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    let (mut stream, _) = dealt.accept().unwrap();
    stream.write_all(b"x").unwrap();
}

/// An address is taken while this process listens on it, and free again afterwards.
fn again(address: &str) {
    let first = TcpListener::bind(address).unwrap();
    let taken = TcpListener::bind(address).unwrap_err();
    assert_eq!(taken.raw_os_error(), Some(libc::EADDRINUSE));
    drop(first);
    let (mut stream, _) = TcpListener::bind(address).unwrap().accept().unwrap();
    stream.write_all(b"x").unwrap();
}

/// Without a free descriptor a connection stays where it is, also when there were many at the last claim.
fn crowded_out(address: &str) {
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let (mut first, _) = listener.accept().unwrap();
    first.write_all(b"x").unwrap();
    let mut hoard: Vec<OwnedFd> =
        std::iter::from_fn(|| first.try_clone().ok().map(OwnedFd::from)).collect();
    // The last look at the limit is over a millisecond old.
    let looked = monotonic();
    while monotonic() - looked < 2 * LOOK_EVERY {}
    let full = loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.write_all(b"x").unwrap();
                hoard.push(stream.into());
                println!("one more");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::EMFILE));
    drop(hoard);
    println!("room again");
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
}

/// A primary that is gone is an error that says so.
fn unreachable_primary(address: &str) {
    let error = TcpListener::bind(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(
        error.to_string().contains("primary") && error.to_string().contains(address),
        "{error}"
    );
}

/// The primary closes one channel and lives: this listener is over, the worker is not.
fn over(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    assert_eq!(listener.accept().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert!(listener.into_receiver().unwrap().recv().is_err());
}

/// Waits to be told that it drains, without asking again and again.
fn told() {
    let draining = worker().unwrap().draining().unwrap();
    println!("{}", draining.drains().unwrap());
    draining.wait().unwrap();
    println!("{}", draining.drains().unwrap());
}

fn who() {
    let worker = worker().unwrap();
    println!("{} {} {}", worker.id(), worker.slot(), worker.generation());
    println!("{}", worker.is_draining());
    worker.ready().unwrap();
    // The test sets the flag between these two, when it has seen that we are ready.
    std::io::stdin().read_exact(&mut [0; 1]).unwrap();
    println!("{}", worker.is_draining());
}
