//! The server's own MQTT broker: it carries messages between the server and its nodes, and nothing between nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::mqtt::tls::ServerTls;
use super::mqtt::{Allowed, Bus, Inbox};

/// How the broker runs.
pub struct BrokerConfig {
    /// Identifier of the cluster.
    pub cluster: String,
    /// Its certificate, and whom it trusts.
    pub tls: ServerTls,
    /// Whether a node's certificate still counts.
    pub allowed: Allowed,
}

pub(crate) struct Clients;

/// The broker's access for the server, and the task that serves its clients; dropping the task disconnects them.
pub fn broker(config: BrokerConfig, listener: TcpListener) -> (Bus, Inbox, impl Future<Output = ()> + Send) {
    todo!();
    #[allow(unreachable_code)]
    (todo!(), todo!(), async {})
}
