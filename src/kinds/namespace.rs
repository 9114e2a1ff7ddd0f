//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, all_invalid, each_str};
use super::duration::age;
use super::meta::child;
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The finalizer that keeps a namespace until it is empty.
pub const FINALIZER: &str = "kubernetes";
/// Index key of the namespaces on their way out: few, and every create asks for them.
pub const TERMINATING: &str = "terminating";

/// The hooks of namespaces.
pub struct Namespace;

impl Hooks for Namespace {
    /// Every namespace can be selected by its name.
    fn default(&self, object: &mut Object) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            meta::set_label(object, "kubernetes.io/metadata.name", &name);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.insert("status".into(), json!({"phase": "Active"}));
        let spec = child(object, "spec");
        let mut finalizers = spec.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        spec.insert("finalizers".into(), Value::Array(finalizers));
    }

    /// Finalizers of the spec change through `/finalize` alone.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
        match meta::pointer(old, "/spec/finalizers") {
            Some(finalizers) => meta::set(new, "/spec/finalizers", finalizers.clone()),
            None => drop(meta::remove(new, "/spec/finalizers")),
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Cluster, format::dns_label);
        finalizers(&mut errors, object);
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        let phase = meta::str_at(new, "/status/phase");
        if meta::is_deleting(new) && phase != "Terminating" {
            let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
            errors.push(FieldError::invalid("status.phase", phase, detail));
        } else if !meta::is_deleting(new) && !matches!(phase, "" | "Active") {
            let detail = "may only be 'Active' if `deletionTimestamp` is empty";
            errors.push(FieldError::invalid("status.phase", phase, detail));
        }
        errors
    }

    fn index(&self, object: &Object) -> Vec<String> {
        if meta::is_deleting(object) { vec![TERMINATING.into()] } else { Vec::new() }
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Status", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        vec![json!(meta::str_at(object, "/status/phase")), json!(age(object, now))]
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        match field {
            "status.phase" => Some(meta::str_at(object, "/status/phase").to_owned()),
            "name" => Some(meta::name(object).to_owned()),
            _ => None,
        }
    }
}

fn finalizers(errors: &mut Errors, object: &Object) {
    let empty = Object::new();
    for (path, finalizer) in each_str(meta::sub(object, "spec").unwrap_or(&empty), "spec", "finalizers") {
        all_invalid(errors, &path, finalizer, format::qualified_name(finalizer));
        if !finalizer.contains('/') && !matches!(finalizer, FINALIZER | "orphan" | "foregroundDeletion") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(path, finalizer, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn namespace(name: &str) -> Object {
        let mut object = json!({"metadata": {"name": name}}).as_object().unwrap().clone();
        Namespace.default(&mut object);
        Namespace.prepare_create(&mut object);
        object
    }

    #[test]
    fn a_new_namespace() {
        let object = namespace("home");
        assert_eq!(
            Value::Object(object.clone()),
            json!({
                "metadata": {"name": "home", "labels": {"kubernetes.io/metadata.name": "home"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            })
        );
        assert!(Namespace.validate(&object).is_empty());
        assert!(Namespace.validate(&namespace("a.b"))[0].to_string().contains("must not contain dots"));
    }

    #[test]
    fn finalizers_and_status_stay_on_an_update() {
        let old = namespace("home");
        let mut new = old.clone();
        meta::set(&mut new, "/spec/finalizers", json!([]));
        meta::set(&mut new, "/status/phase", "Terminating");
        Namespace.prepare_update(&mut new, &old);
        assert_eq!(new, old);
        meta::set(&mut new, "/status/phase", "Terminating");
        assert_eq!(
            Namespace.validate_update(&new, &old)[0].to_string(),
            "status.phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        );
    }
}
