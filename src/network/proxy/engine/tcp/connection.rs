//! A client's connection and the one made for it.

use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;

use super::super::super::{Backend, Frontend};
use super::super::helper::Client;
use super::super::sys;
use super::super::timers::{SECOND, Tick};
use super::lane::{Lane, Tools};

/// What an endpoint has to answer in before another is tried. A lost SYN is sent again after a second; who waits is a
/// client, and the endpoint's board may have lost its power a moment ago.
const PATIENCE: Tick = SECOND + 3;
/// What it has where there is no other.
const LAST_PATIENCE: Tick = 30 * SECOND;
/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 16;

/// Why a connection ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides said all they had.
    Done,
    /// One side broke it, or there is nobody to connect to: both see a reset.
    Broken,
    /// There was no descriptor or memory for it: likewise.
    Exhausted,
}

/// What comes next for a connection that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An event.
    Event,
    /// Another turn, when the others had theirs.
    Turn,
    /// An answer of the endpoint that is being connected to (a new `server` socket), until then.
    Answer(Tick),
}

/// While an endpoint is being connected to.
#[derive(Default)]
struct Attempt {
    /// Who failed.
    tried: Vec<SocketAddrV4>,
    due: Tick,
    /// There is nobody else to try.
    last: bool,
}

/// Both sides of a proxied connection. The endpoint is counted with the frontend for as long as `server` is there.
pub(super) struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
    peer: SocketAddrV4,
    endpoint: SocketAddrV4,
    frontend: Arc<dyn Frontend>,
    /// From the client.
    up: Lane,
    /// To the client.
    down: Lane,
    attempt: Option<Box<Attempt>>,
    /// It waits for its turn.
    queued: bool,
}

impl Connection {
    /// A client that was accepted; [`Connection::connect`] comes next.
    pub(super) fn new(client: Client) -> Self {
        let (up, down) = (Lane::up(), Lane::down());
        let attempt = Some(Box::default());
        let Client { stream, address: peer, frontend } = client;
        Self { client: stream, server: None, peer, endpoint: peer, frontend, up, down, attempt, queued: false }
    }

    pub(super) fn client(&self) -> &TcpStream {
        &self.client
    }

    pub(super) fn server(&self) -> Option<&TcpStream> {
        self.server.as_ref()
    }

    /// Begins to connect to the next endpoint.
    pub(super) fn connect(&mut self, now: Tick) -> Result<Next, End> {
        let Some(attempt) = &mut self.attempt else { return Err(End::Broken) };
        while attempt.tried.len() < ATTEMPTS {
            let Some(backend) = self.frontend.pick(self.peer, &attempt.tried) else { break };
            match open(backend, self.peer) {
                Ok(server) => {
                    (self.server, self.endpoint) = (Some(server), backend.endpoint);
                    attempt.due = now + PATIENCE;
                    return Ok(Next::Answer(attempt.due));
                }
                Err(error) => {
                    let exhausted = sys::is_exhausted(error);
                    self.frontend.release(backend.endpoint, !exhausted);
                    if exhausted {
                        return Err(End::Exhausted);
                    }
                    attempt.tried.push(backend.endpoint);
                }
            }
        }
        Err(End::Broken)
    }

    /// The time of the attempt that was due at `due` is over. If it still lasts, another endpoint is tried, and where
    /// there is none, this one gets more time. If it succeeded, the connection has lasted long enough to be kept alive.
    pub(super) fn expire(&mut self, due: Tick, now: Tick) -> Result<Next, End> {
        let Some(attempt) = &mut self.attempt else {
            // It is no short one.
            let mut sides = [Some(&self.client), self.server.as_ref()].into_iter().flatten();
            return sides.try_for_each(sys::keep_alive).map_or(Err(End::Broken), |()| Ok(Next::Event));
        };
        if attempt.due != due {
            return Ok(Next::Event);
        }
        if attempt.last {
            self.give_up();
            return Err(End::Broken);
        }
        let (slow, endpoint) = (self.server.take(), self.endpoint);
        attempt.tried.push(endpoint);
        if let Ok(next) = self.connect(now) {
            self.frontend.release(endpoint, true);
            return Ok(next);
        }
        (self.server, self.endpoint) = (slow, endpoint);
        match self.frontend.pick(self.peer, &[]) {
            Some(backend) => self.frontend.release(backend.endpoint, false),
            // The Service has no endpoint left, this one neither: it went while it was being connected to.
            None => {
                self.give_up();
                return Err(End::Broken);
            }
        }
        let due = now + LAST_PATIENCE;
        if let Some(attempt) = &mut self.attempt {
            (attempt.due, attempt.last) = (due, true);
        }
        Ok(Next::Answer(due))
    }

    /// Something happened on the client's side.
    pub(super) fn client_event(&mut self, events: EpollFlags, tools: &mut Tools) -> Result<Next, End> {
        self.up.arrived(&self.client, events);
        self.down.drained(events);
        self.go_on(events, tools)
    }

    /// Something happened on the endpoint's side.
    pub(super) fn server_event(&mut self, events: EpollFlags, now: Tick, tools: &mut Tools) -> Result<Next, End> {
        if self.attempt.is_some() {
            if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                self.give_up();
                return self.connect(now);
            }
            if !events.contains(EpollFlags::EPOLLOUT) {
                return Ok(Next::Event);
            }
        }
        let Some(server) = &self.server else { return Ok(Next::Event) };
        self.down.arrived(server, events);
        self.up.drained(events);
        let connected = self.attempt.take().is_some();
        let next = self.go_on(events, tools);
        match &self.server {
            Some(server) if connected && !self.up.began => sys::acknowledge(server),
            _ => {}
        }
        next
    }

    /// Its turn came.
    pub(super) fn turn(&mut self, tools: &mut Tools) -> Result<Next, End> {
        self.queued = false;
        self.go_on(EpollFlags::empty(), tools)
    }

    fn go_on(&mut self, events: EpollFlags, tools: &mut Tools) -> Result<Next, End> {
        let broken = events.contains(EpollFlags::EPOLLERR);
        match &self.server {
            Some(server) if self.attempt.is_none() && (broken || !self.queued) => {
                // Both in any case: what one side had still said before it broke the connection goes to the other.
                let up = self.up.pump(&self.client, server, self.down.done, tools);
                let down = self.down.pump(server, &self.client, self.up.done, tools);
                let (Ok(up), Ok(down)) = (up, down) else { return Err(End::Broken) };
                if self.up.done && self.down.done {
                    return Err(End::Done);
                }
                self.queued = up || down;
            }
            _ => return if broken { Err(End::Broken) } else { Ok(Next::Event) },
        }
        match (broken, self.queued) {
            (true, _) => Err(End::Broken),
            (false, true) => Ok(Next::Turn),
            (false, false) => Ok(Next::Event),
        }
    }

    /// The endpoint that is being connected to failed.
    fn give_up(&mut self) {
        if self.server.take().is_some() {
            self.frontend.release(self.endpoint, true);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.tried.push(self.endpoint);
        }
    }

    /// Closes both sides.
    pub(super) fn close(self, end: End) {
        if end != End::Done {
            sys::reset_on_close(&self.client);
            self.server.iter().for_each(sys::reset_on_close);
        }
        if self.server.is_some() {
            self.frontend.release(self.endpoint, false);
        }
    }
}

/// Begins to connect, from the client's address where that is wished for and possible.
fn open(backend: Backend, client: SocketAddrV4) -> nix::Result<TcpStream> {
    match backend.keep_source.then(|| sys::tcp_connect(backend.endpoint, Some(*client.ip()))) {
        Some(Err(error)) if sys::is_source_refused(error) => sys::note_source_refused(error),
        Some(opened) => return opened,
        None => {}
    }
    sys::tcp_connect(backend.endpoint, None)
}
