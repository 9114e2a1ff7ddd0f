//! Service accounts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::age;
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::unsupported::refuse_field;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of ServiceAccounts.
pub struct ServiceAccount;

impl Hooks for ServiceAccount {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        if !meta::list_at(object, "/imagePullSecrets").is_empty() {
            refuse_field(&mut errors, "imagePullSecrets");
        }
        if object.get("automountServiceAccountToken").and_then(Value::as_bool) == Some(true) {
            refuse_field(&mut errors, "automountServiceAccountToken");
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Secrets", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        vec![json!(meta::list_at(object, "/secrets").len()), json!(age(object, now))]
    }
}
