//! Rules of `metadata` that all kinds share (`k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).

use serde_json::Value;

use super::check::{Errors, all_invalid, each, immutable, join, not_negative, same};
use super::status::{Cause, FieldError};
use super::{Object, format, meta};

/// All annotations of an object together may have this many bytes.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// Whether a kind lives in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// One for the whole cluster.
    Cluster,
}

/// The rules of a new object's metadata. `rule` is the format of the kind's names.
pub fn validate(object: &Object, scope: Scope, rule: fn(&str) -> Vec<String>) -> Errors {
    let mut errors = Errors::new();
    let empty = Object::new();
    let metadata = meta::sub(object, "metadata").unwrap_or(&empty);
    let generate = meta::text(metadata, "generateName");
    if !generate.is_empty() {
        all_invalid(&mut errors, "metadata.generateName", generate, format::prefix(rule, generate));
    }
    match meta::text(metadata, "name") {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name => all_invalid(&mut errors, "metadata.name", name, rule(name)),
    }
    match (scope, meta::text(metadata, "namespace")) {
        (Scope::Namespaced, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (Scope::Namespaced, ns) => all_invalid(&mut errors, "metadata.namespace", ns, format::dns_label(ns)),
        (Scope::Cluster, "") => {}
        (Scope::Cluster, _) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
    not_negative(&mut errors, "metadata", metadata, "generation");
    labels(&mut errors, metadata, "metadata.labels");
    annotations(&mut errors, metadata, "metadata.annotations");
    owner_references(&mut errors, metadata);
    finalizers(&mut errors, metadata);
    errors
}

/// The rules of changed metadata.
pub fn validate_update(new: &Object, old: &Object) -> Errors {
    let mut errors = Errors::new();
    if meta::is_deleting(old) {
        let known: Vec<&str> = meta::finalizers(old).collect();
        let extra: Vec<String> =
            meta::finalizers(new).filter(|f| !known.contains(f)).map(|f| format!("{f:?}")).collect();
        if !extra.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                extra.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    if meta::generation(new) < meta::generation(old) {
        let value = meta::generation(new);
        errors.push(FieldError::invalid("metadata.generation", value, "must not be decremented"));
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let at = |o| meta::sub(o, "metadata").and_then(|m| m.get(key));
        immutable(&mut errors, &join("metadata", key), at(new), at(old));
    }
    errors
}

/// The rules of a map of labels in `object.labels`.
pub fn labels(errors: &mut Errors, object: &Object, path: &str) {
    label_map(errors, meta::sub(object, "labels"), path);
}

/// The rules of a map of labels.
pub fn label_map(errors: &mut Errors, map: Option<&Object>, path: &str) {
    for (key, value) in map.into_iter().flatten() {
        all_invalid(errors, path, key.as_str(), format::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        all_invalid(errors, path, value, format::label_value(value));
    }
}

/// The rules of `object.annotations`.
pub fn annotations(errors: &mut Errors, object: &Object, path: &str) {
    let mut size = 0;
    for (key, value) in meta::sub(object, "annotations").into_iter().flatten() {
        all_invalid(errors, path, key.as_str(), format::qualified_name(&key.to_ascii_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        let detail = format!("may not be more than {ANNOTATIONS_LIMIT} bytes");
        errors.push(FieldError::new(Cause::TooLong, path, Value::Null, detail));
    }
}

fn owner_references(errors: &mut Errors, metadata: &Object) {
    let mut controller: Option<String> = None;
    for (path, owner) in each(metadata, "metadata", "ownerReferences") {
        for key in ["apiVersion", "kind", "name", "uid"] {
            let value = meta::text(owner, key);
            if value.is_empty() {
                errors.push(FieldError::required(join(&path, key), "must not be empty"));
            } else if key == "apiVersion" && (value.matches('/').count() > 1 || value.ends_with('/')) {
                let detail = "must be <group>/<version> or <version>";
                errors.push(FieldError::invalid(join(&path, key), value, detail));
            }
        }
        if (meta::text(owner, "apiVersion"), meta::text(owner, "kind")) == ("v1", "Event") {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path.as_str(), owner.clone(), detail));
        }
        if meta::flag(owner, "controller") {
            let this = format!("{}/{}", meta::text(owner, "kind"), meta::text(owner, "name"));
            if let Some(first) = &controller {
                let all = metadata.get("ownerReferences").cloned().unwrap_or_default();
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                     {this}"
                );
                errors.push(FieldError::invalid("metadata.ownerReferences", all, detail));
            } else {
                controller = Some(this);
            }
        }
    }
}

fn finalizers(errors: &mut Errors, metadata: &Object) {
    let path = "metadata.finalizers";
    let list: Vec<&str> =
        metadata.get("finalizers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for finalizer in &list {
        all_invalid(errors, path, *finalizer, format::qualified_name(finalizer));
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, list, detail));
    }
}

/// On an update of the object itself: the status stays as it was.
pub fn keep_status(new: &mut Object, old: &Object) {
    match old.get("status") {
        Some(status) => new.insert("status".into(), status.clone()),
        None => new.remove("status"),
    };
}

/// On an update of the status: everything stays as it was but the status and, of the metadata, what a client of the
/// status may change (labels, annotations, managed fields, finalizers).
pub fn keep_all_but_status(new: &mut Object, old: &Object) {
    new.retain(|key, _| matches!(key.as_str(), "status" | "metadata") || old.contains_key(key));
    for (key, value) in old {
        if !matches!(key.as_str(), "status" | "metadata") {
            new.insert(key.clone(), value.clone());
        }
    }
    for key in ["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        let kept = meta::sub(old, "metadata").and_then(|m| m.get(key)).cloned();
        let metadata = meta::child(new, "metadata");
        match kept {
            Some(value) => metadata.insert(key.into(), value),
            None => metadata.remove(key),
        };
    }
}

/// Keeps the old generation, or raises it by one if the spec changed. A client cannot set it.
pub fn count_generation(new: &mut Object, old: &Object) {
    let changed = !same(new.get("spec"), old.get("spec"));
    meta::set_generation(new, meta::generation(old) + i64::from(changed));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn metadata_rules() {
        let cases = [
            (json!({"name": "a", "namespace": "b"}), vec![]),
            (json!({"namespace": "b"}), vec!["metadata.name: Required value: name or generateName is required"]),
            (json!({"name": "a"}), vec!["metadata.namespace: Required value"]),
            (
                json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "uid": "1"}]}),
                vec!["metadata.ownerReferences[0].name: Required value: must not be empty"],
            ),
            (
                json!({"name": "a", "namespace": "b", "finalizers": ["orphan", "foregroundDeletion"]}),
                vec![
                    "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and \
                     foregroundDeletion cannot be both set",
                ],
            ),
            (
                json!({"name": "a", "namespace": "b", "annotations": {"a": "x".repeat(ANNOTATIONS_LIMIT)}}),
                vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
        ];
        for (metadata, expected) in cases {
            let errors = validate(&object(json!({"metadata": metadata})), Scope::Namespaced, format::dns_subdomain);
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn identity_is_immutable() {
        let old = object(json!({"metadata": {"name": "a", "uid": "1", "finalizers": ["x/y"],
            "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let mut new = old.clone();
        assert!(validate_update(&new, &old).is_empty());
        meta::set(&mut new, "/metadata/uid", "2");
        meta::set(&mut new, "/metadata/finalizers", json!(["x/y", "x/z"]));
        let texts: Vec<String> = validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found \
                 new finalizers []string{\"x/z\"}",
                "metadata.uid: Invalid value: \"2\": field is immutable"
            ]
        );
    }

    #[test]
    fn status_updates_touch_the_status_alone() {
        let old = object(json!({"kind": "Pod", "spec": {"a": 1}, "metadata": {"name": "a", "generation": 2}}));
        let mut new = object(json!({"spec": {"a": 2}, "status": {"phase": "Running"}, "extra": 1,
            "metadata": {"name": "a", "labels": {"x": "y"}}}));
        keep_all_but_status(&mut new, &old);
        assert_eq!(
            Value::Object(new),
            json!({"kind": "Pod", "spec": {"a": 1}, "status": {"phase": "Running"},
                "metadata": {"name": "a", "generation": 2, "labels": {"x": "y"}}})
        );
    }
}
