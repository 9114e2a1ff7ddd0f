//! ReplicaSets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{immutable, not_negative};
use super::duration::age;
use super::meta::{child, default_to};
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::workload::{self, count};
use super::{Column, Hooks, Object, format, meta};

/// The hooks of ReplicaSets.
pub struct ReplicaSet;

impl Hooks for ReplicaSet {
    fn default(&self, object: &mut Object) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Object) {
        meta::set_generation(object, 1);
        object.insert("status".into(), json!({"replicas": 0}));
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
        metadata::count_generation(new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let empty = Object::new();
        let spec = meta::sub(object, "spec").unwrap_or(&empty);
        not_negative(&mut errors, "spec", spec, "replicas");
        not_negative(&mut errors, "spec", spec, "minReadySeconds");
        workload::validate(&mut errors, spec, "ReplicaSet");
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        let selector = |o| meta::pointer(o, "/spec/selector");
        immutable(&mut errors, "spec.selector", selector(new), selector(old));
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Desired", kind: "integer", format: "", priority: 0 },
            Column { name: "Current", kind: "integer", format: "", priority: 0 },
            Column { name: "Ready", kind: "integer", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
            Column { name: "Containers", kind: "string", format: "", priority: 1 },
            Column { name: "Images", kind: "string", format: "", priority: 1 },
            Column { name: "Selector", kind: "string", format: "", priority: 1 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![
            json!(count(object, "/spec/replicas")),
            json!(count(object, "/status/replicas")),
            json!(count(object, "/status/readyReplicas")),
            json!(age(object, now)),
        ];
        cells.extend(workload::wide_cells(object));
        cells
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        (field == "status.replicas").then(|| count(object, "/status/replicas").to_string())
    }
}
