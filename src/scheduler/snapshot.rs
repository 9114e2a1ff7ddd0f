//! What the scheduler knows: nodes with what is used of them, and a few numbers of each pod that is on one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::store::Key;

use super::model::{self, Labels, Pod, Port};
use super::resources::{self, Resources};
use super::taints::Taint;

/// A node and what its pods use.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the API has it. Of others only pods speak.
    known: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What there is for pods.
    pub allocatable: Resources,
    /// How many pods there may be.
    pub most_pods: i64,
    /// What its pods ask for.
    pub used: Resources,
    /// What its pods count with in scores: CPU and memory.
    pub scored: (i64, i64),
    /// How many pods there are.
    pub pods: i64,
    /// Host ports in use.
    pub ports: Vec<Port>,
}

/// A pod on a node, in few bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// The node.
    pub node: Arc<str>,
    /// Its UID.
    pub uid: Box<str>,
    /// Its priority.
    pub priority: i32,
    /// When it started, in seconds; the largest number if it has not.
    pub started: i64,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts with in scores: CPU and memory.
    pub scored: (i64, i64),
    /// Its host ports.
    pub ports: Box<[Port]>,
    /// Whether it is on its way out.
    pub leaving: bool,
}

/// What is free may have become more, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that matters.
    None,
    /// A pod that did not fit could fit now.
    MayHelp,
}

/// All nodes and the pods on them, kept up to date change by change.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<Arc<str>, Node>,
    pods: HashMap<Key, Assigned>,
}

impl Assigned {
    /// The summary of a pod on `node`.
    pub fn of(pod: &Pod, node: Arc<str>) -> Self {
        Self {
            node,
            uid: pod.metadata.uid.as_str().into(),
            priority: pod.spec.priority,
            started: pod.status.start_time.map_or(i64::MAX, |t| t.as_second()),
            requests: resources::requests(&pod.spec),
            scored: resources::scored(&pod.spec),
            ports: host_ports(pod).into(),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// The ports a pod takes of its node.
pub fn host_ports(pod: &Pod) -> Vec<Port> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    ports.filter(|port| port.host_port != 0).cloned().collect()
}

impl Node {
    pub(super) fn take(&mut self, pod: &Assigned) {
        self.used.add(&pod.requests);
        self.scored = (self.scored.0 + pod.scored.0, self.scored.1 + pod.scored.1);
        self.pods += 1;
        self.ports.extend(pod.ports.iter().cloned());
    }

    pub(super) fn release(&mut self, pod: &Assigned) {
        self.used.subtract(&pod.requests);
        self.scored = (self.scored.0 - pod.scored.0, self.scored.1 - pod.scored.1);
        self.pods -= 1;
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }

    /// Takes over what the API says of the node; returns whether that is news for pods that wait.
    fn describe(&mut self, node: model::Node) -> Effect {
        let mut allocatable = Resources::of(&node.status.allocatable);
        let most_pods = allocatable.other.remove("pods").unwrap_or_default();
        let described = Self {
            name: self.name.clone(),
            known: true,
            labels: node.metadata.labels,
            taints: node.spec.taints,
            unschedulable: node.spec.unschedulable,
            allocatable,
            most_pods,
            ..Self::default()
        };
        let news = !self.known
            || described.labels != self.labels
            || described.taints != self.taints
            || described.unschedulable != self.unschedulable
            || described.allocatable != self.allocatable
            || described.most_pods != self.most_pods;
        if !news {
            return Effect::None;
        }
        let old = std::mem::replace(self, described);
        (self.used, self.scored, self.pods, self.ports) = (old.used, old.scored, old.pods, old.ports);
        Effect::MayHelp
    }
}

impl Snapshot {
    /// The nodes by name that are there now.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.known)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The pods below a priority, by node.
    pub fn pods_below(&self, priority: i32) -> HashMap<Arc<str>, Vec<(&Key, &Assigned)>> {
        let mut by_node: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        for (key, pod) in self.pods.iter().filter(|(_, pod)| pod.priority < priority) {
            by_node.entry(pod.node.clone()).or_default().push((key, pod));
        }
        by_node
    }

    /// A node is new or changed.
    pub fn node_changed(&mut self, node: model::Node) -> Effect {
        let name: Arc<str> = node.metadata.name.as_str().into();
        let known = self.nodes.entry(name.clone()).or_insert_with(|| Node { name, ..Node::default() });
        known.describe(node)
    }

    /// A node is gone.
    pub fn node_gone(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            if node.pods == 0 {
                self.nodes.remove(name);
            } else {
                // Its pods are still counted, so that they can be taken off one by one.
                node.known = false;
            }
        }
    }

    /// A pod is new or changed. Pods without a node and pods that have ended take nothing.
    pub fn pod_changed(&mut self, key: &Key, pod: &Pod) -> Effect {
        if pod.spec.node_name.is_empty() || pod.finished() {
            return self.pod_gone(key);
        }
        let node = self.name(&pod.spec.node_name);
        self.assign(key, Assigned::of(pod, node))
    }

    /// A pod is on a node from now on.
    pub fn assign(&mut self, key: &Key, pod: Assigned) -> Effect {
        if self.pods.get(key) == Some(&pod) {
            return Effect::None;
        }
        // A pod that shrinks in place makes room too.
        let effect = self.pod_gone(key);
        let node =
            self.nodes.entry(pod.node.clone()).or_insert_with(|| Node { name: pod.node.clone(), ..Node::default() });
        node.take(&pod);
        self.pods.insert(key.clone(), pod);
        effect
    }

    /// A pod is gone, or takes nothing any more.
    pub fn pod_gone(&mut self, key: &Key) -> Effect {
        let Some(pod) = self.pods.remove(key) else { return Effect::None };
        if let Some(node) = self.nodes.get_mut(&pod.node) {
            node.release(&pod);
            if node.pods == 0 && !node.known {
                self.nodes.remove(&pod.node);
            }
        }
        Effect::MayHelp
    }

    /// The shared name of a node.
    fn name(&self, name: &str) -> Arc<str> {
        self.nodes.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    pub(in crate::scheduler) fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    pub(in crate::scheduler) fn node(name: &str, allocatable: Value, more: Value) -> model::Node {
        let mut node = json!({"metadata": {"name": name}, "status": {"allocatable": allocatable}});
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node["metadata"]["name"] = name.into();
        serde_json::from_value(node).unwrap()
    }

    pub(in crate::scheduler) fn key(name: &str) -> Key {
        Key { resource: "pods".into(), namespace: "default".into(), name: name.into() }
    }

    fn on(node: &str, cpu: &str) -> Pod {
        pod(json!({"spec": {"nodeName": node, "containers": [
            {"resources": {"requests": {"cpu": cpu}}, "ports": [{"hostPort": 80}]}
        ]}}))
    }

    #[test]
    fn usage_follows_pods_in_any_order() {
        let mut s = Snapshot::default();
        assert_eq!(s.pod_changed(&key("early"), &on("pi", "100m")), Effect::None);
        assert_eq!(s.nodes().count(), 0, "the node itself is not known yet");
        let pi = || node("pi", json!({"cpu": "4", "pods": "110"}), json!({}));
        assert_eq!(s.node_changed(pi()), Effect::MayHelp);
        assert_eq!(s.node_changed(pi()), Effect::None, "a heartbeat is no news");
        assert_eq!(s.pod_changed(&key("b"), &on("pi", "1")), Effect::None);
        assert_eq!(s.pod_changed(&key("b"), &on("pi", "1")), Effect::None);
        let state = |s: &Snapshot| s.node("pi").map(|n| (n.used.cpu, n.pods, n.ports.len()));
        assert_eq!(state(&s), Some((1100, 2, 2)));
        assert_eq!(s.pod_changed(&key("b"), &on("pi", "500m")), Effect::MayHelp);
        assert_eq!(state(&s), Some((600, 2, 2)));
        let mut done = on("pi", "500m");
        done.status.phase = "Succeeded".to_owned();
        assert_eq!(s.pod_changed(&key("b"), &done), Effect::MayHelp);
        assert_eq!(state(&s), Some((100, 1, 1)));
        s.node_gone("pi");
        assert_eq!(s.nodes().count(), 0);
        assert_eq!(s.pod_gone(&key("early")), Effect::MayHelp);
        assert_eq!(state(&s), None);
        assert_eq!(s.pod_gone(&key("early")), Effect::None);
    }
}
