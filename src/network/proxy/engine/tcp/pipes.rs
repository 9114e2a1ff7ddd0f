//! Pipes, through which the kernel moves pages from one socket to another.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::super::sys::splice;

/// What a pipe is asked to hold, bytes. The kernel may grant less (`fs.pipe-max-size`, `fs.pipe-user-pages-soft`).
const SIZE: usize = 1 << 20;
/// Pipes there may be at once: connections with data under way beyond that are copied.
const MOST: usize = 256;
/// Empty pipes that are kept for the next one.
const SPARE: usize = 8;

/// A pipe. While it belongs to a connection there are bytes in it.
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Counts the pipes there are.
    _count: Rc<()>,
}

impl Pipe {
    /// Takes what has arrived; 0 at the end. Only for an empty pipe: `EAGAIN` is then about the socket.
    pub(super) fn fill(&self, from: &TcpStream) -> nix::Result<usize> {
        splice(from, &self.writer, SIZE)
    }

    /// Passes on up to `count` bytes.
    pub(super) fn drain(&self, to: &TcpStream, count: usize) -> nix::Result<usize> {
        splice(&self.reader, to, count)
    }
}

/// The pipes of one thread.
#[derive(Default)]
pub(super) struct Pipes {
    empty: Vec<Pipe>,
    count: Rc<()>,
}

impl Pipes {
    /// An empty pipe, or `None` where there are enough already or no descriptors are left.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.empty.pop() {
            return Some(pipe);
        }
        if Rc::strong_count(&self.count) > MOST {
            return None;
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // Refused: then it is as large as pipes are.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE as i32)).ok();
        Some(Pipe { reader, writer, _count: self.count.clone() })
    }

    /// Takes an empty pipe back.
    pub(super) fn give(&mut self, pipe: Pipe) {
        if self.empty.len() < SPARE {
            self.empty.push(pipe);
        }
    }
}
