//! `autoscaling/v1 Scale`: the number of replicas of a Deployment, ReplicaSet or ReplicationController, apart from the rest of it.

use serde_json::{Value, json};

use super::check::not_negative;
use super::selector::LabelSelector;
use super::status::FieldError;
use super::{Object, meta};

/// The Scale of an object with `spec.replicas`, `status.replicas` and a label selector.
pub fn from_object(object: &Object) -> Object {
    let mut metadata = Object::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::sub(object, "metadata").and_then(|m| m.get(key)) {
            metadata.insert(key.into(), value.clone());
        }
    }
    let selector = meta::object_at(object, "/spec/selector").map(LabelSelector::of_spec).unwrap_or_default();
    let mut scale = Object::new();
    scale.insert("kind".into(), "Scale".into());
    scale.insert("apiVersion".into(), "autoscaling/v1".into());
    scale.insert("metadata".into(), Value::Object(metadata));
    scale.insert("spec".into(), json!({"replicas": meta::int_at(object, "/spec/replicas").unwrap_or(0)}));
    scale.insert(
        "status".into(),
        json!({"replicas": meta::int_at(object, "/status/replicas").unwrap_or(0), "selector": selector.to_string()}),
    );
    scale
}

/// The rules of a Scale.
pub fn validate(scale: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Object::new();
    not_negative(&mut errors, "spec", meta::sub(scale, "spec").unwrap_or(&empty), "replicas");
    errors
}

/// Sets an object's replicas as its Scale says. A `resourceVersion` in the Scale is the object's, as precondition.
pub fn apply(scale: &Object, object: &mut Object) {
    meta::set(object, "/spec/replicas", meta::int_at(scale, "/spec/replicas").unwrap_or(0));
    if !meta::resource_version(scale).is_empty() {
        meta::set(object, "/metadata/resourceVersion", meta::resource_version(scale));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plain_map_selects_too() {
        let object = json!({"spec": {"selector": {"b": "2", "a": "1"}}});
        let scale = from_object(object.as_object().unwrap());
        assert_eq!(meta::str_at(&scale, "/status/selector"), "a=1,b=2");
    }

    #[test]
    fn there_and_back() {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "1", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 1},
        })
        .as_object()
        .unwrap()
        .clone();
        let mut scale = from_object(&object);
        assert_eq!(
            Value::Object(scale.clone()),
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "web", "namespace": "a", "uid": "1", "resourceVersion": "7"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "app=web"},
            })
        );
        meta::set(&mut scale, "/spec/replicas", 5);
        assert!(validate(&scale).is_empty());
        apply(&scale, &mut object);
        assert_eq!(meta::int_at(&object, "/spec/replicas"), Some(5));
        meta::set(&mut scale, "/spec/replicas", -5);
        assert_eq!(
            validate(&scale)[0].to_string(),
            "spec.replicas: Invalid value: -5: must be greater than or equal to 0"
        );
    }
}
