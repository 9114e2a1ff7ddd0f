//! Nodes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, all_invalid, each, formatted, join, required_one_of, same};
use super::duration::age;
use super::metadata::{self, Scope};
use super::quantity::canonicalize_list;
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The label that says which zone a node is in.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// The hooks of nodes.
pub struct Node;

impl Hooks for Node {
    fn default(&self, object: &mut Object) {
        let Some(Value::Object(status)) = object.get_mut("status") else { return };
        for list in ["capacity", "allocatable"] {
            if let Some(Value::Object(list)) = status.get_mut(list) {
                canonicalize_list(list);
            }
        }
        if let (Some(capacity), None) = (status.get("capacity").cloned(), status.get("allocatable")) {
            status.insert("allocatable".into(), capacity);
        }
    }

    // A node registers itself with its status: there is nothing to drop on create.

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Cluster, format::dns_subdomain);
        let empty = Object::new();
        taints(&mut errors, meta::sub(object, "spec").unwrap_or(&empty));
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        for key in ["podCIDR", "podCIDRs", "providerID"] {
            let at = |o| meta::sub(o, "spec").and_then(|s| s.get(key));
            if !same(at(old), None) && !same(at(new), at(old)) {
                let detail = format!("node updates may not change {key} except from \"\" to valid");
                errors.push(FieldError::forbidden(join("spec", key), detail));
            }
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Status", kind: "string", format: "", priority: 0 },
            Column { name: "Roles", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
            Column { name: "Version", kind: "string", format: "", priority: 0 },
            Column { name: "Internal-IP", kind: "string", format: "", priority: 1 },
            Column { name: "External-IP", kind: "string", format: "", priority: 1 },
            Column { name: "OS-Image", kind: "string", format: "", priority: 1 },
            Column { name: "Kernel-Version", kind: "string", format: "", priority: 1 },
            Column { name: "Container-Runtime", kind: "string", format: "", priority: 1 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let info = |key: &str| meta::str_at(object, &format!("/status/nodeInfo/{key}")).to_owned();
        let known = |text: String| if text.is_empty() { "<unknown>".to_owned() } else { text };
        vec![
            json!(readiness(object)),
            json!(roles(object)),
            json!(age(object, now)),
            json!(info("kubeletVersion")),
            json!(address(object, "InternalIP")),
            json!(address(object, "ExternalIP")),
            json!(known(info("osImage"))),
            json!(known(info("kernelVersion"))),
            json!(known(info("containerRuntimeVersion"))),
        ]
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        (field == "spec.unschedulable").then(|| meta::bool_at(object, "/spec/unschedulable").to_string())
    }
}

fn taints(errors: &mut Errors, spec: &Object) {
    let mut seen = Vec::new();
    for (path, taint) in each(spec, "spec", "taints") {
        formatted(errors, &path, taint, "key", format::qualified_name);
        let value = meta::text(taint, "value");
        all_invalid(errors, &join(&path, "value"), value, format::label_value(value));
        required_one_of(errors, &path, taint, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        let pair = (meta::text(taint, "key"), meta::text(taint, "effect"));
        if seen.contains(&pair) {
            let detail = "taints must be unique by key and effect pair";
            let cause = super::status::Cause::Duplicate;
            errors.push(FieldError::new(cause, path, taint.clone(), detail));
        }
        seen.push(pair);
    }
}

fn readiness(node: &Object) -> String {
    let ready = match meta::condition(node, "Ready").map(|c| meta::text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let disabled = if meta::bool_at(node, "/spec/unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{ready}{disabled}")
}

/// The roles in the labels `node-role.kubernetes.io/ROLE` and `kubernetes.io/role`.
fn roles(node: &Object) -> String {
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let mut roles: Vec<String> =
        meta::labels(node).into_iter().flatten().filter_map(role).filter(|r| !r.is_empty()).collect();
    roles.sort();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address(node: &Object, kind: &str) -> String {
    let addresses = meta::list_at(node, "/status/addresses").iter().filter_map(Value::as_object);
    let found = addresses.into_iter().find(|a| meta::text(a, "type") == kind).map(|a| meta::text(a, "address"));
    found.unwrap_or("<none>").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node() -> Object {
        let mut object = json!({
            "metadata": {"name": "pi3", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "master", "disktype": "ssd"}},
            "spec": {"unschedulable": true, "podCIDR": "10.42.0.0/24"},
            "status": {
                "capacity": {"cpu": "4000m", "memory": "1024Mi"},
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "pi3"}, {"type": "InternalIP", "address": "10.0.0.3"}],
                "nodeInfo": {"kubeletVersion": "v1.35.0", "kernelVersion": "6.6", "osImage": "Debian"},
            },
        })
        .as_object()
        .unwrap()
        .clone();
        Node.default(&mut object);
        object
    }

    #[test]
    fn table() {
        let now = "2026-01-11T00:00:00Z".parse().unwrap();
        assert_eq!(
            Value::from(Node.cells(&node(), now)),
            json!([
                "Ready,SchedulingDisabled",
                "control-plane,master",
                "10d",
                "v1.35.0",
                "10.0.0.3",
                "<none>",
                "Debian",
                "6.6",
                "<unknown>"
            ])
        );
        assert_eq!(Node.cells(&node(), now).len(), Node.columns().len());
    }

    #[test]
    fn rules() {
        let old = node();
        assert_eq!(old["status"]["allocatable"], json!({"cpu": "4", "memory": "1Gi"}));
        assert!(Node.validate(&old).is_empty());
        let mut new = old.clone();
        meta::set(&mut new, "/spec/podCIDR", "10.43.0.0/24");
        assert_eq!(
            Node.validate_update(&new, &old)[0].to_string(),
            "spec.podCIDR: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        meta::set(&mut new, "/spec/taints", json!([taint, taint, {"key": "b", "effect": "Never"}]));
        let texts: Vec<String> = Node.validate(&new).iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].ends_with("taints must be unique by key and effect pair"), "{texts:?}");
        assert!(texts[1].starts_with("spec.taints[2].effect: Unsupported value: \"Never\""), "{texts:?}");
    }
}
