//! EndpointSlices.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, IMMUTABLE, Unique, all_invalid, each, each_str, join, required_one_of, same};
use super::duration::age;
use super::endpoints::{address, first_few, names};
use super::meta::{default_to, items, items_mut};
use super::metadata::{self, Scope, label_map};
use super::service::{PROTOCOLS, app_protocol, number};
use super::status::{Cause, FieldError};
use super::unsupported::refuse_field;
use super::{Column, Hooks, Object, format, meta};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;

/// The label that names the Service an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The index key of the EndpointSlices of a Service.
pub fn of_service(namespace: &str, name: &str) -> String {
    format!("service:{namespace}/{name}")
}

/// The hooks of EndpointSlices.
pub struct EndpointSlice;

impl Hooks for EndpointSlice {
    fn default(&self, object: &mut Object) {
        for port in items_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        meta::set_generation(object, 1);
    }

    /// The generation counts changes of the labels too: they say whose endpoints these are.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        let labels = |o| meta::pointer(o, "/metadata/labels");
        let untouched = same(labels(new), labels(old))
            && ["addressType", "endpoints", "ports"].iter().all(|key| same(new.get(*key), old.get(*key)));
        meta::set_generation(new, meta::generation(old) + i64::from(!untouched));
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let kind = meta::text(object, "addressType");
        if kind == "IPv6" {
            refuse_field(&mut errors, "addressType");
        } else {
            required_one_of(&mut errors, "", object, "addressType", &["FQDN", "IPv4", "IPv6"]);
        }
        if fits(&mut errors, "endpoints", object, "endpoints", MAX_ENDPOINTS) {
            for (path, endpoint) in each(object, "", "endpoints") {
                self::endpoint(&mut errors, &path, endpoint, kind);
            }
        }
        if fits(&mut errors, "ports", object, "ports", MAX_PORTS) {
            ports(&mut errors, object);
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        let kind = meta::text(new, "addressType");
        if kind != meta::text(old, "addressType") {
            errors.push(FieldError::invalid("addressType", kind, IMMUTABLE));
        }
        errors
    }

    fn index(&self, object: &Object) -> Vec<String> {
        let service = meta::label(object, SERVICE_NAME).filter(|name| !name.is_empty());
        service.map(|name| of_service(meta::namespace(object), name)).into_iter().collect()
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "AddressType", kind: "string", format: "", priority: 0 },
            Column { name: "Ports", kind: "string", format: "", priority: 0 },
            Column { name: "Endpoints", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let ports = items(object, "ports").map(|port| match (meta::int(port, "port"), port.get("name")) {
            (Some(number), _) => number.to_string(),
            (None, Some(Value::String(name))) => name.clone(),
            (None, _) => "*".to_owned(),
        });
        let addresses = items(object, "endpoints").flat_map(|endpoint| meta::list_at(endpoint, "/addresses"));
        vec![
            json!(meta::text(object, "addressType")),
            json!(or_unset(&ports.collect::<Vec<_>>())),
            json!(or_unset(&addresses.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())),
            json!(age(object, now)),
        ]
    }
}

fn or_unset(all: &[String]) -> String {
    let text = first_few(all);
    if text.is_empty() { "<unset>".to_owned() } else { text }
}

/// Whether a list is not too long, with an error if it is.
fn fits(errors: &mut Errors, path: &str, object: &Object, key: &str, most: usize) -> bool {
    let count = match object.get(key) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    };
    if count > most {
        errors.push(FieldError::new(Cause::TooMany, path, count, format!("must have at most {most} items")));
    }
    count <= most
}

fn endpoint(errors: &mut Errors, path: &str, endpoint: &Object, kind: &str) {
    let list = join(path, "addresses");
    if meta::list_at(endpoint, "/addresses").is_empty() {
        errors.push(FieldError::required(list.as_str(), "must contain at least 1 address"));
    }
    fits(errors, &list, endpoint, "addresses", MAX_ADDRESSES);
    for (path, text) in each_str(endpoint, path, "addresses") {
        match kind {
            "IPv4" => address(errors, &path, text),
            "FQDN" => all_invalid(errors, &path, text, format::dns_subdomain(text.strip_suffix('.').unwrap_or(text))),
            _ => {}
        }
    }
    let topology = join(path, "deprecatedTopology");
    fits(errors, &topology, endpoint, "deprecatedTopology", MAX_TOPOLOGY);
    label_map(errors, meta::sub(endpoint, "deprecatedTopology"), &topology);
    names(errors, path, endpoint);
    let empty = Object::new();
    let hints = meta::sub(endpoint, "hints").unwrap_or(&empty);
    for key in ["forZones", "forNodes"] {
        let path = join(path, "hints");
        if fits(errors, &join(&path, key), hints, key, MAX_HINTS) {
            let mut seen = Unique::default();
            for (path, hint) in each(hints, &path, key) {
                let (path, name) = (join(&path, "name"), meta::text(hint, "name"));
                seen.note(errors, &path, name.to_owned());
                all_invalid(errors, &path, name, format::qualified_name(name));
            }
        }
    }
}

fn ports(errors: &mut Errors, object: &Object) {
    let mut seen = Unique::default();
    for (path, port) in each(object, "", "ports") {
        let name = meta::text(port, "name");
        if !name.is_empty() {
            all_invalid(errors, &join(&path, "name"), name, format::dns_label(name));
        }
        seen.note(errors, &join(&path, "name"), name.to_owned());
        // Without a number the port means every port.
        if port.get("port").is_some_and(Value::is_number) {
            number(errors, &path, port, "port");
        }
        required_one_of(errors, &path, port, "protocol", PROTOCOLS);
        app_protocol(errors, &path, port);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slice(more: Value) -> Object {
        let mut object = json!({"metadata": {"name": "web-x", "namespace": "default"}, "addressType": "IPv4"});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut object = object.as_object().unwrap().clone();
        EndpointSlice.default(&mut object);
        object
    }

    #[test]
    fn rules() {
        let cases = [
            (json!({"endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}, {"name": "b"}]}), ""),
            (json!({"addressType": "FQDN", "endpoints": [{"addresses": ["www.example.com"]}]}), ""),
            (json!({"addressType": "IPv6"}), "addressType: Forbidden: not supported by umiak"),
            (json!({"addressType": ""}), "addressType: Required value"),
            (
                json!({"endpoints": [{}, {"addresses": ["0.0.0.0"], "hints": {"forZones": [{"name": "a"}, {"name": "a"}]}}]}),
                "endpoints[0].addresses: Required value: must contain at least 1 address; endpoints[1].addresses[0]: \
                 Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0); endpoints[1].hints.forZones[1].name: \
                 Duplicate value: \"a\"",
            ),
            (
                json!({"ports": [{"port": 70000}, {"protocol": "SCTP"}]}),
                "ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive; ports[1].name: \
                 Duplicate value: \"\"; ports[1].protocol: Unsupported value: \"SCTP\": supported values: \"TCP\", \"UDP\"",
            ),
            (
                json!({"endpoints": vec![json!({"addresses": ["10.0.0.1"]}); 1001]}),
                "endpoints: Too many: 1001: must have at most 1000 items",
            ),
        ];
        for (more, expected) in cases {
            let texts: Vec<String> = EndpointSlice.validate(&slice(more)).iter().map(ToString::to_string).collect();
            assert_eq!(texts.join("; "), expected);
        }
        let texts = EndpointSlice.validate_update(&slice(json!({"addressType": "FQDN"})), &slice(json!({})));
        assert_eq!(texts[0].to_string(), "addressType: Invalid value: \"FQDN\": field is immutable");
    }

    #[test]
    fn the_generation_counts_endpoints_and_labels() {
        let mut old = slice(json!({}));
        EndpointSlice.prepare_create(&mut old);
        let after = |path: &str, value: Value| {
            let mut new = old.clone();
            meta::set(&mut new, path, value);
            EndpointSlice.prepare_update(&mut new, &old);
            meta::generation(&new)
        };
        assert_eq!(after("/metadata/annotations", json!({"a": "b"})), 1);
        assert_eq!(after("/metadata/labels", json!({"a": "b"})), 2);
        assert_eq!(after("/endpoints", json!([{"addresses": ["10.0.0.1"]}])), 2);
    }

    #[test]
    fn cells() {
        let now = Timestamp::UNIX_EPOCH;
        let object = slice(json!({
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}],
            "ports": [{"port": 80}, {"name": "b"}],
        }));
        assert_eq!(
            EndpointSlice.cells(&object, now)[..3],
            [json!("IPv4"), json!("80,b"), json!("10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...")]
        );
        assert_eq!(EndpointSlice.cells(&slice(json!({})), now)[1..3], [json!("<unset>"), json!("<unset>")]);
    }
}
