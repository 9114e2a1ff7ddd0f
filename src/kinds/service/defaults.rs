//! Documented defaults of Services.

use serde_json::{Value, json};

use crate::kinds::meta::{self, default_to, items_mut};
use crate::kinds::{Object, check};

/// Seconds a client keeps its endpoint (`sessionAffinity: ClientIP`).
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn service(object: &mut Object) {
    let spec = meta::child(object, "spec");
    drop_zeros(spec);
    default_to(spec, "type", "ClusterIP");
    affinity(spec);
    for port in items_mut(spec, "ports") {
        default_to(port, "protocol", "TCP");
        if port.get("nodePort").is_some_and(|v| v.is_null() || v == 0) {
            port.remove("nodePort");
        }
        let target = port.get("targetPort");
        if target.is_none_or(|v| v.is_null() || v == 0 || v == "") {
            let number = port.get("port").cloned().unwrap_or(json!(0));
            port.insert("targetPort".into(), number);
        }
    }
    if super::is_external(spec) {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if super::needs_cluster_ip(spec) {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if meta::text(spec, "type") == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
        ingress_mode(object);
    }
}

/// Fields whose zero means that nothing was said.
fn drop_zeros(spec: &mut Object) {
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy", "externalIPs"] {
        if spec.get(key).is_some_and(|v| !check::present_value(v)) {
            spec.remove(key);
        }
    }
    for key in ["loadBalancerClass", "internalTrafficPolicy", "allocateLoadBalancerNodePorts", "trafficDistribution"] {
        if spec.get(key).is_some_and(Value::is_null) {
            spec.remove(key);
        }
    }
    if spec.get("healthCheckNodePort").is_some_and(|v| v.is_null() || v == 0) {
        spec.remove("healthCheckNodePort");
    }
}

fn affinity(spec: &mut Object) {
    default_to(spec, "sessionAffinity", "None");
    match meta::text(spec, "sessionAffinity") {
        "None" => drop(spec.remove("sessionAffinityConfig")),
        "ClientIP" if meta::int_at(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds").is_none() => {
            spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
        }
        _ => {}
    }
}

/// An address of a load balancer is one that packets arrive with, unless it says otherwise.
fn ingress_mode(object: &mut Object) {
    let Some(Value::Array(list)) = meta::pointer_mut(object, "/status/loadBalancer/ingress") else { return };
    for ingress in list.iter_mut().filter_map(Value::as_object_mut) {
        if !meta::text(ingress, "ip").is_empty() {
            default_to(ingress, "ipMode", "VIP");
        }
    }
}
