//! Rules of probes and lifecycle hooks.

use serde_json::Value;

use crate::kinds::check::{Errors, all_invalid, each, join, not_negative, one_of, present, required};
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part};
use crate::kinds::{Object, format, meta};

/// The three probes of a container that may have them.
pub(super) fn probes(errors: &mut Errors, path: &str, container: &Object) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = meta::sub(container, name) else { continue };
        let path = join(path, name);
        unsupported::refuse(errors, &path, Part::Probe, probe);
        handler(errors, &path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], 0);
        for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            not_negative(errors, &path, probe, key);
        }
        if let Some(grace) = meta::int(probe, "terminationGracePeriodSeconds") {
            let path = join(&path, "terminationGracePeriodSeconds");
            if name == "readinessProbe" {
                errors.push(FieldError::invalid(path, grace, "must not be set for readinessProbes"));
            } else if grace <= 0 {
                errors.push(FieldError::invalid(path, grace, "must be greater than 0"));
            }
        }
        if let (true, Some(n)) = (name != "readinessProbe", meta::int(probe, "successThreshold").filter(|n| *n != 1)) {
            errors.push(FieldError::invalid(join(&path, "successThreshold"), n, "must be 1"));
        }
    }
}

/// The hooks of a container. `grace` is the pod's termination grace period in seconds.
pub(super) fn lifecycle(errors: &mut Errors, path: &str, container: &Object, grace: i64) {
    let Some(lifecycle) = meta::sub(container, "lifecycle") else { return };
    let path = join(path, "lifecycle");
    unsupported::refuse(errors, &path, Part::Lifecycle, lifecycle);
    for name in ["postStart", "preStop"] {
        if let Some(hook) = meta::sub(lifecycle, name) {
            handler(errors, &join(&path, name), hook, &["exec", "httpGet", "tcpSocket", "sleep"], grace);
        }
    }
}

/// Exactly one way to probe or to be told, well formed.
fn handler(errors: &mut Errors, path: &str, handler: &Object, kinds: &[&str], grace: i64) {
    let given: Vec<&str> = kinds.iter().copied().filter(|k| handler.get(*k).is_some_and(Value::is_object)).collect();
    if given.is_empty() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    for (i, kind) in given.into_iter().enumerate() {
        let path = join(path, kind);
        if i > 0 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        let Some(handler) = meta::sub(handler, kind) else { continue };
        match kind {
            "exec" if present(handler, "command").is_none() => {
                errors.push(FieldError::required(join(&path, "command"), ""));
            }
            "httpGet" => http_get(errors, &path, handler),
            "tcpSocket" => port(errors, &path, handler),
            "sleep" => sleep(errors, &path, handler, grace),
            _ => {}
        }
    }
}

fn http_get(errors: &mut Errors, path: &str, get: &Object) {
    required(errors, path, get, "path");
    port(errors, path, get);
    one_of(errors, path, get, "scheme", &["HTTP", "HTTPS"]);
    for (_, header) in each(get, path, "httpHeaders") {
        let name = meta::text(header, "name");
        all_invalid(errors, &join(path, "httpHeaders"), name, format::http_header_name(name));
    }
}

/// A number or the name of a container port.
fn port(errors: &mut Errors, path: &str, object: &Object) {
    let path = join(path, "port");
    match object.get("port") {
        Some(Value::String(name)) => all_invalid(errors, &path, name.as_str(), format::port_name(name)),
        port => {
            let number = port.and_then(Value::as_i64).unwrap_or(0);
            all_invalid(errors, &path, number, format::port_number(number));
        }
    }
}

fn sleep(errors: &mut Errors, path: &str, sleep: &Object, grace: i64) {
    let seconds = meta::int(sleep, "seconds").unwrap_or(0);
    if seconds < 0 || seconds > grace {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(join(path, "seconds"), seconds, detail));
    }
}
