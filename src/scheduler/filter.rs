//! Filters: whether a pod can run on a node, and if not, why (`pkg/scheduler/framework/plugins`).

use super::affinity;
use super::model::{Pod, Port};
use super::resources::{self, Resources};
use super::snapshot::{Node, host_ports};
use super::taints;

/// A pod with what the filters need of it, computed once for all nodes.
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What it asks for.
    pub resources: Resources,
    /// CPU and memory it counts with in scores.
    pub scored: (i64, i64),
    /// Its host ports.
    pub ports: Vec<Port>,
}

impl<'a> Request<'a> {
    /// The request a pod makes.
    pub fn of(pod: &'a Pod) -> Self {
        Self {
            pod,
            resources: resources::requests(&pod.spec),
            scored: resources::scored(&pod.spec),
            ports: host_ports(pod),
        }
    }
}

/// Why a pod cannot run on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reasons, as Kubernetes words them.
    pub reasons: Vec<String>,
    /// Whether removing pods from the node could help.
    pub resolvable: bool,
}

impl Refusal {
    fn for_good(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], resolvable: false }
    }
}

/// Whether the pod can run on the node. The first filter that refuses gives the reasons.
pub fn filter(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    unschedulable(request, node)?;
    name(request, node)?;
    taint(request, node)?;
    node_affinity(request, node)?;
    ports(request, node)?;
    fit(request, node)
}

/// NodeUnschedulable
fn unschedulable(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    let cordon = taints::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    if !node.unschedulable || request.pod.spec.tolerations.iter().any(|t| t.tolerates(&cordon)) {
        return Ok(());
    }
    Err(Refusal::for_good("node(s) were unschedulable"))
}

/// NodeName
fn name(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    let wanted = &request.pod.spec.node_name;
    if wanted.is_empty() || **wanted == *node.name {
        return Ok(());
    }
    Err(Refusal::for_good("node(s) didn't match the requested node name"))
}

/// TaintToleration
fn taint(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    match taints::untolerated(&node.taints, &request.pod.spec.tolerations, &["NoSchedule", "NoExecute"]) {
        Some(_) => Err(Refusal::for_good("node(s) had untolerated taint(s)")),
        None => Ok(()),
    }
}

/// NodeAffinity
fn node_affinity(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    let spec = &request.pod.spec;
    if affinity::required(&spec.node_selector, &spec.affinity.node_affinity, &node.name, &node.labels) {
        return Ok(());
    }
    Err(Refusal::for_good("node(s) didn't match Pod's node affinity/selector"))
}

/// NodePorts
fn ports(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    if request.ports.iter().any(|wanted| node.ports.iter().any(|used| conflict(wanted, used))) {
        let reasons = vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
        return Err(Refusal { reasons, resolvable: true });
    }
    Ok(())
}

fn conflict(a: &Port, b: &Port) -> bool {
    let protocol = |p: &Port| if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() };
    let any = |p: &Port| matches!(p.host_ip.as_str(), "" | "0.0.0.0" | "::");
    a.host_port == b.host_port && protocol(a) == protocol(b) && (any(a) || any(b) || a.host_ip == b.host_ip)
}

/// NodeResourcesFit
fn fit(request: &Request<'_>, node: &Node) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    let mut resolvable = true;
    if node.pods + 1 > node.most_pods {
        reasons.push("Too many pods".to_owned());
    }
    let asked = &request.resources;
    let mut check = |name: &str, asked: i64, allocatable: i64, used: i64| {
        if asked > 0 && asked > allocatable - used {
            reasons.push(format!("Insufficient {name}"));
            resolvable &= asked <= allocatable;
        }
    };
    check("cpu", asked.cpu, node.allocatable.cpu, node.used.cpu);
    check("memory", asked.memory, node.allocatable.memory, node.used.memory);
    check("ephemeral-storage", asked.ephemeral, node.allocatable.ephemeral, node.used.ephemeral);
    for (name, &asked) in &asked.other {
        let of = |resources: &Resources| resources.other.get(name).copied().unwrap_or_default();
        check(name, asked, of(&node.allocatable), of(&node.used));
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons, resolvable }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::snapshot::Snapshot;
    use super::super::snapshot::tests::{key, node, pod};
    use super::*;
    use serde_json::{Value, json};

    /// A node of 2 cores, 1 GiB and 2 pods that runs one pod of 1 core with host port 80.
    fn pi(more: Value) -> Snapshot {
        let mut s = Snapshot::default();
        s.node_changed(node("pi", json!({"cpu": "2", "memory": "1Gi", "pods": "2"}), more));
        let running = json!({"nodeName": "pi", "containers": [
            {"resources": {"requests": {"cpu": "1"}}, "ports": [{"hostPort": 80, "protocol": "TCP"}]}
        ]});
        s.pod_changed(&key("running"), &pod(json!({ "spec": running })));
        s
    }

    #[test]
    fn every_filter_has_its_reason() {
        let asks = |resources: Value| json!({"containers": [{"resources": {"requests": resources}}]});
        let port = |port: Value| json!({"containers": [{"ports": [port]}]});
        let plain = json!({});
        let cordoned = json!({"spec": {"unschedulable": true}});
        let tainted = json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}});
        let labelled = json!({"metadata": {"labels": {"disk": "ssd"}}});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
        ]}}});
        let unmatched = "node(s) didn't match Pod's node affinity/selector";
        let no_port = "node(s) didn't have free ports for the requested pod ports";
        type Case<'a> = (Value, &'a Value, Option<(&'a str, bool)>);
        let cases: Vec<Case<'_>> = vec![
            (json!({}), &plain, None),
            (json!({}), &cordoned, Some(("node(s) were unschedulable", false))),
            (
                json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}),
                &cordoned,
                None,
            ),
            (json!({"nodeName": "other"}), &plain, Some(("node(s) didn't match the requested node name", false))),
            (json!({}), &tainted, Some(("node(s) had untolerated taint(s)", false))),
            (json!({"tolerations": [{"key": "a", "value": "b"}]}), &tainted, None),
            (json!({"nodeSelector": {"disk": "ssd"}}), &plain, Some((unmatched, false))),
            (json!({"nodeSelector": {"disk": "ssd"}}), &labelled, None),
            (json!({"affinity": affinity}), &plain, Some((unmatched, false))),
            (json!({"affinity": affinity}), &labelled, None),
            (port(json!({"hostPort": 80})), &plain, Some((no_port, true))),
            (port(json!({"hostPort": 80, "hostIP": "10.0.0.1"})), &plain, Some((no_port, true))),
            (port(json!({"hostPort": 80, "protocol": "UDP"})), &plain, None),
            (port(json!({"hostPort": 81})), &plain, None),
            (port(json!({"containerPort": 80})), &plain, None),
            (asks(json!({"cpu": "1"})), &plain, None),
            (asks(json!({"cpu": "1001m"})), &plain, Some(("Insufficient cpu", true))),
            (asks(json!({"cpu": "3"})), &plain, Some(("Insufficient cpu", false))),
            (
                asks(json!({"cpu": "1500m", "memory": "2Gi"})),
                &plain,
                Some(("Insufficient cpu,Insufficient memory", false)),
            ),
            (asks(json!({"example.com/gpu": "1"})), &plain, Some(("Insufficient example.com/gpu", false))),
        ];
        for (spec, more, expected) in cases {
            let snapshot = pi(more.clone());
            let pod = pod(json!({ "spec": spec }));
            let refusal = filter(&Request::of(&pod), snapshot.node("pi").unwrap()).err();
            let found = refusal.map(|r| (r.reasons.join(","), r.resolvable));
            assert_eq!(found, expected.map(|(reason, resolvable)| (reason.to_owned(), resolvable)), "{spec} {more}");
        }
    }

    #[test]
    fn nodes_have_room_for_so_many_pods() {
        let mut snapshot = pi(json!({}));
        snapshot.pod_changed(&key("second"), &pod(json!({"spec": {"nodeName": "pi"}})));
        let third = pod(json!({}));
        let refusal = filter(&Request::of(&third), snapshot.node("pi").unwrap()).unwrap_err();
        assert_eq!((refusal.reasons, refusal.resolvable), (vec!["Too many pods".to_owned()], true));
    }
}
