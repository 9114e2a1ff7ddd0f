//! Where other pods are: preferred pod affinity and anti-affinity, and topology spread with `ScheduleAnyway`.
//!
//! The few pods that ask for this cost a look at the pods of their namespaces when they are scheduled; the snapshot
//! keeps no labels for them. The required forms are refused by the API.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};
use crate::registry::{ListOptions, Registry};

use super::affinity;
use super::model::{Pod, or_default};
use super::snapshot::{Node, Snapshot};
use super::taints::untolerated;

/// `podAffinity` or `podAntiAffinity`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodAffinity {
    /// `preferredDuringSchedulingIgnoredDuringExecution`
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "or_default")]
    pub preferred: Vec<WeightedTerm>,
}

/// A term with its weight.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedTerm {
    /// `weight`, 1 to 100.
    pub weight: i64,
    /// `podAffinityTerm`
    pub pod_affinity_term: Term,
}

/// Which pods, and what being near them means.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    /// `labelSelector`; none selects nothing.
    pub label_selector: Option<Object>,
    /// `namespaces`
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<String>,
    /// `namespaceSelector`; none selects nothing, an empty one every namespace.
    pub namespace_selector: Option<Object>,
    /// `topologyKey`
    pub topology_key: String,
    /// `matchLabelKeys`
    #[serde(deserialize_with = "or_default")]
    pub match_label_keys: Vec<String>,
    /// `mismatchLabelKeys`
    #[serde(deserialize_with = "or_default")]
    pub mismatch_label_keys: Vec<String>,
}

/// One of `topologySpreadConstraints`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Constraint {
    /// `topologyKey`
    pub topology_key: String,
    /// `labelSelector`; none selects nothing.
    pub label_selector: Option<Object>,
    /// `matchLabelKeys`
    #[serde(deserialize_with = "or_default")]
    pub match_label_keys: Vec<String>,
    /// `nodeAffinityPolicy`: unless it is `Ignore`, only pods count whose node is one the pod asks for.
    #[serde(deserialize_with = "or_default")]
    pub node_affinity_policy: String,
    /// `nodeTaintsPolicy`: if it is `Honor`, only pods count on nodes whose taints the pod tolerates.
    #[serde(deserialize_with = "or_default")]
    pub node_taints_policy: String,
}

/// A wish to be near, or away from, pods.
#[derive(Debug)]
struct Wish<'a> {
    /// Above zero to be near, below to be away.
    weight: i64,
    topology: &'a str,
    pods: LabelSelector,
    /// Labels that must be, or must not be, those of the pod itself.
    same: &'a [String],
    other: &'a [String],
    namespaces: BTreeSet<String>,
    /// Counts only pods on nodes that the pod asks for, and on nodes whose taints it tolerates.
    asked_for: bool,
    tolerated: bool,
}

/// How near to the pods it wants a pod would be, by the value of a node's label.
#[derive(Debug, Default)]
pub struct Nearness {
    /// Of pod affinity and anti-affinity.
    affinity: HashMap<(String, String), i64>,
    /// Of topology spread.
    spread: HashMap<(String, String), i64>,
}

/// A pod others want to be near or away from.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Other {
    metadata: OtherMeta,
    spec: OtherSpec,
    status: super::model::PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OtherMeta {
    namespace: String,
    #[serde(deserialize_with = "or_default")]
    labels: Object,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OtherSpec {
    #[serde(deserialize_with = "or_default")]
    node_name: String,
}

impl Nearness {
    /// Looks at the pods a pod has wishes about; reads nothing for a pod without.
    pub fn of(pod: &Pod, snapshot: &Snapshot, registry: &Registry, pods: &Kind) -> Result<Self, Status> {
        let (affinity, spread) = (affinity_wishes(pod, registry)?, spread_wishes(pod));
        if affinity.is_empty() && spread.is_empty() {
            return Ok(Self::default());
        }
        let namespaces: BTreeSet<&String> = affinity.iter().chain(&spread).flat_map(|wish| &wish.namespaces).collect();
        let mut near = Self::default();
        for namespace in namespaces {
            let others: Vec<Other> = registry.list_as(pods, &ListOptions::within(namespace))?;
            near.count(pod, &affinity, &spread, &others, snapshot);
        }
        Ok(near)
    }

    /// Adds what some pods mean for the wishes of a pod.
    fn count(&mut self, pod: &Pod, affinity: &[Wish<'_>], spread: &[Wish<'_>], others: &[Other], snapshot: &Snapshot) {
        for other in others.iter().filter(|other| !matches!(other.status.phase.as_str(), "Succeeded" | "Failed")) {
            let Some(node) = snapshot.node(&other.spec.node_name) else { continue };
            for (wishes, counts) in [(affinity, &mut self.affinity), (spread, &mut self.spread)] {
                for wish in wishes.iter().filter(|wish| wish.is_about(other, pod) && wish.counts_on(node, pod)) {
                    if let Some(value) = node.labels.get(wish.topology) {
                        *counts.entry((wish.topology.to_owned(), value.clone())).or_default() += wish.weight;
                    }
                }
            }
        }
    }

    /// The scores of nodes, 0 to 100: of pod affinity, and of topology spread.
    pub fn scores(&self, nodes: &[&Node]) -> Vec<(i64, i64)> {
        let affinity = scaled(&self.affinity, nodes);
        affinity.into_iter().zip(scaled(&self.spread, nodes)).collect()
    }
}

/// The sums of a node's topologies, so that the lowest becomes 0 and the highest 100.
fn scaled(counts: &HashMap<(String, String), i64>, nodes: &[&Node]) -> Vec<i64> {
    if counts.is_empty() {
        return vec![0; nodes.len()];
    }
    let topologies: BTreeSet<&str> = counts.keys().map(|(topology, _)| topology.as_str()).collect();
    let of = |node: &&Node, topology: &str| {
        let value = node.labels.get(topology)?;
        counts.get(&(topology.to_owned(), value.clone())).copied()
    };
    let sums: Vec<i64> =
        nodes.iter().map(|node| topologies.iter().filter_map(|topology| of(node, topology)).sum()).collect();
    let (least, most) =
        (sums.iter().min().copied().unwrap_or_default(), sums.iter().max().copied().unwrap_or_default());
    let range = most - least;
    sums.iter().map(|sum| if range == 0 { 0 } else { (sum - least) * 100 / range }).collect()
}

impl Wish<'_> {
    fn counts_on(&self, node: &Node, pod: &Pod) -> bool {
        let spec = &pod.spec;
        let required =
            || affinity::required(&spec.node_selector, &spec.affinity.node_affinity, &node.name, &node.labels);
        let tolerated = || untolerated(&node.taints, &spec.tolerations, &["NoSchedule", "NoExecute"]).is_none();
        (!self.asked_for || required()) && (!self.tolerated || tolerated())
    }

    fn is_about(&self, other: &Other, pod: &Pod) -> bool {
        let labels = &other.metadata.labels;
        let same =
            |key: &String| labels.get(key).and_then(|v| v.as_str()) == pod.metadata.labels.get(key).map(String::as_str);
        let relevant = |key: &&String| pod.metadata.labels.contains_key(*key);
        self.namespaces.contains(&other.metadata.namespace)
            && self.pods.matches_labels(Some(labels))
            && self.same.iter().filter(relevant).all(same)
            && !self.other.iter().filter(relevant).any(same)
    }
}

fn affinity_wishes<'a>(pod: &'a Pod, registry: &Registry) -> Result<Vec<Wish<'a>>, Status> {
    let affinity = &pod.spec.affinity;
    let near = affinity.pod_affinity.preferred.iter().map(|term| (1, term));
    let away = affinity.pod_anti_affinity.preferred.iter().map(|term| (-1, term));
    let mut wishes = Vec::new();
    for (sign, WeightedTerm { weight, pod_affinity_term: term }) in near.chain(away) {
        let Some(selector) = &term.label_selector else { continue };
        wishes.push(Wish {
            weight: sign * weight,
            topology: &term.topology_key,
            pods: LabelSelector::from_object(selector),
            same: &term.match_label_keys,
            other: &term.mismatch_label_keys,
            namespaces: namespaces(term, pod, registry)?,
            asked_for: false,
            tolerated: false,
        });
    }
    Ok(wishes)
}

/// The namespaces a term speaks of: those it names and those it selects, or else the pod's own.
fn namespaces(term: &Term, pod: &Pod, registry: &Registry) -> Result<BTreeSet<String>, Status> {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().cloned().collect();
    if let Some(selector) = &term.namespace_selector {
        let selector = LabelSelector::from_object(selector);
        let Some(kind) = registry.kinds().by_resource("namespaces") else { return Ok(namespaces) };
        let all = registry.list(&kind, &ListOptions::default())?.items;
        for namespace in all {
            if selector.matches(&namespace.object()?) {
                namespaces.insert(namespace.key.name.to_string());
            }
        }
    } else if namespaces.is_empty() {
        namespaces.insert(pod.metadata.namespace.clone());
    }
    Ok(namespaces)
}

fn spread_wishes(pod: &Pod) -> Vec<Wish<'_>> {
    let wish = |constraint: &'_ Constraint| constraint.label_selector.as_ref().map(LabelSelector::from_object);
    let constraints = pod.spec.topology_spread_constraints.iter().filter_map(|c| Some((c, wish(c)?)));
    constraints
        .map(|(constraint, pods)| Wish {
            weight: -1,
            topology: &constraint.topology_key,
            pods,
            same: &constraint.match_label_keys,
            other: &[],
            namespaces: BTreeSet::from([pod.metadata.namespace.clone()]),
            asked_for: constraint.node_affinity_policy != "Ignore",
            tolerated: constraint.node_taints_policy == "Honor",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::snapshot::tests::{node, pod};
    use super::*;
    use serde_json::{Value, json};

    /// Nodes `a` and `b` in one zone, `c` in another and tainted.
    fn zones() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("a", "east"), ("b", "east"), ("c", "west")] {
            let taints = if name == "c" { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
            let more = json!({"metadata": {"labels": {"zone": zone, "host": name}}, "spec": {"taints": taints}});
            snapshot.node_changed(node(name, json!({"cpu": "4", "pods": "9"}), more));
        }
        snapshot
    }

    fn scores(spec: Value, others: &[(&str, &str)]) -> Vec<(i64, i64)> {
        let other = |(app, node): &(&str, &str)| -> Other {
            let metadata = json!({"namespace": "shop", "labels": {"app": app}});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": node}})).unwrap()
        };
        let pod = pod(json!({"metadata": {"namespace": "shop", "labels": {"app": "web"}}, "spec": spec}));
        let wish = |weight: i64, term: &WeightedTerm| Wish {
            weight: weight * term.weight,
            topology: "zone",
            pods: LabelSelector::from_object(term.pod_affinity_term.label_selector.as_ref().unwrap()),
            same: &[],
            other: &[],
            namespaces: BTreeSet::from(["shop".to_owned()]),
            asked_for: false,
            tolerated: false,
        };
        let mut affinity: Vec<Wish<'_>> =
            pod.spec.affinity.pod_affinity.preferred.iter().map(|term| wish(1, term)).collect();
        affinity.extend(pod.spec.affinity.pod_anti_affinity.preferred.iter().map(|term| wish(-1, term)));
        let snapshot = zones();
        let mut near = Nearness::default();
        near.count(&pod, &affinity, &spread_wishes(&pod), &others.iter().map(other).collect::<Vec<_>>(), &snapshot);
        near.scores(&snapshot.nodes().collect::<Vec<_>>())
    }

    #[test]
    fn pods_are_near_or_away_as_they_wish() {
        let term = |app: &str, weight: i64| {
            json!({"weight": weight, "podAffinityTerm": {
                "topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}},
            }})
        };
        let preferred = |kind: &str, terms: Value| json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": terms}}});
        let constraint = |policies: Value| {
            let mut constraint =
                json!({"topologyKey": "host", "maxSkew": 1, "labelSelector": {"matchLabels": {"app": "web"}}});
            constraint.as_object_mut().unwrap().extend(policies.as_object().unwrap().clone());
            json!({"nodeSelector": {"host": "b"}, "topologySpreadConstraints": [constraint]})
        };
        for (what, spec, others, expected) in [
            ("no wishes", json!({}), vec![("db", "a")], [(0, 0), (0, 0), (0, 0)]),
            ("near", preferred("podAffinity", json!([term("db", 5)])), vec![("db", "a")], [(100, 0), (100, 0), (0, 0)]),
            (
                "away",
                preferred("podAntiAffinity", json!([term("web", 5)])),
                vec![("web", "c")],
                [(100, 0), (100, 0), (0, 0)],
            ),
            (
                "nobody to be near",
                preferred("podAffinity", json!([term("db", 5)])),
                vec![("x", "a")],
                [(0, 0), (0, 0), (0, 0)],
            ),
            (
                "more",
                preferred("podAffinity", json!([term("db", 9), term("x", 1)])),
                vec![("db", "c"), ("x", "b")],
                [(0, 0), (0, 0), (100, 0)],
            ),
            (
                "spread, counting everywhere",
                constraint(json!({"nodeAffinityPolicy": "Ignore"})),
                vec![("web", "a"), ("web", "a"), ("web", "b"), ("db", "c")],
                [(0, 0), (0, 50), (0, 100)],
            ),
            (
                "spread, counting where the pod may go",
                constraint(json!({})),
                vec![("web", "a"), ("web", "a"), ("web", "b"), ("db", "c")],
                [(0, 100), (0, 0), (0, 100)],
            ),
            (
                "spread, but for nodes whose taints are not tolerated",
                constraint(json!({"nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor"})),
                vec![("web", "b"), ("web", "c")],
                [(0, 100), (0, 0), (0, 100)],
            ),
        ] {
            assert_eq!(scores(spec, &others), expected, "{what}");
        }
    }
}
