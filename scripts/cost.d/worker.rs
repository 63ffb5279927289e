//! worker PORT: the same blocking server as worker.c, as a Rust programmer writes it with std::net.
//! It knows nothing of croupier and runs under it by the preload.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

fn serve(mut connection: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    if connection.read(&mut request)? > 0 {
        connection.write_all(REPLY)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: worker PORT");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("worker: cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    for connection in listener.incoming() {
        // A client that is gone is not this server's concern.
        if let Err(error) = connection.and_then(serve)
            && error.kind() == std::io::ErrorKind::InvalidInput
        {
            eprintln!("worker: accept: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
