//! The cluster's name server, on every node at the same cluster address.
//!
//! It is the authority for the cluster's domain and for the addresses of its networks (`zone`, from what `index` has of
//! the Services), and asks the node's own name servers for everything else (`forward`, `resolv_conf`).

mod cache;
mod forward;
mod index;
mod resolv_conf;
mod server;
#[cfg(test)]
mod tests;
mod wire;
mod zone;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::services::Services;
use crate::cidr::Cidr;
use resolv_conf::ResolvConf;
use server::Server;

/// Longest pause before another attempt to listen.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What the name server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's domain, for example `cluster.local`.
    pub domain: String,
    /// Where it listens, UDP and TCP, port 53. The address need not be on an interface (`IP_FREEBIND`), but must be
    /// routed to this machine.
    pub address: Ipv4Addr,
    /// The Services' and pods' networks: their addresses are looked for nowhere else.
    pub networks: Vec<Cidr>,
    /// The node's list of name servers, `/etc/resolv.conf`. Watched for changes.
    pub resolv_conf: PathBuf,
    /// The list to use where that one names nothing but a stub on the loopback:
    /// `/run/systemd/resolve/resolv.conf`.
    pub behind_stub: PathBuf,
}

impl Config {
    /// For a cluster with these networks; the name server has the tenth address of the Services'.
    pub fn new(domain: &str, services: Cidr, pods: Cidr) -> Self {
        Self {
            domain: domain.to_owned(),
            address: services.host(10),
            networks: vec![services, pods],
            resolv_conf: "/etc/resolv.conf".into(),
            behind_stub: "/run/systemd/resolve/resolv.conf".into(),
        }
    }
}

/// Answers until it is dropped. Where it cannot listen it says so in the log and tries again.
pub async fn run(services: Services, config: Config) -> Infallible {
    let server = Arc::new(Server::new(&config));
    let upstream = ResolvConf::new(&config);
    let (udp, tcp) = listen(config.address).await;
    tokio::select! {
        never = index::follow(services, server.index()) => never,
        never = upstream.follow(server.forwarder()) => never,
        never = server.clone().serve_udp(udp) => never,
        never = server.clone().serve_tcp(tcp) => never,
    }
}

async fn listen(address: Ipv4Addr) -> (tokio::net::UdpSocket, tokio::net::TcpListener) {
    let mut pause = Duration::from_secs(1);
    loop {
        match server::bind(address) {
            Ok(sockets) => return sockets,
            Err(error) => tracing::error!(%address, %error, "the name server cannot listen on port 53"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
