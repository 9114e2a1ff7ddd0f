//! The server's access to a broker: what it publishes, what comes in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::node::TlsProvider;
use crate::link::broker::Clients;

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
pub struct Bus(Way);

#[derive(Clone)]
enum Way {
    /// The clients of the broker in this process.
    Own(Arc<Clients>),
    /// A connection to another broker.
    Remote(mpsc::Sender<(String, Bytes)>),
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
) -> Result<(Bus, Inbox, impl Future<Output = ()> + Send), crate::config::Error> {
    todo!();
    #[allow(unreachable_code)]
    Ok((todo!(), todo!(), async {}))
}
