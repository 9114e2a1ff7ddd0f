//! Scores: which of the nodes a pod can run on is best, with the plugins and weights Kubernetes has by default.
//!
//! ImageLocality is left out: it would keep the image lists of all nodes in memory.

use super::affinity;
use super::filter::Request;
use super::snapshot::Node;
use super::spread::Nearness;

/// The highest score of one plugin.
const MOST: i64 = 100;

/// The place of the best node; of equal ones that with the fewest pods, then the first. `None` without nodes.
pub fn best(request: &Request<'_>, nodes: &[&Node], near: &Nearness) -> Option<usize> {
    let affinity = normalized(nodes.iter().map(|node| preference(request, node)).collect(), false);
    let taints = normalized(nodes.iter().map(|node| unwelcome(request, node)).collect(), true);
    let near = near.scores(nodes);
    let score = |i: usize| {
        3 * taints[i]
            + 2 * affinity[i]
            + 2 * near[i].0
            + 2 * near[i].1
            + least_allocated(request, nodes[i])
            + balanced_allocation(request, nodes[i])
    };
    (0..nodes.len()).max_by_key(|&i| (score(i), -nodes[i].pods, std::cmp::Reverse(i)))
}

/// NodeAffinity
fn preference(request: &Request<'_>, node: &Node) -> i64 {
    affinity::preferred(&request.pod.spec.affinity.node_affinity, &node.name, &node.labels)
}

/// TaintToleration: how many PreferNoSchedule taints are not tolerated.
fn unwelcome(request: &Request<'_>, node: &Node) -> i64 {
    let tolerations = &request.pod.spec.tolerations;
    let taints = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    taints.filter(|taint| !tolerations.iter().any(|t| t.tolerates(taint))).count().try_into().unwrap_or(i64::MAX)
}

/// Scaled so that the highest becomes [`MOST`]; the other way round if `reverse`.
fn normalized(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let highest = scores.iter().copied().max().unwrap_or_default();
    for score in &mut scores {
        let scaled = if highest == 0 { 0 } else { score.saturating_mul(MOST) / highest };
        *score = if reverse { MOST - scaled } else { scaled };
    }
    scores
}

/// NodeResourcesFit, strategy LeastAllocated: the mean free share of CPU and memory.
fn least_allocated(request: &Request<'_>, node: &Node) -> i64 {
    let free = |used: i64, asked: i64, capacity: i64| {
        let left = capacity - used - asked;
        if capacity <= 0 || left < 0 { 0 } else { left.saturating_mul(MOST) / capacity }
    };
    let cpu = free(node.scored.0, request.scored.0, node.allocatable.cpu);
    let memory = free(node.scored.1, request.scored.1, node.allocatable.memory);
    (cpu + memory) / 2
}

/// NodeResourcesBalancedAllocation: how alike the used shares of CPU and memory are. Pods that ask for nothing do not
/// change the balance.
fn balanced_allocation(request: &Request<'_>, node: &Node) -> i64 {
    if request.resources.cpu == 0 && request.resources.memory == 0 {
        return 0;
    }
    let share = |used: i64, asked: i64, capacity: i64| {
        // In millionths.
        if capacity <= 0 { 1_000_000 } else { ((used + asked).saturating_mul(1000) / capacity * 1000).min(1_000_000) }
    };
    let cpu = share(node.used.cpu, request.resources.cpu, node.allocatable.cpu);
    let memory = share(node.used.memory >> 10, request.resources.memory >> 10, node.allocatable.memory >> 10);
    // The standard deviation of two values is half their distance.
    MOST - (cpu - memory).abs() / 2 * MOST / 1_000_000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::snapshot::Snapshot;
    use super::super::snapshot::tests::{key, node, pod};
    use super::*;
    use serde_json::{Value, json};

    fn winner(nodes: &[(&str, Value, Value, Value)], spec: Value) -> String {
        let mut snapshot = Snapshot::default();
        for (name, allocatable, more, used) in nodes {
            snapshot.node_changed(node(name, allocatable.clone(), more.clone()));
            if !used.is_null() {
                let containers = json!([{"resources": {"requests": used}}]);
                let running = json!({"spec": {"nodeName": name, "containers": containers}});
                snapshot.pod_changed(&key(name), &pod(running));
            }
        }
        let pod = pod(json!({ "spec": spec }));
        let nodes: Vec<&Node> = snapshot.nodes().collect();
        nodes[best(&Request::of(&pod), &nodes, &Nearness::default()).unwrap()].name.to_string()
    }

    #[test]
    fn the_best_node_wins() {
        let size = || json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
        let plain = || json!({});
        let soft = || json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}});
        let labelled = || json!({"metadata": {"labels": {"disk": "ssd"}}});
        let wish = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
        ]}}});
        let asks = json!({"containers": [{"resources": {"requests": {"cpu": "1", "memory": "100Mi"}}}]});
        let busy = || json!({"cpu": "2", "memory": "2Gi"});
        let none = || Value::Null;
        for (what, nodes, spec, expected) in [
            ("the free one", [("a", size(), plain(), busy()), ("b", size(), plain(), none())], asks.clone(), "b"),
            (
                "without requests too",
                [("a", size(), plain(), busy()), ("b", size(), plain(), none())],
                json!({"containers": [{}]}),
                "b",
            ),
            ("the preferred one", [("a", size(), plain(), none()), ("b", size(), labelled(), busy())], wish, "b"),
            ("not the tainted one", [("a", size(), soft(), none()), ("b", size(), plain(), busy())], asks.clone(), "b"),
            (
                "the one it balances",
                [("a", size(), plain(), json!({"cpu": "2"})), ("b", size(), plain(), json!({"memory": "2Gi"}))],
                asks.clone(),
                "b",
            ),
            ("the first of equals", [("a", size(), plain(), none()), ("b", size(), plain(), none())], asks, "a"),
        ] {
            assert_eq!(winner(&nodes, spec), expected, "{what}");
        }
    }
}
