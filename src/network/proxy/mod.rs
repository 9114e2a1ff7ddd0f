//! The Service proxy: userspace, no iptables, no IPVS.
//!
//! Two halves: [`Frontend`]s know the Services (which endpoint a client gets), the data plane knows sockets (it
//! accepts, asks the frontend, connects, moves bytes) and runs on a thread of its own, so that neither the API nor a
//! busy Service can hold the other up.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::services::Protocol;
use crate::cidr::Cidr;
use crate::config::ProxyBalance;

/// What the proxy needs to know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, as endpoints name it.
    pub node: String,
    /// The node's `InternalIP`.
    pub node_address: Ipv4Addr,
    /// The pods' bridge.
    pub bridge: String,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Cidr,
    /// Addresses of this node's pods; the first one is the bridge's.
    pub pod_cidr: Cidr,
    /// Cluster addresses.
    pub service_cidr: Cidr,
    /// How endpoints are chosen.
    pub balance: ProxyBalance,
}

mod affinity;
mod balancer;
pub mod engine;
mod health;
mod policy;
mod run;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use run::{Notice, StartError, run};

/// Who answers at one listening address. Called on the data plane's threads (there may be two): must not block.
pub trait Frontend: Send + Sync + 'static {
    /// The endpoint for a new connection (TCP) or flow (UDP) of this client that is in none of `tried`, or `None`: the
    /// client is refused at once. `Some` counts a connection until [`Frontend::release`].
    fn pick(&self, client: SocketAddrV4, tried: &[SocketAddrV4]) -> Option<Backend>;

    /// The connection to the endpoint ended; `failed`: it was never made (refused, unreachable, timed out).
    fn release(&self, endpoint: SocketAddrV4, failed: bool);
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint.
    pub endpoint: SocketAddrV4,
    /// Connect from the client's own address, where the kernel allows it (`IP_TRANSPARENT`), and it routes the answers
    /// back here.
    pub keep_source: bool,
}

/// A place to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address (0.0.0.0 for node ports) and port. `IP_FREEBIND`: it need not be on an interface yet.
    pub address: SocketAddrV4,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol} {}", self.address)
    }
}

/// What the data plane is told; see `engine`.
pub enum Command {
    /// Listen here, or go on with another frontend: connections that are open stay.
    Listen(Listen, Arc<dyn Frontend>),
    /// Stop accepting; connections that are open stay until they end. UDP flows, which have no end to wait for, end.
    Close(Listen),
    /// The flows (UDP) of this listener to these endpoints end now: the endpoint is gone, no packet may go there.
    Forget(Listen, Vec<SocketAddrV4>),
}
