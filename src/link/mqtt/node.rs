//! The node's end of the link.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::backoff::{Backoff, Failure};
use super::bus::{OFFLINE, ONLINE};
use super::client::{self, ClientError, Options};
use super::control::{TO_NODE, TO_SERVER, encode};
use super::mux::{self, End, Ends, Role};
use super::seal::{self, Seal, Seen, SessionId};
use super::server::CALM;
use super::tls::{ClientTls, TlsError, server_name};
use super::topic::{PRESENCE, RESET, SESSION, Topics};
use super::{random, session};
use crate::link::message::{Envelope, ToNode, ToServer};
use crate::link::underway::Underway;
use crate::link::{NodeEnd, OPENING, Open, QUEUE, channel};

/// Messages of one connection that wait.
const CARRIER: usize = 16;
/// For both ends to prove who they are.
const HANDSHAKE: Duration = Duration::from_secs(90);
/// A session that held this long was a good one: the next attempt comes at once.
const GOOD: Duration = Duration::from_secs(20);
/// When a server comes to a broker, or a network to life, its nodes begin their sessions spread over this time.
const SPREAD_MS: u64 = 1000;

/// After one session has begun, or was refused, the server does not hear of the next at once: it would be lost, and the node
/// wait for an answer for as long as [`HANDSHAKE`].
const LISTENS: Duration = CALM.saturating_mul(2);

/// Gives the node's certificate as it is now, at every connection.
pub type TlsProvider = Arc<dyn Fn() -> Result<ClientTls, TlsError> + Send + Sync>;

/// How a node reaches its server.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Identifier of the cluster.
    pub cluster: String,
    /// The node's name, as in its certificate.
    pub node: String,
    /// `host:port` of the server or the broker, one or several; they may change while the node runs.
    pub addresses: watch::Receiver<Vec<String>>,
    /// Counts changes of this host's network after which a server that was out of reach may be in reach again.
    pub network: watch::Receiver<u64>,
    /// A quiet connection is tried this often; see [`NodeConfig::KEEPALIVE`].
    pub keepalive: Duration,
}

impl NodeConfig {
    /// The default: 12 KB an hour, and a connection that broke without a word is noticed within 90 s.
    pub const KEEPALIVE: Duration = Duration::from_secs(60);
}

/// How the link is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Since when there is a session with the server; `None`: there is none.
    pub connected: Option<SystemTime>,
    /// When the server or the broker was last heard. Changes without notice to watchers.
    pub last_contact: Option<SystemTime>,
    /// The address of the current connection, or the one tried last.
    pub address: Option<String>,
    /// Why the last attempt failed or the last session ended; `None` while connected.
    pub error: Option<String>,
}

/// The node's end of a link that is made again whenever it is lost, how it is doing, and the task that does it.
///
/// Each session begins with a `Hello` of the carrier's own. What the node says while there is none waits in its channel;
/// what it said and the server did not confirm is said again in the next session.
pub fn node(
    config: NodeConfig,
    tls: TlsProvider,
) -> (NodeEnd, watch::Receiver<LinkState>, impl Future<Output = ()> + Send) {
    let (end, state, link) = Link::new(config, tls);
    (end, state, link.run())
}

/// The task's state.
pub(super) struct Link {
    config: NodeConfig,
    topics: Topics,
    tls: TlsProvider,
    state: watch::Sender<LinkState>,
    up: channel::Receiver<Envelope<ToServer>>,
    down: channel::Sender<Envelope<ToNode>>,
    opened: channel::Sender<Open>,
    underway: Underway,
    /// Said, and not confirmed.
    again: VecDeque<Bytes>,
    /// Heard, of a long message whose end did not come.
    held: BytesMut,
    /// Sessions there were; the epoch of what arrives.
    sessions: u64,
    backoff: Backoff,
}

/// What to do after a session.
enum After {
    /// Another one over the same connection, when the server comes or after a pause.
    Session,
    /// Another one soon: a server has come.
    Soon,
    /// Another connection.
    Connection,
    /// Nothing: the node is gone.
    Nothing,
}

/// What ends a session from outside.
#[derive(Clone, Copy)]
enum Said {
    Reset,
    Online,
    Offline,
}

impl Said {
    fn reason(self) -> &'static str {
        match self {
            Self::Reset => "the server does not know the session any more",
            Self::Online => "the server has started anew",
            Self::Offline => "the server has left the broker",
        }
    }
}

impl Link {
    pub(super) fn new(config: NodeConfig, tls: TlsProvider) -> (NodeEnd, watch::Receiver<LinkState>, Self) {
        let (down, down_rx) = channel::channel(QUEUE);
        let (up_tx, up) = channel::channel(QUEUE);
        let (opened, open_rx) = channel::channel(OPENING);
        let (state, watched) = watch::channel(LinkState::default());
        let topics = Topics::new(&config.cluster);
        let (again, held, sessions, backoff) = (VecDeque::new(), BytesMut::new(), 0, Backoff::default());
        let underway = Underway::default();
        let end = NodeEnd { rx: down_rx, tx: up_tx, streams: open_rx, underway: underway.clone() };
        let link = Self { config, topics, tls, state, up, down, opened, underway, again, held, sessions, backoff };
        (end, watched, link)
    }

    async fn run(mut self) {
        let (mut turn, mut refusals) = (0, 0);
        loop {
            let addresses = self.config.addresses.borrow_and_update().clone();
            let address = addresses.get(turn % addresses.len().max(1)).cloned();
            let failure = match address {
                None => {
                    self.failed("no address of a server is known");
                    Failure::Unreachable
                }
                Some(address) => match self.connection(&address).await {
                    None => return,
                    Some(failure) => failure,
                },
            };
            turn = if self.backoff.is_reset() { turn } else { turn + 1 };
            // One of several addresses may be a way in for others only: the next one is tried soon.
            refusals = if failure == Failure::Refused { refusals + 1 } else { 0 };
            let failure = if refusals % addresses.len().max(1) == 0 { failure } else { Failure::Unreachable };
            let wait = self.backoff.next(failure);
            tracing::debug!(wait_ms = wait.as_millis(), "the next attempt to reach the server");
            tokio::select! {
                () = sleep(wait) => {}
                // Never while nobody can change them.
                Ok(()) = self.config.addresses.changed() => {}
                Ok(()) = self.config.network.changed(), if failure != Failure::Refused => {
                    self.backoff.reset();
                    sleep(spread()).await;
                }
                () = self.down.closed() => return,
            }
        }
    }

    fn failed(&self, error: &str) {
        let told = self.state.send_if_modified(|state| {
            let changed = state.connected.is_some() || state.error.as_deref() != Some(error);
            state.connected = None;
            state.error = Some(error.to_owned());
            changed
        });
        if told {
            tracing::warn!(error, "no link to the server");
        }
    }

    /// One connection to its end; `None`: the node is gone.
    async fn connection(&mut self, address: &str) -> Option<Failure> {
        self.state.send_if_modified(|state| state.address.replace(address.to_owned()).as_deref() != Some(address));
        let tls = match (self.tls)() {
            Ok(tls) => tls,
            Err(error) => {
                self.failed(&error.to_string());
                return Some(Failure::Refused);
            }
        };
        let id = SessionId::first();
        let options = Options {
            id: self.config.node.clone(),
            name: server_name(),
            keepalive: self.config.keepalive,
            will: Some((
                self.topics.up(&self.config.node, PRESENCE),
                Bytes::copy_from_slice(&id.connection.to_be_bytes()),
            )),
            filters: self.topics.node_filters(&self.config.node).into(),
        };
        let mut network = self.config.network.clone();
        network.mark_unchanged();
        let connected = tokio::select! {
            connected = client::connect(address, tls.outer.clone(), options) => connected,
            // It may be stuck, too.
            Ok(()) = network.changed() => Err(ClientError::Lost("the network has changed".into())),
        };
        let client = match connected {
            Ok(client) => client.watching(network),
            Err(error) => {
                self.failed(&error.to_string());
                return Some(error.failure());
            }
        };
        let (outgoing, from_us) = mpsc::channel(CARRIER);
        let (to_us, incoming) = mpsc::channel(CARRIER);
        let state = self.state.clone();
        let heard = move || {
            state.send_if_modified(|state| {
                state.last_contact = Some(SystemTime::now());
                false
            });
        };
        let mut sessions = pin!(Self::sessions(self, id, tls, outgoing, incoming));
        tokio::select! {
            failure = &mut sessions => failure,
            error = client.run(from_us, to_us, heard) => {
                // The session is cut off now and puts away what was not confirmed.
                let failure = sessions.await;
                tracing::info!(%error, "the connection to the server ended");
                failure
            }
        }
    }

    /// Sessions over one connection until it ends; `None`: the node is gone.
    pub(super) async fn sessions(
        &mut self,
        mut id: SessionId,
        tls: ClientTls,
        outgoing: mpsc::Sender<(String, Bytes)>,
        mut incoming: mpsc::Receiver<(String, Bytes)>,
    ) -> Option<Failure> {
        loop {
            let after = self.session(id, &tls, &outgoing, &mut incoming).await;
            id = id.next();
            let pause = match after {
                After::Nothing => return None,
                After::Connection => return Some(Failure::Unreachable),
                After::Soon => soon(),
                After::Session => self.backoff.next(Failure::Refused).max(LISTENS),
            };
            if !self.pause(pause, &mut incoming).await {
                return Some(Failure::Unreachable);
            }
        }
    }

    /// Waits until it is time for the next session; a server that comes to the broker shortens it. False: the connection
    /// has ended.
    async fn pause(&self, pause: Duration, incoming: &mut mpsc::Receiver<(String, Bytes)>) -> bool {
        let mut until = Instant::now() + pause;
        loop {
            match timeout_at(until, incoming.recv()).await {
                Err(_) => return true,
                Ok(None) => return false,
                Ok(Some((topic, payload))) if topic == self.topics.server() && payload == ONLINE => {
                    until = until.min(Instant::now() + soon());
                }
                Ok(Some(_)) => {}
            }
        }
    }

    /// One session to its end.
    async fn session(
        &mut self,
        id: SessionId,
        tls: &ClientTls,
        outgoing: &mpsc::Sender<(String, Bytes)>,
        incoming: &mut mpsc::Receiver<(String, Bytes)>,
    ) -> After {
        let begun = Instant::now();
        let (to_session, messages) = channel::channel(CARRIER);
        let (carrier, from_session) = channel::channel(1);
        let (mut said, mut lost) = (None, false);
        let node = &self.config.node;
        let (up, down) = (self.topics.up(node, SESSION), self.topics.down(node, SESSION));
        let (reset, server) = (self.topics.down(node, RESET), self.topics.server());
        let (mut seen, mut foreign) = (Seen::default(), false);
        let sort = async {
            while let Some((topic, payload)) = incoming.recv().await {
                if topic == down {
                    match seal::parse(payload.clone()) {
                        None => tracing::warn!(bytes = payload.len(), "refused a message that belongs to no session"),
                        Some((session, number, _)) if session != id => {
                            if !std::mem::replace(&mut foreign, true) {
                                tracing::info!(number, "a message of another session is passed by");
                            }
                        }
                        Some((_, number, _)) if seen.again(number) => {
                            tracing::info!(number, "a message came again, and is passed by");
                        }
                        Some(_) => {}
                    }
                    // Fails when the session has ended by itself.
                    let _ = to_session.send(payload).await;
                    continue;
                }
                said = match &payload[..] {
                    id_bytes if topic == reset && SessionId::parse(id_bytes) == Some(id) => Some(Said::Reset),
                    ONLINE if topic == server => Some(Said::Online),
                    OFFLINE if topic == server => Some(Said::Offline),
                    _ => continue,
                };
                break;
            }
            lost = said.is_none();
            // Ends the session, which puts away what was not confirmed.
            drop(to_session);
            std::future::pending::<Infallible>().await
        };
        let pass = pass(from_session, up, outgoing);
        self.sessions += 1;
        let talk = talk(Talk {
            id,
            tls,
            messages,
            carrier,
            epoch: self.sessions,
            state: &self.state,
            again: &mut self.again,
            held: &mut self.held,
            up: &mut self.up,
            underway: &self.underway,
            down: &self.down,
            opened: &self.opened,
        });
        let end = tokio::select! {
            never = sort => match never {},
            never = pass => match never {},
            end = talk => end,
        };
        if self.down.is_closed() {
            return After::Nothing;
        }
        if self.state.borrow().connected.is_some() && begun.elapsed() > GOOD {
            self.backoff.reset();
        }
        self.failed(&said.map_or_else(|| end.to_string(), |said| said.reason().to_owned()));
        match (said, end) {
            (Some(Said::Online), _) => After::Soon,
            (Some(_), _) => After::Session,
            // The server may be behind another of the addresses.
            (None, End::Silent) if self.config.addresses.borrow().len() > 1 => After::Connection,
            (None, End::Seal(_) | End::Protocol(_) | End::Closed | End::Silent) if !lost => After::Session,
            (None, _) => After::Connection,
        }
    }
}

fn spread() -> Duration {
    Duration::from_millis(random() % SPREAD_MS)
}

/// Until the next session over the same connection: spread, but not before the server listens.
fn soon() -> Duration {
    LISTENS + spread()
}

/// Carries a session's messages to the connection.
async fn pass(mut from: channel::Receiver<Bytes>, topic: String, to: &mpsc::Sender<(String, Bytes)>) -> Infallible {
    while let Some(message) = from.recv().await {
        if to.send((topic.clone(), message)).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

struct Talk<'a> {
    id: SessionId,
    tls: &'a ClientTls,
    messages: channel::Receiver<Bytes>,
    carrier: channel::Sender<Bytes>,
    epoch: u64,
    state: &'a watch::Sender<LinkState>,
    again: &'a mut VecDeque<Bytes>,
    held: &'a mut BytesMut,
    up: &'a mut channel::Receiver<Envelope<ToServer>>,
    underway: &'a Underway,
    down: &'a channel::Sender<Envelope<ToNode>>,
    opened: &'a channel::Sender<Open>,
}

/// What a session says and hears, from its handshake on.
async fn talk(talk: Talk<'_>) -> End {
    let Talk { id, tls, messages, carrier, epoch, state, again, held, up, underway, down, opened } = talk;
    let (to_send, sends) = channel::channel(1);
    let (received, receives) = channel::channel(1);
    let (started, version) = oneshot::channel();
    let role = Role::Node(opened);
    let mut ends = Ends { messages, carrier, to_send: sends, received, longest: TO_NODE, held, started, role };
    let mut seal = match Seal::client(id, tls.inner.clone()) {
        Ok(seal) => seal,
        Err(error) => return error.into(),
    };
    let plain = match timeout(HANDSHAKE, mux::handshake(&mut seal, &mut ends)).await {
        Ok(Ok(plain)) => plain,
        Ok(Err(end)) => return end,
        Err(_) => return End::Silent,
    };
    let version = async {
        let version = version.await.ok()?;
        tracing::info!(version, "connected to the server");
        state.send_modify(|state| (state.connected, state.error) = (Some(SystemTime::now()), None));
        Some(version)
    };
    let speak = async {
        let hello = encode(&ToServer::Hello, TO_SERVER).unwrap_or_default();
        // Fails only when the session is over.
        let _ = to_send.send(hello.clone()).await;
        while let Ok(permit) = to_send.reserve().await {
            match again.pop_front() {
                Some(message) if message == hello => {}
                Some(message) => permit.send(message),
                None => break,
            }
        }
        // What the node itself asks for at first has been asked for.
        let mut first = true;
        let skip = move |message: &ToServer| std::mem::take(&mut first) && *message == ToServer::Hello;
        session::speak(up, &to_send, TO_SERVER, skip, |bytes| underway.carry(bytes)).await
    };
    let (end, rest) = tokio::select! {
        result = mux::run(seal, plain, ends) => result,
        () = session::listen(receives, down, TO_NODE, epoch, version) => return End::Closed,
        never = speak => match never {},
    };
    rest.into_iter().rev().for_each(|message| again.push_front(message));
    end
}
