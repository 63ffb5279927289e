//! One connection after another, as the simplest server does it.
//!
//! Owns: the loop. Promises: an answer, then a close, for every request; a client that is gone is not
//! this server's concern. Never does: keep a connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::request::{Replies, Request};
use super::{COUNTS, Source};

/// A client that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn serve(source: &Source) -> io::Result<()> {
    let replies = Replies::new();
    loop {
        match source.next() {
            Ok(stream) => {
                COUNTS.connection();
                answer(stream, &replies).ok();
            }
            Err(error) if passes(&error) => {}
            // The other end of a channel is gone: so is the engine.
            Err(_) if matches!(source, Source::Channel(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

fn answer(mut stream: TcpStream, replies: &Replies) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut filled = stream.read(&mut buffer)?;
    let request = loop {
        if let Some(request) = buffer.get(..filled).and_then(Request::parse) {
            break request;
        }
        // Nearly every request comes whole in the first read; only the others pay for a time-out.
        stream.set_read_timeout(Some(PATIENCE))?;
        let more = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if more == 0 {
            return Ok(());
        }
        filled += more;
    };
    request.work.perform()?;
    stream.write_all(replies.of(&Request { keep_alive: false, ..request }))?;
    COUNTS.request();
    Ok(())
}
