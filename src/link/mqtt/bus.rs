//! The server's access to a broker: what it publishes, what comes in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::client::{self, ClientError, Options};
use super::node::TlsProvider;
use super::tls::server_name;
use super::topic::Topics;
use crate::config;
use crate::link::broker::Clients;

/// Messages on their way to or from a broker that is not ours.
const QUEUE: usize = 64;
/// A connection that held this long was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// What nodes read when the server has come to the broker, and when it is gone.
pub(super) const ONLINE: &[u8] = b"online";
pub(super) const OFFLINE: &[u8] = b"offline";

/// What the broker tells the server.
#[derive(Clone, Debug)]
pub enum Event {
    /// The server is at the broker. The first event, and again after each [`Event::Down`].
    Up,
    /// The broker is out of reach: nothing sent before is still under way.
    Down,
    /// A message of a client.
    Message {
        /// Its topic.
        topic: String,
        /// Its content.
        payload: Bytes,
    },
}

/// Events in the order in which the broker got them. Who does not take them holds up the broker.
pub type Inbox = mpsc::Receiver<Event>;

/// A message could not be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody listens to this topic.
    #[error("the client is not connected")]
    Absent,
    /// There is no broker.
    #[error("the broker is out of reach")]
    Down,
}

/// The server's way to publish. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    topics: Topics,
    way: Way,
}

#[derive(Clone)]
enum Way {
    /// The clients of the broker in this process.
    Own(Arc<Clients>),
    /// A connection to another broker.
    Remote(mpsc::Sender<(String, Bytes)>),
}

impl Bus {
    /// At the broker of this process.
    pub(crate) fn own(topics: Topics, clients: Arc<Clients>) -> Self {
        Self { topics, way: Way::Own(clients) }
    }

    #[cfg(test)]
    pub(super) fn wired(topics: Topics, to: mpsc::Sender<(String, Bytes)>) -> Self {
        Self { topics, way: Way::Remote(to) }
    }

    /// Publishes to a node, waiting for room.
    pub(crate) async fn to_node(&self, node: &str, what: &str, payload: Bytes) -> Result<(), BusError> {
        let topic = self.topics.down(node, what);
        match &self.way {
            Way::Own(clients) => clients.to_node(node, topic, payload).await,
            Way::Remote(to) => to.send((topic, payload)).await.map_err(|_| BusError::Down),
        }
    }

    /// Publishes to a joining client, likewise.
    pub(super) async fn to_join(&self, client: &str, payload: Bytes) -> Result<(), BusError> {
        let topic = self.topics.join_down(client);
        match &self.way {
            Way::Own(clients) => clients.to_client(client, topic, payload).await,
            Way::Remote(to) => to.send((topic, payload)).await.map_err(|_| BusError::Down),
        }
    }

    /// Who a joining client is, as far as can be told: the address it comes from, where the broker is our own.
    pub(super) fn origin(&self, client: &str) -> String {
        match &self.way {
            Way::Own(clients) => clients.peer(client).map_or_else(|| client.to_owned(), |peer| peer.to_string()),
            Way::Remote(_) => client.to_owned(),
        }
    }

    /// Ends a node's connections, where the broker is our own.
    pub(crate) fn disconnect(&self, node: &str) {
        if let Way::Own(clients) = &self.way {
            clients.disconnect(node);
        }
    }
}

/// How the server reaches a broker that is not its own.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Identifier of the cluster.
    pub cluster: String,
    /// `mqtts://host:port`; without a port it is 8883.
    pub url: String,
    /// As of nodes.
    pub keepalive: Duration,
}

/// Access to a broker that is not the server's own, and the task that keeps it up. `tls` gives the server's client
/// certificate.
///
/// # Errors
/// When the URL is not one of a broker.
pub fn remote(
    config: RemoteConfig,
    tls: TlsProvider,
) -> Result<(Bus, Inbox, impl Future<Output = ()> + Send), config::Error> {
    let address = config::broker_address(&config.url)?;
    let topics = Topics::new(&config.cluster);
    let (to_broker, outgoing) = mpsc::channel(QUEUE);
    let (to_server, inbox) = mpsc::channel(QUEUE);
    let bus = Bus { topics: topics.clone(), way: Way::Remote(to_broker) };
    let remote = Remote { topics, address, tls, keepalive: config.keepalive, to_server };
    Ok((bus, inbox, remote.run(outgoing)))
}

struct Remote {
    topics: Topics,
    address: String,
    tls: TlsProvider,
    keepalive: Duration,
    to_server: mpsc::Sender<Event>,
}

impl Remote {
    async fn run(self, mut outgoing: mpsc::Receiver<(String, Bytes)>) {
        let mut backoff = Backoff::default();
        while !self.to_server.is_closed() {
            let begun = Instant::now();
            let error = self.connection(&mut outgoing).await;
            if begun.elapsed() > GOOD {
                backoff.reset();
            }
            let wait = backoff.next(error.failure());
            tracing::warn!(broker = self.address, %error, wait_ms = wait.as_millis(), "no connection to the broker");
            sleep(wait).await;
        }
    }

    /// One connection, to its end.
    async fn connection(&self, outgoing: &mut mpsc::Receiver<(String, Bytes)>) -> ClientError {
        let tls = match (self.tls)() {
            Ok(tls) => tls,
            Err(error) => return ClientError::Lost(error.to_string()),
        };
        let options = Options {
            id: "umiak-server".into(),
            name: server_name(),
            keepalive: self.keepalive,
            will: Some((self.topics.server(), Bytes::from_static(OFFLINE))),
            filters: self.topics.server_filters().into(),
        };
        let client = match client::connect(&self.address, tls.outer, options).await {
            Ok(client) => client,
            Err(error) => return error,
        };
        tracing::info!(broker = self.address, "connected to the broker");
        let (to_client, from_us) = mpsc::channel(QUEUE);
        let (from_client, mut messages) = mpsc::channel(QUEUE);
        let carry = async {
            // What was meant for an earlier connection belongs to sessions that are over.
            while outgoing.try_recv().is_ok() {}
            self.to_server.send(Event::Up).await.ok()?;
            to_client.send((self.topics.server(), Bytes::from_static(ONLINE))).await.ok()?;
            loop {
                tokio::select! {
                    message = messages.recv() => {
                        let (topic, payload) = message?;
                        self.to_server.send(Event::Message { topic, payload }).await.ok()?;
                    }
                    (permit, message) = async { (to_client.reserve().await, outgoing.recv().await) } => {
                        permit.ok()?.send(message?);
                    }
                }
            }
        };
        let carry: std::pin::Pin<&mut (dyn Future<Output = Option<std::convert::Infallible>> + Send)> =
            std::pin::pin!(carry);
        let error = tokio::select! {
            error = client.run(from_us, from_client, || {}) => error,
            _ = carry => ClientError::Lost("the server stops".into()),
        };
        // Fails only when the server stops.
        let _ = self.to_server.send(Event::Down).await;
        error
    }
}
