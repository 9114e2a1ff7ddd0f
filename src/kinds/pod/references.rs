//! Rules of environment variables and of references to a pod's own fields.

use serde_json::Value;

use crate::kinds::check::{Errors, all_invalid, each, join, present, required};
use crate::kinds::quantity::Quantity;
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part};
use crate::kinds::{Object, format, meta};

use super::volumes::reference_name;

/// Fields a variable can be taken from, beside single labels and annotations.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields a file can be made of, beside single labels and annotations.
pub(super) const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// `env` and `envFrom` of a container.
pub(super) fn environment(errors: &mut Errors, path: &str, container: &Object) {
    for (path, variable) in each(container, path, "env") {
        if let Some(name) = required(errors, &path, variable, "name") {
            all_invalid(errors, &join(&path, "name"), name, format::env_name(name));
        }
        if let Some(from) = meta::sub(variable, "valueFrom") {
            value_from(errors, &join(&path, "valueFrom"), variable, from);
        }
    }
    for (path, source) in each(container, path, "envFrom") {
        let prefix = meta::text(source, "prefix");
        if !prefix.is_empty() {
            all_invalid(errors, &join(&path, "prefix"), prefix, format::env_name(prefix));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|k| source.get(*k).is_some_and(Value::is_object))
            .collect();
        match given[..] {
            [] => {
                let detail = "must specify one of: `configMapRef` or `secretRef`";
                errors.push(FieldError::invalid(path.as_str(), "", detail));
            }
            [_] => {}
            _ => errors.push(FieldError::invalid(
                path.as_str(),
                "",
                "may not have more than one field specified at a time",
            )),
        }
        for kind in given {
            if let Some(reference) = meta::sub(source, kind) {
                reference_name(errors, &join(&path, kind), reference);
            }
        }
    }
}

fn value_from(errors: &mut Errors, path: &str, variable: &Object, from: &Object) {
    unsupported::refuse(errors, path, Part::EnvSource, from);
    let given: Vec<&String> = from.iter().filter(|(_, v)| v.is_object()).map(|(k, _)| k).collect();
    if given.is_empty() {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(FieldError::invalid(path, "", detail));
    } else if present(variable, "value").is_some() {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if given.len() > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
    for kind in given {
        let Some(reference) = meta::sub(from, kind) else { continue };
        let path = join(path, kind);
        match kind.as_str() {
            "fieldRef" => field(errors, &path, reference, &ENV_FIELDS),
            "resourceFieldRef" => resource(errors, &path, reference),
            "configMapKeyRef" | "secretKeyRef" => {
                reference_name(errors, &path, reference);
                if let Some(key) = required(errors, &path, reference, "key") {
                    all_invalid(errors, &join(&path, "key"), key, format::config_key(key));
                }
            }
            _ => {}
        }
    }
}

/// A reference to a field of the pod.
pub(super) fn field(errors: &mut Errors, path: &str, reference: &Object, supported: &[&str]) {
    if present(reference, "apiVersion").is_some_and(|v| v != "v1") {
        let detail = "error converting fieldPath: no kind \"Pod\" is registered for this version";
        errors.push(FieldError::invalid(join(path, "apiVersion"), meta::text(reference, "apiVersion"), detail));
    }
    let Some(name) = required(errors, path, reference, "fieldPath") else { return };
    let path = join(path, "fieldPath");
    let subscript = name.strip_suffix("']").and_then(|n| n.split_once("['"));
    match subscript {
        Some(("metadata.labels", key)) => all_invalid(errors, &path, key, format::qualified_name(key)),
        Some(("metadata.annotations", key)) => {
            all_invalid(errors, &path, key, format::qualified_name(&key.to_ascii_lowercase()));
        }
        Some(_) => errors.push(FieldError::invalid(path, name, "does not support subscript")),
        None if supported.contains(&name) => {}
        None => errors.push(FieldError::not_supported(path, name, supported)),
    }
}

/// A reference to a request or limit of a container.
pub(super) fn resource(errors: &mut Errors, path: &str, reference: &Object) {
    let Some(name) = required(errors, path, reference, "resource") else { return };
    if !RESOURCES.contains(&name) {
        errors.push(FieldError::not_supported(join(path, "resource"), name, &RESOURCES));
        return;
    }
    let allowed = if name.ends_with(".cpu") { CPU_DIVISORS } else { BYTE_DIVISORS };
    let Some(divisor) = reference.get("divisor").filter(|d| !d.is_null()) else { return };
    let text = divisor.as_str().map_or_else(|| divisor.to_string(), str::to_owned);
    let is_zero = Quantity::from_json(divisor).is_ok_and(Quantity::is_zero);
    if !is_zero && !allowed.contains(&text.as_str()) {
        let kind = name.split_once('.').map_or(name, |(_, kind)| kind);
        let detail = format!("only divisor's values {} are supported with the {kind} resource", listed(allowed));
        errors.push(FieldError::invalid(join(path, "divisor"), text, detail));
    }
}

const CPU_DIVISORS: &[&str] = &["1m", "1"];
const BYTE_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

fn listed(values: &[&str]) -> String {
    match values {
        [first, second] => format!("{first} and {second}"),
        all => all.join(", "),
    }
}
