//! Secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, all_invalid, immutable};
use super::config_map::{bytes, check_size, stays_immutable};
use super::duration::age;
use super::meta::{child, default_to};
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of Secrets.
pub struct Secret;

impl Hooks for Secret {
    /// `stringData` is a way to write `data` and is never stored.
    fn default(&self, object: &mut Object) {
        default_to(object, "type", "Opaque");
        if let Some(Value::Object(texts)) = object.remove("stringData") {
            let data = child(object, "data");
            for (key, text) in texts {
                data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
            }
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let mut size = 0;
        for (key, value) in meta::sub(object, "data").into_iter().flatten() {
            let path = format!("data[{key}]");
            all_invalid(&mut errors, &path, key.as_str(), format::config_key(key));
            size += bytes(&mut errors, &path, value);
        }
        check_size(&mut errors, size);
        contents(&mut errors, object);
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        immutable(&mut errors, "type", new.get("type"), old.get("type"));
        stays_immutable(&mut errors, new, old, &["data"]);
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Type", kind: "string", format: "", priority: 0 },
            Column { name: "Data", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let keys = meta::sub(object, "data").map_or(0, Object::len);
        vec![json!(meta::text(object, "type")), json!(keys), json!(age(object, now))]
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        (field == "type").then(|| meta::text(object, "type").to_owned())
    }
}

/// What the type of a Secret promises.
fn contents(errors: &mut Errors, secret: &Object) {
    let has = |key: &str| meta::sub(secret, "data").is_some_and(|d| d.contains_key(key));
    let mut need = |key: &str| {
        if !has(key) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match meta::text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            if meta::annotation(secret, name).unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{name}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_value(errors, secret, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_value(errors, secret, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
}

fn json_value(errors: &mut Errors, secret: &Object, key: &str) {
    let path = format!("data[{key}]");
    let Some(value) = meta::sub(secret, "data").and_then(|d| d.get(key)) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let Ok(bytes) = STANDARD.decode(value.as_str().unwrap_or_default()) else { return };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
        errors.push(FieldError::invalid(path, "<secret contents redacted>", error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(value: Value) -> Object {
        let mut object = value.as_object().unwrap().clone();
        meta::set(&mut object, "/metadata", json!({"name": "my-secret", "namespace": "default"}));
        Secret.default(&mut object);
        object
    }

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn texts_become_data() {
        let object = secret(json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "hello"}}));
        assert_eq!(object["data"], json!({"a": "eA==", "b": "aGVsbG8="}));
        assert_eq!(object["type"], "Opaque");
        assert!(!object.contains_key("stringData"));
        assert_eq!(texts(Secret.validate(&object)), [""; 0]);
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(Value::from(Secret.cells(&object, now)), json!(["Opaque", 2, "<unknown>"]));
    }

    #[test]
    fn types_keep_their_promises() {
        let cases = [
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), vec!["data[tls.key]: Required value"]),
            (
                json!({"type": "kubernetes.io/basic-auth"}),
                vec!["data[username]: Required value", "data[password]: Required value"],
            ),
            (json!({"type": "kubernetes.io/basic-auth", "data": {"password": ""}}), vec![]),
            (json!({"type": "kubernetes.io/dockerconfigjson"}), vec!["data[.dockerconfigjson]: Required value"]),
            (json!({"type": "example.com/own"}), vec![]),
        ];
        for (value, expected) in cases {
            assert_eq!(texts(Secret.validate(&secret(value))), expected);
        }
        let broken = secret(json!({"type": "kubernetes.io/dockercfg", "stringData": {".dockercfg": "{"}}));
        let errors = texts(Secret.validate(&broken));
        assert!(
            errors[0].starts_with("data[.dockercfg]: Invalid value: \"<secret contents redacted>\": EOF"),
            "{errors:?}"
        );
    }

    #[test]
    fn a_mebibyte_is_the_limit() {
        let bytes = |n| STANDARD.encode(vec![0u8; n]);
        assert_eq!(texts(Secret.validate(&secret(json!({"data": {"a": bytes(1 << 20)}})))), [""; 0]);
        assert_eq!(
            texts(Secret.validate(&secret(json!({"data": {"a": bytes((1 << 20) + 1)}})))),
            ["[]: Too long: may not be more than 1048576 bytes"]
        );
    }

    #[test]
    fn the_type_stays() {
        let (old, new) = (secret(json!({})), secret(json!({"type": "a/b"})));
        assert_eq!(texts(Secret.validate_update(&new, &old)), ["type: Invalid value: \"a/b\": field is immutable"]);
    }
}
