//! Rules of containers.

use std::collections::HashSet;

use serde_json::Value;

use crate::kinds::check::{Errors, Unique, all_invalid, each, formatted, join, one_of, required, required_one_of};
use crate::kinds::quantity::Quantity;
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part, refuse_field};
use crate::kinds::{Object, format, meta};

use super::{probes, references, security, volumes};

/// `initContainers` and `containers` of a pod spec. `volumes` are the names of its volumes.
pub(super) fn containers(errors: &mut Errors, path: &str, spec: &Object, volumes: &HashSet<String>) {
    if spec.get("containers").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(join(path, "containers"), ""));
    }
    let grace = meta::int(spec, "terminationGracePeriodSeconds").unwrap_or(30);
    let mut names = Unique::default();
    let mut host_ports = Unique::default();
    for list in ["initContainers", "containers"] {
        for (path, container) in each(spec, path, list) {
            common(errors, &path, container, volumes);
            let name = meta::text(container, "name");
            if !name.is_empty() {
                names.note(errors, &join(&path, "name"), name.to_owned());
            }
            if list == "containers" || is_sidecar(container) {
                probes::probes(errors, &path, container);
                probes::lifecycle(errors, &path, container, grace);
                host_port_conflicts(errors, &path, container, &mut host_ports);
            } else {
                runs_to_completion(errors, &path, container);
            }
            if list == "containers" {
                one_of(errors, &path, container, "restartPolicy", &["Always", "OnFailure", "Never"]);
            }
        }
    }
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Object) -> bool {
    meta::text(container, "restartPolicy") == "Always"
}

/// What an init container that ends may not have.
fn runs_to_completion(errors: &mut Errors, path: &str, container: &Object) {
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(key).is_some_and(Value::is_object) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(join(path, key), detail));
        }
    }
    one_of(errors, path, container, "restartPolicy", &["Always"]);
}

fn common(errors: &mut Errors, path: &str, container: &Object, volumes: &HashSet<String>) {
    unsupported::refuse(errors, path, Part::Container, container);
    formatted(errors, path, container, "name", format::dns_label);
    if let Some(image) = required(errors, path, container, "image")
        && image.trim() != image
    {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(join(path, "image"), image, detail));
    }
    required_one_of(errors, path, container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(errors, path, container);
    references::environment(errors, path, container);
    volumes::mounts(errors, path, container, volumes);
    required_one_of(errors, path, container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    if let Some(resources) = meta::sub(container, "resources") {
        self::resources(errors, &join(path, "resources"), resources);
    }
    security::container(errors, path, container);
}

fn ports(errors: &mut Errors, path: &str, container: &Object) {
    let mut names = Unique::default();
    for (path, port) in each(container, path, "ports") {
        let name = meta::text(port, "name");
        if !name.is_empty() {
            all_invalid(errors, &join(&path, "name"), name, format::port_name(name));
            names.note(errors, &join(&path, "name"), name.to_owned());
        }
        match meta::int(port, "containerPort").unwrap_or(0) {
            0 => errors.push(FieldError::required(join(&path, "containerPort"), "")),
            number => all_invalid(errors, &join(&path, "containerPort"), number, format::port_number(number)),
        }
        if let Some(number) = meta::int(port, "hostPort").filter(|n| *n != 0) {
            all_invalid(errors, &join(&path, "hostPort"), number, format::port_number(number));
        }
        let address = meta::text(port, "hostIP");
        if !address.is_empty() {
            all_invalid(errors, &join(&path, "hostIP"), address, format::ip_address(address));
        }
        required_one_of(errors, &path, port, "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers of a pod that run at the same time ask for the same port of the host.
fn host_port_conflicts(errors: &mut Errors, path: &str, container: &Object, seen: &mut Unique<String>) {
    for (path, port) in each(container, path, "ports") {
        let Some(number) = meta::int(port, "hostPort").filter(|n| *n != 0) else { continue };
        let key = format!("{}/{}/{number}", meta::text(port, "protocol"), meta::text(port, "hostIP"));
        seen.note(errors, &join(&path, "hostPort"), key);
    }
}

/// On the host's network a container's port is the host's port; a template may leave the latter out. Elsewhere nothing
/// leads from the host's port to the container.
pub(super) fn host_ports(errors: &mut Errors, path: &str, spec: &Object, is_pod: bool) {
    let host_network = meta::flag(spec, "hostNetwork");
    for list in ["containers", "initContainers"] {
        for (path, container) in each(spec, path, list) {
            for (path, port) in each(container, &path, "ports") {
                let host = meta::int(port, "hostPort").unwrap_or(0);
                let path = join(&path, "hostPort");
                if !host_network && host != 0 {
                    refuse_field(errors, &path);
                } else if host_network && (is_pod || host != 0) && Some(host) != meta::int(port, "containerPort") {
                    let detail = "must match `containerPort` when `hostNetwork` is true";
                    errors.push(FieldError::invalid(path, host, detail));
                }
            }
        }
    }
}

fn resources(errors: &mut Errors, path: &str, resources: &Object) {
    if resources.get("claims").and_then(Value::as_array).is_some_and(|c| !c.is_empty()) {
        refuse_field(errors, &join(path, "claims"));
    }
    let limits = amounts(errors, &join(path, "limits"), meta::sub(resources, "limits"));
    let requests = amounts(errors, &join(path, "requests"), meta::sub(resources, "requests"));
    if limits.iter().any(|(name, _)| *name == "ephemeral-storage") {
        refuse_field(errors, &format!("{path}.limits[ephemeral-storage]"));
    }
    for (name, request) in requests {
        let limit = limits.iter().find(|(n, _)| *n == name).map(|(_, limit)| *limit);
        let path = join(path, "requests");
        match limit {
            Some(limit) if is_extended(name) && request != limit => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(path, request.to_string(), detail));
            }
            Some(limit) if request > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(path, request.to_string(), detail));
            }
            None if is_extended(name) => {
                errors.push(FieldError::required(path, "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
}

/// Whether a resource is neither CPU, memory nor storage, but counted in whole pieces that cannot be shared.
fn is_extended(name: &str) -> bool {
    name.contains('/') || name.starts_with("hugepages-")
}

/// The well-formed amounts of a resource list.
fn amounts<'a>(errors: &mut Errors, path: &str, list: Option<&'a Object>) -> Vec<(&'a str, Quantity)> {
    let mut amounts = Vec::new();
    for (name, value) in list.into_iter().flatten() {
        let wrong = format::qualified_name(name);
        let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || is_extended(name);
        if wrong.is_empty() && !standard {
            errors.push(FieldError::invalid(path, name.as_str(), "must be a standard resource for containers"));
        }
        all_invalid(errors, path, name.as_str(), wrong);
        let at = format!("{path}[{name}]");
        match Quantity::from_json(value) {
            Err(error) => errors.push(FieldError::invalid(at, value.clone(), error.to_string())),
            Ok(amount) if amount.is_negative() => {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(at, amount.to_string(), detail));
            }
            Ok(amount) if is_extended(name) && !amount.is_whole() => {
                errors.push(FieldError::invalid(at, amount.to_string(), "must be an integer"));
            }
            Ok(amount) => amounts.push((name.as_str(), amount)),
        }
    }
    amounts
}
