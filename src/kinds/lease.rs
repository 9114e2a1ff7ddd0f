//! Leases.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::not_negative;
use super::duration::age;
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of Leases.
pub struct Lease;

impl Hooks for Lease {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let empty = Object::new();
        let spec = meta::sub(object, "spec").unwrap_or(&empty);
        if let Some(seconds) = meta::int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        not_negative(&mut errors, "spec", spec, "leaseTransitions");
        if spec.get("preferredHolder").is_some_and(Value::is_string) && meta::text(spec, "strategy").is_empty() {
            let detail = "can only be specified if strategy is defined";
            errors.push(FieldError::forbidden("spec.preferredHolder", detail));
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Holder", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        vec![json!(meta::str_at(object, "/spec/holderIdentity")), json!(age(object, now))]
    }
}
