//! A broker in the head, in virtual time: it delays, throttles, loses, repeats, reorders, and means harm.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Authority;
use crate::link::mqtt::node::Link;
use crate::link::mqtt::seal::SessionId;
use crate::link::mqtt::tls::ClientTls;
use crate::link::mqtt::topic::{PRESENCE, Topics};
use crate::link::mqtt::{Accepted, Bus, Event, Incoming, LinkState, NodeConfig, accept};
use crate::link::{NodeEnd, ServerEnd};

type Message = (String, Bytes);
/// The way to the node, while it is connected.
type Current = Arc<Mutex<Option<mpsc::Sender<Message>>>>;

pub(super) const NODE: &str = "pi-1";

/// What may happen to a message, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) swapped: u64,
    pub(super) flipped: u64,
    pub(super) cut_short: u64,
    /// Some message of the past comes again.
    pub(super) replayed: u64,
    /// Nothing passes.
    pub(super) parted: bool,
    pub(super) delay: Duration,
    /// Bytes a second; 0: no limit.
    pub(super) rate: u64,
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit
    }

    fn happens(&mut self, thousandths: u64) -> bool {
        self.below(1000) < thousandths
    }
}

pub(super) struct World {
    pub(super) incoming: mpsc::Receiver<Incoming>,
    pub(super) node: NodeEnd,
    pub(super) state: watch::Receiver<LinkState>,
    pub(super) faults: watch::Sender<Faults>,
    /// Ends the node's connection to the broker; another one is made a second later.
    pub(super) cut: Arc<Notify>,
    /// What passed, both ways.
    pub(super) tap: Arc<Mutex<Vec<(String, Bytes)>>>,
    /// What the broker thinks up by itself.
    pub(super) to_server: mpsc::Sender<Event>,
    _tasks: JoinSet<()>,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let authority = Authority::new();
        let tls = authority.node_tls(NODE);
        Self::with(&authority, tls, seed, faults)
    }

    pub(super) fn with(authority: &Authority, tls: ClientTls, seed: u64, faults: Faults) -> Self {
        let topics = Topics::new("c");
        let faults = watch::Sender::new(faults);
        let (cut, tap) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let (to_server, inbox) = mpsc::channel(64);
        let (from_server, mut downward) = mpsc::channel(64);
        let bus = Bus::wired(topics.clone(), from_server);
        let (incoming, _, serving) = accept("c", authority.server_tls(), Arc::new(|_, _| true), bus, inbox);
        let mut tasks = JoinSet::new();
        tasks.spawn(serving);

        let current = Current::default();
        let (down, mut to_node) = pipe(&mut tasks, Random(seed | 1), faults.subscribe(), tap.clone());
        let (up, mut arriving) = pipe(&mut tasks, Random(seed.rotate_left(17) | 1), faults.subscribe(), tap.clone());
        let server = to_server.clone();
        tasks.spawn(async move {
            while let Some(message) = downward.recv().await {
                let _ = down.send(message).await;
            }
        });
        let target = current.clone();
        tasks.spawn(async move {
            while let Some(message) = to_node.recv().await {
                let sender = target.lock().unwrap().clone();
                if let Some(sender) = sender {
                    let _ = sender.send(message).await;
                }
            }
        });
        let inbox = server.clone();
        tasks.spawn(async move {
            while let Some((topic, payload)) = arriving.recv().await {
                let _ = inbox.send(Event::Message { topic, payload }).await;
            }
        });
        let (_, addresses) = watch::channel(Vec::new());
        let config = NodeConfig {
            cluster: "c".into(),
            node: NODE.into(),
            addresses,
            network: watch::channel(0).1,
            keepalive: NodeConfig::KEEPALIVE,
        };
        let provided = tls.clone();
        let (node, state, link) = Link::new(config, Arc::new(move || Ok(provided.clone())));
        tasks.spawn(connections(link, tls, topics, current, up, server, cut.clone()));
        Self { incoming, node, state, faults, cut, tap, to_server, _tasks: tasks }
    }

    pub(super) async fn accepted(&mut self) -> Accepted {
        match timeout(Duration::from_secs(600), self.incoming.recv()).await.expect("no session").unwrap() {
            Incoming::Node(accepted) => accepted,
            Incoming::Join { .. } => panic!("a join"),
        }
    }

    pub(super) async fn end(&mut self) -> ServerEnd {
        self.accepted().await.end
    }
}

async fn connections(
    mut link: Link,
    tls: ClientTls,
    topics: Topics,
    current: Current,
    up: mpsc::Sender<(String, Bytes)>,
    server: mpsc::Sender<Event>,
    cut: Arc<Notify>,
) {
    loop {
        let id = SessionId::first();
        let (outgoing, mut from_node) = mpsc::channel(16);
        let (to_node, incoming) = mpsc::channel(16);
        *current.lock().unwrap() = Some(to_node);
        let up = up.clone();
        let pump = tokio::spawn(async move {
            while let Some(message) = from_node.recv().await {
                let _ = up.send(message).await;
            }
        });
        {
            let mut sessions = std::pin::pin!(link.sessions(id, tls.clone(), outgoing, incoming));
            tokio::select! {
                over = &mut sessions => if over.is_none() { return },
                () = cut.notified() => {
                    *current.lock().unwrap() = None;
                    sessions.await;
                }
            }
        }
        pump.abort();
        let payload = Bytes::copy_from_slice(&id.connection.to_be_bytes());
        let _ = server.send(Event::Message { topic: topics.up(NODE, PRESENCE), payload }).await;
        sleep(Duration::from_secs(1)).await;
    }
}

/// One direction.
fn pipe(
    tasks: &mut JoinSet<()>,
    mut random: Random,
    faults: watch::Receiver<Faults>,
    tap: Arc<Mutex<Vec<Message>>>,
) -> (mpsc::Sender<Message>, mpsc::Receiver<Message>) {
    let (input, mut taken) = mpsc::channel::<Message>(1);
    let (scheduled, mut due) = mpsc::unbounded_channel::<(Instant, Message)>();
    let (output, given) = mpsc::channel(64);
    tasks.spawn(async move {
        let mut free = Instant::now();
        let mut held: Option<Message> = None;
        while let Some(message) = taken.recv().await {
            let now = *faults.borrow();
            if now.parted {
                continue;
            }
            for message in mangled(&mut random, &now, message, &tap, &mut held) {
                if now.rate > 0 {
                    let time = Duration::from_secs_f64((message.1.len() + 100) as f64 / now.rate as f64);
                    free = free.max(Instant::now()) + time;
                }
                let at = free.max(Instant::now()) + now.delay;
                let _ = scheduled.send((at, message));
            }
        }
    });
    tasks.spawn(async move {
        while let Some((at, message)) = due.recv().await {
            sleep_until(at).await;
            if output.send(message).await.is_err() {
                return;
            }
        }
    });
    (input, given)
}

fn mangled(
    random: &mut Random,
    faults: &Faults,
    message: Message,
    tap: &Mutex<Vec<Message>>,
    held: &mut Option<Message>,
) -> Vec<Message> {
    let mut tap = tap.lock().unwrap();
    tap.push(message.clone());
    let mut all = Vec::new();
    if random.happens(faults.replayed) {
        let old = random.below(tap.len() as u64) as usize;
        all.push(tap[old].clone());
    }
    let (topic, payload) = message;
    let mut payload = BytesMut::from(&payload[..]);
    if random.happens(faults.flipped) && !payload.is_empty() {
        let at = random.below(payload.len() as u64) as usize;
        payload[at] ^= 1 << random.below(8);
    }
    if random.happens(faults.cut_short) {
        let length = random.below(payload.len() as u64 + 1) as usize;
        payload.truncate(length);
    }
    let message = (topic, payload.freeze());
    if random.happens(faults.repeated) {
        all.push(message.clone());
    }
    if random.happens(faults.swapped) && held.is_none() {
        *held = Some(message);
    } else if !random.happens(faults.lost) {
        all.push(message);
        all.extend(held.take());
    }
    all
}
