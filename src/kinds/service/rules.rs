//! Rules of Services (`ValidateService`).

use serde_json::Value;

use crate::kinds::check::{Errors, all_invalid, each, each_str, join, one_of, required, required_one_of};
use crate::kinds::metadata::{self, Scope};
use crate::kinds::status::FieldError;
use crate::kinds::{Object, endpoints, format, meta};

use super::{change, is_external, is_headless, needs_cluster_ip, needs_health_check, ports};

/// Longest time a client may keep its endpoint, seconds: a day.
const LONGEST_AFFINITY: i64 = 86_400;
/// The annotation that says what `loadBalancerSourceRanges` says, where that is empty: ranges separated by commas.
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

pub(super) fn service(object: &Object) -> Errors {
    let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_1035_label);
    let empty = Object::new();
    let spec = meta::sub(object, "spec").unwrap_or(&empty);
    of_type(&mut errors, spec);
    ports::rules(&mut errors, spec);
    metadata::label_map(&mut errors, meta::sub(spec, "selector"), "spec.selector");
    affinity(&mut errors, spec);
    if meta::text(spec, "type") != "ExternalName" {
        change::addresses(&mut errors, spec);
    }
    for (path, ip) in each_str(spec, "spec", "externalIPs") {
        endpoints::address(&mut errors, &path, ip);
    }
    required_one_of(&mut errors, "spec", spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    ports::unique(&mut errors, spec);
    source_ranges(&mut errors, object, spec);
    balancer(&mut errors, spec);
    traffic(&mut errors, spec);
    status(&mut errors, object, spec);
    errors
}

fn of_type(errors: &mut Errors, spec: &Object) {
    let kind = meta::text(spec, "type");
    if kind != "ExternalName" && !is_headless(spec) && meta::list_at(spec, "/ports").is_empty() {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "LoadBalancer" {
        ports::not_kubelet(errors, spec);
    }
    if matches!(kind, "LoadBalancer" | "NodePort") && is_headless(spec) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", super::HEADLESS, detail));
    }
    if kind != "ExternalName" {
        return;
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if spec.contains_key(key) && (key != "clusterIP" || !spec.contains_key("clusterIPs")) {
            errors.push(FieldError::forbidden(join("spec", key), "may not be set for ExternalName services"));
        }
    }
    if let Some(name) = required(errors, "spec", spec, "externalName") {
        // A trailing dot says that the name is complete.
        let name = name.strip_suffix('.').unwrap_or(name);
        all_invalid(errors, "spec.externalName", name, format::dns_subdomain(name));
    }
}

fn affinity(errors: &mut Errors, spec: &Object) {
    required_one_of(errors, "spec", spec, "sessionAffinity", &["ClientIP", "None"]);
    if meta::text(spec, "sessionAffinity") == "ClientIP" {
        let path = "/sessionAffinityConfig/clientIP/timeoutSeconds";
        if let Some(seconds) = meta::int_at(spec, path).filter(|s| !(1..=LONGEST_AFFINITY).contains(s)) {
            let detail = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
            let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            errors.push(FieldError::invalid(path, seconds, detail));
        }
    }
}

fn source_ranges(errors: &mut Errors, object: &Object, spec: &Object) {
    let balanced = meta::text(spec, "type") == "LoadBalancer";
    let forbid = |errors: &mut Errors, path: &str| {
        if !balanced {
            errors.push(FieldError::forbidden(path, BALANCER_ONLY));
        }
    };
    let ranges = meta::list_at(spec, "/loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let path = "spec.LoadBalancerSourceRanges";
        forbid(errors, path);
        for (i, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            all_invalid(errors, &format!("{path}[{i}]"), range, format::cidr(range));
        }
    } else if let Some(text) = meta::annotation(object, SOURCE_RANGES) {
        let path = format!("metadata.annotations[{SOURCE_RANGES}]");
        forbid(errors, &path);
        if text.trim().is_empty() || text.split(',').any(|range| !format::cidr(range.trim()).is_empty()) {
            let detail = "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24";
            errors.push(FieldError::invalid(path, text, detail));
        }
    }
}

/// What only load balancers have.
fn balancer(errors: &mut Errors, spec: &Object) {
    let balanced = meta::text(spec, "type") == "LoadBalancer";
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !balanced && spec.contains_key(key) {
            errors.push(FieldError::forbidden(join("spec", key), BALANCER_ONLY));
        }
    }
    if let (true, Some(class)) = (balanced, spec.get("loadBalancerClass").and_then(Value::as_str)) {
        all_invalid(errors, "spec.loadBalancerClass", class, format::qualified_name(class));
    }
}

fn traffic(errors: &mut Errors, spec: &Object) {
    const POLICIES: &[&str] = &["Cluster", "Local"];
    let policy = meta::text(spec, "externalTrafficPolicy");
    if is_external(spec) {
        required_one_of(errors, "spec", spec, "externalTrafficPolicy", POLICIES);
    } else if !policy.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, detail));
    }
    match meta::int(spec, "healthCheckNodePort") {
        Some(port) if needs_health_check(spec) => {
            all_invalid(errors, "spec.healthCheckNodePort", port, format::port_number(port));
        }
        Some(port) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid("spec.healthCheckNodePort", port, detail));
        }
        // Allocated with the addresses.
        None => {}
    }
    if needs_cluster_ip(spec) {
        required(errors, "spec", spec, "internalTrafficPolicy");
    }
    one_of(errors, "spec", spec, "internalTrafficPolicy", POLICIES);
    one_of(errors, "spec", spec, "trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]);
}

/// The rules of `status.loadBalancer`.
fn status(errors: &mut Errors, object: &Object, spec: &Object) {
    let empty = Object::new();
    let status = meta::object_at(object, "/status/loadBalancer").unwrap_or(&empty);
    if meta::text(spec, "type") != "LoadBalancer" && !meta::list_at(status, "/ingress").is_empty() {
        let detail = "may only be used when `spec.type` is \"LoadBalancer\"";
        errors.push(FieldError::forbidden("status.loadBalancer.ingress", detail));
        return;
    }
    for (path, ingress) in each(status, "status.loadBalancer", "ingress") {
        let (ip, name) = (meta::text(ingress, "ip"), meta::text(ingress, "hostname"));
        if !ip.is_empty() {
            all_invalid(errors, &join(&path, "ip"), ip, format::ip_address(ip));
            one_of(errors, &path, ingress, "ipMode", &["Proxy", "VIP"]);
        } else if ingress.get("ipMode").is_some_and(Value::is_string) {
            errors.push(FieldError::forbidden(join(&path, "ipMode"), "may not be specified when `ip` is not set"));
        }
        if name.parse::<std::net::IpAddr>().is_ok() {
            let detail = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(join(&path, "hostname"), name, detail));
        } else if !name.is_empty() {
            all_invalid(errors, &join(&path, "hostname"), name, format::dns_subdomain(name));
        }
    }
}
