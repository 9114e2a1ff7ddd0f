//! Preemption: which pods of lower priority would have to go so that a pod can run (`default_preemption.go`).

use crate::store::Key;

use super::filter::{Request, filter};
use super::snapshot::{Assigned, Node, Snapshot};

/// A node and the pods that would have to leave it.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Node,
    /// The pods, those of the highest priority first.
    pub victims: Vec<(&'a Key, &'a Assigned)>,
}

/// The nodes from which fewer pods would make room, with those pods.
pub fn candidates<'a>(request: &Request<'_>, snapshot: &'a Snapshot, nodes: &[&'a Node]) -> Vec<Candidate<'a>> {
    let mut lower = snapshot.pods_below(request.pod.spec.priority);
    let mut take = |node: &&'a Node| Some((*node, lower.remove(&node.name)?));
    nodes.iter().filter_map(&mut take).filter_map(|(node, lower)| victims(request, node, lower)).collect()
}

/// The fewest of the pods of lower priority that have to leave a node, if that would make room.
fn victims<'a>(
    request: &Request<'_>,
    node: &'a Node,
    mut lower: Vec<(&'a Key, &'a Assigned)>,
) -> Option<Candidate<'a>> {
    let mut emptied = node.clone();
    for (_, pod) in &lower {
        emptied.release(pod);
    }
    filter(request, &emptied).ok()?;
    // Those of higher priority, and of these the longer running, are spared first.
    lower.sort_by(|(key_a, a), (key_b, b)| {
        b.priority.cmp(&a.priority).then(a.started.cmp(&b.started)).then_with(|| key_a.cmp(key_b))
    });
    lower.retain(|(_, pod)| {
        emptied.take(pod);
        let spared = filter(request, &emptied).is_ok();
        if !spared {
            emptied.release(pod);
        }
        !spared
    });
    Some(Candidate { node, victims: lower })
}

/// The candidate that hurts least: the lowest highest priority, then the lowest sum of priorities, then the fewest
/// victims, then those that started last.
pub fn choose<'a>(candidates: Vec<Candidate<'a>>) -> Option<Candidate<'a>> {
    candidates.into_iter().min_by_key(|candidate| {
        let victims = &candidate.victims;
        let highest = victims.first().map_or(i32::MIN, |(_, pod)| pod.priority);
        // Shifted so that more victims never make a smaller sum.
        let sum: i64 = victims.iter().map(|(_, pod)| i64::from(pod.priority) - i64::from(i32::MIN)).sum();
        let most_important = victims.iter().filter(|(_, pod)| pod.priority == highest);
        let started = most_important.map(|(_, pod)| pod.started).min().unwrap_or(i64::MAX);
        (highest, sum, victims.len(), std::cmp::Reverse(started))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::snapshot::tests::{key, node, pod};
    use super::*;
    use serde_json::json;

    /// What is expected, what runs, and who has to leave which node.
    type Case = (&'static str, Vec<Running>, Option<(&'static str, Vec<&'static str>)>);
    type Running = (&'static str, &'static str, &'static str, i32, i64);

    fn cluster(pods: &[Running]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, node_name, cpu, priority, started) in pods {
            snapshot.node_changed(node(node_name, json!({"cpu": "4", "pods": "110"}), json!({})));
            let started = jiff::Timestamp::from_second(*started).unwrap().to_string();
            let running = json!({
                "spec": {"nodeName": node_name, "priority": priority,
                         "containers": [{"resources": {"requests": {"cpu": cpu}}}]},
                "status": {"startTime": started},
            });
            snapshot.pod_changed(&key(name), &pod(running));
        }
        snapshot
    }

    #[test]
    fn the_least_harm_is_done() {
        let cases: Vec<Case> = vec![
            ("nobody is lower", vec![("a", "n1", "4", 10, 0)], None),
            ("one is lower", vec![("a", "n1", "4", 0, 0)], Some(("n1", vec!["a"]))),
            ("not enough is lower", vec![("a", "n1", "3", 10, 0), ("b", "n1", "1", 0, 0)], None),
            ("the lowest goes", vec![("a", "n1", "2", 1, 0), ("b", "n1", "2", 0, 0)], Some(("n1", vec!["b"]))),
            ("the younger goes", vec![("a", "n1", "2", 0, 9), ("b", "n1", "2", 0, 5)], Some(("n1", vec!["a"]))),
            ("the lower node", vec![("a", "n1", "4", 5, 0), ("b", "n2", "4", 3, 0)], Some(("n2", vec!["b"]))),
            (
                "the fewer",
                vec![("a", "n1", "2", 0, 0), ("b", "n1", "2", 0, 0), ("c", "n1", "0", 10, 0), ("d", "n2", "4", 0, 0)],
                Some(("n1", vec!["b"])),
            ),
            ("the later", vec![("a", "n1", "4", 0, 5), ("b", "n2", "4", 0, 9)], Some(("n2", vec!["b"]))),
        ];
        let pod = pod(json!({"spec": {"priority": 10, "containers": [{"resources": {"requests": {"cpu": "2"}}}]}}));
        let request = Request::of(&pod);
        for (what, running, expected) in cases {
            let snapshot = cluster(&running);
            let nodes: Vec<&Node> = snapshot.nodes().collect();
            let found = choose(candidates(&request, &snapshot, &nodes)).map(|c| {
                (c.node.name.to_string(), c.victims.iter().map(|(key, _)| key.name.to_string()).collect::<Vec<_>>())
            });
            let expected = expected.map(|(n, v)| (n.to_owned(), v.into_iter().map(str::to_owned).collect()));
            assert_eq!(found, expected, "{what}");
        }
    }
}
