//! One direction of a connection.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};

use super::pipes::{Pipe, Pipes};

/// Bytes read at once where they are copied. Who sends more than that at once is spliced.
const BUFFER: usize = 32 << 10;
/// Bytes after which it is somebody else's turn.
const TURN: usize = 1 << 20;

/// Nothing more will arrive, for whatever reason.
const END: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

/// What the lanes of one thread share.
pub(super) struct Tools {
    buffer: Box<[u8]>,
    pipes: Pipes,
}

impl Default for Tools {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER].into_boxed_slice(), pipes: Pipes::default() }
    }
}

/// What was read and could not be written.
enum Held {
    /// The bytes, and how many of them are written.
    Bytes(Box<[u8]>, usize),
    /// A pipe with so many bytes in it.
    Pipe(Pipe, usize),
}

/// Bytes from one socket to another. Readiness is what the kernel's edges said, so it is remembered here.
#[derive(Default)]
pub(super) struct Lane {
    held: Option<Box<Held>>,
    /// There may be something to read.
    readable: bool,
    /// There may be room to write.
    writable: bool,
    /// The sender said that nothing follows what has arrived.
    hung_up: bool,
    /// There was urgent data, at whose mark reads stop short.
    urgent: bool,
    /// So much came last time that copying it would be waste.
    bulk: bool,
    /// What is written goes out at once (`TCP_NODELAY`). The first bytes do in any case.
    prompt: bool,
    /// Something was read.
    pub(super) began: bool,
    /// The end was read.
    ended: bool,
    /// The end was passed on.
    pub(super) done: bool,
}

impl Lane {
    /// From a client that was accepted. Whether it spoke already is found out cheapest by reading.
    pub(super) fn up() -> Self {
        Self { readable: true, ..Self::default() }
    }

    /// To a client that was accepted: a new socket has room, and this one is prompt by its listener.
    pub(super) fn down() -> Self {
        Self { writable: true, prompt: true, ..Self::default() }
    }

    /// Moves what can be moved, and says whether its turn was over before that. `last`: the other direction is done, so
    /// that closing passes the end on.
    ///
    /// # Errors
    /// When either socket is broken; nothing can be moved any more.
    pub(super) fn pump(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        last: bool,
        tools: &mut Tools,
    ) -> nix::Result<bool> {
        let mut moved = 0;
        while self.writable && !self.done {
            if let Some(held) = self.held.take() {
                moved += self.flush(*held, to, tools)?;
            } else if self.ended {
                if !last {
                    // The only error is that the connection is gone.
                    to.shutdown(Shutdown::Write).map_err(|_| Errno::ECONNRESET)?;
                }
                self.done = true;
            } else if !self.readable {
                break;
            } else if moved >= TURN {
                return Ok(true);
            } else {
                if self.began && !self.prompt {
                    // Fails only on what is no TCP socket.
                    setsockopt(to, sockopt::TcpNoDelay, &true).ok();
                    self.prompt = true;
                }
                let pipe = if self.bulk { tools.pipes.take() } else { None };
                moved += match pipe {
                    Some(pipe) => self.splice(pipe, from, to, tools)?,
                    None => self.copy(from, to, tools)?,
                };
            }
        }
        // Judged when there is nothing more to read: at the end of an arrival, not where the receiver was slow.
        if !self.readable {
            self.bulk = moved >= BUFFER && !self.urgent;
        }
        Ok(false)
    }

    /// What the kernel says of the socket that is read from.
    pub(super) fn arrived(&mut self, from: &TcpStream, events: EpollFlags) {
        self.readable |= events.intersects(END | EpollFlags::EPOLLIN);
        // A reset is no end; reading says so.
        self.hung_up |= events.contains(EpollFlags::EPOLLRDHUP) && !events.contains(EpollFlags::EPOLLERR);
        if events.contains(EpollFlags::EPOLLPRI) && !self.urgent {
            // Travels in line, as data like any other.
            self.urgent = true;
            // Fails only on what is no socket.
            setsockopt(from, sockopt::OobInline, &true).ok();
        }
    }

    /// What the kernel says of the socket that is written to. Writing to a broken one says that it is.
    pub(super) fn drained(&mut self, events: EpollFlags) {
        self.writable |= events.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR);
    }

    fn copy(&mut self, from: &TcpStream, to: &TcpStream, tools: &mut Tools) -> nix::Result<usize> {
        let hung_up = self.hung_up;
        let count = match recv(from.as_raw_fd(), &mut tools.buffer, MsgFlags::empty()) {
            Ok(0) => {
                self.ended = true;
                return Ok(0);
            }
            Ok(count) => count,
            Err(Errno::EAGAIN) => {
                self.readable = false;
                return Ok(0);
            }
            Err(Errno::EINTR) => return Ok(0),
            Err(error) => return Err(error),
        };
        self.began = true;
        // A short read took everything: what comes later is a new edge, and what was announced is the end.
        let drained = count < tools.buffer.len() && !self.urgent;
        if drained {
            self.readable = false;
            self.ended = hung_up;
        }
        self.bulk |= count == tools.buffer.len() && !self.urgent;
        let bytes = &tools.buffer[..count];
        // The end travels with the last bytes, not in a packet of its own.
        let sent = write(to, bytes, drained && hung_up)?;
        if sent < count {
            self.writable = false;
            self.held = Some(Box::new(Held::Bytes(bytes[sent..].into(), 0)));
        }
        Ok(count)
    }

    fn splice(&mut self, pipe: Pipe, from: &TcpStream, to: &TcpStream, tools: &mut Tools) -> nix::Result<usize> {
        match pipe.fill(from) {
            Ok(count) if count > 0 => return self.flush(Held::Pipe(pipe, count), to, tools),
            Ok(_) => self.ended = true,
            Err(Errno::EAGAIN) => self.readable = false,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        tools.pipes.give(pipe);
        Ok(0)
    }

    /// Writes what was held, or as much of it as there is room for.
    fn flush(&mut self, held: Held, to: &TcpStream, tools: &mut Tools) -> nix::Result<usize> {
        match held {
            Held::Bytes(bytes, start) => {
                let sent = write(to, &bytes[start..], false)?;
                if start + sent < bytes.len() {
                    self.writable = false;
                    self.held = Some(Box::new(Held::Bytes(bytes, start + sent)));
                }
                Ok(sent)
            }
            Held::Pipe(pipe, count) => {
                let mut left = count;
                while left > 0 {
                    match pipe.drain(to, left) {
                        Ok(sent) => left -= sent,
                        Err(Errno::EINTR) => {}
                        Err(Errno::EAGAIN) => {
                            self.writable = false;
                            self.held = Some(Box::new(Held::Pipe(pipe, left)));
                            return Ok(count - left);
                        }
                        Err(error) => return Err(error),
                    }
                }
                tools.pipes.give(pipe);
                Ok(count)
            }
        }
    }
}

/// Writes what there is room for; nothing where there is none.
fn write(to: &TcpStream, bytes: &[u8], end_follows: bool) -> nix::Result<usize> {
    let more = MsgFlags::from_bits_retain(if end_follows { libc::MSG_MORE } else { 0 });
    loop {
        match send(to.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | more) {
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
