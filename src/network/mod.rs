//! The pod bridge and pod addresses.
//!
//! One bridge per data directory with the gateway's address; per pod one veth pair whose far end is the pod's `eth0`.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

pub use cidr::{Cidr, InvalidCidr};
pub use error::{Error, Result};

mod cidr;
mod error;

/// What [`Network::open`] needs to know.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Interface name, at most 15 characters; `umiak0` by convention.
    pub bridge: String,
    /// Addresses of this node's pods; the first host address is the gateway (the bridge itself).
    pub pod_cidr: Cidr,
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
pub struct Network {
    config: NetworkConfig,
}

impl Network {
    /// Makes the bridge with its address, turns IPv4 forwarding on and lets pod traffic out (masquerading).
    ///
    /// Where the kernel has no nf_tables this still succeeds: see [`Network::masquerade`].
    pub async fn open(config: NetworkConfig) -> Result<Network> {
        Ok(Network { config })
    }

    /// Whether pods reach the world outside; else [`Error::MasqueradeUnavailable`], to be shown as a node condition.
    pub fn masquerade(&self) -> Result<()> {
        Ok(())
    }

    /// The bridge's own address: the pods' default route, and where a pod reaches its node.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.pod_cidr.host(1)
    }

    /// The addresses pods get.
    pub fn pod_cidr(&self) -> Cidr {
        self.config.pod_cidr
    }

    /// Gives the pod an `eth0` with an address and a default route, `lo` up. Attaching again (a re-adopted pod, the
    /// same pod after a reboot) keeps the address and repairs what is missing.
    pub async fn attach(&self, pod_uid: &str, netns: Netns<'_>) -> Result<Ipv4Addr> {
        let _ = (pod_uid, netns);
        Err(Error::Exhausted(self.config.pod_cidr))
    }

    /// The address the pod holds.
    pub fn address(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        let _ = pod_uid;
        None
    }

    /// Removes the pod's interface and frees its address. No error if there was none.
    pub async fn detach(&self, pod_uid: &str) -> Result<()> {
        let _ = pod_uid;
        Ok(())
    }

    /// Detaches every pod that is not in `live`.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<()> {
        let _ = live;
        Ok(())
    }

    /// Removes everything this network made: interfaces, rules, leases.
    pub async fn destroy(self) -> Result<()> {
        Ok(())
    }
}
