//! Ports of Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::kinds::check::{Errors, Unique, all_invalid, each, join, required_one_of};
use crate::kinds::status::FieldError;
use crate::kinds::{Object, format, meta};

/// What a Service, an Endpoints object or an EndpointSlice may speak. SCTP is not carried.
pub(in crate::kinds) const PROTOCOLS: &[&str] = &["TCP", "UDP"];

/// The port of the node's own API, which no load balancer may lead to.
const KUBELET: i64 = 10_250;

/// The cell `Port(s)`.
pub(super) fn text(spec: &Object) -> String {
    let ports: Vec<String> = meta::items(spec, "ports")
        .map(|port| {
            let (number, protocol) = (meta::int(port, "port").unwrap_or(0), meta::text(port, "protocol"));
            match meta::int(port, "nodePort") {
                Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    ports.join(",")
}

/// The rules of every port.
pub(super) fn rules(errors: &mut Errors, spec: &Object) {
    let several = meta::list_at(spec, "/ports").len() > 1;
    let mut names = Unique::default();
    for (path, port) in each(spec, "spec", "ports") {
        let name = meta::text(port, "name");
        if !name.is_empty() {
            all_invalid(errors, &join(&path, "name"), name, format::dns_label(name));
            names.note(errors, &join(&path, "name"), name.to_owned());
        } else if several {
            errors.push(FieldError::required(join(&path, "name"), ""));
        }
        number(errors, &path, port, "port");
        required_one_of(errors, &path, port, "protocol", PROTOCOLS);
        target(errors, &path, port);
        app_protocol(errors, &path, port);
    }
}

/// A port number that must be there.
pub(in crate::kinds) fn number(errors: &mut Errors, path: &str, port: &Object, key: &str) {
    let number = meta::int(port, key).unwrap_or(0);
    all_invalid(errors, &join(path, key), number, format::port_number(number));
}

/// `appProtocol`, if it is there.
pub(in crate::kinds) fn app_protocol(errors: &mut Errors, path: &str, port: &Object) {
    if let Some(value) = port.get("appProtocol").and_then(Value::as_str) {
        all_invalid(errors, &join(path, "appProtocol"), value, format::qualified_name(value));
    }
}

fn target(errors: &mut Errors, path: &str, port: &Object) {
    let path = join(path, "targetPort");
    match port.get("targetPort") {
        Some(Value::String(name)) => all_invalid(errors, &path, name.as_str(), format::port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or(0);
            all_invalid(errors, &path, number, format::port_number(number));
        }
    }
}

/// A load balancer may not lead to the node's own API.
pub(super) fn not_kubelet(errors: &mut Errors, spec: &Object) {
    for (path, port) in each(spec, "spec", "ports") {
        if meta::int(port, "port") == Some(KUBELET) {
            let detail = format!("may not expose port {KUBELET} externally since it is used by kubelet");
            errors.push(FieldError::invalid(path, KUBELET, detail));
        }
    }
}

/// Node ports only where the type has them, and no port or node port twice with the same protocol.
pub(super) fn unique(errors: &mut Errors, spec: &Object) {
    let (mut node_ports, mut ports) = (HashSet::new(), HashSet::new());
    let kind = meta::text(spec, "type");
    for (path, port) in each(spec, "spec", "ports") {
        let protocol = meta::text(port, "protocol");
        if let Some(number) = meta::int(port, "nodePort").filter(|n| *n != 0) {
            let path = join(&path, "nodePort");
            if matches!(kind, "ClusterIP" | "ExternalName") {
                errors.push(FieldError::forbidden(path.as_str(), format!("may not be used when `type` is '{kind}'")));
            }
            if !node_ports.insert((protocol, number)) {
                errors.push(FieldError::duplicate(path, number));
            }
        }
        let number = meta::int(port, "port").unwrap_or(0);
        if !ports.insert((protocol, number)) {
            errors.push(FieldError::duplicate(path, json!({"protocol": protocol, "port": number})));
        }
    }
}
