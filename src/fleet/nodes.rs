//! What nodes are told of nodes: where each is, and where the others' pods are.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::kinds::node::ZONE;
use crate::kinds::status::Status;
use crate::kinds::{Object, meta};
use crate::network::services::Peer;
use crate::registry::Raw;

/// Changes of peers wait this long for others, and for each peer a little longer: every node is told of every other,
/// so that in a fleet of 1,000 each telling is a million peers.
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_EACH: Duration = Duration::from_millis(5);
/// The label of a node that may not own addresses of load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The nodes as the others see them.
#[derive(Default)]
pub(super) struct Nodes {
    /// By node; one that is not here is in no zone.
    pub(super) zones: watch::Sender<BTreeMap<String, String>>,
    /// All nodes that have an address and pods, in order.
    pub(super) peers: watch::Sender<Arc<Vec<Peer>>>,
}

/// What is known of the nodes and not yet told.
#[derive(Default)]
pub(super) struct Known {
    zones: BTreeMap<String, String>,
    peers: BTreeMap<String, Peer>,
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
        let peer = node.as_ref().and_then(peer);
        let before = match &peer {
            Some(peer) => self.peers.insert(name.to_owned(), peer.clone()),
            None => self.peers.remove(name),
        };
        if before != peer {
            let count = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            self.due.get_or_insert_with(|| Instant::now() + SETTLE + SETTLE_EACH * count);
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
        self.peers.send_if_modified(|peers| {
            let other = !peers.iter().eq(known.peers.values());
            if other {
                *peers = Arc::new(known.peers.values().cloned().collect());
            }
            other
        });
    }
}

/// A node as the others need it; `None` while it has no address or no pods' range.
fn peer(node: &Object) -> Option<Peer> {
    let addresses = meta::list_at(node, "/status/addresses").iter().filter_map(Value::as_object);
    let internal = addresses.filter(|a| meta::text(a, "type") == "InternalIP");
    let ready = meta::condition(node, "Ready").is_some_and(|c| meta::text(c, "status") == "True");
    Some(Peer {
        name: meta::name(node).to_owned(),
        address: internal.filter_map(|a| meta::text(a, "address").parse::<Ipv4Addr>().ok()).next()?,
        pod_cidr: meta::str_at(node, "/spec/podCIDR").parse().ok()?,
        announces: ready
            && !meta::bool_at(node, "/spec/unschedulable")
            && meta::label(node, EXCLUDED).is_none()
            && !meta::is_deleting(node),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_as_others_see_them() {
        let node = json!({
            "metadata": {"name": "a"}, "spec": {"podCIDR": "10.42.1.0/24"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.7"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let seen = |path: &str, value: Value| {
            let mut node = node.as_object().unwrap().clone();
            meta::set(&mut node, path, value);
            peer(&node).map(|p| (p.address.to_string(), p.pod_cidr.to_string(), p.announces))
        };
        let is = |announces| Some(("192.0.2.7".to_owned(), "10.42.1.0/24".to_owned(), announces));
        for (path, value, expected) in [
            ("/metadata/labels", json!({}), is(true)),
            ("/metadata/labels", json!({EXCLUDED: ""}), is(false)),
            ("/spec/unschedulable", json!(true), is(false)),
            ("/status/conditions", json!([{"type": "Ready", "status": "Unknown"}]), is(false)),
            ("/status/addresses", json!([]), None),
            ("/spec/podCIDR", json!(""), None),
        ] {
            assert_eq!(seen(path, value.clone()), expected, "{path} {value}");
        }
    }
}
