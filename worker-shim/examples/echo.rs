//! A blocking worker: one request per connection, answered with the worker's id and the request.
//!
//! ```text
//! cargo build --release -p croupier-worker --example echo
//! croupier run -w 4 -l :8080 -- target/release/examples/echo '[::]:8080'
//! ```
//!
//! Without croupier it serves alone on the same address. The line that makes it a worker is the
//! `use` of `croupier_worker::TcpListener` instead of std's.
#![allow(clippy::print_stderr, reason = "a program says on stderr what went wrong")]

use croupier_worker::TcpListener;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let id = croupier_worker::worker().map_or(0, |worker| worker.id());
    let listener = TcpListener::bind(address)?;
    for client in listener.incoming() {
        if let Err(error) = serve(client?, id) {
            eprintln!("echo: one client: {error}");
        }
    }
    Ok(())
}

fn serve(mut client: TcpStream, id: u32) -> io::Result<()> {
    // A client that connects and says nothing must not hold the worker for ever.
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut head: Vec<u8> = Vec::new();
    let mut part = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 65_536 {
        match client.read(&mut part)? {
            0 => return Ok(()),
            read => head.extend(part.iter().take(read)),
        }
    }
    let mut answer = format!("worker {id}\n").into_bytes();
    answer.append(&mut head);
    let top =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
    client.write_all(top.as_bytes())?;
    client.write_all(&answer)
}
