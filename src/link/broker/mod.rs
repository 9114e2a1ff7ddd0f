//! The server's own MQTT broker: it carries messages between the server and its nodes, and nothing between nodes.
//!
//! # Guarantees
//! A client is who its certificate says, publishes below its own `u/` and hears what is below its own `d/`. What one
//! client does, or fails to do, no other notices. Nothing is kept: a message goes to who is there. Messages keep their
//! order; one that cannot be delivered yet holds up its sender.

mod clients;
mod connection;
mod joins;
mod queue;
mod stream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::mqtt::tls::ServerTls;
use super::mqtt::topic::Topics;
use super::mqtt::{Allowed, Bus, Event, Inbox, prepare};
pub(crate) use clients::Clients;
use connection::{End, Shared};
use joins::Joins;

/// Connections that have not introduced themselves yet.
const MAX_HANDSHAKES: usize = 512;
/// Messages of all clients that wait for the server.
const INBOX: usize = 64;
/// After a connection could not be accepted, because there are too many open files, say.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// How the broker runs.
pub struct BrokerConfig {
    /// Identifier of the cluster.
    pub cluster: String,
    /// Its certificate, and whom it trusts.
    pub tls: ServerTls,
    /// Whether a node's certificate still counts.
    pub allowed: Allowed,
}

/// The broker's access for the server, and the task that serves its clients; dropping the task disconnects them.
pub fn broker(config: BrokerConfig, listener: TcpListener) -> (Bus, Inbox, impl Future<Output = ()> + Send) {
    let (server, inbox) = mpsc::channel(INBOX);
    let topics = Topics::new(&config.cluster);
    let clients = Clients::new(topics.clone(), server.clone());
    let bus = Bus::own(topics, clients.clone());
    let shared = Shared { clients, joins: Joins::new(), tls: config.tls, allowed: config.allowed };
    let run = async move {
        // Fails only when the server has no interest any more.
        let _ = server.send(Event::Up).await;
        drop(server);
        listen(Arc::new(shared), listener).await;
    };
    (bus, inbox, run)
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    let Ok(place) = handshakes.clone().try_acquire_owned() else {
                        tracing::warn!(%peer, "too many connections that have not introduced themselves");
                        continue;
                    };
                    let shared = shared.clone();
                    connections.spawn(async move {
                        let end = connection(&shared, tcp, peer, place).await;
                        report(&end, peer);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the broker cannot accept a connection");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(shared: &Shared, tcp: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) -> End {
    if let Err(error) = prepare(&tcp) {
        return End::Tls(error);
    }
    // Boxed: what the handshake needs is not to lie in every connection for the rest of its life.
    let admitted = match Box::pin(connection::admit(shared, tcp, peer)).await {
        Ok(admitted) => admitted,
        Err(end) => return end,
    };
    drop(place);
    connection::serve(&shared.clients, admitted).await
}

fn report(end: &End, peer: SocketAddr) {
    match end.is_offence() {
        true => tracing::warn!(%peer, "{end}"),
        false => tracing::debug!(%peer, "connection ended: {end}"),
    }
}
