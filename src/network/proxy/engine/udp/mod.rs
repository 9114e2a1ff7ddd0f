//! UDP: listeners, and a socket of its own for what each client says to its endpoint.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit};

use super::super::Frontend;
use super::slab::{Key, Slab, Token};
use super::steer::Steer;
use super::sys;
use super::timers::{Tick, Timers};
use answer::Answers;
use batch::{BATCH, Batch};
use flow::{Flow, Path};
use refusal::Refusals;

mod answer;
mod batch;
mod flow;
mod refusal;

/// Flows there may be at once, and the part of this process's descriptors that they may have: a flood of clients ends
/// the oldest flows, and nothing else.
const MOST: u64 = 16 << 10;
const PART: u64 = 4;
/// Batches taken from one socket before others have their turn.
const TURN: usize = 4;
/// How often datagrams are sent again because who they were sent to refused.
const RESENDS: usize = 3;

struct Listener {
    address: SocketAddrV4,
    socket: UdpSocket,
    /// Where the socket's own port is not the listener's.
    answers: Option<Answers>,
    frontend: Arc<dyn Frontend>,
}

/// All UDP of one engine.
pub(super) struct Udp {
    epoll: Rc<Epoll>,
    steer: Option<Arc<Steer>>,
    by_address: HashMap<SocketAddrV4, Key>,
    listeners: Slab<Listener>,
    by_path: HashMap<Path, Key>,
    flows: Slab<Flow>,
    /// An entry for each flow; one that comes too early is put off.
    ends: Timers,
    most: usize,
    refusals: Refusals,
    /// Made with the first listener.
    batch: Option<Box<Batch>>,
}

impl Udp {
    pub(super) fn new(epoll: Rc<Epoll>, steer: Option<Arc<Steer>>) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Self {
            epoll,
            steer,
            by_address: HashMap::new(),
            listeners: Slab::default(),
            by_path: HashMap::new(),
            flows: Slab::default(),
            ends: Timers::default(),
            most: MOST.min(descriptors / PART) as usize,
            refusals: Refusals::default(),
            batch: None,
        }
    }

    /// Gives a listener another frontend; `false` where there is no such listener.
    pub(super) fn exchange(&mut self, address: SocketAddrV4, frontend: &Arc<dyn Frontend>) -> bool {
        let listener = self.by_address.get(&address).and_then(|key| self.listeners.get_mut(*key));
        listener.map(|listener| listener.frontend = frontend.clone()).is_some()
    }

    /// Begins to listen.
    pub(super) fn listen(&mut self, address: SocketAddrV4, frontend: Arc<dyn Frontend>) -> io::Result<()> {
        let (socket, answers) = self.socket(address)?;
        let key = self.listeners.insert(Listener { address, socket, answers, frontend });
        self.by_address.insert(address, key);
        self.batch.get_or_insert_with(Batch::new);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::UdpListener(key).pack());
        let watched = self.listeners.get(key).map(|listener| self.epoll.add(&listener.socket, event));
        if let Some(Err(error)) = watched {
            self.close(address);
            return Err(error.into());
        }
        Ok(())
    }

    /// A listening socket, and what answers in its place where another program has the port.
    fn socket(&self, address: SocketAddrV4) -> io::Result<(UdpSocket, Option<Answers>)> {
        match (sys::udp_listener(address), &self.steer) {
            (Err(error), Some(steer)) if error.kind() == io::ErrorKind::AddrInUse && !address.ip().is_unspecified() => {
                // Where the kernel cannot do that for UDP, the port is in use.
                let led = sys::led_udp_listener(address, steer).and_then(|socket| Ok((socket, Answers::new(address)?)));
                led.map(|(socket, answers)| (socket, Some(answers))).map_err(|_| error)
            }
            (listener, _) => listener.map(|socket| (socket, None)),
        }
    }

    /// Stops listening. Its flows end: there is no end that they could be waited for.
    pub(super) fn close(&mut self, address: SocketAddrV4) {
        if let Some(key) = self.by_address.remove(&address) {
            self.end_where(|flow| flow.path().listener == key);
            self.listeners.remove(key);
        }
    }

    /// Ends the flows of a listener that go to these endpoints.
    pub(super) fn forget(&mut self, address: SocketAddrV4, endpoints: &[SocketAddrV4]) {
        if let Some(key) = self.by_address.get(&address).copied() {
            self.end_where(|flow| flow.path().listener == key && flow.goes_to(endpoints));
        }
    }

    /// Datagrams wait at a listener. It is said again for as long as some do.
    pub(super) fn datagrams(&mut self, key: Key, now: Tick) {
        let Some(mut batch) = self.batch.take() else { return };
        for _ in 0..TURN {
            let Some(listener) = self.listeners.get(key) else { break };
            // The only errors are that there is nothing, or no memory for it now.
            let Ok(count) = batch.receive(&listener.socket) else { break };
            let path = |index| Path { listener: key, client: batch.source(index), local: batch.local(index) };
            let paths: [Option<Path>; BATCH] = std::array::from_fn(|index| (index < count).then(|| path(index)));
            let mut start = 0;
            for run in paths[..count].chunk_by(|one, next| one == next) {
                let which = start..start + run.len();
                start = which.end;
                if let Some(path) = run[0] {
                    self.forward(path, &mut batch, which, now);
                }
            }
            if count < BATCH {
                break;
            }
        }
        self.batch = Some(batch);
    }

    /// An endpoint answered, or refused. It is said again for as long as there is more.
    pub(super) fn replies(&mut self, key: Key, now: Tick) {
        let Some(batch) = &mut self.batch else { return };
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(key) else { return };
            let Some(socket) = flow.socket() else { return };
            match batch.receive(socket) {
                Ok(count) => {
                    flow.touch(true, now);
                    let path = flow.path();
                    // Whether the client is still there is its own business.
                    match self.listeners.get(path.listener) {
                        Some(Listener { answers: Some(answers), .. }) => {
                            (0..count).for_each(|index| answers.send(path.client, batch.payload(index)));
                        }
                        Some(listener) => {
                            batch.send_to(&listener.socket, 0..count, path.client, path.local).ok();
                        }
                        None => {}
                    }
                    if count < BATCH {
                        return;
                    }
                }
                Err(error) if is_refusal(error) => return flow.disconnect(true),
                Err(_) => return,
            }
        }
    }

    /// Flows that nobody has used for long.
    pub(super) fn turn(&mut self, now: Tick) {
        while let Some((_, key)) = self.ends.pop(now) {
            match self.flows.get(key).map(Flow::due) {
                Some(due) if due > now => self.ends.add(due, key),
                Some(_) => self.end(key),
                None => {}
            }
        }
        self.flows.shrink();
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn due(&self) -> Option<Tick> {
        self.ends.next()
    }

    /// Ends everything.
    pub(super) fn stop(&mut self) {
        self.end_where(|_| true);
        self.listeners = Slab::default();
    }

    fn forward(&mut self, path: Path, batch: &mut Batch, which: Range<usize>, now: Tick) {
        for _ in 0..RESENDS {
            let Some(key) = self.flow(path, now) else { break };
            let Some(flow) = self.flows.get_mut(key) else { return };
            let Some(socket) = flow.socket() else { break };
            match batch.send(socket, which.clone()) {
                // The kernel tells of the last datagram's refusal instead of sending this one.
                Err(error) if is_refusal(error) => flow.disconnect(true),
                _ => return flow.touch(false, now),
            }
        }
        if let Some(listener) = self.listeners.get(path.listener) {
            let address = path.local.map_or(listener.address, |ip| SocketAddrV4::new(ip, listener.address.port()));
            self.refusals.send(path.client, address, now);
        }
    }

    /// The flow of this path, with a socket; `None`: nobody answers.
    fn flow(&mut self, path: Path, now: Tick) -> Option<Key> {
        let known = self.by_path.get(&path).copied();
        let flow = known.and_then(|key| self.flows.get_mut(key));
        if flow.as_ref().is_some_and(|flow| flow.socket().is_some()) {
            return known;
        }
        let frontend = self.listeners.get(path.listener)?.frontend.clone();
        let key = match (known, flow) {
            (Some(key), Some(flow)) => {
                // An error leaves it without a socket, as having found nobody does.
                flow.connect(&frontend).ok();
                key
            }
            _ => self.open(Flow::new(path, frontend.clone(), now), &frontend)?,
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Flow(key).pack());
        let watched = self.flows.get(key).and_then(Flow::socket).map(|socket| self.epoll.add(socket, event));
        if !matches!(watched, Some(Ok(()))) {
            self.end(key);
            return None;
        }
        Some(key)
    }

    fn open(&mut self, mut flow: Flow, frontend: &Arc<dyn Frontend>) -> Option<Key> {
        if self.flows.len() >= self.most {
            self.end_oldest();
        }
        if flow.connect(frontend).is_err() {
            self.end_oldest();
            flow.connect(frontend).ok();
        }
        flow.socket()?;
        let (path, due) = (flow.path(), flow.due());
        let key = self.flows.insert(flow);
        self.by_path.insert(path, key);
        self.ends.add(due, key);
        Some(key)
    }

    /// Ends the flow that would end next.
    fn end_oldest(&mut self) {
        while let Some((due, key)) = self.ends.pop(Tick::MAX) {
            match self.flows.get(key).map(Flow::due) {
                Some(real) if real > due => self.ends.add(real, key),
                Some(_) => return self.end(key),
                None => {}
            }
        }
    }

    fn end_where(&mut self, which: impl Fn(&Flow) -> bool) {
        for key in self.flows.keys() {
            if self.flows.get(key).is_some_and(&which) {
                self.end(key);
            }
        }
    }

    fn end(&mut self, key: Key) {
        if let Some(mut flow) = self.flows.remove(key) {
            self.by_path.remove(&flow.path());
            flow.disconnect(false);
        }
    }
}

/// Whether nobody is there, as ICMP has it.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN)
}
