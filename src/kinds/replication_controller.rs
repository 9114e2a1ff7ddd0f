//! ReplicationControllers.

use jiff::Timestamp;
use serde_json::Value;

use super::check::not_negative;
use super::meta::{child, default_to};
use super::metadata::{self, Scope};
use super::replica_set::ReplicaSet;
use super::status::FieldError;
use super::workload;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of ReplicationControllers: ReplicaSets with a plain map for a selector, which may change.
pub struct ReplicationController;

impl Hooks for ReplicationController {
    /// What is not said is taken from the template's labels.
    fn default(&self, object: &mut Object) {
        let labels = meta::object_at(object, "/spec/template/metadata/labels").filter(|l| !l.is_empty()).cloned();
        if let Some(labels) = labels {
            for path in ["/spec/selector", "/metadata/labels"] {
                if meta::object_at(object, path).is_none_or(Object::is_empty) {
                    meta::set(object, path, labels.clone());
                }
            }
        }
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Object) {
        ReplicaSet.prepare_create(object);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        ReplicaSet.prepare_update(new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let empty = Object::new();
        let spec = meta::sub(object, "spec").unwrap_or(&empty);
        not_negative(&mut errors, "spec", spec, "minReadySeconds");
        not_negative(&mut errors, "spec", spec, "replicas");
        workload::validate_mapped(&mut errors, spec, "ReplicationController");
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        ReplicaSet.columns()
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        ReplicaSet.cells(object, now)
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        ReplicaSet.selectable(object, field)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn controller(change: impl FnOnce(&mut Object)) -> Object {
        let mut object = json!({
            "metadata": {"name": "kubia", "namespace": "default"},
            "spec": {"template": {
                "metadata": {"labels": {"run": "kubia"}},
                "spec": {"containers": [{"name": "kubia", "image": "tree9295/kubia"}]},
            }},
        });
        let object = object.as_object_mut().unwrap();
        change(object);
        ReplicationController.default(object);
        object.clone()
    }

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let object = controller(|_| ());
        assert_eq!(object["spec"]["selector"], json!({"run": "kubia"}));
        assert_eq!(object["metadata"]["labels"], json!({"run": "kubia"}));
        assert_eq!(object["spec"]["replicas"], 1);
        assert!(ReplicationController.validate(&object).is_empty());
        let cells = ReplicationController.cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[4..], [json!("kubia"), json!("tree9295/kubia"), json!("run=kubia")]);
    }

    #[test]
    fn rules() {
        type Change = fn(&mut Object);
        let cases: [(Change, &str); 4] = [
            (
                |o| meta::set(o, "/spec/selector", json!({"a": "b"})),
                "spec.template.metadata.labels: Invalid value: {\"run\":\"kubia\"}: `selector` does not match template \
                 `labels`",
            ),
            (|o| meta::set(o, "/spec/template/metadata", json!({})), "spec.selector: Required value"),
            (
                |o| meta::set(o, "/spec/replicas", -1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                |o| meta::set(o, "/spec/template/spec/restartPolicy", "Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
        ];
        for (change, expected) in cases {
            let errors = ReplicationController.validate(&controller(change));
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts.join("; "), expected);
        }
    }
}
