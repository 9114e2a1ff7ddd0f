//! Taints that follow from the state of nodes, and the eviction of pods that do not tolerate them
//! (`pkg/controller/nodelifecycle`, `pkg/controller/tainteviction`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource};
use crate::registry::{DeleteOptions, EventType, Registry, WriteOptions};
use crate::scheduler::taints::{Eviction, Taint, Toleration, eviction};
use crate::store::Key;

use super::model::{Condition, Meta, now, or_default};
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, still_there};

const NAME: &str = "node-controller";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// See the module.
pub struct NodeLifecycle {
    registry: Registry,
    events: EventRecorder,
    nodes: Arc<Kind>,
    pods: Arc<Kind>,
    options: WriteOptions,
    /// Since when NoExecute taints are seen, by node and key. Boards without a clock of their own start in the past and
    /// jump to the present: by the taint's own time all pods of a node would be overdue at once. So time is counted on
    /// the monotonic clock, from the start of the server at the earliest.
    seen: Mutex<HashMap<(String, String), Instant>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(deserialize_with = "or_default")]
    unschedulable: bool,
    #[serde(deserialize_with = "or_default")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    #[serde(deserialize_with = "or_default")]
    node_name: String,
    #[serde(deserialize_with = "or_default")]
    tolerations: Vec<Toleration>,
}

/// The taints that follow from a node's conditions and from a cordon, as key and effect.
fn implied(node: &Node) -> Vec<(&'static str, &'static str)> {
    let is = |kind: &str, status: &str| node.status.conditions.iter().any(|c| c.kind == kind && c.status == status);
    let pressure = [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ];
    let mut taints: Vec<_> =
        pressure.into_iter().filter(|(kind, _)| is(kind, "True")).map(|(_, key)| (key, "NoSchedule")).collect();
    for (status, key) in [("False", NOT_READY), ("Unknown", UNREACHABLE)] {
        if is("Ready", status) {
            taints.extend([(key, "NoSchedule"), (key, "NoExecute")]);
        }
    }
    if node.spec.unschedulable {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    taints
}

/// Whether a taint is this controller's to add and remove.
fn ours(key: &str) -> bool {
    matches!(
        key,
        NOT_READY
            | UNREACHABLE
            | UNSCHEDULABLE
            | "node.kubernetes.io/memory-pressure"
            | "node.kubernetes.io/disk-pressure"
            | "node.kubernetes.io/pid-pressure"
            | "node.kubernetes.io/network-unavailable"
    )
}

/// The taints a node should have, `None` if it has them. Those that stay keep their time; people's stay as they are.
fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let mut missing = implied(node);
    let mut wanted = node.spec.taints.clone();
    wanted.retain(|taint| {
        let known = missing.iter().position(|(key, effect)| taint.key == *key && taint.effect == *effect);
        known.map(|at| missing.remove(at)).is_some() || !ours(&taint.key)
    });
    wanted.extend(missing.into_iter().map(|(key, effect)| Taint {
        key: key.to_owned(),
        value: String::new(),
        effect: effect.to_owned(),
        time_added: Some(now),
    }));
    (wanted != node.spec.taints).then_some(wanted)
}

/// When a pod leaves its node. A node that is away, or not ready, evicts only pods that say after how many seconds:
/// what is bound to a device, a disk or a place cannot run elsewhere, and comes back with its node.
fn departure(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Eviction {
    let absent = |taint: &&Taint| matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    let silent = |taint: &&Taint| absent(taint) && !tolerations.iter().any(|t| t.tolerates(taint));
    let counting: Vec<Taint> = taints.iter().filter(|taint| !silent(taint)).cloned().collect();
    eviction(&counting, tolerations, now)
}

impl NodeLifecycle {
    /// The controller over a registry.
    pub fn new(registry: &Registry, events: &EventRecorder) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            events: events.of("taint-eviction-controller", ""),
            nodes: kind(registry, "nodes")?,
            pods: kind(registry, "pods")?,
            options: WriteOptions::by(NAME),
            seen: Mutex::default(),
        })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let Some(node) = still_there(self.registry.get_as::<Node>(&self.nodes, "", &key.name))? else {
            self.forget(&key.name, |_| false);
            return Ok(None);
        };
        let now = now();
        if taints(&node, now).is_some() {
            self.taint(&node.metadata, now).await?;
            // The change that was made calls again.
            return Ok(None);
        }
        if node.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "Unknown") {
            self.mark_not_ready(&node.metadata.name, now).await?;
        }
        self.evict(&node, now).await
    }

    async fn taint(&self, node: &Meta, now: Timestamp) -> Result<(), Status> {
        let tainted = self.registry.modify(&self.nodes, "", &node.name, None, &self.options, |stored| {
            let current: Node = serde_json::from_value(Value::Object(stored.clone())).map_err(Status::internal)?;
            match taints(&current, now) {
                Some(wanted) if wanted.is_empty() => drop(meta::remove(stored, "/spec/taints")),
                Some(wanted) => meta::set(stored, "/spec/taints", json!(wanted)),
                None => {}
            }
            Ok(())
        });
        still_there(tainted.await).map(drop)
    }

    /// Whether the pods of a silent node serve anybody is not known: nothing is to be sent to them.
    async fn mark_not_ready(&self, node: &str, now: Timestamp) -> Result<(), Status> {
        let time = meta::format_time(now);
        for pod in self.registry.indexed(&self.pods, &format!("node:{node}"))? {
            if meta::condition(&pod, "Ready").is_none_or(|c| c["status"] != "True") {
                continue;
            }
            let change = |stored: &mut Object| {
                if meta::uid(stored) == meta::uid(&pod)
                    && let Some(Value::Array(conditions)) = meta::pointer_mut(stored, "/status/conditions")
                    && let Some(ready) = conditions.iter_mut().find(|c| c["type"] == "Ready")
                {
                    ready["status"] = json!("False");
                    ready["lastTransitionTime"] = json!(time);
                }
                Ok(())
            };
            let (namespace, name, part) = (meta::namespace(&pod), meta::name(&pod), Some(Subresource::Status));
            let marked = self.registry.modify(&self.pods, namespace, name, part, &self.options, change).await;
            still_there(marked)?;
            let (events, message) = (self.events.of(NAME, ""), "Node is not ready");
            events.record(&Reference::to(&pod), EventKind::Warning, "NodeNotReady", message);
        }
        Ok(())
    }

    /// Deletes the pods whose time on a tainted node is over; returns when that of the next one is.
    async fn evict(&self, node: &Node, now: Timestamp) -> Result<Next, Status> {
        if !node.spec.taints.iter().any(|taint| taint.effect == "NoExecute") {
            self.forget(&node.metadata.name, |_| false);
            return Ok(None);
        }
        let taints = self.timed(node, now);
        let pods: Vec<Pod> = self.registry.indexed_as(&self.pods, &format!("node:{}", node.metadata.name))?;
        let mut next: Option<Timestamp> = None;
        for pod in pods.iter().filter(|pod| !pod.metadata.deleting()) {
            match departure(&taints, &pod.spec.tolerations, now) {
                Eviction::Never => {}
                Eviction::At(time) if time <= now => self.delete(&pod.metadata, now).await?,
                Eviction::At(time) => next = Some(next.map_or(time, |earliest| earliest.min(time))),
            }
        }
        let wait = next.map(|time| time.duration_since(now).unsigned_abs());
        Ok(wait)
    }

    /// The NoExecute taints of a node with the times at which they were first seen.
    fn timed(&self, node: &Node, now: Timestamp) -> Vec<Taint> {
        let mut taints: Vec<Taint> = node.spec.taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect();
        self.forget(&node.metadata.name, |key| taints.iter().any(|taint| taint.key == key));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = tokio::time::Instant::now().into_std();
        for taint in &mut taints {
            let since = *seen.entry((node.metadata.name.clone(), taint.key.clone())).or_insert(clock);
            let elapsed = SignedDuration::try_from(clock.duration_since(since)).unwrap_or(SignedDuration::MAX);
            taint.time_added = now.checked_sub(elapsed).ok();
        }
        taints
    }

    /// Forgets the taints of a node but those to keep.
    fn forget(&self, node: &str, keep: impl Fn(&str) -> bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(name, key), _| name != node || keep(key));
    }

    async fn delete(&self, pod: &Meta, now: Timestamp) -> Result<(), Status> {
        let about = Reference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            field_path: String::new(),
        };
        let message = format!("Marking for deletion Pod {}/{}", pod.namespace, pod.name);
        self.events.record(&about, EventKind::Normal, "TaintManagerEviction", message);
        let time = meta::format_time(now);
        let part = Some(Subresource::Status);
        let marked = self.registry.modify(&self.pods, &pod.namespace, &pod.name, part, &self.options, |stored| {
            if meta::uid(stored) == pod.uid {
                let mut conditions = meta::list_at(stored, "/status/conditions").to_vec();
                conditions.retain(|c| c["type"] != "DisruptionTarget");
                conditions.push(json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": time,
                }));
                meta::set(stored, "/status/conditions", conditions);
            }
            Ok(())
        });
        still_there(marked.await)?;
        let options = DeleteOptions { user: self.options.user.clone(), ..DeleteOptions::of(&pod.uid) };
        match self.registry.delete(&self.pods, &pod.namespace, &pod.name, &options).await {
            Err(status) if !matches!(status.code, 404 | 409) => Err(status),
            _ => Ok(()),
        }
    }
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["nodes", "pods"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        if change.resource() == "nodes" {
            return vec![change.key()];
        }
        if change.kind == EventType::Deleted {
            return Vec::new();
        }
        // A pod that comes to a node may not be welcome there.
        let node_of = |object: &crate::registry::Raw| object.parse::<Pod>().map(|pod| pod.spec).unwrap_or_default();
        let (after, before) = (node_of(change.object), change.before.map(node_of).unwrap_or_default());
        let came = !after.node_name.is_empty()
            && (after.node_name != before.node_name || after.tolerations != before.tolerations);
        let node = Key { resource: "nodes".into(), namespace: "".into(), name: after.node_name.as_str().into() };
        if came { vec![node] } else { Vec::new() }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(unschedulable: bool, conditions: &[(&str, &str)], taints: Value) -> Node {
        let conditions: Vec<Value> = conditions.iter().map(|(t, s)| json!({"type": t, "status": s})).collect();
        let spec = json!({"unschedulable": unschedulable, "taints": taints});
        serde_json::from_value(json!({"spec": spec, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn taints_follow_the_state() {
        let old = |key: &str, effect: &str| json!({"key": key, "effect": effect, "timeAdded": "1970-01-01T00:00:01Z"});
        let own = json!({"key": "mine", "effect": "NoExecute"});
        let cases: Vec<(Node, Option<Vec<&str>>)> = vec![
            (node(false, &[("Ready", "True")], json!([])), None),
            (node(false, &[("Ready", "True")], json!([own])), None),
            (
                node(true, &[], json!([own])),
                Some(vec!["mine:NoExecute", "node.kubernetes.io/unschedulable:NoSchedule"]),
            ),
            (node(false, &[], json!([old(UNSCHEDULABLE, "NoSchedule")])), Some(vec![])),
            (
                node(false, &[("Ready", "Unknown"), ("MemoryPressure", "True")], json!([old(NOT_READY, "NoSchedule")])),
                Some(vec![
                    "node.kubernetes.io/memory-pressure:NoSchedule",
                    "node.kubernetes.io/unreachable:NoSchedule",
                    "node.kubernetes.io/unreachable:NoExecute",
                ]),
            ),
            (
                node(false, &[("Ready", "False")], json!([old(NOT_READY, "NoSchedule"), old(NOT_READY, "NoExecute")])),
                None,
            ),
        ];
        for (node, expected) in cases {
            let found = taints(&node, at(5));
            let text = |list: Vec<Taint>| list.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>();
            assert_eq!(found.map(text), expected.map(|list| list.into_iter().map(str::to_owned).collect()), "{node:?}");
        }
    }

    #[test]
    fn pods_leave_an_absent_node_only_if_they_say_so() {
        let taint = |key: &str| Taint {
            key: key.to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: Some(at(0)),
            ..Taint::default()
        };
        let after = |seconds: Value| {
            serde_json::from_value::<Toleration>(
                json!({"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": seconds}),
            )
            .unwrap()
        };
        for (what, key, tolerations, expected) in [
            ("says nothing", UNREACHABLE, vec![], Eviction::Never),
            ("says when", UNREACHABLE, vec![after(json!(30))], Eviction::At(at(30))),
            ("says never", UNREACHABLE, vec![after(json!(null))], Eviction::Never),
            ("another taint", "mine", vec![], Eviction::At(at(5))),
        ] {
            assert_eq!(departure(&[taint(key)], &tolerations, at(5)), expected, "{what}");
        }
    }
}
