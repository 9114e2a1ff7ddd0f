//! What fleet and node say to each other.
//!
//! # Guarantees
//! Every message may arrive twice: applying it again changes nothing. A receiver that misses one (a gap in
//! [`Envelope::seq`], or a new [`Envelope::epoch`]) asks for everything again: the node by [`ToServer::Hello`], the
//! server by sending everything.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::known::KnownPod;
use crate::kinds::Object;
pub use crate::network::services::Peer;
use crate::network::services::{Service, ServiceName};

/// Version of these messages. A receiver ignores messages of a version it does not know.
pub const VERSION: u32 = 1;

/// A message and its place in the sender's sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<T> {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// One run of the sender: later runs have larger numbers.
    pub epoch: u64,
    /// Counts the messages of an epoch from 1.
    pub seq: u64,
    /// The message.
    pub body: T,
}

/// Numbers the messages of one sender.
#[derive(Debug)]
pub struct Sequence {
    epoch: u64,
    seq: u64,
}

impl Sequence {
    /// A new epoch.
    pub fn start() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { epoch: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), seq: 0 }
    }

    /// The next message.
    pub fn wrap<T>(&mut self, body: T) -> Envelope<T> {
        self.seq += 1;
        Envelope { version: VERSION, epoch: self.epoch, seq: self.seq, body }
    }
}

/// What a receiver should do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The next one: apply it.
    Next,
    /// Seen before, or of an earlier run: drop it.
    Stale,
    /// Something was missed: apply it and ask for everything.
    Gap,
    /// Of a version this program does not understand: drop it.
    Foreign,
}

/// Watches over the order of what arrives from one sender.
#[derive(Debug, Default)]
pub struct Arrivals {
    epoch: u64,
    seq: u64,
}

impl Arrivals {
    /// Judges a message and remembers it.
    pub fn judge<T>(&mut self, envelope: &Envelope<T>) -> Order {
        if envelope.version != VERSION {
            return Order::Foreign;
        }
        let here = (envelope.epoch, envelope.seq);
        if here <= (self.epoch, self.seq) {
            return Order::Stale;
        }
        let next = match envelope.epoch == self.epoch {
            true => self.seq + 1,
            false => 1,
        };
        (self.epoch, self.seq) = here;
        if envelope.seq == next { Order::Next } else { Order::Gap }
    }
}

/// From the server to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToNode {
    /// The answer to [`ToServer::Hello`] begins. The node says what it and its pods are like: what follows may take
    /// minutes by a bad link, and until then nobody knows that it is well.
    Welcome,
    /// A pod the node should have, as it is now.
    Pod(DesiredPod),
    /// A pod the node should have, as it is now, without what it most likely holds: [`ToServer::Lacks`] if it does not.
    Known(KnownPod),
    /// An object some of the node's pods use changed.
    Object(Dependency),
    /// The pod's object is gone: end it at once and forget it.
    Remove {
        /// Pod UID.
        uid: String,
    },
    /// A Service appeared or changed.
    Service(Arc<Service>),
    /// A Service is gone.
    ServiceGone(ServiceName),
    /// The nodes of the pod network, all of them, in the order of their names. The receiver is among them: so it knows
    /// whether it may own load-balancer addresses.
    Peers(Vec<Peer>),
    /// One of these nodes appeared or changed.
    Peer(Peer),
    /// One of these nodes, by its name, is gone.
    PeerGone(String),
    /// The zone the node is in (its label `topology.kubernetes.io/zone`), which the operator may have set or changed.
    Zone(Option<String>),
    /// The answer to [`ToServer::Hello`] is complete: the node forgets every other pod and Service.
    Complete {
        /// UIDs of all pods of the node.
        pods: Vec<String>,
        /// All Services.
        services: Vec<ServiceName>,
    },
}

/// A pod with what it uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredPod {
    /// The objects it refers to (see [`crate::link::message::references`]). First: they may be large and are still the
    /// same when the pod's status has changed, so that a message that broke off may go on.
    pub objects: Vec<Dependency>,
    /// The pod object.
    pub pod: Object,
}

/// An object a pod refers to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dependency {
    /// Its name.
    #[serde(flatten)]
    pub reference: Reference,
    /// Its content; `None`: there is no such object.
    pub object: Option<Object>,
}

/// The name of an object a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// `configmaps`, `secrets`, `persistentvolumeclaims` or `persistentvolumes`.
    pub resource: String,
    /// Namespace; empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// From a node to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToServer {
    /// The node is here (again) and asks for everything it should have.
    Hello,
    /// The node does not hold what it was told to know of a pod, and asks for all of it.
    Lacks {
        /// Pod UID.
        uid: String,
    },
    /// The node itself.
    Node(NodeReport),
    /// A pod's status. The newest wins.
    PodStatus(PodReport),
    /// Nothing of the pod is left on the node; its object may go.
    PodGone(PodName),
    /// Something worth telling the user.
    Event(EventReport),
    /// Something about an address of a Service that is worth telling the user.
    Address(AddressReport),
}

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// UID: a recreated pod of the same name is another pod.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A pod's status as the node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodReport {
    /// Which pod.
    #[serde(flatten)]
    pub pod: PodName,
    /// The fields of `status` the node owns; conditions of other owners are kept by the server.
    pub status: Value,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Labels the node owns; labels of other owners are kept.
    pub labels: Object,
    /// `status` of the Node object.
    pub status: Value,
}

/// An event about a pod of the node. Who records it counts repetitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventReport {
    /// Which pod.
    pub pod: PodName,
    /// The part it concerns, such as `spec.containers{web}`; empty for the whole pod.
    pub field_path: String,
    /// Something the user should look at, not just news.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// What a node saw of an address of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressReport {
    /// Which Service.
    pub service: ServiceName,
    /// Its UID.
    pub uid: String,
    /// What happened.
    pub news: AddressNews,
    /// Text for people.
    pub message: String,
}

/// What may happen to an address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AddressNews {
    /// The node announces it: a load-balancer address.
    Announced,
    /// The node has left it to another.
    Released,
    /// Another host uses it.
    Conflict,
    /// The node cannot listen there: a program of its own has the port.
    Unserved,
    /// It can again.
    Served,
}

/// The ConfigMaps, Secrets and claims a pod's specification refers to, sorted, each once.
///
/// Volumes bound to claims are the server's to add: only it knows which volume a claim is bound to.
pub fn references(pod: &Object) -> Vec<Reference> {
    let text = |v: &Value, pointer: &str| v.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = pod.get("metadata").map(|m| text(m, "/namespace")).unwrap_or_default();
    let Some(spec) = pod.get("spec") else { return Vec::new() };
    let mut found = std::collections::BTreeSet::new();
    let mut add = |resource: &str, name: String| {
        if !name.is_empty() {
            found.insert(Reference { resource: resource.to_owned(), namespace: namespace.clone(), name });
        }
    };
    for volume in items(spec, "volumes") {
        add("configmaps", text(volume, "/configMap/name"));
        add("secrets", text(volume, "/secret/secretName"));
        add("persistentvolumeclaims", text(volume, "/persistentVolumeClaim/claimName"));
        for source in volume.get("projected").map(|p| items(p, "sources")).unwrap_or_default() {
            add("configmaps", text(source, "/configMap/name"));
            add("secrets", text(source, "/secret/name"));
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for source in items(container, "envFrom") {
                add("configmaps", text(source, "/configMapRef/name"));
                add("secrets", text(source, "/secretRef/name"));
            }
            for variable in items(container, "env") {
                add("configmaps", text(variable, "/valueFrom/configMapKeyRef/name"));
                add("secrets", text(variable, "/valueFrom/secretKeyRef/name"));
            }
        }
    }
    found.into_iter().collect()
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_is_judged() {
        let mut arrivals = Arrivals::default();
        let envelope = |epoch, seq| Envelope { version: VERSION, epoch, seq, body: ToServer::Hello };
        for (epoch, seq, expected) in [
            (5, 1, Order::Next),
            (5, 2, Order::Next),
            (5, 2, Order::Stale),
            (5, 1, Order::Stale),
            (5, 4, Order::Gap),
            (5, 5, Order::Next),
            (4, 9, Order::Stale),
            (7, 1, Order::Next),
            (8, 3, Order::Gap),
        ] {
            assert_eq!(arrivals.judge(&envelope(epoch, seq)), expected, "{epoch} {seq}");
        }
        let foreign = Envelope { version: VERSION + 1, epoch: 9, seq: 1, body: ToServer::Hello };
        assert_eq!(arrivals.judge(&foreign), Order::Foreign);
    }

    #[test]
    fn messages_survive_the_wire() {
        let pod = json!({"metadata": {"name": "a"}}).as_object().unwrap().clone();
        let reference = Reference { resource: "secrets".into(), namespace: "n".into(), name: "s".into() };
        let body = ToNode::Pod(DesiredPod { pod, objects: vec![Dependency { reference, object: None }] });
        let envelope = Sequence::start().wrap(body);
        let text = serde_json::to_string(&envelope).unwrap();
        assert_eq!(serde_json::from_str::<Envelope<ToNode>>(&text).unwrap(), envelope);
    }

    #[test]
    fn references_are_found_everywhere() {
        let pod = json!({
            "metadata": {"namespace": "n"},
            "spec": {
                "volumes": [
                    {"configMap": {"name": "c1"}}, {"secret": {"secretName": "s1"}},
                    {"persistentVolumeClaim": {"claimName": "p1"}},
                    {"projected": {"sources": [{"configMap": {"name": "c2"}}, {"secret": {"name": "s2"}}]}},
                ],
                "initContainers": [{"envFrom": [{"configMapRef": {"name": "c3"}}]}],
                "containers": [
                    {"envFrom": [{"secretRef": {"name": "s3"}}]},
                    {"env": [
                        {"valueFrom": {"configMapKeyRef": {"name": "c1"}}},
                        {"valueFrom": {"secretKeyRef": {"name": "s4"}}},
                    ]},
                ],
            },
        });
        let names: Vec<String> = references(pod.as_object().unwrap())
            .into_iter()
            .map(|r| {
                assert_eq!(r.namespace, "n");
                format!("{}/{}", r.resource, r.name)
            })
            .collect();
        let expected = [
            "configmaps/c1",
            "configmaps/c2",
            "configmaps/c3",
            "persistentvolumeclaims/p1",
            "secrets/s1",
            "secrets/s2",
            "secrets/s3",
            "secrets/s4",
        ];
        assert_eq!(names, expected);
    }
}
