//! ConfigMaps, and the rules they share with Secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, all_invalid, same};
use super::duration::age;
use super::metadata::{self, Scope};
use super::status::{Cause, FieldError};
use super::{Column, Hooks, Object, format, meta};

/// All values of a ConfigMap or Secret together may have this many bytes.
pub const SIZE_LIMIT: usize = 1 << 20;

/// The hooks of ConfigMaps.
pub struct ConfigMap;

impl Hooks for ConfigMap {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let mut size = 0;
        for (key, value) in meta::sub(object, "data").into_iter().flatten() {
            let path = format!("data[{key}]");
            all_invalid(&mut errors, &path, key.as_str(), format::config_key(key));
            if meta::sub(object, "binaryData").is_some_and(|b| b.contains_key(key)) {
                let detail = "duplicate of key present in binaryData";
                errors.push(FieldError::invalid(path, key.as_str(), detail));
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in meta::sub(object, "binaryData").into_iter().flatten() {
            let path = format!("binaryData[{key}]");
            all_invalid(&mut errors, &path, key.as_str(), format::config_key(key));
            size += bytes(&mut errors, &path, value);
        }
        check_size(&mut errors, size);
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        stays_immutable(&mut errors, new, old, &["data", "binaryData"]);
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Data", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let keys = |list| meta::sub(object, list).map_or(0, Object::len);
        vec![json!(keys("data") + keys("binaryData")), json!(age(object, now))]
    }
}

/// The number of bytes behind a base64 text, with an error if it is none. The value is not repeated: it may be secret.
pub(super) fn bytes(errors: &mut Errors, path: &str, value: &Value) -> usize {
    match STANDARD.decode(value.as_str().unwrap_or_default()) {
        Ok(bytes) => bytes.len(),
        Err(error) => {
            let detail = format!("must be base64: {error}");
            errors.push(FieldError::invalid(path, "<contents redacted>", detail));
            0
        }
    }
}

pub(super) fn check_size(errors: &mut Errors, size: usize) {
    if size > SIZE_LIMIT {
        let detail = format!("may not be more than {SIZE_LIMIT} bytes");
        errors.push(FieldError::new(Cause::TooLong, "[]", Value::Null, detail));
    }
}

/// Once `immutable` is true, it stays so and nothing under `keys` changes.
pub(super) fn stays_immutable(errors: &mut Errors, new: &Object, old: &Object, keys: &[&str]) {
    const TEXT: &str = "field is immutable when `immutable` is set";
    if !meta::flag(old, "immutable") {
        return;
    }
    if !meta::flag(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", TEXT));
    }
    for key in keys {
        if !same(new.get(*key), old.get(*key)) {
            errors.push(FieldError::forbidden(*key, TEXT));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config_map(value: Value) -> Object {
        let mut object = value.as_object().unwrap().clone();
        meta::set(&mut object, "/metadata", json!({"name": "log-config", "namespace": "default"}));
        object
    }

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules() {
        let good = config_map(json!({"data": {"log_level": "INFO", ".x": ""}, "binaryData": {"b": "AAEC"}}));
        assert_eq!(texts(ConfigMap.validate(&good)), [""; 0]);
        let long = config_map(json!({"data": {"a": "x".repeat(SIZE_LIMIT + 1)}}));
        assert_eq!(texts(ConfigMap.validate(&long)), ["[]: Too long: may not be more than 1048576 bytes"]);
        let bad = config_map(json!({"data": {"a/b": "", "c": ""}, "binaryData": {"c": "x"}}));
        let errors = texts(ConfigMap.validate(&bad));
        assert!(errors[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must"), "{errors:?}");
        assert_eq!(errors[1], "data[c]: Invalid value: \"c\": duplicate of key present in binaryData");
        assert!(errors[2].starts_with("binaryData[c]: Invalid value: \"<contents redacted>\": must be base64"));
    }

    #[test]
    fn immutable_is_for_ever() {
        let old = config_map(json!({"immutable": true, "data": {"a": "1"}}));
        let new = config_map(json!({"data": {"a": "2"}}));
        assert_eq!(
            texts(ConfigMap.validate_update(&new, &old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
        assert_eq!(texts(ConfigMap.validate_update(&old, &old)), [""; 0]);
        assert_eq!(texts(ConfigMap.validate_update(&old, &new)), [""; 0]);
    }
}
