//! A worker without this library: whatever can receive a descriptor over a Unix socket can be one.
//!
//! ```text
//! cargo build --release -p croupier-worker --example bare
//! croupier run -w 4 -l :8080 --adapter fd -- target/release/examples/bare
//! ```
//!
//! With `--adapter fd` and one `-l` the primary leaves the receiving end of the worker's channel
//! open under the number in `CROUPIER_CHANNEL_FD`. Every message there is one connection; its bytes
//! may be ignored, its end means that the primary is gone. Such a worker is ready from the start,
//! and since it counts nothing, the primary knows what it has queued but not what it has in hand.

use passfd::FdPassingExt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, RawFd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let channel: RawFd = std::env::var("CROUPIER_CHANNEL_FD")?.parse()?;
    let body = format!("worker {}\n", std::env::var("CROUPIER_WORKER_ID")?);
    let top = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}", body.len());
    while let Ok(fd) = channel.recv_fd() {
        // SAFETY: recv_fd has just received this descriptor, and nothing else owns it.
        let mut client = unsafe { TcpStream::from_raw_fd(fd) };
        if client.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
            client.write_all(format!("{top}\r\n\r\n{body}").as_bytes()).ok();
        }
    }
    Ok(())
}
