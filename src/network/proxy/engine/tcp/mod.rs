//! TCP: listeners and the connections that came by them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::super::Frontend;
use super::helper::{Client, Helper, Load};
use super::slab::{Key, Slab, Token};
use super::steer::Steer;
use super::sys;
use super::timers::{Tick, Timers};
use connection::{Connection, End, Next};
use lane::Tools;

mod connection;
mod lane;
mod pipes;

/// Connections accepted at one listener before others have their turn.
const BATCH: usize = 32;
/// How long a listener rests that the kernel has no descriptors for.
const REST: Tick = 2;
/// What is asked about a connection's sockets, once and for all.
const INTEREST: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLET);

struct Listener {
    socket: OwnedFd,
    frontend: Arc<dyn Frontend>,
    /// Times in a row that it got no descriptor.
    starved: u32,
}

/// All TCP of one engine.
pub(super) struct Tcp {
    epoll: Rc<Epoll>,
    steer: Option<Arc<Steer>>,
    by_address: HashMap<SocketAddrV4, Key>,
    listeners: Slab<Listener>,
    connections: Slab<Connection>,
    tools: Tools,
    attempts: Timers,
    /// Connections that wait for their turn.
    queue: Vec<Key>,
    /// Listeners that rest, and until when.
    resting: Vec<Key>,
    rested: Option<Tick>,
    /// Given up to be able to refuse clients when there is no other descriptor.
    spare: Option<File>,
    team: Team,
}

/// Who shares the connections.
pub(super) enum Team {
    /// The first thread, which accepts, until it needs help.
    Alone,
    First(Helper),
    /// The first thread, which gets no help.
    Only,
    /// The other thread, and how many connections it is thought to have.
    Second(Load),
}

impl Tcp {
    pub(super) fn new(epoll: Rc<Epoll>, team: Team, steer: Option<Arc<Steer>>) -> Self {
        Self {
            epoll,
            steer,
            by_address: HashMap::new(),
            listeners: Slab::default(),
            connections: Slab::default(),
            tools: Tools::default(),
            attempts: Timers::default(),
            queue: Vec::new(),
            resting: Vec::new(),
            rested: None,
            spare: spare(),
            team,
        }
    }

    /// Gives a listener another frontend; `false` where there is no such listener.
    pub(super) fn exchange(&mut self, address: SocketAddrV4, frontend: &Arc<dyn Frontend>) -> bool {
        let listener = self.by_address.get(&address).and_then(|key| self.listeners.get_mut(*key));
        listener.map(|listener| listener.frontend = frontend.clone()).is_some()
    }

    /// Begins to listen.
    pub(super) fn listen(&mut self, address: SocketAddrV4, frontend: Arc<dyn Frontend>) -> io::Result<()> {
        let socket = sys::tcp_listener(address, self.steer.as_deref())?;
        let key = self.listeners.insert(Listener { socket, frontend, starved: 0 });
        self.by_address.insert(address, key);
        let watched =
            self.listeners.get(key).map(|listener| self.epoll.add(&listener.socket, listener_event(key, true)));
        if let Some(Err(error)) = watched {
            self.close(address);
            return Err(error.into());
        }
        Ok(())
    }

    /// Stops listening. Clients that wait to be accepted are refused; connections stay.
    pub(super) fn close(&mut self, address: SocketAddrV4) {
        if let Some(key) = self.by_address.remove(&address) {
            self.listeners.remove(key);
        }
    }

    /// Clients wait at a listener. It is said again for as long as some do.
    pub(super) fn accept(&mut self, key: Key, now: Tick) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get_mut(key) else { return };
            let exhausted = match sys::accept(&listener.socket) {
                Ok((stream, address)) => {
                    listener.starved = 0;
                    let client = Client { stream, address, frontend: listener.frontend.clone() };
                    self.welcome(client, now) == Err(End::Exhausted)
                }
                Err(Errno::EAGAIN) => return,
                Err(error) if sys::is_exhausted(error) => {
                    listener.starved += 1;
                    // Somebody may close a connection in a moment; who waited that long is told that nobody did.
                    if listener.starved > 1 {
                        self.refuse_waiting(key);
                    }
                    true
                }
                // About one client, who is gone already.
                Err(_) => false,
            };
            if exhausted {
                return self.rest(key, now);
            }
        }
    }

    /// Serves a client whom the other thread accepted.
    pub(super) fn serve(&mut self, client: Client, now: Tick) {
        let opened = self.open(client, now);
        if opened.is_err() {
            self.count_ended();
        }
    }

    /// Something happened on a client's side.
    pub(super) fn client(&mut self, key: Key, events: EpollFlags) {
        let tools = &mut self.tools;
        let next = self.connections.get_mut(key).map(|connection| connection.client_event(events, tools));
        self.follow(key, next);
    }

    /// Something happened on an endpoint's side.
    pub(super) fn server(&mut self, key: Key, events: EpollFlags, now: Tick) {
        let tools = &mut self.tools;
        let next = self.connections.get_mut(key).map(|connection| connection.server_event(events, now, tools));
        self.follow(key, next);
    }

    /// What is not about an event: turns, time-outs, listeners that have rested.
    pub(super) fn turn(&mut self, now: Tick) {
        for key in std::mem::take(&mut self.queue) {
            let tools = &mut self.tools;
            let next = self.connections.get_mut(key).map(|connection| connection.turn(tools));
            self.follow(key, next);
        }
        while let Some((due, key)) = self.attempts.pop(now) {
            let next = self.connections.get_mut(key).map(|connection| connection.expire(due, now));
            self.follow(key, next);
        }
        if self.rested.is_some_and(|rested| rested <= now) {
            self.wake();
        }
        self.connections.shrink();
    }

    /// Whether a connection waits for its turn.
    pub(super) fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn due(&self) -> Option<Tick> {
        [self.attempts.next(), self.rested].into_iter().flatten().min()
    }

    /// Ends everything. Who was in the middle of something sees a reset: it did not end well.
    pub(super) fn stop(&mut self) {
        self.listeners = Slab::default();
        self.team = Team::Only;
        for key in self.connections.keys() {
            self.end(key, End::Broken);
        }
    }

    /// Serves a client here, or has it served by who has less to do.
    fn welcome(&mut self, client: Client, now: Tick) -> Result<(), End> {
        let busy = self.connections.len();
        if busy > 0 && matches!(self.team, Team::Alone) {
            self.team = Helper::start().map_or(Team::Only, Team::First);
        }
        match &self.team {
            Team::First(helper) if helper.load() < busy => {
                helper.serve(client);
                Ok(())
            }
            _ => self.open(client, now),
        }
    }

    fn open(&mut self, client: Client, now: Tick) -> Result<(), End> {
        let mut connection = Connection::new(client);
        let next = match connection.connect(now) {
            Ok(next) => next,
            Err(end) => {
                connection.close(end);
                return Err(end);
            }
        };
        let key = self.connections.insert(connection);
        let watched = self.connections.get(key).map(|connection| {
            self.epoll.add(connection.client(), EpollEvent::new(INTEREST, Token::Client(key).pack()))
        });
        if !matches!(watched, Some(Ok(()))) {
            self.connections.remove(key).into_iter().for_each(|connection| connection.close(End::Exhausted));
            return Err(End::Exhausted);
        }
        self.follow(key, Some(Ok(next)));
        Ok(())
    }

    /// Does what comes next for a connection, if there still is one.
    fn follow(&mut self, key: Key, next: Option<Result<Next, End>>) {
        match next {
            None | Some(Ok(Next::Event)) => {}
            Some(Ok(Next::Turn)) => self.queue.push(key),
            Some(Ok(Next::Answer(due))) => {
                let watched = self
                    .connections
                    .get(key)
                    .and_then(Connection::server)
                    .map(|server| self.epoll.add(server, EpollEvent::new(INTEREST, Token::Server(key).pack())));
                match watched {
                    // EEXIST: it had this socket before, and now gets more time.
                    Some(Ok(()) | Err(Errno::EEXIST)) => self.attempts.add(due, key),
                    _ => self.end(key, End::Exhausted),
                }
            }
            Some(Err(end)) => self.end(key, end),
        }
    }

    fn end(&mut self, key: Key, end: End) {
        if let Some(connection) = self.connections.remove(key) {
            connection.close(end);
            self.count_ended();
        }
    }

    fn count_ended(&self) {
        if let Team::Second(load) = &self.team {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Leaves a listener alone for a moment, so that what cannot be accepted does not keep the thread awake.
    fn rest(&mut self, key: Key, now: Tick) {
        if let Some(listener) = self.listeners.get(key) {
            // Fails only on what is not watched, and then it rests anyway.
            self.epoll.modify(&listener.socket, &mut listener_event(key, false)).ok();
            self.resting.push(key);
            self.rested = Some(now + REST);
        }
    }

    fn wake(&mut self) {
        self.rested = None;
        for key in std::mem::take(&mut self.resting) {
            if let Some(listener) = self.listeners.get(key)
                && let Err(error) = self.epoll.modify(&listener.socket, &mut listener_event(key, true))
            {
                tracing::error!(%error, "a Service's listener is lost");
            }
        }
    }

    /// Answers clients who wait, there being nothing for them: better a refusal than silence.
    fn refuse_waiting(&mut self, key: Key) {
        self.spare = None;
        if let Some(listener) = self.listeners.get(key) {
            for (client, _) in std::iter::from_fn(|| sys::accept(&listener.socket).ok()).take(BATCH) {
                sys::reset_on_close(&client);
            }
        }
        self.spare = spare();
    }
}

fn listener_event(key: Key, listening: bool) -> EpollEvent {
    let events = if listening { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
    EpollEvent::new(events, Token::TcpListener(key).pack())
}

/// `None`: none is left; then there is none to give up later, and clients wait.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
