//! What becomes of a Service's addresses and ports when it is made or changed, before anything is allocated: what a
//! client leaves out is kept, what the type no longer has is dropped (`pkg/registry/core/service`).

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::kinds::check::{Errors, IMMUTABLE, same};
use crate::kinds::meta::{self, default_to, items, items_mut};
use crate::kinds::status::FieldError;
use crate::kinds::{Object, format};

use super::{is_external, is_headless, needs_cluster_ip, needs_health_check, needs_node_ports};

pub(super) fn create(object: &mut Object) {
    let spec = meta::child(object, "spec");
    if let (Some(ip), None) = (spec.get("clusterIP").cloned(), spec.get("clusterIPs")) {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
    families(spec);
}

pub(super) fn update(new: &mut Object, old: &Object) {
    let empty = Object::new();
    let old = meta::sub(old, "spec").unwrap_or(&empty);
    let spec = meta::child(new, "spec");
    keep_allocated(spec, old);
    agree(spec, old);
    keep(spec, old, "ipFamilyPolicy");
    families(spec);
    drop_foreign(spec, old);
    if meta::text(spec, "type") != "LoadBalancer" {
        meta::set(new, "/status/loadBalancer", json!({}));
    }
}

/// The family of the cluster's addresses. Headless Services have one too.
fn families(spec: &mut Object) {
    if needs_cluster_ip(spec) {
        default_to(spec, "ipFamilyPolicy", "SingleStack");
        if spec.get("ipFamilies").is_none() {
            spec.insert("ipFamilies".into(), json!(["IPv4"]));
        }
    }
}

/// What was allocated stays with a client that does not mention it.
fn keep_allocated(spec: &mut Object, old: &Object) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        keep(spec, old, "clusterIP");
        if spec.get("clusterIP") == old.get("clusterIP") {
            keep(spec, old, "clusterIPs");
        }
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        keep_node_ports(spec, old);
    }
    if needs_health_check(old) && needs_health_check(spec) {
        keep(spec, old, "healthCheckNodePort");
    }
}

/// Ports keep their node ports by name, unless another port asks for that one.
fn keep_node_ports(spec: &mut Object, old: &Object) {
    let taken: HashSet<i64> = items(spec, "ports").filter_map(|port| meta::int(port, "nodePort")).collect();
    for port in items_mut(spec, "ports").filter(|port| !port.contains_key("nodePort")) {
        let same = items(old, "ports").filter(|p| meta::text(p, "name") == meta::text(port, "name")).last();
        if let Some(number) = same.and_then(|p| meta::int(p, "nodePort")).filter(|number| !taken.contains(number)) {
            port.insert("nodePort".into(), number.into());
        }
    }
}

fn keep(spec: &mut Object, old: &Object, key: &str) {
    if let (None, Some(value)) = (spec.get(key), old.get(key)) {
        spec.insert(key.into(), value.clone());
    }
}

/// `clusterIP` and `clusterIPs` say the same: a client that knows only one of them means both.
fn agree(spec: &mut Object, old: &Object) {
    let (now, before) = (spec.get("clusterIP").cloned(), old.get("clusterIP"));
    let untouched = spec.get("clusterIPs").is_none_or(|list| same(Some(list), old.get("clusterIPs")));
    match now {
        Some(ip) if Some(&ip) != before && untouched => drop(spec.insert("clusterIPs".into(), json!([ip]))),
        None if before.is_some() && untouched => drop(spec.remove("clusterIPs")),
        _ => {}
    }
}

/// Fields of the old type that the new one does not have and that the client left as they were.
fn drop_foreign(spec: &mut Object, old: &Object) {
    let untouched = |spec: &Object, key: &str| same(spec.get(key), old.get(key));
    let mut gone: Vec<&str> = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if untouched(spec, "clusterIP") && untouched(spec, "clusterIPs") {
            gone.extend(["clusterIP", "clusterIPs"]);
        }
        gone.extend(["ipFamilies", "ipFamilyPolicy"].iter().filter(|key| untouched(spec, key)));
    }
    if needs_health_check(old) && !needs_health_check(spec) && untouched(spec, "healthCheckNodePort") {
        gone.push("healthCheckNodePort");
    }
    let balanced = |spec: &Object| meta::text(spec, "type") == "LoadBalancer";
    if balanced(old) && !balanced(spec) {
        let keys = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
        gone.extend(keys.iter().filter(|key| untouched(spec, key)));
    }
    if is_external(old) && !is_external(spec) && untouched(spec, "externalTrafficPolicy") {
        gone.push("externalTrafficPolicy");
    }
    for key in gone {
        spec.remove(key);
    }
    if needs_node_ports(old) && !needs_node_ports(spec) {
        let known: HashSet<i64> = items(old, "ports").filter_map(|port| meta::int(port, "nodePort")).collect();
        if items(spec, "ports").filter_map(|port| meta::int(port, "nodePort")).all(|number| known.contains(&number)) {
            items_mut(spec, "ports").for_each(|port| drop(port.remove("nodePort")));
        }
    }
}

/// What may not change.
pub(super) fn rules(errors: &mut Errors, new: &Object, old: &Object) {
    let empty = Object::new();
    let spec = |object| meta::sub(object, "spec").unwrap_or(&empty);
    let (new, old) = (spec(new), spec(old));
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        cluster_ips(errors, new, old);
    }
    let kind = |spec| meta::text(spec, "type");
    if kind(new) == "LoadBalancer" && kind(old) == kind(new) {
        let class = |spec: &Object| spec.get("loadBalancerClass").cloned();
        if class(new) != class(old) {
            let value = class(new).unwrap_or(Value::Null);
            errors.push(FieldError::invalid("spec.loadBalancerClass", value, "may not change once set"));
        }
    }
    if needs_health_check(new) && needs_health_check(old) {
        let port = |spec| meta::int(spec, "healthCheckNodePort");
        if port(new) != port(old) {
            errors.push(FieldError::invalid("spec.healthCheckNodePort", port(new), IMMUTABLE));
        }
    }
}

/// A Service keeps its cluster address for life, or until it is an `ExternalName`.
fn cluster_ips(errors: &mut Errors, new: &Object, old: &Object) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let list = |spec| meta::list_at(spec, "/clusterIPs");
    let (now, before) = (list(new), list(old));
    if now.is_empty() && !before.is_empty() {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", now.to_vec(), "primary clusterIP can not be unset"));
    }
    for (i, (ip, was)) in now.iter().zip(before).enumerate() {
        if ip != was {
            let path = format!("spec.clusterIPs[{i}]");
            errors.push(FieldError::invalid(path, now.to_vec(), "may not change once set"));
        }
    }
}

/// The rules of `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` together.
pub(super) fn addresses(errors: &mut Errors, spec: &Object) {
    let (one, list) = (meta::text(spec, "clusterIP"), meta::list_at(spec, "/clusterIPs"));
    let path = "spec.clusterIPs";
    match (one, list.first()) {
        ("", Some(_)) => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(path, list.to_vec(), detail));
        }
        ("", None) => {}
        (_, None) => errors.push(FieldError::required(path, "")),
        (one, Some(first)) if first != one => {
            errors.push(FieldError::invalid(path, list.to_vec(), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    for (i, family) in meta::list_at(spec, "/ipFamilies").iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        match family.as_str() {
            Some("IPv4") if i == 0 => {}
            Some("IPv4") => errors.push(FieldError::duplicate(path, "IPv4")),
            Some("IPv6") => errors.push(FieldError::invalid(path, "IPv6", "not configured on this cluster")),
            other => errors.push(FieldError::not_supported(path, other, &["IPv4", "IPv6"])),
        }
    }
    match meta::text(spec, "ipFamilyPolicy") {
        "" | "SingleStack" | "PreferDualStack" => {}
        "RequireDualStack" => {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", detail));
        }
        other => {
            let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
            errors.push(FieldError::not_supported("spec.ipFamilyPolicy", other, &supported));
        }
    }
    for (i, ip) in list.iter().enumerate() {
        cluster_ip(errors, list, i, ip.as_str().unwrap_or_default());
    }
    if list.len() > 1 && errors.is_empty() {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(path, list.to_vec(), detail));
    }
}

fn cluster_ip(errors: &mut Errors, list: &[Value], i: usize, ip: &str) {
    let path = format!("spec.clusterIPs[{i}]");
    if ip == super::HEADLESS {
        if list.len() > 1 {
            let detail = "'None' must be the first and only value";
            errors.push(FieldError::invalid("spec.clusterIPs", list.to_vec(), detail));
        }
    } else if ip.parse::<std::net::Ipv6Addr>().is_ok() {
        errors.push(FieldError::invalid(path, list.to_vec(), "IPv6 is not configured on this cluster"));
    } else {
        errors.extend(format::ip_address(ip).into_iter().map(|wrong| FieldError::invalid(path.as_str(), ip, wrong)));
    }
}
