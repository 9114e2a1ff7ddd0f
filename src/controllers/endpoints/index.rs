//! Who selects whom: pods by label, Services by namespace, and the nodes' zones and processors. It spares a change the
//! reading of every pod and Service of its namespace.
//!
//! It may name a pod that is gone or matches no longer (a watch fell behind); who reads the pod sees that.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::kinds::Object;

use super::model::NodePlace;
use super::topology::Processors;

/// A label of a namespace. Two of the same hash only cost time.
type Label = u64;
/// The labels each of a namespace's Services selects by.
type Selectors = HashMap<Arc<str>, Box<[Label]>>;

/// See the module.
#[derive(Default)]
pub struct Index {
    hasher: RandomState,
    inner: Mutex<Inner>,
}

/// What is new of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// Nothing that endpoints depend on.
    Nothing,
    /// It is new or gone or in another zone: the Services with pods there have to be looked at.
    Zone,
    /// How much it counts: hints of [`super::topology`] may change.
    Processors,
}

#[derive(Default)]
struct Inner {
    pods: HashMap<Label, HashSet<Arc<str>>>,
    /// By namespace.
    services: HashMap<Arc<str>, Selectors>,
    /// All nodes.
    nodes: HashMap<String, NodePlace>,
}

impl Index {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels(&self, namespace: &str, labels: &Object) -> Vec<Label> {
        let hash = |(key, value): (&String, &Value)| Some(self.hasher.hash_one((namespace, key, value.as_str()?)));
        labels.iter().filter_map(hash).collect()
    }

    /// Notes a pod's labels before and after a change (`None`: it is gone) and names the Services it belonged or belongs
    /// to.
    pub fn pod(
        &self,
        namespace: &str,
        name: &Arc<str>,
        before: Option<&Object>,
        after: Option<&Object>,
    ) -> Vec<Arc<str>> {
        let of = |labels: Option<&Object>| labels.map(|l| self.labels(namespace, l)).unwrap_or_default();
        let (before, after) = (of(before), of(after));
        let mut inner = self.inner();
        for label in before.iter().filter(|label| !after.contains(label)) {
            if let Some(pods) = inner.pods.get_mut(label) {
                pods.remove(name);
                if pods.is_empty() {
                    inner.pods.remove(label);
                }
            }
        }
        for label in &after {
            let pods = inner.pods.entry(*label).or_default();
            if !pods.contains(name) {
                pods.insert(name.clone());
            }
        }
        let selects =
            |selector: &[Label]| [&before, &after].iter().any(|labels| selector.iter().all(|l| labels.contains(l)));
        let services = inner.services.get(namespace).into_iter().flatten();
        services.filter(|(_, selector)| selects(selector)).map(|(name, _)| name.clone()).collect()
    }

    /// Notes a Service's selector; `None`: it is gone, or selects nothing.
    pub fn service(&self, namespace: &Arc<str>, name: &Arc<str>, selector: Option<&Object>) {
        let selector = selector.map(|s| self.labels(namespace, s)).filter(|s| !s.is_empty());
        let mut inner = self.inner();
        match selector {
            Some(selector) => {
                inner.services.entry(namespace.clone()).or_default().insert(name.clone(), selector.into());
            }
            None => {
                if let Some(services) = inner.services.get_mut(namespace) {
                    services.remove(name);
                    if services.is_empty() {
                        inner.services.remove(namespace);
                    }
                }
            }
        }
    }

    /// The pods that may match a selector, sorted.
    pub fn matching(&self, namespace: &str, selector: &Object) -> Vec<Arc<str>> {
        let labels = self.labels(namespace, selector);
        let inner = self.inner();
        let sets: Option<Vec<_>> = labels.iter().map(|label| inner.pods.get(label)).collect();
        let Some(sets) = sets else { return Vec::new() };
        let Some(smallest) = sets.iter().min_by_key(|set| set.len()) else { return Vec::new() };
        let mut names: Vec<_> =
            smallest.iter().filter(|name| sets.iter().all(|s| s.contains(*name))).cloned().collect();
        names.sort();
        names
    }

    /// Notes where a node is (`None`: it is gone).
    pub fn node(&self, name: &str, place: Option<NodePlace>) -> NodeChange {
        let mut inner = self.inner();
        let before = match place.clone() {
            Some(place) => inner.nodes.insert(name.to_owned(), place),
            None => inner.nodes.remove(name),
        };
        let zone = |place: &Option<NodePlace>| place.as_ref().map(|p| p.zone.clone());
        if zone(&before) != zone(&place) {
            NodeChange::Zone
        } else if before != place {
            NodeChange::Processors
        } else {
            NodeChange::Nothing
        }
    }

    /// The zone of a node, if it is in one; `None`: there is no such node.
    pub fn zone(&self, node: &str) -> Option<Option<String>> {
        self.inner().nodes.get(node).map(|place| place.zone.clone())
    }

    /// The processors of each zone; `None` if a node that counts does not say how many or where.
    pub fn processors(&self) -> Option<Processors> {
        let inner = self.inner();
        let mut zones = Processors::new();
        for place in inner.nodes.values().filter(|place| place.counts) {
            let zone = place.zone.clone().filter(|_| place.processors > 0)?;
            *zones.entry(zone).or_default() += place.processors;
        }
        Some(zones)
    }

    /// All Services that select pods.
    pub fn services(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let inner = self.inner();
        let all = inner.services.iter();
        all.flat_map(|(namespace, names)| names.keys().map(|name| (namespace.clone(), name.clone()))).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_and_services_find_each_other() {
        let index = Index::default();
        let object = |v: Value| v.as_object().unwrap().clone();
        let (ns, web, db): (Arc<str>, Arc<str>, Arc<str>) = ("ns".into(), "web".into(), "db".into());
        index.service(&ns, &web, Some(&object(json!({"app": "web"}))));
        index.service(&ns, &db, Some(&object(json!({"app": "db", "tier": "back"}))));
        index.service(&ns, &"none".into(), Some(&Object::new()));
        let name: Arc<str> = "p".into();
        let (front, back) = (object(json!({"app": "web", "x": "y"})), object(json!({"app": "db", "tier": "back"})));
        assert_eq!(index.pod("ns", &name, None, Some(&front)), std::slice::from_ref(&web));
        assert_eq!(index.pod("other", &name, None, Some(&front)), []);
        assert_eq!(index.matching("ns", &object(json!({"app": "web"}))), std::slice::from_ref(&name));
        let mut both = index.pod("ns", &name, Some(&front), Some(&back));
        both.sort();
        assert_eq!(both, [db.clone(), web]);
        assert!(index.matching("ns", &object(json!({"app": "web"}))).is_empty());
        assert_eq!(index.matching("ns", &object(json!({"app": "db", "tier": "back"}))), std::slice::from_ref(&name));
        assert!(index.matching("ns", &object(json!({"app": "db", "tier": "front"}))).is_empty());
        assert_eq!(index.pod("ns", &name, Some(&back), None), [db]);
        assert_eq!(index.inner().pods.len(), 2, "only the pod of the other namespace is left");
    }

    #[test]
    fn nodes_change() {
        let index = Index::default();
        let place = |zone: &str, processors: i64| {
            let zone = Some(zone.to_owned()).filter(|z| !z.is_empty());
            Some(NodePlace { zone, processors, counts: true })
        };
        for (name, place, change, zones) in [
            ("pi", place("", 0), NodeChange::Zone, None),
            ("pi", place("", 0), NodeChange::Nothing, None),
            ("pi", place("a", 0), NodeChange::Zone, None),
            ("pi", place("a", 4000), NodeChange::Processors, Some("{\"a\": 4000}")),
            ("tau", place("b", 1000), NodeChange::Zone, Some("{\"a\": 4000, \"b\": 1000}")),
            ("phi", place("b", 500), NodeChange::Zone, Some("{\"a\": 4000, \"b\": 1500}")),
            (
                "pi",
                place("a", 4000).map(|p| NodePlace { counts: false, ..p }),
                NodeChange::Processors,
                Some("{\"b\": 1500}"),
            ),
            ("tau", None, NodeChange::Zone, Some("{\"b\": 500}")),
            ("tau", None, NodeChange::Nothing, Some("{\"b\": 500}")),
        ] {
            assert_eq!(index.node(name, place.clone()), change, "{name} {place:?}");
            assert_eq!(index.processors().map(|zones| format!("{zones:?}")).as_deref(), zones, "{name} {place:?}");
        }
    }
}
