//! The nodes of the pod network, as each node is told of them: all at first, then whoever changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::kinds::{Object, meta};
use crate::link::message::{Peer, ToNode};

/// Keeps a node from owning load-balancer addresses, whatever its value.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A node, and what it may be told of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    peer: Peer,
    /// It may own load-balancer addresses if it works. For the others it has to be Ready; a node that is told this works.
    allowed: bool,
}

/// All nodes that have an address and pod addresses, at one time.
#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Known>,
    /// Counts the states, and who is new or different since the one before: found out once, not by every node.
    number: u64,
    changed: Vec<String>,
}

/// The nodes, and whoever wants to know of changes.
#[derive(Default)]
pub(super) struct Peers {
    now: watch::Sender<Arc<State>>,
}

impl Peers {
    /// These are all nodes there are.
    pub(super) fn set(&self, all: BTreeMap<String, Known>) {
        self.now.send_if_modified(|now| {
            let changed = differences(&now.nodes, &all);
            let any = !changed.is_empty();
            if any {
                *now = Arc::new(State { nodes: all, number: now.number + 1, changed });
            }
            any
        });
    }

    /// What a node has yet to hear: everything.
    pub(super) fn feed(&self, node: &str) -> PeerFeed {
        let now = self.now.subscribe();
        PeerFeed { node: node.to_owned(), now, told: None, pending: BTreeSet::new() }
    }
}

/// What one node has yet to hear of the others. Changes of one node while others wait are told as one.
pub(super) struct PeerFeed {
    node: String,
    now: watch::Receiver<Arc<State>>,
    /// As of when it was told, but for what is pending.
    told: Option<Arc<State>>,
    pending: BTreeSet<String>,
}

impl PeerFeed {
    /// Waits for a change and notes it. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // The sender is the cluster's own and does not end.
        let _ = self.now.changed().await;
        let Some(told) = &self.told else { return };
        let now = self.now.borrow_and_update().clone();
        match now.number - told.number {
            0 => {}
            1 => self.pending.extend(now.changed.iter().cloned()),
            _ => self.pending.extend(differences(&told.nodes, &now.nodes)),
        }
        self.told = Some(now);
    }

    /// Whether there is something to tell.
    pub(super) fn has_more(&self) -> bool {
        self.told.is_none() || !self.pending.is_empty()
    }

    /// The next thing to tell.
    pub(super) fn next(&mut self) -> Option<ToNode> {
        if self.told.is_none() {
            let now = self.now.borrow_and_update().clone();
            let message = ToNode::Peers(now.nodes.values().map(|known| self.seen(known)).collect());
            self.told = Some(now);
            return Some(message);
        }
        let name = pop(&mut self.pending)?;
        let known = self.told.as_ref()?.nodes.get(&name);
        Some(known.map_or(ToNode::PeerGone(name), |known| ToNode::Peer(self.seen(known))))
    }

    fn seen(&self, known: &Known) -> Peer {
        let announces = if known.peer.name == self.node { known.allowed } else { known.peer.announces };
        Peer { announces, ..known.peer.clone() }
    }
}

/// The first of a set, which takes no memory once it is empty.
pub(super) fn pop<T: Ord>(set: &mut BTreeSet<T>) -> Option<T> {
    let first = set.pop_first();
    if set.is_empty() {
        *set = BTreeSet::new();
    }
    first
}

/// Names of those that are in one only, or not the same in both.
fn differences(before: &BTreeMap<String, Known>, after: &BTreeMap<String, Known>) -> Vec<String> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let new = after.iter().filter(|(name, known)| before.get(*name) != Some(known)).map(|(name, _)| name);
    gone.chain(new).cloned().collect()
}

/// `None`: it has no address or no pod addresses yet.
pub(super) fn known(node: &Object) -> Option<Known> {
    let addresses = meta::list_at(node, "/status/addresses").iter();
    let internal = addresses.filter(|a| a["type"] == "InternalIP").filter_map(|a| a["address"].as_str());
    let address: Ipv4Addr = internal.filter_map(|text| text.parse().ok()).next()?;
    let pod_cidr = meta::str_at(node, "/spec/podCIDR").parse().ok()?;
    let is_ready = meta::condition(node, "Ready").is_some_and(|c| c.get("status").is_some_and(|s| s == "True"));
    let allowed = !meta::bool_at(node, "/spec/unschedulable")
        && !meta::is_deleting(node)
        && !meta::labels(node).is_some_and(|labels| labels.contains_key(EXCLUDED));
    let peer = Peer { name: meta::name(node).to_owned(), address, pod_cidr, announces: allowed && is_ready };
    Some(Known { peer, allowed })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, change: Value) -> Object {
        let mut node = json!({
            "metadata": {"name": name, "labels": {}}, "spec": {"podCIDR": "10.42.1.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        })
        .as_object()
        .unwrap()
        .clone();
        for (path, value) in change.as_object().into_iter().flatten() {
            meta::set(&mut node, path, value.clone());
        }
        node
    }

    #[test]
    fn who_is_a_peer_and_who_announces() {
        let ready = |status: &str| json!({"/status/conditions": [{"type": "Ready", "status": status}]});
        for (what, change, expected) in [
            ("ready", json!({}), Some((true, true))),
            ("silent", ready("Unknown"), Some((false, true))),
            ("not ready", ready("False"), Some((false, true))),
            ("cordoned", json!({"/spec/unschedulable": true}), Some((false, false))),
            ("excluded", json!({"/metadata/labels": {EXCLUDED: ""}}), Some((false, false))),
            ("leaving", json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}), Some((false, false))),
            ("without an address", json!({"/status/addresses": []}), None),
            ("without pod addresses", json!({"/spec/podCIDR": ""}), None),
        ] {
            let found = known(&node("a", change)).map(|k| (k.peer.announces, k.allowed));
            assert_eq!(found, expected, "{what}");
        }
    }

    #[tokio::test]
    async fn all_at_first_then_changes() {
        let peers = Peers::default();
        let put = |name: &str, change: Value| {
            let known = known(&node(name, change)).unwrap();
            let mut all = peers.now.borrow().nodes.clone();
            all.insert(name.to_owned(), known);
            peers.set(all);
        };
        let remove = |name: &str| {
            let mut all = peers.now.borrow().nodes.clone();
            all.remove(name);
            peers.set(all);
        };
        let shown = |message: Option<ToNode>| match message {
            Some(ToNode::Peers(all)) => all.iter().map(|p| format!("{} {}", p.name, p.announces)).collect(),
            Some(ToNode::Peer(peer)) => vec![format!("put {} {}", peer.name, peer.announces)],
            Some(ToNode::PeerGone(name)) => vec![format!("gone {name}")],
            other => panic!("{other:?}"),
        };
        put("a", json!({}));
        put("b", json!({"/status/conditions": []}));
        let mut feed = peers.feed("b");
        assert_eq!(shown(feed.next()), ["a true", "b true"], "it works, as it hears this");
        assert!(!feed.has_more());
        for _ in 0..3 {
            put("a", json!({"/spec/unschedulable": true}));
            put("c", json!({}));
            remove("c");
            feed.changed().await;
        }
        put("b", json!({"/spec/unschedulable": true}));
        feed.changed().await;
        assert_eq!(shown(feed.next()), ["put a false"]);
        assert_eq!(shown(feed.next()), ["put b false"]);
        assert!(!feed.has_more());
        remove("a");
        feed.changed().await;
        assert_eq!(shown(feed.next()), ["gone a"]);
        assert!(!feed.has_more() && feed.next().is_none());
    }
}
