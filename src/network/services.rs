//! The cluster's Services as a node needs them: what the proxy, the name server and the announcer work from.
//!
//! The types are also what the server sends (see `link::message`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::Cidr;

/// Changes a slow reader may be behind before it has to read everything again.
const BEHIND: usize = 1024;

/// One Service with its endpoints. Fields that are empty are left out on the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: a recreated Service is another one.
    pub uid: String,
    /// Cluster addresses; empty for a headless Service and for ExternalName.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<Ipv4Addr>,
    /// `spec.externalName` of a Service of type ExternalName.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// `spec.externalIPs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<Ipv4Addr>,
    /// Addresses of `status.loadBalancer.ingress` that a node of this cluster is to announce.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// `spec.loadBalancerSourceRanges`, as `address/prefix`; empty: everyone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<String>,
    /// Ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Seconds a client keeps its endpoint (`sessionAffinity: ClientIP`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    #[serde(skip_serializing_if = "is_false")]
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    #[serde(skip_serializing_if = "is_false")]
    pub external_local: bool,
    /// `spec.healthCheckNodePort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// `spec.publishNotReadyAddresses`.
    #[serde(skip_serializing_if = "is_false")]
    pub publish_not_ready: bool,
    /// Endpoints, grouped by the ports they serve, as in EndpointSlices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slice>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; empty where there is only one port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port of the cluster, external and load-balancer addresses.
    pub port: u16,
    /// Port of every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// What a port speaks. SCTP is refused by the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Endpoints that serve the same ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slice {
    /// Target port by the name of the Service's port.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Where a Service's port is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Name of the Service's port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port of the endpoint.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where it is.
    pub address: IpAddr,
    /// Its name below a headless Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whom it is meant for; `None`: everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<Box<Hints>>,
    /// Takes new connections.
    pub ready: bool,
    /// Works, though it may be terminating.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
}

/// Hints of topology. An empty list: nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// `forZones`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// `forNodes`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Service {
    /// Which Service it is.
    pub fn id(&self) -> ServiceName {
        ServiceName { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Whether everything but the endpoints is the same.
    pub fn differs_in_endpoints_only(&self, other: &Self) -> bool {
        // Every field is named, so that none is forgotten.
        let Self {
            namespace,
            name,
            uid,
            cluster_ips,
            external_name,
            external_ips,
            load_balancer_ips,
            source_ranges,
            ports,
            affinity_seconds,
            internal_local,
            external_local,
            health_check_node_port,
            publish_not_ready,
            slices: _,
        } = self;
        *namespace == other.namespace
            && *name == other.name
            && *uid == other.uid
            && *cluster_ips == other.cluster_ips
            && *external_name == other.external_name
            && *external_ips == other.external_ips
            && *load_balancer_ips == other.load_balancer_ips
            && *source_ranges == other.source_ranges
            && *ports == other.ports
            && *affinity_seconds == other.affinity_seconds
            && *internal_local == other.internal_local
            && *external_local == other.external_local
            && *health_check_node_port == other.health_check_node_port
            && *publish_not_ready == other.publish_not_ready
    }
}

/// A node of the pod network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`.
    pub address: Ipv4Addr,
    /// The addresses of its pods.
    pub pod_cidr: Cidr,
    /// It may own load-balancer addresses: Ready, not cordoned, not excluded by label.
    pub announces: bool,
}

/// A Service that appeared or changed, or one that is gone.
#[derive(Clone, Debug)]
pub enum ServiceChange {
    /// As it is now.
    Put(Arc<Service>),
    /// As it was.
    Gone(Arc<Service>),
}

/// All Services of the cluster on this node. Clones are the same view.
#[derive(Clone, Debug)]
pub struct Services {
    all: Arc<RwLock<BTreeMap<ServiceName, Arc<Service>>>>,
    changes: broadcast::Sender<ServiceChange>,
}

impl Default for Services {
    fn default() -> Self {
        Self { all: Arc::default(), changes: broadcast::Sender::new(BEHIND) }
    }
}

impl Services {
    /// Takes in a Service as it is now. One that is the same already changes nothing.
    pub fn put(&self, service: impl Into<Arc<Service>>) {
        let service = service.into();
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&service.id()).is_some_and(|known| **known == *service) {
            return;
        }
        all.insert(service.id(), service.clone());
        // Nobody may be listening.
        let _ = self.changes.send(ServiceChange::Put(service));
    }

    /// Forgets a Service.
    pub fn remove(&self, name: &ServiceName) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = all.remove(name) {
            // Nobody may be listening.
            let _ = self.changes.send(ServiceChange::Gone(service));
        }
    }

    /// One Service.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let name = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// All Services, in order.
    pub fn all(&self) -> Vec<Arc<Service>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All Services as they are now, and every change from then on. A receiver that lags behind
    /// (`RecvError::Lagged`) subscribes anew.
    pub fn subscribe(&self) -> (Vec<Arc<Service>>, broadcast::Receiver<ServiceChange>) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        (all.values().cloned().collect(), self.changes.subscribe())
    }
}
