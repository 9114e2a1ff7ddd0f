//! The output of a container: from its pipes or terminal to its log and to whoever is attached.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log::{Log, Stream};

/// Read at once.
const CHUNK: usize = 16 << 10;
/// The most a pipe can hold (1 MiB): a process of another container may still be writing.
const DRAIN_CHUNKS: usize = (1 << 20) / CHUNK + 1;
/// A client that takes nothing for so long is detached: the container must go on.
const STALL: Duration = Duration::from_secs(10);

/// One output of a container.
#[derive(Debug)]
pub(super) struct Output {
    stream: Stream,
    source: Option<File>,
    clients: Vec<Client>,
}

/// One attached client.
#[derive(Debug)]
struct Client {
    sink: File,
    /// What it did not take yet; while there is something, nothing more is read from the container.
    pending: Vec<u8>,
    since: Instant,
}

impl Output {
    /// The source must be non-blocking.
    pub(super) fn new(stream: Stream, source: OwnedFd) -> Self {
        Self { stream, source: Some(source.into()), clients: Vec::new() }
    }

    /// Copies everything from now on to a non-blocking pipe.
    pub(super) fn attach(&mut self, sink: OwnedFd) {
        if self.source.is_some() {
            self.clients.push(Client { sink: sink.into(), pending: Vec::new(), since: Instant::now() });
        }
    }

    /// What to wait for: the source, unless a client is behind; room for those that are, and the end of the others.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let behind = self.clients.iter().any(|c| !c.pending.is_empty());
        let source = self.source.iter().filter(move |_| !behind).map(|s| (s.as_fd(), PollFlags::POLLIN));
        let flags = |c: &Client| if c.pending.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        source.chain(self.clients.iter().map(move |c| (c.sink.as_fd(), flags(c))))
    }

    /// When the slowest client's patience ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter(|c| !c.pending.is_empty()).map(|c| c.since + STALL).min()
    }

    /// Moves what can be moved: one chunk, or at the end of the container (`drain`) all there is.
    pub(super) fn pump(&mut self, log: &mut Option<Log>, drain: bool) {
        for _ in 0..if drain { DRAIN_CHUNKS } else { 1 } {
            self.clients.retain_mut(|c| c.flush() && !c.is_gone());
            if !drain && self.clients.iter().any(|c| !c.pending.is_empty()) {
                return;
            }
            let Some(source) = &mut self.source else { break };
            let mut buffer = [0; CHUNK];
            match source.read(&mut buffer) {
                Ok(length) if length > 0 => {
                    if let Some(log) = log {
                        log.write(self.stream, &buffer[..length]);
                    }
                    self.clients.iter_mut().for_each(|c| c.offer(&buffer[..length]));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // End of the pipe; a terminal says EIO.
                _ => self.source = None,
            }
        }
        if drain {
            self.source = None;
        }
        if self.source.is_none() {
            // Who has all of it sees the end now, the others when they have caught up.
            self.clients.retain(|c| !c.pending.is_empty());
        }
    }
}

impl Client {
    /// True once nobody reads any more.
    fn is_gone(&self) -> bool {
        let mut fd = [PollFd::new(self.sink.as_fd(), PollFlags::empty())];
        poll(&mut fd, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn offer(&mut self, bytes: &[u8]) {
        if self.pending.is_empty() {
            self.since = Instant::now();
        }
        self.pending.extend_from_slice(bytes);
        // The next `flush` finds out if the client is gone.
        let _ = self.flush();
    }

    /// False once the client is gone or too slow.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.sink.write(&self.pending) {
                Ok(taken) => {
                    self.pending.drain(..taken);
                    self.since = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.since.elapsed() < STALL,
                Err(_) => return false,
            }
        }
        // Idle memory counts.
        self.pending = Vec::new();
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::fcntl::OFlag;

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap()
    }

    #[test]
    fn a_slow_client_holds_the_source_but_not_for_ever() {
        let ((read, write), (client, sink)) = (pipe(), pipe());
        let mut write = File::from(write);
        let mut output = Output::new(Stream::Stdout, read);
        output.attach(sink);
        while write.write(&[b'x'; 4096]).is_ok() {
            output.pump(&mut None, false);
        }
        assert!(output.deadline().is_some());
        assert!(output.interests().all(|(_, flags)| flags == PollFlags::POLLOUT));
        output.clients[0].since -= STALL;
        output.pump(&mut None, false);
        assert!(output.clients.is_empty() && output.deadline().is_none());
        drop(client);
        drop(write);
        output.pump(&mut None, true);
        assert_eq!(output.interests().count(), 0);
    }

    #[test]
    fn clients_that_go_are_forgotten() {
        let ((read, _write), (client, sink)) = (pipe(), pipe());
        let mut output = Output::new(Stream::Stdout, read);
        output.attach(sink);
        output.pump(&mut None, false);
        assert_eq!(output.clients.len(), 1);
        drop(client);
        output.pump(&mut None, false);
        assert_eq!(output.clients.len(), 0);
    }

    #[test]
    fn clients_see_the_end() {
        let ((read, write), (client, sink)) = (pipe(), pipe());
        let mut output = Output::new(Stream::Stdout, read);
        output.attach(sink);
        File::from(write).write_all(b"bye").unwrap();
        output.pump(&mut None, true);
        assert_eq!(io::read_to_string(File::from(client)).unwrap(), "bye");
    }
}
