//! Kinds without rules: name and age.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, Hooks, Object};

/// The hooks of a kind without rules.
pub struct Plain;

impl Hooks for Plain {
    fn columns(&self) -> &'static [Column] {
        &[Column { name: "Age", kind: "string", format: "", priority: 0 }]
    }

    fn cells(&self, _object: &Object, _now: Timestamp) -> Vec<Value> {
        vec![Value::from("<unknown>")]
    }
}
