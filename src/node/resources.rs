//! Requests and limits as cgroup values, QoS classes and OOM scores, by kubelet's rules.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod::{Desired, Role};
use crate::runtime::Resources;

/// CFS period in microseconds.
const PERIOD: u64 = 100_000;
/// Smallest quota the kernel takes, microseconds.
const MIN_QUOTA: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Processes a pod may have.
const POD_PIDS: u64 = 4096;

/// A quantity in units of 10^-`scale`, rounded up; `None` if it is not one.
fn scaled(text: &str, scale: i32) -> Option<i64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (power, exponent) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => (0, other.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}").parse::<i128>().ok()?.checked_shl(power)?;
    let exponent = exponent + scale - i32::try_from(fraction.len()).ok()?;
    let value = if exponent >= 0 {
        digits.checked_mul(10i128.checked_pow(exponent.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(exponent.unsigned_abs())?;
        digits.div_euclid(divisor) + i128::from(digits.rem_euclid(divisor) != 0)
    };
    Some(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Whole units (bytes), rounded up; 0 if the text is no quantity.
pub(super) fn value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 0).unwrap_or(0)
}

/// Thousandths (of a CPU), rounded up; 0 if the text is no quantity.
pub(super) fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 3).unwrap_or(0)
}

type Quantities = Option<BTreeMap<String, Quantity>>;

fn of<'a>(list: &'a Quantities, name: &str) -> Option<&'a Quantity> {
    list.as_ref()?.get(name)
}

/// The limit of a container, if it has one.
pub(super) fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    of(&container.resources.as_ref()?.limits, name)
}

/// The request of a container; its limit where no request is written.
pub(super) fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    of(&container.resources.as_ref()?.requests, name).or_else(|| limit(container, name))
}

fn shares(milli_cpu: i64) -> u64 {
    milli_cpu.saturating_mul(1024).div_euclid(1000).clamp(MIN_SHARES, MAX_SHARES).unsigned_abs()
}

fn quota(milli_cpu: i64) -> i64 {
    milli_cpu.saturating_mul(PERIOD.cast_signed()).div_euclid(1000).max(MIN_QUOTA)
}

fn positive(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}

/// The cgroup values of a container.
pub(super) fn of_container(container: &Container) -> Resources {
    let cpu_limit = limit(container, "cpu").map(milli).and_then(positive);
    Resources {
        cpu_shares: Some(shares(request(container, "cpu").map_or(0, milli))),
        cpu_quota: cpu_limit.map(quota),
        cpu_period: cpu_limit.map(|_| PERIOD),
        memory_limit: limit(container, "memory").map(value).and_then(positive).map(i64::unsigned_abs),
        pids_limit: None,
    }
}

/// What a pod needs of one resource: its containers beside each other and its sidecars, or its hungriest init container
/// with the sidecars started before it, whatever is more, and the overhead.
fn pod_sum(pod: &Desired, measure: impl Fn(&Container) -> i64, overhead: i64) -> i64 {
    let (mut together, mut sidecars, mut starting) = (0i64, 0i64, 0i64);
    for container in &pod.containers {
        let need = measure(&container.spec);
        match container.role {
            Role::App => together = together.saturating_add(need),
            Role::Sidecar => {
                sidecars = sidecars.saturating_add(need);
                starting = starting.max(sidecars);
            }
            Role::Init => starting = starting.max(sidecars.saturating_add(need)),
            Role::Ephemeral => {}
        }
    }
    together.saturating_add(sidecars).max(starting).saturating_add(overhead)
}

/// The cgroup values of the whole pod: a limit only where every container has one, or the pod itself.
pub(super) fn of_pod(pod: &Desired) -> Resources {
    let spec = pod.spec();
    let own = spec.resources.as_ref();
    let own_limit = |name| own.and_then(|r: &ResourceRequirements| of(&r.limits, name));
    let overhead = |name| of(&spec.overhead, name);
    let lasting = || pod.containers.iter().filter(|c| c.role != Role::Ephemeral);
    let limited = |name: &str| lasting().all(|c| limit(&c.spec, name).map(milli).is_some_and(|v| v > 0));
    let cpu = match own_limit("cpu") {
        Some(limit) => Some(milli(limit)),
        None => {
            limited("cpu").then(|| pod_sum(pod, |c| limit(c, "cpu").map_or(0, milli), overhead("cpu").map_or(0, milli)))
        }
    };
    let memory = match own_limit("memory") {
        Some(limit) => Some(value(limit)),
        None => limited("memory")
            .then(|| pod_sum(pod, |c| limit(c, "memory").map_or(0, value), overhead("memory").map_or(0, value))),
    };
    let own_request = own.and_then(|r| of(&r.requests, "cpu")).or(own_limit("cpu"));
    let cpu_request = own_request
        .map(milli)
        .unwrap_or_else(|| pod_sum(pod, |c| request(c, "cpu").map_or(0, milli), overhead("cpu").map_or(0, milli)));
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota: cpu.map(quota),
        cpu_period: cpu.map(|_| PERIOD),
        memory_limit: memory.map(i64::unsigned_abs),
        pids_limit: Some(POD_PIDS),
    }
}

/// `status.qosClass`: `Guaranteed`, `Burstable` or `BestEffort`.
pub(super) fn qos(pod: &Desired) -> &'static str {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let mut any = false;
    let mut guaranteed = true;
    let own = pod.spec().resources.iter();
    let of_containers =
        pod.containers.iter().filter(|c| c.role != Role::Ephemeral).filter_map(|c| c.spec.resources.as_ref());
    let pod_level = pod.spec().resources.is_some();
    let all_set = pod_level || pod.containers.iter().all(|c| c.role == Role::Ephemeral || c.spec.resources.is_some());
    let lists: Vec<&ResourceRequirements> = if pod_level { own.collect() } else { of_containers.collect() };
    for requirements in lists {
        for name in COUNTED {
            let limit = of(&requirements.limits, name).map(milli).and_then(positive);
            let request = of(&requirements.requests, name).map(milli).or(limit).and_then(positive);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed && all_set) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `oom_score_adj` of a container: who asked for much memory is killed late. `capacity` is the node's memory in bytes.
pub(super) fn oom_score(pod: &Desired, container: &Container, capacity: i64) -> i32 {
    if pod.spec().priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match qos(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = request(container, "memory").map_or(0, value);
            let share = request.saturating_mul(1000).checked_div(capacity).unwrap_or(0);
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pod::tests::desired;
    use super::*;

    #[test]
    fn quantities() {
        for (text, units, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("0.5Gi", 1 << 29, 1000 << 29),
            ("64Mi", 64 << 20, 64_000 << 20),
            ("1e3", 1000, 1_000_000),
            ("2E2", 200, 200_000),
            ("1k", 1000, 1_000_000),
            ("1u", 1, 1),
            ("nonsense", 0, 0),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((value(&quantity), milli(&quantity)), (units, thousandths), "{text}");
        }
    }

    fn container(resources: Value) -> Value {
        json!({"name": "c", "resources": resources})
    }

    #[test]
    fn cgroup_values() {
        for (resources, shares, quota, memory) in [
            (json!({}), 2, None, None),
            (json!({"requests": {"cpu": "250m"}}), 256, None, None),
            (json!({"limits": {"cpu": "500m", "memory": "128Mi"}}), 512, Some(50_000), Some(128 << 20)),
            (json!({"limits": {"cpu": "1m"}}), 2, Some(1_000), None),
            (json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), 1024, Some(200_000), None),
        ] {
            let pod = desired(json!({"containers": [container(resources.clone())]}), &[]);
            let values = of_container(&pod.containers[0].spec);
            assert_eq!(values.cpu_shares, Some(shares), "{resources}");
            assert_eq!(values.cpu_quota, quota, "{resources}");
            assert_eq!(values.memory_limit, memory, "{resources}");
            assert_eq!(of_pod(&pod).memory_limit, memory, "{resources}");
        }
    }

    #[test]
    fn the_pod_has_the_sum_or_its_hungriest_start() {
        let limits = |memory: &str| json!({"limits": {"memory": memory, "cpu": "100m"}});
        let pod = desired(
            json!({
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": limits("10Mi")},
                    {"name": "i", "resources": limits("200Mi")},
                ],
                "containers": [{"name": "a", "resources": limits("50Mi")}, {"name": "b", "resources": limits("50Mi")}],
            }),
            &[],
        );
        assert_eq!(of_pod(&pod).memory_limit, Some(210 << 20));
        assert_eq!(of_pod(&pod).cpu_quota, Some(30_000));
        let unlimited = desired(json!({"containers": [container(limits("1Mi")), {"name": "b"}]}), &[]);
        assert_eq!(of_pod(&unlimited).memory_limit, None);
    }

    #[test]
    fn classes_and_scores() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (containers, class, score) in [
            (json!([{"name": "a"}]), "BestEffort", 1000),
            (json!([{"name": "a", "resources": full}]), "Guaranteed", -997),
            (json!([{"name": "a", "resources": full}, {"name": "b"}]), "Burstable", 750),
            (json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]), "Burstable", 999),
            (json!([{"name": "a", "resources": {"requests": {"memory": "4Gi"}}}]), "Burstable", 3),
        ] {
            let pod = desired(json!({"containers": containers}), &[]);
            assert_eq!(qos(&pod), class, "{containers}");
            assert_eq!(oom_score(&pod, &pod.containers[0].spec, 4 << 30), score, "{containers}");
        }
    }
}
