//! The server's end of the link: sessions of nodes, and those who join.
//!
//! A message of a session that is not known is answered by a reset, on which the node begins a new one. A new session
//! takes the place of the old one only when the node has proven itself in it: repeating an old beginning disturbs nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::control::{TO_NODE, TO_SERVER};
use super::join::{self, JoinStream};
use super::mux::{self, End, Ends, Role};
use super::seal::{self, Seal, Seen, SessionId};
use super::tls::{ServerTls, node_name};
use super::topic::{PRESENCE, RESET, SESSION, Topics, Up};
use super::{Bus, Event, Inbox, session};
use crate::link::{OPENING, QUEUE, ServerEnd, channel};

/// Messages of one session that wait. An honest node never has so many under way.
const MESSAGES: usize = 512;
/// For a node to prove itself, on a link that is slow and loses packets.
const HANDSHAKE: Duration = Duration::from_secs(90);
/// Between two beginnings of sessions by one node, or two resets sent to it. One that comes sooner is not heard.
pub(super) const CALM: Duration = Duration::from_millis(200);
/// How many may join at once; the built-in broker sees to it as well.
const JOINS: usize = 16;

/// Whether a node's certificate still counts: asked at each connection and each session.
pub type Allowed = Arc<dyn Fn(&str, &CertificateDer<'_>) -> bool + Send + Sync>;

/// Who comes to the server.
#[derive(Debug)]
pub enum Incoming {
    /// A node begins a session. An older one of the same node is over.
    Node(Accepted),
    /// Somebody wants to join.
    Join {
        /// The way to him; it ends after two minutes at the latest.
        stream: Box<JoinStream>,
        /// Who he is, as far as can be told: the address he comes from, or what he calls himself at a broker of others.
        from: String,
    },
}

/// A node's session.
#[derive(Debug)]
pub struct Accepted {
    /// The node's name, proven by its certificate.
    pub node: String,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The session. Dropping `rx` ends it.
    pub end: ServerEnd,
}

/// A handle on the sessions there are.
#[derive(Clone, Debug)]
pub struct Sessions {
    end: mpsc::Sender<String>,
}

impl Sessions {
    /// Ends the session and the connections of a node at once. It may come again if it is still allowed.
    pub async fn disconnect(&self, node: &str) {
        // Fails only when there are no sessions any more.
        let _ = self.end.send(node.to_owned()).await;
    }
}

/// Accepts nodes and those who join, from a broker.
pub fn accept(
    cluster: &str,
    tls: ServerTls,
    allowed: Allowed,
    bus: Bus,
    inbox: Inbox,
) -> (mpsc::Receiver<Incoming>, Sessions, impl Future<Output = ()> + Send) {
    let (incoming, accepted) = mpsc::channel(OPENING);
    let (end, disconnects) = mpsc::channel(OPENING);
    let (proven, proofs) = mpsc::channel(OPENING);
    let shared = Arc::new(Shared { topics: Topics::new(cluster), tls, allowed, bus, incoming, proven });
    let server = Server { shared, nodes: HashMap::new(), joins: HashMap::new(), tasks: JoinSet::new() };
    (accepted, Sessions { end }, server.run(inbox, disconnects, proofs))
}

/// What all sessions need.
struct Shared {
    topics: Topics,
    tls: ServerTls,
    allowed: Allowed,
    bus: Bus,
    incoming: mpsc::Sender<Incoming>,
    /// Sessions whose node has proven itself.
    proven: mpsc::Sender<Proven>,
}

struct Proven {
    node: String,
    session: SessionId,
    /// The older session is over.
    done: oneshot::Sender<()>,
}

/// A session's task.
struct Task {
    session: SessionId,
    seen: Seen,
    messages: channel::Sender<Bytes>,
    abort: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// The sessions of one node.
#[derive(Default)]
struct Node {
    /// The one the rest of the server knows of.
    current: Option<Task>,
    /// One whose handshake is under way.
    candidate: Option<Task>,
    /// When the last one began or was reset.
    last: Option<Instant>,
}

impl Node {
    fn tasks(&mut self) -> impl Iterator<Item = &mut Option<Task>> {
        [&mut self.current, &mut self.candidate].into_iter()
    }

    fn may_act(&mut self) -> bool {
        let now = Instant::now();
        let calm = self.last.is_none_or(|last| now - last >= CALM);
        if calm {
            self.last = Some(now);
        }
        calm
    }
}

/// What a task was about.
enum Ended {
    Session(String, SessionId),
    Join(String),
    Reset,
}

struct Server {
    shared: Arc<Shared>,
    nodes: HashMap<String, Node>,
    joins: HashMap<String, join::Server>,
    tasks: JoinSet<Ended>,
}

impl Server {
    async fn run(
        mut self,
        mut inbox: Inbox,
        mut disconnects: mpsc::Receiver<String>,
        mut proofs: mpsc::Receiver<Proven>,
    ) {
        loop {
            tokio::select! {
                biased;
                Some(node) = disconnects.recv() => self.disconnect(&node),
                Some(proven) = proofs.recv() => self.promote(proven),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.ended(ended.ok()),
                event = inbox.recv() => match event {
                    None => return,
                    Some(Event::Up) => {}
                    Some(Event::Down) => {
                        self.nodes.clear();
                        self.joins.clear();
                    }
                    Some(Event::Message { topic, payload }) => self.message(&topic, payload),
                },
                () = self.shared.incoming.closed() => return,
            }
        }
    }

    fn message(&mut self, topic: &str, payload: Bytes) {
        let shared = self.shared.clone();
        match shared.topics.parse(topic) {
            Some(Up::Node(node, SESSION)) => self.session_message(node, payload),
            Some(Up::Node(node, PRESENCE)) => self.gone(node, &payload),
            Some(Up::Join(client)) => self.join_message(client, payload),
            Some(Up::Node(..)) | None => tracing::debug!(topic, "a message to nobody"),
        }
    }

    fn session_message(&mut self, name: &str, message: Bytes) {
        let Some((session, number, _)) = seal::parse(message.clone()) else {
            tracing::warn!(node = name, bytes = message.len(), "refused a message that belongs to no session");
            return;
        };
        if !self.nodes.contains_key(name) {
            self.nodes.insert(name.to_owned(), Node::default());
        }
        let Some(node) = self.nodes.get_mut(name) else { return };
        for task in node.tasks() {
            if let Some(known) = task
                && known.session == session
            {
                if known.seen.again(number) {
                    tracing::info!(node = name, number, "a message came again, and is passed by");
                }
                if let Err(channel::TrySendError::Full) = known.messages.try_send(message) {
                    tracing::warn!(node = name, "more messages at once than the protocol allows");
                    *task = None;
                }
                return;
            }
        }
        if !node.may_act() {
            return;
        }
        if number > 0 {
            tracing::info!(node = name, number, "refused a message of a session that is over, or never was");
            self.reset(name, session);
            return;
        }
        let (messages, receiver) = channel::channel(MESSAGES);
        let mut seen = Seen::default();
        seen.again(number);
        // There is room for the first.
        let _ = messages.try_send(message);
        let task = serve(self.shared.clone(), name.to_owned(), session, receiver);
        let abort = self.tasks.spawn(task);
        node.candidate = Some(Task { session, seen, messages, abort });
    }

    /// Ends what there is of a node. A broker that is not ours keeps its connection: there the node is told.
    fn disconnect(&mut self, name: &str) {
        let mut node = self.nodes.remove(name).unwrap_or_default();
        let sessions: Vec<SessionId> = node.tasks().flatten().map(|task| task.session).collect();
        sessions.into_iter().for_each(|session| self.reset(name, session));
        self.shared.bus.disconnect(name);
    }

    fn reset(&mut self, node: &str, session: SessionId) {
        let (shared, node) = (self.shared.clone(), node.to_owned());
        self.tasks.spawn(async move {
            let reset = shared.bus.to_node(&node, RESET, session.to_bytes());
            // If it does not arrive the node finds out by itself.
            let _ = timeout(HANDSHAKE, reset).await;
            Ended::Reset
        });
    }

    fn promote(&mut self, proven: Proven) {
        let Proven { node, session, done } = proven;
        let Some(node) = self.nodes.get_mut(&node) else { return };
        if node.candidate.as_ref().is_some_and(|task| task.session == session) {
            node.current = node.candidate.take();
            // Fails only when the session has ended meanwhile.
            let _ = done.send(());
        }
    }

    /// The last will of one of a node's connections.
    fn gone(&mut self, name: &str, payload: &[u8]) {
        let Ok(connection) = payload.try_into().map(u64::from_be_bytes) else {
            tracing::warn!(node = name, bytes = payload.len(), "refused a last will that names no connection");
            return;
        };
        let Some(node) = self.nodes.get_mut(name) else { return };
        for task in node.tasks() {
            if task.as_ref().is_some_and(|t| t.session.connection == connection) {
                tracing::info!(node = name, "the node's connection is gone");
                *task = None;
            }
        }
        self.forget(name);
    }

    fn ended(&mut self, ended: Option<Ended>) {
        match ended {
            Some(Ended::Session(name, session)) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    let was = node.tasks().find(|t| t.as_ref().is_some_and(|t| t.session == session));
                    if let Some(task) = was {
                        *task = None;
                        self.reset(&name, session);
                    }
                }
                self.forget(&name);
            }
            Some(Ended::Join(client)) => drop(self.joins.remove(&client)),
            Some(Ended::Reset) | None => {}
        }
    }

    /// Keeps nothing of nodes without sessions.
    fn forget(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.current.is_none() && node.candidate.is_none()) {
            self.nodes.remove(name);
        }
    }

    fn join_message(&mut self, client: &str, message: Bytes) {
        if !self.joins.contains_key(client) {
            if join::is_farewell(&message) {
                return;
            }
            if self.joins.len() >= JOINS || !join::is_first(&message) {
                let from = self.shared.bus.origin(client);
                tracing::info!(from, "refused what is not the beginning of a join, or one too many");
                return;
            }
            let (shared, id) = (self.shared.clone(), client.to_owned());
            let (server, task) =
                join::serve(shared.tls.join.clone(), shared.bus.clone(), id.clone(), shared.incoming.clone());
            self.joins.insert(id.clone(), server);
            self.tasks.spawn(async move {
                task.await;
                Ended::Join(id)
            });
        }
        if self.joins.get(client).is_some_and(|server| !server.take(message)) {
            tracing::warn!(from = self.shared.bus.origin(client), "more messages of a join than the protocol allows");
            self.joins.remove(client);
        }
    }
}

/// A node's session, from its first message to its end.
async fn serve(shared: Arc<Shared>, node: String, session: SessionId, messages: channel::Receiver<Bytes>) -> Ended {
    let end = match Box::pin(talk(&shared, &node, session, messages)).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    match end {
        // What happens to the honest, too: by a bad link, or to what an outage kept and delivers late.
        End::Closed | End::Carrier | End::Silent | End::Stalled => tracing::info!(node, "the session ended: {end}"),
        _ => tracing::warn!(node, "the session ended: {end}"),
    }
    if matches!(end, End::Stalled) {
        shared.bus.disconnect(&node);
    }
    Ended::Session(node, session)
}

async fn talk(
    shared: &Shared,
    node: &str,
    session: SessionId,
    messages: channel::Receiver<Bytes>,
) -> Result<std::convert::Infallible, End> {
    // Boxed here is what is not to lie in every session for the rest of its life.
    let (carrier, mut to_carry) = channel::channel::<Bytes>(1);
    let carry = async {
        while let Some(message) = to_carry.recv().await {
            if Box::pin(shared.bus.to_node(node, SESSION, message)).await.is_err() {
                break;
            }
        }
        End::Carrier
    };
    let (to_send, sends) = channel::channel(1);
    let (received, receives) = channel::channel(1);
    let (started, version) = oneshot::channel();
    let (down_tx, mut down_rx) = channel::channel(QUEUE);
    let (up_tx, up_rx) = channel::channel(QUEUE);
    let (open_tx, mut open_rx) = channel::channel(OPENING);
    let accepted = ServerEnd { rx: up_rx, tx: down_tx, streams: open_tx };
    let run = async {
        let role = Role::Server(&mut open_rx);
        // What nodes say is short.
        let held = &mut BytesMut::new();
        let mut ends = Ends { messages, carrier, to_send: sends, received, longest: TO_SERVER, held, started, role };
        let begin = async {
            let mut seal = Seal::server(session, shared.tls.inner.clone())?;
            let plain = timeout(HANDSHAKE, mux::handshake(&mut seal, &mut ends)).await.map_err(|_| End::Silent)??;
            let certificate = seal.certificate().ok_or_else(|| End::Protocol("no certificate".into()))?;
            prove(shared, node, session, &certificate).await?;
            let accepted = Accepted { node: node.to_owned(), certificate, end: accepted };
            shared.incoming.send(Incoming::Node(accepted)).await.map_err(|_| End::Closed)?;
            tracing::info!(node, "the node is connected");
            Ok::<_, End>((seal, plain))
        };
        let (seal, plain) = Box::pin(begin).await?;
        Ok::<_, End>(Box::pin(mux::run(seal, plain, ends)).await.0)
    };
    let version = async { version.await.ok() };
    tokio::select! {
        result = run => Err(result.unwrap_or_else(|end| end)),
        end = carry => Err(end),
        () = session::listen(receives, &up_tx, TO_SERVER, 1, version) => Err(End::Closed),
        never = session::speak(&mut down_rx, &to_send, TO_NODE, |_| false, std::convert::identity) => match never {},
    }
}

/// Whether the certificate is that of the node whose topics are used; the older session is over on return.
async fn prove(shared: &Shared, node: &str, session: SessionId, certificate: &CertificateDer<'_>) -> Result<(), End> {
    match node_name(certificate) {
        Some(name) if name != node => return Err(End::Protocol(format!("the certificate is that of {name}"))),
        Some(name) if (shared.allowed)(&name, certificate) => {}
        Some(_) => return Err(End::Protocol("the certificate is not valid any more".into())),
        None => return Err(End::Protocol("the certificate is not of a node".into())),
    }
    let (done, promoted) = oneshot::channel();
    let proven = Proven { node: node.to_owned(), session, done };
    shared.proven.send(proven).await.map_err(|_| End::Closed)?;
    promoted.await.map_err(|_| End::Closed)
}
