//! A thread pool: each thread takes a connection when it is free, and none is taken before.
//!
//! ```text
//! cargo build --release -p croupier-worker --example pool
//! croupier run -w 2 -l :8080 -- target/release/examples/pool '[::]:8080' 8
//! ```
//!
//! While all threads are busy, connections stay queued, where the primary sees them and can deal
//! the next ones elsewhere.
#![allow(clippy::print_stderr, reason = "a program says on stderr what went wrong")]

use croupier_worker::TcpListener;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(4);
    let id = croupier_worker::worker().map_or(0, |worker| worker.id());
    let connections = TcpListener::bind(address)?.into_receiver()?;
    thread::scope(|pool| {
        for _ in 0..threads {
            pool.spawn(|| {
                for (client, peer) in &connections {
                    if let Err(error) = serve(client, id) {
                        eprintln!("pool: {peer}: {error}");
                    }
                }
            });
        }
    });
    Ok(())
}

fn serve(mut client: TcpStream, id: u32) -> io::Result<()> {
    // A client that connects and says nothing must not hold a thread for ever.
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut head: Vec<u8> = Vec::new();
    let mut part = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 65_536 {
        match client.read(&mut part)? {
            0 => return Ok(()),
            read => head.extend(part.iter().take(read)),
        }
    }
    let body = format!("worker {id}\n");
    let top = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ";
    client.write_all(format!("{top}{}\r\n\r\n{body}", body.len()).as_bytes())
}
