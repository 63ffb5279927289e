//! The post: messages to and from workers' processes (`croupier_wire::post`).
//!
//! Owns the primary's end of each process's socket. Promises: a process that does not read costs no
//! more than its socket's buffer, what does not fit there is dropped and counted, and nothing waits
//! for it; what a worker sends is read on the disposal thread, a bounded number at a time, because
//! something could be attached to it. Garbage, or a flood, costs that worker its life.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use croupier_core::event::{Event, WorkerId};
use croupier_wire::fdpass::{self, Received};
use croupier_wire::message::Verdict;
use croupier_wire::post::{MESSAGE_MAX, Message};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::answers::{QUESTIONS_PER_SECOND_MAX, refused, verdict};
use super::questions::Question;
use super::run::Primary;
use super::tokens::Source;

/// Processes of one worker that may have a post at once.
pub(crate) const POSTS_MAX: usize = 16;
/// Messages of one process that are read in one go.
pub(crate) const MESSAGES_MAX: usize = 64;
/// Bytes that the kernel may hold for a process that does not read; each message counts for more than
/// it has.
const POST_BUFFER_MAX: usize = 16 * 1024;

/// One process's.
#[derive(Debug)]
struct Post {
    worker: WorkerId,
    socket: Arc<OwnedFd>,
    reading: Reading,
}

/// What is known of a post's receive queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    No,
    /// The thread was asked to.
    Asked,
    /// … and something came since.
    Again,
}

/// All of them, by a number that is never used again.
#[derive(Debug, Default)]
pub(super) struct Posts {
    open: BTreeMap<u32, Post>,
    last: u32,
    /// Messages that a process had no room for.
    pub(super) dropped: u64,
}

/// What was read of one post.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    messages: Vec<Message>,
    then: Then,
}

/// Why no more was read.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// There was no more.
    Empty,
    /// It was enough for one go.
    More,
    /// Something that is no message.
    Garbage,
    /// The process is gone, or closed its end.
    Ended,
}

/// Reads what there is, up to [`MESSAGES_MAX`]. On a thread: see the module.
pub(super) fn read(socket: &OwnedFd) -> Read {
    let mut messages = Vec::new();
    let then = loop {
        if messages.len() >= MESSAGES_MAX {
            break Then::More;
        }
        let mut bytes = [0; MESSAGE_MAX];
        // No room for descriptors: the kernel closes what came along, here, where it may block.
        match fdpass::recv(socket.as_fd(), &mut bytes, &mut [], libc::MSG_DONTWAIT) {
            Ok(Received::Message(len)) => match bytes.get(..len).map(Message::decode) {
                Some(Ok(message)) => messages.push(message),
                Some(Err(_)) | None => break Then::Garbage,
            },
            Ok(Received::Ended) => break Then::Ended,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Then::Empty,
            // Too long, or with descriptors.
            Err(error) if error.raw_os_error() == Some(libc::EPROTO) => break Then::Garbage,
            Err(_) => break Then::Ended,
        }
    };
    Read { messages, then }
}

impl Primary {
    /// A process wants its post.
    pub(super) fn answer_post(&mut self, question: &Question, worker: WorkerId) {
        let own = self.posts.open.values().filter(|post| post.worker == worker);
        let opened = if own.count() >= POSTS_MAX {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        } else {
            self.open_post(worker)
        };
        match opened {
            Ok(theirs) => {
                question.answer(&verdict(Verdict::Done), &[theirs.as_fd()]);
            }
            Err(error) => question.tell(&refused(&error)),
        }
    }

    fn open_post(&mut self, worker: WorkerId) -> io::Result<OwnedFd> {
        let found = self.workers.get(worker).ok_or(io::ErrorKind::NotFound)?;
        let dismissed = found.dismissed;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // The sender's buffer is what counts, on either side.
        setsockopt(&ours, sockopt::SndBuf, &POST_BUFFER_MAX)?;
        setsockopt(&theirs, sockopt::SndBuf, &POST_BUFFER_MAX)?;
        self.posts.last += 1;
        let number = self.posts.last;
        self.watch(&ours, Source::Post(number))?;
        let post = Post { worker, socket: Arc::new(ours), reading: Reading::No };
        if dismissed {
            self.posts.dropped += u64::from(!post.send(Message::Disconnect));
        }
        self.posts.open.insert(number, post);
        Ok(theirs)
    }

    /// Tells every process of a worker that has a post that nothing more will come.
    pub(super) fn disconnect(&mut self, worker: WorkerId) {
        if let Some(found) = self.workers.get_mut(worker) {
            found.dismissed = true;
        }
        for post in self.posts.open.values().filter(|post| post.worker == worker) {
            self.posts.dropped += u64::from(!post.send(Message::Disconnect));
        }
    }

    /// Something came by post.
    pub(super) fn read_post(&mut self, number: u32) {
        let Some(post) = self.posts.open.get_mut(&number) else { return };
        match post.reading {
            Reading::No => {
                // Only posts of workers that are gone can use up the room: see `Disposal::give`.
                if self.rescue.read_post(number, Arc::clone(&post.socket)) {
                    post.reading = Reading::Asked;
                }
            }
            Reading::Asked | Reading::Again => post.reading = Reading::Again,
        }
    }

    /// What the thread has read of a post.
    pub(super) fn take_messages(&mut self, number: u32, read: &Read) {
        let Some(post) = self.posts.open.get_mut(&number) else { return };
        let again = post.reading == Reading::Again;
        post.reading = Reading::No;
        let worker = post.worker;
        for message in &read.messages {
            if self.meters.too_many_questions(worker, self.now, QUESTIONS_PER_SECOND_MAX) {
                log::warn!("worker {} floods its post; it will be replaced", worker.0);
                self.tell(Event::Misbehaved { worker });
                break;
            }
            match message {
                Message::Ready => self.tell(Event::SaidReady { worker }),
                // Only ever said by the primary.
                Message::Disconnect => self.tell(Event::Misbehaved { worker }),
            }
        }
        match read.then {
            Then::Empty if again => self.read_post(number),
            Then::More => self.read_post(number),
            Then::Empty => {}
            Then::Ended => self.close_post(number),
            Then::Garbage => {
                log::warn!("worker {} sent what is no message; it will be replaced", worker.0);
                self.tell(Event::Misbehaved { worker });
                self.close_post(number);
            }
        }
        self.settle();
    }

    /// A worker is no more.
    pub(super) fn close_posts(&mut self, worker: WorkerId) {
        let of_it = self.posts.open.iter().filter(|(_, post)| post.worker == worker);
        let numbers: Vec<u32> = of_it.map(|(number, _)| *number).collect();
        for number in numbers {
            self.close_post(number);
        }
    }

    fn close_post(&mut self, number: u32) {
        if let Some(post) = self.posts.open.remove(&number) {
            self.unwatch(&post.socket);
            self.rescue.close(vec![post.socket]);
        }
    }
}

impl Post {
    /// Whether there was room, or nobody left to hear it.
    fn send(&self, message: Message) -> bool {
        match fdpass::send(self.socket.as_fd(), &message.encode(), &[]) {
            Ok(()) => true,
            Err(error) => match error.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET) => true,
                _ => {
                    log::debug!("a message to worker {} is dropped: {error}", self.worker.0);
                    false
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::disposal::tests::lingering;
    use super::*;
    use crate::testing::wait_for;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn what_a_process_says_is_read_up_to_a_bound() {
        let (ours, theirs) = pair();
        let nothing = Read { messages: Vec::new(), then: Then::Empty };
        assert_eq!(read(&ours), nothing, "nothing was said");
        for _ in 0..MESSAGES_MAX + 1 {
            fdpass::send(theirs.as_fd(), &Message::Ready.encode(), &[]).unwrap();
        }
        let first = read(&ours);
        assert_eq!((first.messages.len(), first.then), (MESSAGES_MAX, Then::More));
        drop(theirs);
        let last = read(&ours);
        assert_eq!(last, Read { messages: vec![Message::Ready], then: Then::Ended });
    }

    #[test]
    fn what_is_no_message_is_garbage() {
        let long = vec![b'm'; MESSAGE_MAX + 1];
        for said in [b"x".as_slice(), b"m\x01\x09\0", &long] {
            let (ours, theirs) = pair();
            fdpass::send(theirs.as_fd(), said, &[]).unwrap();
            assert_eq!(read(&ours).then, Then::Garbage, "{} bytes", said.len());
        }
        // A descriptor is refused whatever the bytes are.
        let (ours, theirs) = pair();
        fdpass::send(theirs.as_fd(), &Message::Ready.encode(), &[theirs.as_fd()]).unwrap();
        assert_eq!(read(&ours), Read { messages: Vec::new(), then: Then::Garbage });
    }

    #[test]
    fn a_process_that_does_not_read_gets_no_more_than_fits() {
        let (ours, theirs) = pair();
        setsockopt(&ours, sockopt::SndBuf, &POST_BUFFER_MAX).unwrap();
        let socket = Arc::new(ours);
        let post = Post { worker: WorkerId(1), socket, reading: Reading::No };
        let sent = (0..10_000).take_while(|_| post.send(Message::Disconnect)).count();
        assert!((8..256).contains(&sent), "{sent} messages wait in the kernel");
        drop(theirs);
        assert!(post.send(Message::Disconnect), "nobody is left who could miss it");
    }

    #[test]
    fn a_descriptor_whose_close_blocks_holds_up_the_reader_and_not_the_loop() {
        let (ours, theirs) = pair();
        let (lingers, peer) = lingering();
        fdpass::send(theirs.as_fd(), &Message::Ready.encode(), &[lingers.as_fd()]).unwrap();
        drop(lingers);
        let reader = std::thread::spawn(move || read(&ours));
        drop(peer);
        wait_for("the reader", || reader.is_finished().then_some(()));
        assert_eq!(reader.join().unwrap().then, Then::Garbage);
    }
}
