//! Endpoints, and what they share with EndpointSlices.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, all_invalid, each, join, required_one_of};
use super::duration::age;
use super::meta::{default_to, items, items_mut};
use super::metadata::{self, Scope};
use super::service::{PROTOCOLS, app_protocol, number};
use super::status::FieldError;
use super::unsupported::refuse_field;
use super::{Column, Hooks, Object, format, meta};

/// Endpoints, ports or addresses a table shows of one object.
pub(super) const SHOWN: usize = 3;

/// The hooks of Endpoints.
pub struct Endpoints;

impl Hooks for Endpoints {
    fn default(&self, object: &mut Object) {
        for subset in items_mut(object, "subsets") {
            items_mut(subset, "ports").for_each(|port| default_to(port, "protocol", "TCP"));
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        for (path, subset) in each(object, "", "subsets") {
            self::subset(&mut errors, &path, subset);
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Endpoints", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        vec![json!(summary(object)), json!(age(object, now))]
    }
}

fn subset(errors: &mut Errors, path: &str, subset: &Object) {
    let list = |key: &str| meta::items(subset, key).count();
    if list("addresses") + list("notReadyAddresses") == 0 {
        errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for key in ["addresses", "notReadyAddresses"] {
        for (path, address) in each(subset, path, key) {
            self::address(errors, &join(&path, "ip"), meta::text(address, "ip"));
            names(errors, &path, address);
        }
    }
    let several = list("ports") > 1;
    for (path, port) in each(subset, path, "ports") {
        match meta::text(port, "name") {
            "" if several => errors.push(FieldError::required(join(&path, "name"), "")),
            "" => {}
            name => all_invalid(errors, &join(&path, "name"), name, format::dns_label(name)),
        }
        number(errors, &path, port, "port");
        required_one_of(errors, &path, port, "protocol", PROTOCOLS);
        app_protocol(errors, &path, port);
    }
}

/// The address of an endpoint.
pub(super) fn address(errors: &mut Errors, path: &str, ip: &str) {
    if ip.parse::<std::net::Ipv6Addr>().is_ok() {
        refuse_field(errors, path);
    } else {
        all_invalid(errors, path, ip, format::endpoint_ip(ip));
    }
}

/// `hostname` and `nodeName` of an endpoint.
pub(super) fn names(errors: &mut Errors, path: &str, endpoint: &Object) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 2] = [("hostname", format::dns_label), ("nodeName", format::dns_subdomain)];
    for (key, rule) in rules {
        let name = meta::text(endpoint, key);
        if !name.is_empty() {
            all_invalid(errors, &join(path, key), name, rule(name));
        }
    }
}

/// The cell `Endpoints`: addresses with each port.
fn summary(object: &Object) -> String {
    if meta::list_at(object, "/subsets").is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in items(object, "subsets") {
        let ips = || items(subset, "addresses").map(|address| meta::text(address, "ip"));
        match items(subset, "ports").next() {
            None => all.extend(ips().map(str::to_owned)),
            Some(_) => {
                let ports = items(subset, "ports").map(|port| meta::int(port, "port").unwrap_or(0));
                all.extend(ports.flat_map(|port| ips().map(move |ip| format!("{ip}:{port}"))));
            }
        }
    }
    first_few(&all)
}

/// The first few of a list, and how many more there are.
pub(super) fn first_few(all: &[String]) -> String {
    let shown = all[..all.len().min(SHOWN)].join(",");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn endpoints(subsets: Value) -> Object {
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "subsets": subsets});
        let mut object = object.as_object().unwrap().clone();
        Endpoints.default(&mut object);
        object
    }

    #[test]
    fn rules() {
        let cases = [
            (json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]), ""),
            (json!([{"addresses": [{"ip": "10.0.0.1", "hostname": "a", "nodeName": "n"}]}]), ""),
            (json!([{}]), "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"),
            (
                json!([{"addresses": [{"ip": "127.0.0.1"}]}]),
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
            ),
            (
                json!([{"addresses": [{"ip": "2001:db8::1"}]}]),
                "subsets[0].addresses[0].ip: Forbidden: not supported by umiak",
            ),
            (
                json!([{"notReadyAddresses": [{"ip": "x"}], "ports": [{"port": 1, "name": "a"}, {"port": 2}]}]),
                "subsets[0].notReadyAddresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 \
                 or 2001:db8::ffff); subsets[0].ports[1].name: Required value",
            ),
            (
                json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 0, "protocol": "SCTP"}]}]),
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive; \
                 subsets[0].ports[0].protocol: Unsupported value: \"SCTP\": supported values: \"TCP\", \"UDP\"",
            ),
        ];
        for (subsets, expected) in cases {
            let texts: Vec<String> = Endpoints.validate(&endpoints(subsets)).iter().map(ToString::to_string).collect();
            assert_eq!(texts.join("; "), expected);
        }
    }

    #[test]
    fn the_table_shows_the_first_three() {
        let ips = |n: usize| (1..=n).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect::<Vec<_>>();
        let cases = [
            (json!([]), "<none>"),
            (json!([{"notReadyAddresses": ips(1), "ports": [{"port": 80}]}]), ""),
            (json!([{"addresses": ips(2)}]), "10.0.0.1,10.0.0.2"),
            (json!([{"addresses": ips(1), "ports": [{"port": 80}, {"port": 81}]}]), "10.0.0.1:80,10.0.0.1:81"),
            (
                json!([{"addresses": ips(5), "ports": [{"port": 80}]}]),
                "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...",
            ),
        ];
        for (subsets, expected) in cases {
            assert_eq!(summary(&endpoints(subsets)), expected);
        }
    }
}
