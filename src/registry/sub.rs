//! What each subresource may change.

use serde_json::{Value, json};

use crate::kinds::status::{FieldError, Status};
use crate::kinds::{Kind, Object, Subresource, meta, metadata, scale};

use super::identity;

/// The object that a document sent to a subresource stands for: a `Scale` or `Binding` as a change of `old`.
pub(super) fn expand(kind: &Kind, sub: Option<Subresource>, sent: Object, old: &Object) -> Result<Object, Status> {
    match (sub, meta::kind(&sent)) {
        (Some(Subresource::Scale), "Scale") => rescaled(&sent, old),
        (Some(Subresource::Binding), "Binding") => bound(kind, &sent, old),
        _ => Ok(sent),
    }
}

/// Makes of `new` what a write through the subresource leaves of it.
pub(super) fn prepare(kind: &Kind, sub: Option<Subresource>, new: &mut Object, old: &Object) {
    match sub {
        Some(Subresource::Status) => metadata::keep_all_but_status(new, old),
        Some(Subresource::Other("finalize")) => only(new, old, &["/spec/finalizers"]),
        Some(Subresource::Other("ephemeralcontainers")) => only(new, old, &["/spec/ephemeralContainers"]),
        Some(Subresource::Other("approval")) => only(new, old, &["/status/conditions"]),
        // The node a pod is bound to and its condition are one change.
        Some(Subresource::Binding) => {}
        _ => kind.hooks.prepare_update(new, old),
    }
}

/// Whether what may change on an update of the object itself is what may change here.
pub(super) fn follows_update_rules(sub: Option<Subresource>) -> bool {
    !matches!(sub, Some(Subresource::Binding | Subresource::Other("ephemeralcontainers")))
}

/// The object with the number of replicas of a `Scale`.
fn rescaled(sent: &Object, old: &Object) -> Result<Object, Status> {
    let name = meta::name(old);
    if ![name, ""].contains(&meta::name(sent)) {
        return Err(identity::other_name(meta::name(sent), name));
    }
    let errors = scale::validate(sent);
    if !errors.is_empty() {
        return Err(Status::invalid("autoscaling", "Scale", name, &errors));
    }
    let mut object = old.clone();
    meta::remove(&mut object, "/metadata/resourceVersion");
    scale::apply(sent, &mut object);
    Ok(object)
}

/// The pod with the node of a `Binding`.
fn bound(kind: &Kind, binding: &Object, pod: &Object) -> Result<Object, Status> {
    let name = meta::name(pod);
    let refuse = |why: String| Err(Status::conflict(&kind.group, "pods/binding", name, &why));
    let invalid = |error: FieldError| Err(Status::invalid(&kind.group, "Binding", name, &[error]));
    let (target, node) = (meta::str_at(binding, "/target/kind"), meta::str_at(binding, "/target/name"));
    if !["", "Node"].contains(&target) {
        return invalid(FieldError::not_supported("target.kind", target, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        return invalid(FieldError::required("target.name", ""));
    }
    let (wanted, uid) = (meta::uid(binding), meta::uid(pod));
    if !wanted.is_empty() && wanted != uid {
        return refuse(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"));
    }
    if meta::is_deleting(pod) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let current = meta::str_at(pod, "/spec/nodeName");
    if !current.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {current:?}"));
    }
    let mut pod = pod.clone();
    meta::set(&mut pod, "/spec/nodeName", node);
    for (key, value) in meta::annotations(binding).into_iter().flatten() {
        meta::set_annotation(&mut pod, key, value.as_str().unwrap_or_default());
    }
    scheduled(&mut pod);
    Ok(pod)
}

/// Sets the condition `PodScheduled`.
fn scheduled(pod: &mut Object) {
    let now = meta::format_time(jiff::Timestamp::now());
    let condition = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": now });
    let status = meta::object_at_mut(pod, "/status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Value::Array(list) = conditions {
        list.retain(|c| c["type"] != "PodScheduled");
        list.push(condition);
    }
}

/// Keeps everything as it was but the values at some paths.
fn only(new: &mut Object, old: &Object, paths: &[&str]) {
    let mut object = old.clone();
    for path in paths {
        match meta::pointer(new, path) {
            Some(value) => meta::set(&mut object, path, value.clone()),
            None => drop(meta::remove(&mut object, path)),
        }
    }
    *new = object;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::table::KindTable;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_pod_is_bound_once() {
        let kind = KindTable::builtin().by_plural("", "v1", "pods").unwrap();
        let pod = object(json!({"metadata": {"name": "a", "uid": "1"}, "spec": {}}));
        let binding = |uid: &str| object(json!({"metadata": {"uid": uid}, "target": {"kind": "Node", "name": "n"}}));
        let after = bound(&kind, &binding("1"), &pod).unwrap();
        assert_eq!(meta::str_at(&after, "/spec/nodeName"), "n");
        assert_eq!(meta::str_at(meta::condition(&after, "PodScheduled").unwrap(), "/status"), "True");
        assert_eq!(bound(&kind, &binding("2"), &pod).unwrap_err().code, 409);
        let again = bound(&kind, &binding(""), &after).unwrap_err();
        assert!(again.message.ends_with(r#"pod a is already assigned to node "n""#), "{again}");
        let nowhere = object(json!({"target": {"kind": "Node"}}));
        assert_eq!(bound(&kind, &nowhere, &pod).unwrap_err().code, 422);
    }

    #[test]
    fn a_scale_changes_the_replicas() {
        let old = object(json!({"metadata": {"name": "a", "resourceVersion": "3"}, "spec": {"replicas": 1, "x": 1}}));
        let mut sent = scale::from_object(&old);
        meta::set(&mut sent, "/spec/replicas", 4);
        let new = rescaled(&sent, &old).unwrap();
        assert_eq!(new["spec"], json!({"replicas": 4, "x": 1}));
        meta::set(&mut sent, "/spec/replicas", -1);
        assert_eq!(rescaled(&sent, &old).unwrap_err().code, 422);
        meta::set(&mut sent, "/metadata/name", "b");
        assert_eq!(rescaled(&sent, &old).unwrap_err().code, 400);
    }

    #[test]
    fn only_some_paths_change() {
        let old = object(json!({"spec": {"finalizers": ["kubernetes"], "a": 1}}));
        let mut new = object(json!({"spec": {"finalizers": [], "a": 2}}));
        only(&mut new, &old, &["/spec/finalizers"]);
        assert_eq!(new, object(json!({"spec": {"finalizers": [], "a": 1}})));
    }
}
