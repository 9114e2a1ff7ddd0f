//! One scheduling decision as a pure function on the snapshot.

use std::collections::HashMap;

use crate::store::Key;

use super::filter::{Refusal, Request, filter};
use super::message::Hope;
use super::model::Pod;
use super::preemption::{self, Candidate};
use super::score;
use super::snapshot::{Assigned, Node, Snapshot};
use super::spread::Nearness;

/// What becomes of a pod.
#[derive(Debug)]
pub enum Decision<'a> {
    /// It goes to this node.
    Bind(&'a Node),
    /// No node takes it.
    Fail {
        /// What each node says.
        refusals: Vec<Refusal>,
        /// What preemption does.
        hope: Hope,
        /// The node it is to have, and the pods that have to go first.
        preempt: Option<Candidate<'a>>,
    },
}

/// Pods that wait for room on the node they are to have, as if they were there.
pub type Nominated = HashMap<Key, Assigned>;

/// Decides where a pod goes. `near` says where the pods are that it wants to be near.
pub fn decide<'a>(
    key: &Key,
    pod: &Pod,
    snapshot: &'a Snapshot,
    nominated: &Nominated,
    near: &Nearness,
) -> Decision<'a> {
    let request = Request::of(pod);
    let mut feasible = Vec::new();
    let mut refused = Vec::new();
    let mut refusals = Vec::new();
    for node in snapshot.nodes() {
        match admits(&request, key, node, nominated) {
            Ok(()) => feasible.push(node),
            Err(refusal) => {
                if refusal.resolvable {
                    refused.push(node);
                }
                refusals.push(refusal);
            }
        }
    }
    let promised = nominated.get(key).and_then(|n| feasible.iter().position(|node| node.name == n.node));
    if let Some(best) = promised.or_else(|| score::best(&request, &feasible, near)) {
        return Decision::Bind(feasible[best]);
    }
    let (hope, preempt) = preempt(&request, key, snapshot, nominated, &refused);
    Decision::Fail { refusals, hope, preempt }
}

/// Whether a node takes the pod even with the pods of at least its priority that it is promised to.
fn admits(request: &Request<'_>, key: &Key, node: &Node, nominated: &Nominated) -> Result<(), Refusal> {
    let priority = request.pod.spec.priority;
    let mut promised =
        nominated.iter().filter(|(k, n)| n.node == node.name && n.priority >= priority && *k != key).peekable();
    if promised.peek().is_none() {
        return filter(request, node);
    }
    let mut fuller = node.clone();
    for (_, pod) in promised {
        fuller.take(pod);
    }
    filter(request, &fuller)
}

fn preempt<'a>(
    request: &Request<'_>,
    key: &Key,
    snapshot: &'a Snapshot,
    nominated: &Nominated,
    refused: &[&'a Node],
) -> (Hope, Option<Candidate<'a>>) {
    let spec = &request.pod.spec;
    if spec.preemption_policy == "Never" {
        return (Hope::Never, None);
    }
    if refused.is_empty() {
        return (Hope::None, None);
    }
    let leaving = |n: &Assigned| {
        let lower = snapshot.pods_below(spec.priority);
        lower.get(&n.node).is_some_and(|pods| pods.iter().any(|(_, pod)| pod.leaving))
    };
    if nominated.get(key).is_some_and(leaving) {
        return (Hope::Leaving, None);
    }
    match preemption::choose(preemption::candidates(request, snapshot, refused)) {
        Some(candidate) => (Hope::Victims, Some(candidate)),
        None => (Hope::None, None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::snapshot::tests::{key, node, pod};
    use super::*;
    use serde_json::{Value, json};

    fn asks(cpu: &str, priority: i32, more: Value) -> Pod {
        let mut spec = json!({"priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod(json!({ "spec": spec }))
    }

    fn nodes(names: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in names {
            snapshot.node_changed(node(name, json!({"cpu": "2", "pods": "110"}), json!({})));
        }
        snapshot
    }

    fn outcome(decision: Decision<'_>) -> String {
        match decision {
            Decision::Bind(node) => format!("bind {}", node.name),
            Decision::Fail { hope, preempt, .. } => match preempt {
                Some(c) => format!("{hope:?} on {}: {}", c.node.name, c.victims[0].0.name),
                None => format!("{hope:?}"),
            },
        }
    }

    #[test]
    fn room_is_kept_for_the_pod_it_was_made_for() {
        let mut snapshot = nodes(&["a"]);
        let mut nominated = Nominated::new();
        let decide = |snapshot: &Snapshot, nominated: &Nominated, name: &str, pod: &Pod| {
            outcome(super::decide(&key(name), pod, snapshot, nominated, &Nearness::default()))
        };
        snapshot.pod_changed(&key("low"), &asks("2", 0, json!({"nodeName": "a"})));
        let high = asks("2", 10, json!({}));
        assert_eq!(decide(&snapshot, &nominated, "high", &high), "Victims on a: low");
        assert_eq!(decide(&snapshot, &nominated, "x", &asks("2", 0, json!({}))), "None");
        assert_eq!(decide(&snapshot, &nominated, "x", &asks("2", 10, json!({"preemptionPolicy": "Never"}))), "Never");

        nominated.insert(key("high"), Assigned::of(&high, "a".into()));
        let mut leaving = asks("2", 0, json!({"nodeName": "a"}));
        leaving.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH);
        snapshot.pod_changed(&key("low"), &leaving);
        assert_eq!(decide(&snapshot, &nominated, "high", &high), "Leaving");

        snapshot.pod_gone(&key("low"));
        assert_eq!(decide(&snapshot, &nominated, "x", &asks("1", 0, json!({}))), "None", "promised to another");
        assert_eq!(decide(&snapshot, &nominated, "y", &asks("1", 20, json!({}))), "bind a", "more important");
        assert_eq!(decide(&snapshot, &nominated, "high", &high), "bind a");
    }

    #[test]
    fn without_nodes_there_is_no_hope() {
        let (empty, pod) = (nodes(&[]), asks("1", 0, json!({})));
        let decision = decide(&key("a"), &pod, &empty, &Nominated::new(), &Nearness::default());
        let Decision::Fail { refusals, hope, .. } = decision else { panic!("bound to nothing") };
        assert_eq!((refusals.len(), hope), (0, Hope::None));
    }
}
