//! Services.

mod change;
mod defaults;
mod ports;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::age;
use super::selector::LabelSelector;
use super::status::FieldError;
use super::{Column, Hooks, Object, meta, metadata};

pub use rules::SOURCE_RANGES;

pub(super) use ports::{PROTOCOLS, app_protocol, number};

/// `spec.clusterIP` of a headless Service.
pub const HEADLESS: &str = "None";

/// The hooks of Services.
pub struct Service;

impl Hooks for Service {
    fn default(&self, object: &mut Object) {
        defaults::service(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        object.insert("status".into(), json!({"loadBalancer": {}}));
        change::create(object);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
        change::update(new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        rules::service(object)
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        change::rules(&mut errors, new, old);
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Type", kind: "string", format: "", priority: 0 },
            Column { name: "Cluster-IP", kind: "string", format: "", priority: 0 },
            Column { name: "External-IP", kind: "string", format: "", priority: 0 },
            Column { name: "Port(s)", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
            Column { name: "Selector", kind: "string", format: "", priority: 1 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let empty = Object::new();
        let spec = meta::sub(object, "spec").unwrap_or(&empty);
        let selector = meta::sub(spec, "selector").map(LabelSelector::from_map).unwrap_or_default();
        vec![
            json!(meta::text(spec, "type")),
            json!(meta::list_at(spec, "/clusterIPs").first().and_then(Value::as_str).unwrap_or("<none>")),
            json!(external(object, spec)),
            json!(or_none(&ports::text(spec))),
            json!(age(object, now)),
            json!(or_none(&selector.to_string())),
        ]
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        match field {
            "spec.type" => Some(meta::str_at(object, "/spec/type").to_owned()),
            "spec.clusterIP" => Some(meta::str_at(object, "/spec/clusterIP").to_owned()),
            _ => None,
        }
    }

    /// What the Service holds of what is there only once in the cluster.
    fn index(&self, object: &Object) -> Vec<String> {
        let addresses = cluster_ips(object).map(|address| Slot::Address(address).index());
        addresses.chain(node_ports(object).into_iter().map(|port| Slot::NodePort(port).index())).collect()
    }
}

/// Something that only one Service of the cluster can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A cluster address.
    Address(Ipv4Addr),
    /// A port of every node, whatever its protocol.
    NodePort(u16),
}

impl Slot {
    /// The index key of the Service that has it.
    pub fn index(self) -> String {
        match self {
            Self::Address(address) => format!("ip:{address}"),
            Self::NodePort(port) => format!("port:{port}"),
        }
    }
}

/// The cluster addresses of a Service; none if it is headless.
pub fn cluster_ips(object: &Object) -> impl Iterator<Item = Ipv4Addr> {
    meta::list_at(object, "/spec/clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok())
}

/// The node ports of a Service, that of its health check among them.
pub fn node_ports(object: &Object) -> BTreeSet<u16> {
    let ports = meta::list_at(object, "/spec/ports").iter().filter_map(|p| p.get("nodePort")?.as_i64());
    let check = meta::int_at(object, "/spec/healthCheckNodePort");
    ports.chain(check).filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()
}

/// Whether the Service has a cluster address, be it `None`.
fn needs_cluster_ip(spec: &Object) -> bool {
    matches!(meta::text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the ports of the Service have node ports, or may.
fn needs_node_ports(spec: &Object) -> bool {
    matches!(meta::text(spec, "type"), "NodePort" | "LoadBalancer")
}

/// Whether every port of the Service gets a node port.
pub fn allocates_node_ports(spec: &Object) -> bool {
    match meta::text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true),
        _ => false,
    }
}

/// Whether load balancers ask a port of the node if it has endpoints.
pub fn needs_health_check(spec: &Object) -> bool {
    meta::text(spec, "type") == "LoadBalancer" && meta::text(spec, "externalTrafficPolicy") == "Local"
}

/// Whether the Service can be reached from outside of the cluster.
fn is_external(spec: &Object) -> bool {
    needs_node_ports(spec)
        || (meta::text(spec, "type") == "ClusterIP" && !meta::list_at(spec, "/externalIPs").is_empty())
}

fn is_headless(spec: &Object) -> bool {
    matches!(meta::list_at(spec, "/clusterIPs"), [only] if only == HEADLESS)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// The cell `External-IP`.
fn external(object: &Object, spec: &Object) -> String {
    let texts = |path| meta::list_at(spec, path).iter().filter_map(Value::as_str).map(str::to_owned);
    match meta::text(spec, "type") {
        "ExternalName" => meta::text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = meta::list_at(object, "/status/loadBalancer/ingress").iter().filter_map(Value::as_object);
            let assigned: BTreeSet<String> = ingress
                .map(|i| if meta::text(i, "ip").is_empty() { meta::text(i, "hostname") } else { meta::text(i, "ip") })
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect();
            let all: Vec<String> = assigned.into_iter().chain(texts("/externalIPs")).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ClusterIP" | "NodePort" => or_none(&texts("/externalIPs").collect::<Vec<_>>().join(",")).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}
