//! The quality-of-service class of a pod.

use serde_json::Value;

use crate::kinds::quantity::Quantity;
use crate::kinds::{Object, meta};

/// `Guaranteed` if every container has CPU and memory limits and its requests equal them, `BestEffort` if none has any
/// of them, otherwise `Burstable`. Amounts of zero do not count.
pub fn qos_class(pod: &Object) -> &'static str {
    let empty = Object::new();
    let spec = meta::sub(pod, "spec").unwrap_or(&empty);
    let mut any = false;
    let mut guaranteed = true;
    for container in ["initContainers", "containers"].iter().flat_map(|list| meta::items(spec, list)) {
        for resource in ["cpu", "memory"] {
            let amount = |list| amount(container, list, resource);
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn amount(container: &Object, list: &str, resource: &str) -> Option<Quantity> {
    let value = container.get("resources")?.get(list)?.get(resource)?;
    Quantity::from_json(value).ok().filter(|q| !q.is_zero() && value != &Value::Null)
}
