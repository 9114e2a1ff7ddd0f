//! The pod bridge and pod addresses.
//!
//! One bridge per data directory with the gateway's address; per pod one veth pair whose far end is the pod's `eth0`.
//! The kernel's state is the truth about interfaces, one file about addresses; nothing else is remembered, so a daemon
//! that was killed goes on where it was.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use leases::Leases;
use links::Links;

pub use crate::cidr::Cidr;
pub use error::{Error, Result};
pub use host::host_address;

pub mod addresses;
pub mod arp;
pub mod dns;
mod error;
mod host;
mod intake;
mod interfaces;
pub mod lan;
mod leases;
mod links;
mod masquerade;
mod netns;
mod nft;
pub mod overlay;
mod ownership;
pub mod proxy;
pub mod reach;
pub mod routes;
pub mod services;
mod source;

/// What [`Network::open`] needs to know.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Interface name, at most 15 characters; `umiak0` by convention.
    pub bridge: String,
    /// Addresses of this node's pods; the first host address is the gateway (the bridge itself).
    pub pod_cidr: Cidr,
    /// Addresses of the pods of all nodes: they see each other's own addresses.
    pub cluster_cidr: Cidr,
    /// Where leases are kept; made where it is missing.
    pub state_dir: PathBuf,
    /// Of the bridge and of every pod's `eth0`, bytes.
    pub mtu: u32,
}

/// A pod's network namespace.
#[derive(Clone, Copy, Debug)]
pub enum Netns<'a> {
    /// The one this process lives in (`/proc/PID/ns/net`).
    Pid(i32),
    /// A bind-mounted namespace file.
    Path(&'a Path),
    /// An open namespace file.
    Fd(BorrowedFd<'a>),
}

/// The pod network of this node. `Send + Sync`; every method is idempotent.
///
/// Needs a tokio runtime with I/O, and lives in the network namespace of the thread that opened it.
pub struct Network {
    config: NetworkConfig,
    links: Links,
    /// The bridge's interface index.
    bridge: u32,
    leases: Mutex<Leases>,
    masquerade: Result<()>,
    route_problem: Mutex<Option<String>>,
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const POD_INTERFACE: &str = "eth0";
const LOOPBACK: u32 = 1;
/// Begins the names of the host's ends of pods' interfaces.
const PREFIX: &str = "um";
/// Longest interface name (`IFNAMSIZ` without the NUL).
const MAX_NAME: usize = 15;

impl Network {
    /// Makes the bridge with its address, turns IPv4 forwarding on and lets pod traffic out (masquerading).
    ///
    /// Where the kernel has no nf_tables this still succeeds: see [`Network::masquerade`].
    pub async fn open(config: NetworkConfig) -> Result<Network> {
        check_name(&config.bridge)?;
        let leases = Leases::load(&config.state_dir, config.pod_cidr)?;
        let links = Links::here().map_err(|e| failed("connect to", "netlink", e))?;
        let gateway = config.pod_cidr.host(1);
        let bridge = links.ensure_bridge(&config.bridge, mac(gateway), config.mtu).await?;
        links.set_address(bridge, gateway, config.pod_cidr).await?;
        enable_forwarding()?;
        let masquerade = masquerade::install(&config.bridge, config.pod_cidr, config.cluster_cidr);
        let (leases, route_problem) = (Mutex::new(leases), Mutex::default());
        Ok(Network { config, links, bridge, leases, masquerade, route_problem })
    }

    /// Whether pods reach the world outside; else [`Error::MasqueradeUnavailable`], to be shown as a node condition.
    pub fn masquerade(&self) -> Result<()> {
        self.masquerade.clone()
    }

    /// What keeps pods from reaching others, to be shown as a node condition.
    pub fn problem(&self) -> Option<String> {
        let masquerade = self.masquerade.as_ref().err().map(Error::to_string);
        let routes = self.route_problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<String> = masquerade.into_iter().chain(routes).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What [`routes::run`] said last.
    pub fn set_route_problem(&self, problem: Option<String>) {
        *self.route_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// The bridge's own address: the pods' default route, and where a pod reaches its node.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.pod_cidr.host(1)
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// The addresses pods get.
    pub fn pod_cidr(&self) -> Cidr {
        self.config.pod_cidr
    }

    /// Gives the pod an `eth0` with an address and a default route, `lo` up. Attaching again (a re-adopted pod, the
    /// same pod after a reboot) keeps the address and repairs what is missing.
    pub async fn attach(&self, pod_uid: &str, netns: Netns<'_>) -> Result<Ipv4Addr> {
        let entered = |e: io::Error| Error::Netns { pod: pod_uid.to_owned(), cause: e.to_string() };
        let namespace = netns.open().map_err(entered)?;
        let pod = Links::on(netns::socket_in(&namespace).await.map_err(entered)?);
        let host = host_name(pod_uid);
        let existing = pod.get(POD_INTERFACE).await?;
        let held = match &existing {
            Some(link) => pod.addresses(link.index).await?.first().copied(),
            None => None,
        };
        let address = self.leases().lease(pod_uid, held)?;
        let interface = match existing {
            Some(link) => link.index,
            None => {
                // What is left of an earlier namespace of this pod (the machine rebooted, its sandbox died).
                self.links.delete(&host).await?;
                self.links.add_pair(&host, self.bridge, &namespace, mac(address), self.config.mtu).await?;
                let made = pod.get(POD_INTERFACE).await?;
                made.ok_or_else(|| entered(io::Error::other("eth0 disappeared")))?.index
            }
        };
        self.links.set_port(&host, self.bridge).await?;
        pod.up(LOOPBACK, "lo").await?;
        pod.up(interface, POD_INTERFACE).await?;
        pod.set_address(interface, address, self.config.pod_cidr).await?;
        pod.set_default_route(interface, self.gateway()).await?;
        Ok(address)
    }

    /// The address the pod holds.
    pub fn address(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.leases().get(pod_uid)
    }

    /// Removes the pod's interface and frees its address. No error if there was none.
    pub async fn detach(&self, pod_uid: &str) -> Result<()> {
        self.links.delete(&host_name(pod_uid)).await?;
        self.leases().free(pod_uid)
    }

    /// Detaches every pod that is not in `live`.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<()> {
        let kept: HashSet<String> = live.iter().map(|pod| host_name(pod)).collect();
        for port in self.links.ports(self.bridge).await? {
            if port.starts_with(PREFIX) && !kept.contains(&port) {
                self.links.delete(&port).await?;
            }
        }
        let gone: Vec<String> = self.leases().pods().filter(|pod| !live.contains(*pod)).cloned().collect();
        gone.iter().try_for_each(|pod| self.leases().free(pod))
    }

    /// Removes everything this network made: interfaces, rules, leases. Forwarding stays on: others may count on it.
    pub async fn destroy(self) -> Result<()> {
        self.reconcile(&HashSet::new()).await?;
        self.links.delete(&self.config.bridge).await?;
        if self.masquerade.is_ok() {
            masquerade::remove(&self.config.bridge)?;
            source::remove(&self.config.bridge)?;
        }
        intake::remove_all(&self.links).await?;
        routes::remove_all(&self.links).await?;
        self.leases.into_inner().unwrap_or_else(PoisonError::into_inner).destroy()
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // Every change is written in one step, so a panic elsewhere leaves it whole.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_name(bridge: &str) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&bridge.len())
        && bridge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !bridge.starts_with('.');
    if fits {
        return Ok(());
    }
    let cause = "an interface name has 1 to 15 letters, digits, '-', '_' and '.'".to_owned();
    Err(Error::Netlink { operation: "use bridge", subject: bridge.to_owned(), cause })
}

fn enable_forwarding() -> Result<()> {
    let is_on = std::fs::read(FORWARDING).map_err(|e| Error::file("read", FORWARDING, e))?.starts_with(b"1");
    if is_on { Ok(()) } else { std::fs::write(FORWARDING, "1").map_err(|e| Error::file("write", FORWARDING, e)) }
}

/// The host's end of a pod's interface: 13 digits of a hash, because a UID is longer than a name may be.
fn host_name(pod_uid: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, pod_uid.as_bytes());
    let digits: String = hash.as_ref().iter().take(7).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{}", &digits[..MAX_NAME - PREFIX.len()])
}

/// A locally administered hardware address that follows from the IP address.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

fn failed(operation: &'static str, subject: &str, cause: io::Error) -> Error {
    Error::Netlink { operation, subject: subject.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod test_lan;
#[cfg(test)]
mod tests;
