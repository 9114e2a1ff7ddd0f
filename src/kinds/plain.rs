//! Kinds without rules: name and age.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::age;
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format};

/// The hooks of a namespaced kind without rules.
pub struct Plain;

impl Hooks for Plain {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        metadata::validate(object, Scope::Namespaced, format::dns_subdomain)
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        &[Column { name: "Age", kind: "string", format: "", priority: 0 }]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        vec![json!(age(object, now))]
    }
}
