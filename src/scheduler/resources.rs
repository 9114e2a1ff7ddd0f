//! Amounts of resources: what pods ask for and nodes have (`k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::quantity::Quantity;

use super::model::{Amounts, Container, PodSpec, Requests};

/// CPU a container counts with in scores if it asks for none, in thousandths of a core.
const DEFAULT_CPU: i64 = 100;
/// Memory a container counts with in scores if it asks for none, in bytes.
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral: i64,
    /// Everything else, such as devices and huge pages. No entry is zero.
    pub other: BTreeMap<Box<str>, i64>,
}

impl Resources {
    /// The amounts of a resource list. What is no quantity counts as nothing; validation lets none in.
    pub fn of(amounts: &Amounts) -> Self {
        let mut resources = Self::default();
        for (name, value) in amounts {
            *resources.entry(name) = amount(name, value);
        }
        resources.other.retain(|_, amount| *amount != 0);
        resources
    }

    fn entry(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral,
            _ => self.other.entry(name.into()).or_default(),
        }
    }

    /// Adds amounts.
    pub fn add(&mut self, more: &Self) {
        self.apply(more, i64::saturating_add);
    }

    /// Takes amounts away.
    pub fn subtract(&mut self, less: &Self) {
        self.apply(less, i64::saturating_sub);
        self.other.retain(|_, amount| *amount != 0);
    }

    /// Raises each amount to at least another's.
    pub fn raise(&mut self, least: &Self) {
        self.apply(least, i64::max);
    }

    fn apply(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.cpu = combine(self.cpu, other.cpu);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral = combine(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = combine(*mine, *amount);
        }
    }
}

fn amount(name: &str, value: &Value) -> i64 {
    let quantity = Quantity::from_json(value).unwrap_or(Quantity::ZERO);
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

/// What a pod asks for: the sum of its containers and sidecars, or what its init containers need one after the other,
/// whichever is more; what is asked for the whole pod instead; and its overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    total(spec, |requests| Resources::of(&requests.requests))
}

/// CPU (thousandths) and memory (bytes) for scores, where a container that asks for nothing counts with a little.
pub fn scored(spec: &PodSpec) -> (i64, i64) {
    let total = total(spec, |requests| {
        let mut resources = Resources::of(&requests.requests);
        if !requests.requests.contains_key("cpu") {
            resources.cpu = DEFAULT_CPU;
        }
        if !requests.requests.contains_key("memory") {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    });
    (total.cpu, total.memory)
}

fn total(spec: &PodSpec, of: impl Fn(&Requests) -> Resources) -> Resources {
    let sidecar = |c: &Container| c.restart_policy == "Always";
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(&container.resources));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in &spec.init_containers {
        let mut needed = of(&container.resources);
        needed.add(&sidecars);
        starting.raise(&needed);
        if sidecar(container) {
            sidecars = needed;
        }
    }
    running.add(&sidecars);
    running.raise(&starting);
    let pod = Resources::of(&spec.resources.requests);
    for name in spec.resources.requests.keys() {
        *running.entry(name) = match name.as_str() {
            "cpu" => pod.cpu,
            "memory" => pod.memory,
            "ephemeral-storage" => pod.ephemeral,
            _ => pod.other.get(name.as_str()).copied().unwrap_or_default(),
        };
    }
    running.add(&Resources::of(&spec.overhead));
    running.other.retain(|_, amount| *amount != 0);
    running
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn asks(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> Value {
        json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn pods_ask_for_the_most_they_need_at_once() {
        for (what, pod, cpu) in [
            ("containers add up", json!({"containers": [asks("100m"), asks("0.2")]}), 300),
            (
                "init containers come one by one",
                json!({"containers": [asks("1")], "initContainers": [asks("2"), asks("3")]}),
                3000,
            ),
            ("small ones do not count", json!({"containers": [asks("1")], "initContainers": [asks("500m")]}), 1000),
            ("sidecars stay", json!({"containers": [asks("1")], "initContainers": [sidecar("1"), asks("500m")]}), 2000),
            (
                "only earlier sidecars",
                json!({"containers": [asks("1")], "initContainers": [asks("4"), sidecar("1")]}),
                4000,
            ),
            (
                "init beside sidecar",
                json!({"containers": [asks("1")], "initContainers": [sidecar("1"), asks("4")]}),
                5000,
            ),
            ("overhead", json!({"containers": [asks("1")], "overhead": {"cpu": "10m"}}), 1010),
            ("for the whole pod", json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "3"}}}), 3000),
        ] {
            assert_eq!(requests(&spec(pod)).cpu, cpu, "{what}");
        }
    }

    #[test]
    fn every_kind_of_resource_is_counted() {
        let list = json!({"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2k", "example.com/gpu": "2", "x": "0"});
        let r = requests(&spec(json!({"containers": [{"resources": {"requests": list}}, {"resources": null}]})));
        assert_eq!((r.cpu, r.memory, r.ephemeral), (1000, 1 << 30, 2000));
        assert_eq!(r.other, BTreeMap::from([("example.com/gpu".into(), 2)]));
        let mut sum = r.clone();
        sum.add(&r);
        sum.subtract(&r);
        sum.subtract(&r);
        assert_eq!(sum, Resources::default());
    }

    #[test]
    fn pods_without_requests_weigh_a_little() {
        assert_eq!(scored(&spec(json!({"containers": [{}, asks("1")]}))), (1100, 2 * DEFAULT_MEMORY));
    }
}
