//! What a ReplicaSet or ReplicationController does: pure functions (`pkg/controller/replicaset`, `controller_utils.go`).

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::controllers::model::{Annotations, Condition, Meta, Pod, or_default};
use crate::kinds::selector::LabelSelector;
use crate::kinds::{Object, meta};

/// Most pods created or deleted in one go.
const BURST: usize = 500;

/// A ReplicaSet or ReplicationController as the controllers see it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: Spec,
    /// `status`
    pub status: Status,
}

/// `spec` of a ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// `replicas`
    #[serde(default = "one")]
    pub replicas: i64,
    /// `minReadySeconds`
    #[serde(deserialize_with = "or_default")]
    pub min_ready_seconds: i64,
    /// `selector`, as it is.
    #[serde(deserialize_with = "or_default")]
    pub selector: Object,
    /// `template`, as it is.
    #[serde(deserialize_with = "or_default")]
    pub template: Object,
}

/// `status` of a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `replicas`
    pub replicas: i64,
    /// `fullyLabeledReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub fully_labeled_replicas: i64,
    /// `readyReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    /// `availableReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    /// `observedGeneration`
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// `conditions`
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

pub(crate) fn one() -> i64 {
    1
}

pub(crate) fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// How a ReplicaSet gets from the pods it has to the pods it wants.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing to do.
    Enough,
    /// Create that many.
    Create(usize),
    /// Delete these.
    Delete(Vec<&'a Pod>),
}

/// Decides on the next step. `pods` are the active ones of the set; `related` is the number of active pods on each node
/// that belong to any set of the same owner.
pub fn step<'a>(set: &ReplicaSet, pods: &'a [Pod], related: &HashMap<String, usize>, now: Timestamp) -> Step<'a> {
    let wanted = usize::try_from(set.spec.replicas).unwrap_or_default();
    if set.metadata.deleting() || pods.len() == wanted {
        return Step::Enough;
    }
    if pods.len() < wanted {
        return Step::Create((wanted - pods.len()).min(BURST));
    }
    let mut ranked: Vec<&Pod> = pods.iter().collect();
    ranked.sort_by_cached_key(|pod| deletion_rank(pod, related, now));
    ranked.truncate((pods.len() - wanted).min(BURST));
    Step::Delete(ranked)
}

/// Which pod goes first: the smaller, the sooner. Kubernetes compares pair by pair in this order; as a key the order is
/// total. Ages count in powers of two, so that which of several pods of about the same age goes is a matter of chance.
fn deletion_rank(pod: &Pod, related: &HashMap<String, usize>, now: Timestamp) -> impl Ord + use<> {
    let assigned = !pod.spec.node_name.is_empty();
    let phase = match pod.status.phase.as_str() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let doubled_up = related.get(&pod.spec.node_name).copied().unwrap_or_default();
    let restarts = pod.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or_default();
    let ready_age = pod.ready().then(|| age(pod.ready_since(), now));
    (
        (assigned, phase, pod.ready(), deletion_cost(&pod.metadata.annotations)),
        (Reverse(doubled_up), ready_age, Reverse(restarts), age(pod.metadata.creation_timestamp, now)),
        pod.metadata.uid.clone(),
    )
}

/// The logarithm of an age; an unknown age is younger than any.
fn age(since: Option<Timestamp>, now: Timestamp) -> Option<u32> {
    let nanoseconds = now.as_nanosecond() - since?.as_nanosecond();
    Some(u128::try_from(nanoseconds).unwrap_or_default().checked_ilog2().map_or(0, |log| log + 1))
}

/// `controller.kubernetes.io/pod-deletion-cost`; what is no 32-bit integer counts as 0.
fn deletion_cost(annotations: &Annotations) -> i32 {
    annotations.get("controller.kubernetes.io/pod-deletion-cost").and_then(|cost| cost.parse().ok()).unwrap_or_default()
}

/// The status after a reconciliation that saw `pods` (the active ones) and failed as `failure` says (reason and text).
pub fn status(set: &ReplicaSet, pods: &[Pod], failure: Option<(&str, &str)>, now: Timestamp) -> Status {
    let template_labels =
        meta::object_at(&set.spec.template, "/metadata/labels").map(LabelSelector::from_map).unwrap_or_default();
    let count =
        |test: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| test(pod)).count().try_into().unwrap_or(i64::MAX);
    let labelled = |pod: &Pod| template_labels.matches_labels(Some(&pod.metadata.labels));
    let mut conditions = set.status.conditions.clone();
    let known = conditions.iter().position(|c| c.kind == "ReplicaFailure");
    match (failure, known) {
        (Some((reason, message)), None) => conditions.push(Condition {
            kind: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(now),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_update_time: None,
        }),
        (None, Some(at)) => drop(conditions.remove(at)),
        // The first failure is the one shown until it is over.
        (Some(_), Some(_)) | (None, None) => {}
    }
    Status {
        replicas: count(&|_| true),
        fully_labeled_replicas: count(&labelled),
        ready_replicas: count(&Pod::ready),
        available_replicas: count(&|pod| pod.available(set.spec.min_ready_seconds, now)),
        observed_generation: set.metadata.generation,
        conditions,
    }
}

/// Seconds until the next ready pod becomes available, if one is waiting for that.
pub fn next_available(set: &ReplicaSet, pods: &[Pod], now: Timestamp) -> Option<i64> {
    pods.iter()
        .filter_map(|pod| pod.seconds_to_available(set.spec.min_ready_seconds, now))
        .filter(|&left| left > 0)
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn set(replicas: i64, min_ready: i64) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 4},
            "spec": {"replicas": replicas, "minReadySeconds": min_ready,
                     "template": {"metadata": {"labels": {"app": "web"}}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready_since: Option<&str>, more: Value) -> Pod {
        let mut meta = json!({"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let ready = ready_since.map(|t| json!({"type": "Ready", "status": "True", "lastTransitionTime": t}));
        serde_json::from_value(json!({
            "metadata": meta, "spec": {"nodeName": node},
            "status": {"phase": phase, "conditions": ready.into_iter().collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    #[test]
    fn pods_go_in_the_order_of_their_worth() {
        let old = Some("2026-01-01T00:00:00Z");
        let none = json!({});
        let cost = |c: &str| json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": c}});
        let order = vec![
            pod("unassigned", "", "Pending", None, none.clone()),
            pod("pending", "n1", "Pending", None, none.clone()),
            pod("unknown", "n1", "Unknown", None, none.clone()),
            pod("not-ready", "n1", "Running", None, none.clone()),
            pod("cheap", "n1", "Running", old, cost("-5")),
            pod("doubled-up", "n1", "Running", old, none.clone()),
            pod("young", "n2", "Running", Some("2026-01-02T03:04:00Z"), none.clone()),
            pod("just-made", "n2", "Running", old, json!({"creationTimestamp": "2026-01-02T03:04:00Z"})),
            pod("plain", "n2", "Running", old, none.clone()),
            pod("dear", "n1", "Running", old, cost("100")),
        ];
        let related = HashMap::from([("n1".to_owned(), 6), ("n2".to_owned(), 3)]);
        let mut shuffled = order.clone();
        shuffled.reverse();
        shuffled.swap(1, 7);
        for gone in 1..order.len() {
            let keep = i64::try_from(order.len() - gone).unwrap();
            let Step::Delete(victims) = step(&set(keep, 0), &shuffled, &related, now()) else { panic!("must delete") };
            let names: Vec<_> = victims.iter().map(|p| p.metadata.name.as_str()).collect();
            let expected: Vec<_> = order[..gone].iter().map(|p| p.metadata.name.as_str()).collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn more_restarts_go_first() {
        let mut often = pod("often", "n", "Running", None, json!({}));
        often.status.container_statuses = vec![serde_json::from_value(json!({"restartCount": 7})).unwrap()];
        let pods = [pod("a-never", "n", "Running", None, json!({})), often];
        let Step::Delete(victims) = step(&set(1, 0), &pods, &HashMap::new(), now()) else { panic!("must delete") };
        assert_eq!(victims[0].metadata.name, "often");
    }

    #[test]
    fn as_many_as_wanted_within_the_burst() {
        let pods = vec![pod("a", "n", "Running", None, json!({})), pod("b", "n", "Running", None, json!({}))];
        let none = HashMap::new();
        assert!(matches!(step(&set(2, 0), &pods, &none, now()), Step::Enough));
        assert!(matches!(step(&set(5, 0), &pods, &none, now()), Step::Create(3)));
        assert!(matches!(step(&set(9000, 0), &pods, &none, now()), Step::Create(500)));
        let mut leaving = set(5, 0);
        leaving.metadata.deletion_timestamp = Some(now());
        assert!(matches!(step(&leaving, &pods, &none, now()), Step::Enough));
    }

    #[test]
    fn status_counts_and_remembers_the_failure() {
        let pods = vec![
            pod("a", "n", "Running", Some("2026-01-02T03:00:00Z"), json!({"labels": {"app": "web", "x": "y"}})),
            pod("b", "n", "Running", Some("2026-01-02T03:04:00Z"), json!({"labels": {"app": "web"}})),
            pod("c", "n", "Pending", None, json!({"labels": {"app": "other"}})),
        ];
        let mut set = set(3, 10);
        let first = status(&set, &pods, Some(("FailedCreate", "no room")), now());
        assert_eq!(
            serde_json::to_value(&first).unwrap(),
            json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
                   "observedGeneration": 4, "conditions": [{"type": "ReplicaFailure", "status": "True",
                   "lastTransitionTime": "2026-01-02T03:04:05Z", "reason": "FailedCreate", "message": "no room"}]})
        );
        assert_eq!(next_available(&set, &pods, now()), Some(5));
        set.status = first.clone();
        assert_eq!(status(&set, &pods, Some(("FailedCreate", "still")), now()), first);
        assert!(status(&set, &pods, None, now()).conditions.is_empty());
    }
}
