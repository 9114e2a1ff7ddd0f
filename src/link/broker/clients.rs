//! The clients that are connected, and the way to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::queue::Queue;
use crate::link::mqtt::topic::{Identity, Topics, matches};
use crate::link::mqtt::{BusError, Event, encode, publish};

/// Filters one client may have.
const FILTERS: usize = 8;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: String,
    pub(super) identity: Identity,
    pub(super) peer: SocketAddr,
    pub(super) queue: Queue,
    filters: Mutex<Vec<String>>,
}

impl Client {
    pub(super) fn new(id: String, identity: Identity, peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self { id, identity, peer, queue: Queue::default(), filters: Mutex::default() })
    }

    fn filters(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a filter the client may have; false if there are too many.
    pub(super) fn subscribe(&self, filter: &str) -> bool {
        let mut filters = self.filters();
        if filters.iter().any(|f| f == filter) {
            return true;
        }
        let fits = filters.len() < FILTERS;
        if fits {
            filters.push(filter.to_owned());
        }
        fits
    }

    pub(super) fn unsubscribe(&self, filter: &str) {
        self.filters().retain(|f| f != filter);
    }

    fn wants(&self, topic: &str) -> bool {
        self.filters().iter().any(|filter| matches(filter, topic))
    }
}

/// All clients of a broker.
pub(crate) struct Clients {
    pub(super) topics: Topics,
    connected: Mutex<BTreeMap<String, Arc<Client>>>,
    server: mpsc::Sender<Event>,
}

impl Clients {
    pub(super) fn new(topics: Topics, server: mpsc::Sender<Event>) -> Arc<Self> {
        Arc::new(Self { topics, connected: Mutex::default(), server })
    }

    fn connected(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Client>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client. An older connection with the same identifier ends.
    pub(super) fn add(&self, client: Arc<Client>) {
        let older = self.connected().insert(client.id.clone(), client);
        if let Some(older) = older {
            tracing::info!(peer = %older.peer, client = older.id, "a new connection takes over");
            older.queue.close();
        }
    }

    /// Removes a client, unless another connection has taken its place.
    pub(super) fn remove(&self, client: &Arc<Client>) {
        let mut connected = self.connected();
        if connected.get(&client.id).is_some_and(|c| Arc::ptr_eq(c, client)) {
            connected.remove(&client.id);
        }
    }

    /// Where a client connects from.
    pub(crate) fn peer(&self, id: &str) -> Option<SocketAddr> {
        self.connected().get(id).map(|client| client.peer)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.connected().len()
    }

    /// Passes a client's message on to the server, waiting for room.
    pub(super) async fn deliver(&self, topic: String, payload: Bytes) -> Result<(), BusError> {
        self.server.send(Event::Message { topic, payload }).await.map_err(|_| BusError::Down)
    }

    /// The connections of a node.
    fn of(&self, node: &str) -> Vec<Arc<Client>> {
        let connected = self.connected();
        let prefix = format!("{node}~");
        let more = connected.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
        connected.get(node).into_iter().chain(more.map(|(_, client)| client)).cloned().collect()
    }

    /// Sends to every connection of a node that subscribed to the topic, waiting for room.
    pub(crate) async fn to_node(&self, node: &str, topic: String, payload: Bytes) -> Result<(), BusError> {
        self.send(self.of(node), topic, payload).await
    }

    /// Sends to one client, likewise.
    pub(crate) async fn to_client(&self, id: &str, topic: String, payload: Bytes) -> Result<(), BusError> {
        let client = self.connected().get(id).cloned();
        self.send(client.into_iter().collect(), topic, payload).await
    }

    async fn send(&self, clients: Vec<Arc<Client>>, topic: String, payload: Bytes) -> Result<(), BusError> {
        let wanted = clients.iter().filter(|client| client.wants(&topic)).collect::<Vec<_>>();
        let packet = encode(&publish(topic, payload)).map_err(|error| {
            tracing::error!(%error, "a message that does not fit into a packet");
            BusError::Absent
        })?;
        let mut result = Err(BusError::Absent);
        for client in wanted {
            if client.queue.push(packet.clone()).await.is_ok() {
                result = Ok(());
            }
        }
        result
    }

    /// Ends all connections of a node.
    pub(crate) fn disconnect(&self, node: &str) {
        for client in self.of(node) {
            client.queue.close();
        }
    }
}
