//! Services, pods and EndpointSlices as far as endpoints depend on them, and how a pod becomes an endpoint
//! (`staging/src/k8s.io/endpointslice/utils.go`, `pkg/api/v1/endpoints`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::controllers::model::{Condition, Meta, or_default};
use crate::kinds::node::ZONE;
use crate::kinds::quantity::Quantity;
use crate::kinds::service::HEADLESS;
use crate::kinds::status::Status;
use crate::kinds::{Object, meta};
use crate::registry::Raw;

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: ServiceSpec,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `type`
    #[serde(rename = "type")]
    pub kind: String,
    /// `selector`, as it is.
    #[serde(deserialize_with = "or_default")]
    pub selector: Object,
    /// `ports`
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    /// `clusterIP`
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: String,
    /// `publishNotReadyAddresses`
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
    /// `trafficDistribution`
    #[serde(deserialize_with = "or_default")]
    pub traffic_distribution: String,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// `name`
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `protocol`
    pub protocol: String,
    /// `targetPort`: a number or the name of a container's port.
    pub target_port: Value,
    /// `appProtocol`
    pub app_protocol: Option<String>,
}

impl Service {
    /// Whether its endpoints follow from its selector; else they are written by hand, or there are none.
    pub fn selects(&self) -> bool {
        !self.spec.selector.is_empty() && self.spec.kind != "ExternalName"
    }

    /// Without an address of its own.
    pub fn headless(&self) -> bool {
        self.spec.cluster_ip == HEADLESS
    }
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: PodSpec,
    /// `status`
    pub status: PodStatus,
}

/// Of `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// `nodeName`
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
    /// `hostname`
    #[serde(deserialize_with = "or_default")]
    pub hostname: String,
    /// `subdomain`
    #[serde(deserialize_with = "or_default")]
    pub subdomain: String,
    /// `containers`
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// `initContainers`
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
}

/// Of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// `ports`
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort>,
    /// `restartPolicy` of an init container
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: String,
}

/// Of a container's port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// `name`
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `containerPort`
    pub container_port: i64,
    /// `protocol`
    pub protocol: String,
}

/// Of `status` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `phase`
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    /// `podIP`
    #[serde(rename = "podIP", deserialize_with = "or_default")]
    pub pod_ip: String,
    /// `conditions`
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

impl Pod {
    /// Whether the condition Ready is true.
    pub fn ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }

    /// Whether it can be an endpoint at all.
    pub fn is_endpoint(&self) -> bool {
        !matches!(self.status.phase.as_str(), "Succeeded" | "Failed") && !self.status.pod_ip.is_empty()
    }

    /// The number behind a Service's target port.
    fn port(&self, port: &ServicePort) -> Option<i64> {
        if let Some(number) = port.target_port.as_i64() {
            return Some(number);
        }
        let name = port.target_port.as_str()?;
        let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let ports = self.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
        ports.into_iter().find(|p| p.name == name && p.protocol == port.protocol).map(|p| p.container_port)
    }
}

/// A node as far as endpoints depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// `topology.kubernetes.io/zone`
    pub zone: Option<String>,
    /// Allocatable processors, in thousandths.
    pub processors: i64,
    /// Whether its processors are for everyone: it is Ready and of no control plane.
    pub counts: bool,
}

impl NodePlace {
    /// What a stored Node says.
    pub fn of(node: &Raw) -> Result<Self, Status> {
        #[derive(Deserialize)]
        struct Node {
            metadata: Meta,
            #[serde(default)]
            status: NodeStatus,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct NodeStatus {
            #[serde(deserialize_with = "or_default")]
            allocatable: Object,
            #[serde(deserialize_with = "or_default")]
            conditions: Vec<Condition>,
        }
        const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
        let Node { metadata, status } = node.parse()?;
        let labels = &metadata.labels;
        let processors = status.allocatable.get("cpu").and_then(|cpu| Quantity::from_json(cpu).ok());
        let ready = status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True");
        Ok(Self {
            zone: Some(meta::text(labels, ZONE).to_owned()).filter(|zone| !zone.is_empty()),
            processors: processors.map_or(0, Quantity::milli_value),
            counts: ready && !CONTROL_PLANE.iter().any(|label| labels.contains_key(*label)),
        })
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slice {
    /// `metadata`
    pub metadata: Meta,
    /// `addressType`
    pub address_type: String,
    /// `endpoints`
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    /// `ports`
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<Port>,
}

/// One of `ports` of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// `name`, of the Service's port
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `protocol`
    pub protocol: String,
    /// `port`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// `appProtocol`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// One of `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// `addresses`
    pub addresses: Vec<String>,
    /// `conditions`
    pub conditions: Conditions,
    /// `hostname`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `nodeName`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `zone`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `targetRef`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<Value>,
    /// `hints`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<Value>,
    /// `deprecatedTopology`, which only a hand-written one has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprecated_topology: Option<Value>,
}

/// `conditions` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Conditions {
    /// `ready`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// `serving`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// `terminating`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

impl Endpoint {
    /// What makes it the same endpoint in two slices.
    pub fn identity(&self) -> (Vec<String>, String) {
        let uid = self.target_ref.as_ref().and_then(|r| r.get("uid")?.as_str()).unwrap_or_default();
        (self.addresses.clone(), uid.to_owned())
    }
}

/// The pod as an endpoint of a Service that selects it; `zone` is its node's.
pub fn endpoint(service: &Service, pod: &Pod, zone: Option<String>) -> Endpoint {
    let serving = pod.ready();
    let terminating = pod.metadata.deleting();
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    let mut endpoint = Endpoint {
        addresses: vec![pod.status.pod_ip.clone()],
        conditions: Conditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) },
        hostname: some(&pod.spec.hostname).filter(|_| pod.spec.subdomain == service.metadata.name),
        node_name: some(&pod.spec.node_name),
        zone,
        target_ref: Some(target(pod)),
        hints: None,
        deprecated_topology: None,
    };
    endpoint.hints = if ready { hints(&service.spec.traffic_distribution, &endpoint) } else { None };
    endpoint
}

/// `targetRef` to a pod.
pub fn target(pod: &Pod) -> Value {
    let Meta { namespace, name, uid, .. } = &pod.metadata;
    json!({"kind": "Pod", "namespace": namespace, "name": name, "uid": uid})
}

/// Whom an endpoint is meant for (`trafficDistribution`).
fn hints(distribution: &str, endpoint: &Endpoint) -> Option<Value> {
    let one = |name: &Option<String>| name.as_ref().map(|name| json!([{ "name": name }]));
    let mut hints = Object::new();
    if matches!(distribution, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        hints.extend(one(&endpoint.zone).map(|zone| ("forZones".to_owned(), zone)));
    }
    if distribution == "PreferSameNode" {
        hints.extend(one(&endpoint.node_name).map(|node| ("forNodes".to_owned(), node)));
    }
    (!hints.is_empty()).then_some(Value::Object(hints))
}

/// The ports of a Service that a pod serves; one it has no port of that name for is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let port = |port: &ServicePort| Port {
        name: port.name.clone(),
        protocol: port.protocol.clone(),
        port: pod.port(port),
        app_protocol: port.app_protocol.clone(),
    };
    service.spec.ports.iter().map(port).filter(|p| p.port.is_some()).collect()
}

/// When what endpoints follow from last changed.
pub fn last_change<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Option<Timestamp> {
    let ready = pods.flat_map(|pod| &pod.status.conditions).filter(|c| c.kind == "Ready");
    ready.filter_map(|c| c.last_transition_time).chain(service.metadata.creation_timestamp).max()
}

/// The labels a Service passes on to what says its endpoints: its own, and whether it is headless.
pub fn passed_on(service: &Service) -> Object {
    /// Says what an object is, so it is never passed on.
    const RESERVED: [&str; 4] =
        [crate::kinds::endpoint_slice::SERVICE_NAME, super::MANAGED_BY, super::ENDPOINTS_MANAGED_BY, HEADLESS_LABEL];
    const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
    let mut labels = service.metadata.labels.clone();
    labels.retain(|key, _| !RESERVED.contains(&key.as_str()));
    if service.headless() {
        labels.insert(HEADLESS_LABEL.to_owned(), "".into());
    }
    labels
}

/// Sets a list of an object.
pub fn set_list<T: Serialize>(object: &mut Object, key: &str, list: &[T]) {
    let values: Vec<Value> = list.iter().filter_map(|item| serde_json::to_value(item).ok()).collect();
    object.insert(key.to_owned(), values.into());
}

/// Notes when the reason for a change came up.
pub fn note_trigger(object: &mut Object, at: Option<Timestamp>) {
    const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    if let Some(at) = at {
        meta::set_annotation(object, TRIGGER, &meta::format_time(at));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn service(spec: Value) -> Service {
        let metadata = json!({"name": "web", "namespace": "shop", "uid": "s-1", "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    pub(crate) fn pod(n: usize, ready: bool, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "shop", "uid": format!("u{n}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "pi", "containers": [{"ports": [
                {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}]},
            "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", n / 250, n % 250 + 2),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        crate::kinds::patch::merge::apply(pod.as_object_mut().unwrap(), more.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn conditions_follow_the_pod() {
        let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (ready, more, publish, expected) in [
            (true, json!({}), false, (true, true, false)),
            (false, json!({}), false, (false, false, false)),
            (false, json!({}), true, (true, false, false)),
            (true, deleting.clone(), false, (false, true, true)),
            (false, deleting.clone(), false, (false, false, true)),
            (true, deleting, true, (true, true, true)),
        ] {
            let service = service(json!({"publishNotReadyAddresses": publish}));
            let made = endpoint(&service, &pod(1, ready, more), Some("east".to_owned()));
            let Conditions { ready, serving, terminating } = made.conditions;
            assert_eq!((ready.unwrap(), serving.unwrap(), terminating.unwrap()), expected);
            assert_eq!(made.zone.as_deref(), Some("east"));
        }
        for (more, expected) in [
            (json!({}), true),
            (json!({"status": {"phase": "Succeeded"}}), false),
            (json!({"status": {"phase": "Failed"}}), false),
            (json!({"status": {"podIP": null}}), false),
        ] {
            assert_eq!(pod(1, true, more).is_endpoint(), expected);
        }
    }

    #[test]
    fn hostnames_belong_to_the_service_of_the_subdomain() {
        let service = service(json!({}));
        for (subdomain, expected) in [("web", Some("h")), ("other", None), ("", None)] {
            let pod = pod(1, true, json!({"spec": {"hostname": "h", "subdomain": subdomain}}));
            assert_eq!(endpoint(&service, &pod, None).hostname.as_deref(), expected);
        }
    }

    #[test]
    fn hints_follow_the_distribution() {
        let zone = json!({"forZones": [{"name": "east"}]});
        let both = json!({"forZones": [{"name": "east"}], "forNodes": [{"name": "pi"}]});
        for (distribution, ready, east, expected) in [
            ("", true, true, None),
            ("PreferClose", true, true, Some(zone.clone())),
            ("PreferSameZone", true, true, Some(zone)),
            ("PreferSameNode", true, true, Some(both)),
            ("PreferSameNode", true, false, Some(json!({"forNodes": [{"name": "pi"}]}))),
            ("PreferClose", true, false, None),
            ("PreferClose", false, true, None),
        ] {
            let service = service(json!({"trafficDistribution": distribution}));
            let zone = east.then(|| "east".to_owned());
            assert_eq!(endpoint(&service, &pod(1, ready, json!({})), zone).hints, expected, "{distribution}");
        }
    }

    #[test]
    fn target_ports_by_number_and_name() {
        let sidecar = json!({"spec": {"initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 15, "protocol": "TCP"}]},
            {"ports": [{"name": "init", "containerPort": 16, "protocol": "TCP"}]},
        ]}});
        let pod = pod(1, true, sidecar);
        for (target, protocol, expected) in [
            (json!(80), "TCP", Some(80)),
            (json!("http"), "TCP", Some(8080)),
            (json!("http"), "UDP", None),
            (json!("dns"), "UDP", Some(53)),
            (json!("side"), "TCP", Some(15)),
            (json!("init"), "TCP", None),
        ] {
            let service = service(json!({"ports": [{"name": "x", "protocol": protocol, "targetPort": target}]}));
            assert_eq!(ports(&service, &pod).first().and_then(|p| p.port), expected, "{target} {protocol}");
        }
    }
}
