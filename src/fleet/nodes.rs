//! What nodes are told of nodes: where each is, and where the others' pods are.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::kinds::meta;
use crate::kinds::node::ZONE;
use crate::kinds::status::Status;
use crate::registry::Raw;

use super::peers::{self, Peers};

/// Changes of peers wait for others, as every node is told of every other: the longer the more nodes there are, up to
/// [`LONGEST`].
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_EACH: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(1);

/// The nodes as the others see them.
#[derive(Default)]
pub(super) struct Nodes {
    /// By node; one that is not here is in no zone.
    pub(super) zones: watch::Sender<BTreeMap<String, String>>,
    /// All nodes that have an address and pods, in order.
    pub(super) peers: Peers,
}

/// What is known of the nodes and not yet told.
#[derive(Default)]
pub(super) struct Known {
    zones: BTreeMap<String, String>,
    peers: BTreeMap<String, peers::Known>,
    due: Option<Instant>,
}

impl Known {
    /// Notes how a node is (`None`: it is gone). Peers are due a while after the first change.
    pub(super) fn note(&mut self, name: &str, node: Option<&Raw>) -> Result<(), Status> {
        let node = node.map(Raw::object).transpose()?;
        let zone = node.as_ref().and_then(|n| meta::label(n, ZONE)).filter(|zone| !zone.is_empty());
        match zone {
            Some(zone) => drop(self.zones.insert(name.to_owned(), zone.to_owned())),
            None => drop(self.zones.remove(name)),
        }
        let peer = node.as_ref().and_then(peers::known);
        let before = match &peer {
            Some(peer) => self.peers.insert(name.to_owned(), peer.clone()),
            None => self.peers.remove(name),
        };
        if before != peer {
            let settle = (SETTLE + SETTLE_EACH * self.peers.len() as u32).min(LONGEST);
            self.due.get_or_insert_with(|| Instant::now() + settle);
        }
        Ok(())
    }

    /// When the peers are to be told; never if nothing changed.
    pub(super) async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

impl Nodes {
    /// Makes zones known at once.
    pub(super) fn tell_zones(&self, known: &Known) {
        self.zones.send_if_modified(|zones| {
            let other = *zones != known.zones;
            zones.clone_from(&known.zones);
            other
        });
    }

    /// Makes peers known.
    pub(super) fn tell_peers(&self, known: &mut Known) {
        known.due = None;
        self.peers.set(known.peers.clone());
    }
}
