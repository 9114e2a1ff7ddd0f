//! The cluster's Services as nodes are told of them: built once, shared by all nodes.
//!
//! [`Cluster::follow`] keeps the view; a [`Feed`] is what one node has yet to hear of it. However slow the node, that is
//! at most the name of every Service, and what it hears is the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::Kinds;
use super::nodes::{Known, Nodes};
use super::peers::{PeerFeed, pop};
use crate::kinds::endpoint_slice::{SERVICE_NAME, of_service};
use crate::kinds::service::SOURCE_RANGES;
use crate::kinds::status::Status;
use crate::kinds::{Object, meta};
use crate::link::message::ToNode;
use crate::network::services::{
    Endpoint, EndpointPort, Hints, Protocol, Service, ServiceChange, ServiceName, ServicePort, Services, Slice,
};
use crate::registry::{Event, EventType, ListOptions, Raw, Registry};

/// Between a failed look at the registry and the next.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Services built before other tasks run.
const BATCH: usize = 16;

/// All Services, and the nodes as they need to know each other.
#[derive(Default)]
pub(super) struct Cluster {
    services: Services,
    nodes: Nodes,
    /// The view is whole; it stays so.
    built: watch::Sender<bool>,
}

impl Cluster {
    /// Keeps the view up to date; never ends.
    pub(super) async fn follow(&self, registry: &Registry, kinds: &Kinds) {
        loop {
            let Err(status) = self.try_follow(registry, kinds).await;
            // The history was too short: everything is looked at anew.
            if status.code != 410 {
                tracing::error!(%status, "cannot see the Services");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }

    async fn try_follow(&self, registry: &Registry, kinds: &Kinds) -> Result<Infallible, Status> {
        // Watching begins before listing: a change may be seen twice but none is missed.
        let mut services = registry.watch(&kinds.services, None, None)?;
        let mut slices = registry.watch(&kinds.slices, None, None)?;
        let mut nodes = registry.watch(&kinds.nodes, None, None)?;
        let mut known = self.build_all(registry, kinds).await?;
        loop {
            let mut changed = BTreeSet::new();
            tokio::select! {
                event = services.next() => drop(changed.insert(id(&event?.object))),
                event = slices.next() => changed.extend(owners(&event?)?),
                event = nodes.next() => {
                    let event = event?;
                    let there = (event.kind != EventType::Deleted).then_some(&event.object);
                    known.note(&event.object.key.name, there)?;
                    self.nodes.tell_zones(&known);
                }
                () = known.due() => self.nodes.tell_peers(&mut known),
            }
            // A burst of changes of one Service is one change.
            while let Some(event) = services.try_next()? {
                changed.insert(id(&event.object));
            }
            while let Some(event) = slices.try_next()? {
                changed.extend(owners(&event)?);
            }
            self.build(registry, kinds, changed).await?;
        }
    }

    async fn build_all(&self, registry: &Registry, kinds: &Kinds) -> Result<Known, Status> {
        let listed = registry.list_slowly(&kinds.services, &ListOptions::default()).await?;
        let mut names: BTreeSet<ServiceName> = listed.items.iter().map(id).collect();
        drop(listed);
        names.extend(self.services.all().iter().map(|s| s.id()));
        self.build(registry, kinds, names).await?;
        let mut known = Known::default();
        for node in registry.list_slowly(&kinds.nodes, &ListOptions::default()).await?.items {
            known.note(&node.key.name, Some(&node))?;
        }
        self.nodes.tell_zones(&known);
        self.nodes.tell_peers(&mut known);
        self.built.send_if_modified(|built| !std::mem::replace(built, true));
        Ok(known)
    }

    async fn build(&self, registry: &Registry, kinds: &Kinds, names: BTreeSet<ServiceName>) -> Result<(), Status> {
        for (n, name) in names.into_iter().enumerate() {
            if n % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            match registry.get(&kinds.services, &name.namespace, &name.name) {
                Ok(object) => {
                    let index = of_service(&name.namespace, &name.name);
                    let slices = registry.indexed(&kinds.slices, &index)?;
                    self.services.put(service(&object, &slices));
                }
                Err(status) if status.code == 404 => self.services.remove(&name),
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }
}

/// What one node has yet to hear.
pub(super) struct Feed<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    changes: broadcast::Receiver<ServiceChange>,
    zones: watch::Receiver<BTreeMap<String, String>>,
    built: watch::Receiver<bool>,
    pending: BTreeSet<ServiceName>,
    zone_pending: bool,
    told_zone: Option<String>,
    peers: PeerFeed,
}

impl<'a> Feed<'a> {
    /// Everything there is, and every change after that.
    pub(super) fn of(cluster: &'a Cluster, node: &'a str) -> Self {
        let (all, changes) = cluster.services.subscribe();
        let Cluster { nodes, built, .. } = cluster;
        Self {
            cluster,
            node,
            changes,
            zones: nodes.zones.subscribe(),
            built: built.subscribe(),
            pending: all.iter().map(|s| s.id()).collect(),
            zone_pending: true,
            told_zone: None,
            peers: nodes.peers.feed(node),
        }
    }

    /// Waits for a change and notes it. Cancel safe.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            // The senders are the cluster's own and do not end.
            _ = self.built.changed() => {}
            _ = self.zones.changed() => self.zone_pending |= self.zone() != self.told_zone,
            () = self.peers.changed() => {}
            change = self.changes.recv() => match change {
                Ok(ServiceChange::Put(service) | ServiceChange::Gone(service)) => drop(self.pending.insert(service.id())),
                Err(RecvError::Lagged(_) | RecvError::Closed) => {
                    let (all, changes) = self.cluster.services.subscribe();
                    self.changes = changes;
                    self.pending.extend(all.iter().map(|s| s.id()));
                }
            },
        }
    }

    /// Whether the view is whole: what is not in it is not there.
    pub(super) fn is_whole(&self) -> bool {
        *self.built.borrow()
    }

    /// Whether there is something to tell.
    pub(super) fn has_more(&self) -> bool {
        self.is_whole() && (self.zone_pending || self.peers.has_more() || !self.pending.is_empty())
    }

    /// The next thing to tell.
    pub(super) fn next(&mut self) -> Option<ToNode> {
        if std::mem::take(&mut self.zone_pending) {
            self.told_zone = self.zone();
            return Some(ToNode::Zone(self.told_zone.clone()));
        }
        if let Some(message) = self.peers.next() {
            return Some(message);
        }
        let name = pop(&mut self.pending)?;
        match self.cluster.services.get(&name.namespace, &name.name) {
            Some(service) => Some(ToNode::Service(service)),
            None => Some(ToNode::ServiceGone(name)),
        }
    }

    /// All Services, for [`ToNode::Complete`].
    pub(super) fn names(&self) -> Vec<ServiceName> {
        self.cluster.services.all().iter().map(|s| s.id()).collect()
    }

    fn zone(&self) -> Option<String> {
        self.zones.borrow().get(self.node).cloned()
    }
}

fn id(object: &Raw) -> ServiceName {
    ServiceName { namespace: object.key.namespace.to_string(), name: object.key.name.to_string() }
}

/// The Services that a slice belongs to and belonged to.
fn owners(event: &Event) -> Result<Vec<ServiceName>, Status> {
    let mut owners = Vec::new();
    for slice in [Some(&event.object), event.previous.as_ref()].into_iter().flatten() {
        if let Some(name) = slice.labels()?.get(SERVICE_NAME).and_then(Value::as_str) {
            owners.push(ServiceName { namespace: slice.key.namespace.to_string(), name: name.to_owned() });
        }
    }
    Ok(owners)
}

/// A Service and its slices as a node needs them. What Umiak does not do (IPv6, SCTP) the API has refused.
fn service(object: &Object, slices: &[Object]) -> Service {
    let empty = Object::new();
    let spec = meta::sub(object, "spec").unwrap_or(&empty);
    let addresses = |key: &str| -> Vec<_> {
        spec.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str()?.parse().ok()).collect()
    };
    let kind = meta::text(spec, "type");
    let ours = kind == "LoadBalancer" && meta::text(spec, "loadBalancerClass").is_empty();
    let ingress = meta::list_at(object, "/status/loadBalancer/ingress").iter().filter_map(Value::as_object);
    let ingress =
        ingress.filter(|i| meta::text(i, "ipMode") != "Proxy").filter_map(|i| meta::text(i, "ip").parse().ok());
    let affinity = meta::text(spec, "sessionAffinity") == "ClientIP";
    let timeout = meta::int_at(object, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds").unwrap_or(10_800);
    Service {
        namespace: meta::namespace(object).to_owned(),
        name: meta::name(object).to_owned(),
        uid: meta::uid(object).to_owned(),
        cluster_ips: addresses("clusterIPs"),
        external_name: (kind == "ExternalName").then(|| meta::text(spec, "externalName").to_owned()),
        external_ips: addresses("externalIPs"),
        load_balancer_ips: ingress.filter(|_| ours).collect(),
        source_ranges: if kind == "LoadBalancer" { source_ranges(object, spec) } else { Vec::new() },
        ports: meta::items(spec, "ports").filter_map(service_port).collect(),
        affinity_seconds: affinity.then(|| u32::try_from(timeout).unwrap_or(10_800)),
        internal_local: meta::text(spec, "internalTrafficPolicy") == "Local",
        external_local: meta::text(spec, "externalTrafficPolicy") == "Local",
        health_check_node_port: port_at(spec, "healthCheckNodePort"),
        publish_not_ready: meta::flag(spec, "publishNotReadyAddresses"),
        slices: slices.iter().filter_map(slice).collect(),
    }
}

/// Who may come to the load-balancer addresses; the annotation counts where the field is empty.
fn source_ranges(object: &Object, spec: &Object) -> Vec<String> {
    let field = meta::list_at(spec, "/loadBalancerSourceRanges").iter().filter_map(Value::as_str);
    let ranges: Vec<String> = field.map(str::to_owned).collect();
    match meta::annotation(object, SOURCE_RANGES) {
        Some(text) if ranges.is_empty() => text.split(',').map(|range| range.trim().to_owned()).collect(),
        _ => ranges,
    }
}

/// A port number; 0 is none.
fn port_at(object: &Object, key: &str) -> Option<u16> {
    meta::int(object, key).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

fn protocol(port: &Object) -> Option<Protocol> {
    match meta::text(port, "protocol") {
        "TCP" | "" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

fn service_port(port: &Object) -> Option<ServicePort> {
    Some(ServicePort {
        name: meta::text(port, "name").to_owned(),
        protocol: protocol(port)?,
        port: port_at(port, "port")?,
        node_port: port_at(port, "nodePort"),
    })
}

fn slice(slice: &Object) -> Option<Slice> {
    let port = |port: &Object| {
        let (name, port_number) = (meta::text(port, "name").to_owned(), port_at(port, "port")?);
        Some(EndpointPort { name, protocol: protocol(port)?, port: port_number })
    };
    let endpoints: Vec<Endpoint> = meta::items(slice, "endpoints").filter_map(endpoint).collect();
    let ports = meta::items(slice, "ports").filter_map(port).collect();
    (!endpoints.is_empty()).then_some(Slice { ports, endpoints })
}

fn endpoint(endpoint: &Object) -> Option<Endpoint> {
    let text = |key: &str| Some(meta::text(endpoint, key).to_owned()).filter(|t| !t.is_empty());
    let condition = |key: &str| meta::pointer(endpoint, &format!("/conditions/{key}")).and_then(Value::as_bool);
    // What is not said of an endpoint: it is ready, serves as it is ready, and stays.
    let ready = condition("ready").unwrap_or(true);
    Some(Endpoint {
        // Names of addressType FQDN are none of the proxy's business.
        address: meta::list_at(endpoint, "/addresses").first()?.as_str()?.parse().ok()?,
        hostname: text("hostname"),
        node: text("nodeName"),
        hints: hints(endpoint).map(Box::new),
        ready,
        serving: condition("serving").unwrap_or(ready),
        terminating: condition("terminating").unwrap_or(false),
    })
}

fn hints(endpoint: &Object) -> Option<Hints> {
    let names = |path: &str| -> Vec<String> {
        let hints = meta::list_at(endpoint, path).iter();
        hints.filter_map(|hint| Some(hint.get("name")?.as_str()?.to_owned())).collect()
    };
    let hints = Hints { zones: names("/hints/forZones"), nodes: names("/hints/forNodes") };
    (hints != Hints::default()).then_some(hints)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_service_in_full() {
        let spec = json!({
            "type": "LoadBalancer", "clusterIPs": ["10.43.0.7"], "externalIPs": ["192.0.2.9"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 30100,
            "loadBalancerSourceRanges": ["192.0.2.0/24"], "publishNotReadyAddresses": true,
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        });
        let status =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.50"}, {"ip": "192.0.2.51", "ipMode": "Proxy"}]}});
        let lb = json!({"metadata": {"namespace": "ns", "name": "web", "uid": "u"}, "spec": spec, "status": status});
        let slices = [
            object(json!({
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "any", "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": ["10.42.0.5", "10.42.0.6"], "nodeName": "pi", "hostname": "h",
                     "hints": {"forZones": [{"name": "east"}], "forNodes": [{"name": "pi"}]}},
                    {"addresses": ["10.42.0.7"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                    {"addresses": ["www.example.com"]},
                ],
            })),
            object(json!({"endpoints": []})),
        ];
        let built = service(&object(lb.clone()), &slices);
        let expected = json!({
            "namespace": "ns", "name": "web", "uid": "u", "clusterIps": ["10.43.0.7"], "externalIps": ["192.0.2.9"],
            "loadBalancerIps": ["192.0.2.50"], "sourceRanges": ["192.0.2.0/24"], "affinitySeconds": 60,
            "externalLocal": true, "healthCheckNodePort": 30100, "publishNotReady": true,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}, {"name": "dns", "protocol": "UDP", "port": 53}],
            "slices": [{
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
                "endpoints": [
                    {"address": "10.42.0.5", "hostname": "h", "node": "pi", "hints": {"zones": ["east"], "nodes": ["pi"]},
                     "ready": true, "serving": true, "terminating": false},
                    {"address": "10.42.0.7", "ready": false, "serving": true, "terminating": true},
                ],
            }],
        });
        assert_eq!(serde_json::to_value(&built).unwrap(), expected);

        let annotation = "192.0.2.7/32, 198.51.100.0/24";
        let mut annotated = object(lb.clone());
        meta::set_annotation(&mut annotated, SOURCE_RANGES, annotation);
        assert_eq!(service(&annotated, &[]).source_ranges, ["192.0.2.0/24"], "the field goes before");
        meta::set(&mut annotated, "/spec/loadBalancerSourceRanges", json!([]));
        assert_eq!(service(&annotated, &[]).source_ranges, ["192.0.2.7/32", "198.51.100.0/24"]);

        let mut foreign = object(lb);
        meta::set(&mut foreign, "/spec/loadBalancerClass", "example.com/other");
        assert!(service(&foreign, &[]).load_balancer_ips.is_empty());
        let name = json!({"spec": {"type": "ExternalName", "externalName": "www.example.com"}});
        assert_eq!(service(&object(name), &[]).external_name.as_deref(), Some("www.example.com"));
        assert!(service(&object(json!({"spec": {"clusterIPs": ["None"]}})), &[]).cluster_ips.is_empty());
    }
}
