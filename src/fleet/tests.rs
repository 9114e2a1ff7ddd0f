//! A fleet on a real registry with a node of pretence at the other end of the link.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::events;
use crate::kinds::table::KindTable;
use crate::kinds::{Object, meta};
use crate::link;
use crate::link::message::{DesiredPod, EventReport, NodeReport, Peer, PodName, PodReport, Sequence, ToNode};
use crate::link::{NodeEnd, local};
use crate::network::services::ServiceName;
use crate::registry::{DeleteOptions, ListOptions, WriteOptions};
use crate::store::{Options, Store};

struct Bench {
    _dir: tempfile::TempDir,
    registry: Registry,
    fleet: Arc<Fleet>,
    link: NodeEnd,
    sequence: Sequence,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let (recorder, writer) = events::recorder();
        let fleet = Fleet::new(registry.clone(), recorder).unwrap();
        let (server, link) = local::pair();
        let (serving, writing, following) = (fleet.clone(), registry.clone(), fleet.clone());
        let member = Member { name: "pi".into(), pod_cidr: "10.42.0.0/24".into(), uid: None };
        let tasks = vec![
            tokio::spawn(async move { serving.serve(&member, server).await }),
            tokio::spawn(async move { writer.run(&writing).await }),
            tokio::spawn(async move { following.follow().await }),
        ];
        let mut bench = Self { _dir: dir, registry, fleet, link, sequence: Sequence::start(), tasks };
        let mut labels = Object::new();
        labels.insert("kubernetes.io/hostname".into(), json!("pi"));
        let status = json!({"capacity": {"pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]});
        bench.say(ToServer::Node(NodeReport { labels, status })).await;
        bench.greet().await;
        bench
    }

    fn kind(&self, name: &str) -> Arc<Kind> {
        let group = if name == "Lease" { "coordination.k8s.io" } else { "" };
        self.registry.kinds().by_kind(group, "v1", name).unwrap()
    }

    async fn say(&mut self, message: ToServer) {
        self.link.tx.send(self.sequence.wrap(message)).await.unwrap();
    }

    /// Asks for everything; the answer begins.
    async fn greet(&mut self) {
        self.say(ToServer::Hello).await;
        assert_eq!(self.hear().await, ToNode::Welcome);
    }

    async fn hear(&mut self) -> ToNode {
        tokio::time::timeout(Duration::from_secs(20), self.link.rx.recv()).await.unwrap().unwrap().body
    }

    /// What is told of nodes while none has an address or a zone.
    async fn hear_of_nodes(&mut self) {
        assert_eq!(self.hear().await, ToNode::Zone(None));
        assert_eq!(self.hear().await, ToNode::Peers(Vec::new()));
    }

    /// What is told after [`ToServer::Hello`] while there are no pods and no Services.
    async fn hear_nothing(&mut self) {
        self.hear_of_nodes().await;
        assert_eq!(self.hear().await, ToNode::Complete { pods: Vec::new(), services: Vec::new() });
    }

    async fn hear_pod(&mut self) -> DesiredPod {
        match self.hear().await {
            ToNode::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    async fn silence(&mut self) {
        let heard = tokio::time::timeout(Duration::from_millis(100), self.link.rx.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    async fn create(&self, kind: &str, object: Value) -> Object {
        let object = object.as_object().unwrap().clone();
        let options = WriteOptions::by("test");
        self.registry.create(&self.kind(kind), "default", object, &options).await.unwrap()
    }

    fn slices(&self) -> Arc<Kind> {
        self.registry.kinds().by_kind("discovery.k8s.io", "v1", "EndpointSlice").unwrap()
    }

    async fn create_slice(&self, slice: Value) {
        let slice = slice.as_object().unwrap().clone();
        self.registry.create(&self.slices(), "default", slice, &WriteOptions::by("test")).await.unwrap();
    }

    async fn pod(&self, name: &str, spec: Value) -> PodName {
        let mut spec = spec;
        spec["nodeName"] = json!("pi");
        spec["containers"] = json!([{"name": "c", "image": "x"}]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        let made = self.create("Pod", pod).await;
        PodName { uid: meta::uid(&made).into(), namespace: "default".into(), name: name.into() }
    }

    /// Waits until the object satisfies.
    async fn until(&self, kind: &str, namespace: &str, name: &str, good: impl Fn(&Object) -> bool) -> Object {
        for _ in 0..1000 {
            match self.registry.get(&self.kind(kind), namespace, name) {
                Ok(object) if good(&object) => return object,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("{kind} {name}: {:?}", self.registry.get(&self.kind(kind), namespace, name));
    }
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

#[tokio::test]
async fn a_node_registers() {
    let bench = Bench::start().await;
    let ready = |node: &Object| meta::condition(node, "Ready").is_some();
    let node = bench.until("Node", "", "pi", ready).await;
    assert_eq!(meta::label(&node, "kubernetes.io/hostname"), Some("pi"));
    assert_eq!(meta::str_at(&node, "/spec/podCIDR"), "10.42.0.0/24");
    let lease = bench.until("Lease", "kube-node-lease", "pi", |_| true).await;
    assert_eq!(meta::str_at(&lease, "/spec/holderIdentity"), "pi");
}

#[tokio::test]
async fn a_node_hears_of_its_pods_and_what_they_use_and_of_no_other() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    bench.create("ConfigMap", config_map("mine", "1")).await;
    bench.create("ConfigMap", config_map("other", "1")).await;
    let name = bench.pod("p", json!({"volumes": [{"name": "v", "configMap": {"name": "mine"}}]})).await;
    let told = bench.hear_pod().await;
    assert_eq!(meta::uid(&told.pod), name.uid);
    let used: Vec<_> = told.objects.iter().map(|d| (d.reference.name.as_str(), d.object.is_some())).collect();
    assert_eq!(used, [("mine", true)]);

    for (config, value) in [("other", "2"), ("mine", "2")] {
        let object = config_map(config, value).as_object().unwrap().clone();
        let kind = bench.kind("ConfigMap");
        bench.registry.update(&kind, "default", config, None, object, &WriteOptions::by("test")).await.unwrap();
    }
    match bench.hear().await {
        ToNode::Object(update) => assert_eq!(update.object.unwrap()["data"]["k"], "2"),
        other => panic!("{other:?}"),
    }
    bench.silence().await;

    // Asking again brings everything again.
    bench.greet().await;
    bench.hear_pod().await;
    bench.hear_of_nodes().await;
    assert_eq!(bench.hear().await, ToNode::Complete { pods: vec![name.uid], services: Vec::new() });
}

#[tokio::test]
async fn a_pod_is_reported_and_deleted() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    let name = bench.pod("p", json!({})).await;
    bench.hear_pod().await;
    let report = |phase: &str| {
        let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]});
        ToServer::PodStatus(PodReport { pod: name.clone(), status })
    };
    bench.say(report("Running")).await;
    bench.until("Pod", "default", "p", |p| meta::str_at(p, "/status/phase") == "Running").await;
    // The node's own words are not told back to it.
    bench.silence().await;

    // Nobody else's word counts, and "gone" alone deletes nothing.
    let other = PodName { uid: "other".into(), ..name.clone() };
    bench.say(ToServer::PodStatus(PodReport { pod: other, status: json!({"phase": "Failed"}) })).await;
    bench.say(ToServer::PodGone(name.clone())).await;
    let event = EventReport {
        pod: name.clone(),
        field_path: "spec.containers{c}".into(),
        warning: true,
        reason: "BackOff".into(),
        message: "again".into(),
    };
    bench.say(ToServer::Event(event)).await;
    let events = || bench.registry.list(&bench.kind("Event"), &ListOptions::default()).unwrap().items;
    while !events().iter().any(|e| meta::str_at(&e.object().unwrap(), "/source/component") == "kubelet") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pod = bench.until("Pod", "default", "p", |_| true).await;
    assert_eq!(meta::str_at(&pod, "/status/phase"), "Running");

    let kind = bench.kind("Pod");
    bench.registry.delete(&kind, "default", "p", &DeleteOptions::default()).await.unwrap();
    let told = bench.hear_pod().await;
    assert!(meta::is_deleting(&told.pod));
    bench.say(ToServer::PodGone(name.clone())).await;
    assert_eq!(bench.hear().await, ToNode::Remove { uid: name.uid });
    assert_eq!(bench.registry.get(&kind, "default", "p").unwrap_err().code, 404);
}

#[tokio::test]
async fn streams_go_to_connected_nodes() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    let request = StreamRequest::PortForward { pod: "u".into(), port: 80 };
    let mut ours = bench.fleet.open("pi", request.clone()).await.unwrap();
    let open = bench.link.streams.recv().await.unwrap();
    assert_eq!(open.request, request);
    drop(open.stream);
    assert!(ours.rx.recv().await.is_none());
    assert_eq!(bench.fleet.open("nobody", request).await.unwrap_err().code, 503);
}

fn slice(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}],
    })
}

#[tokio::test]
async fn a_node_hears_of_services_and_their_endpoints() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    let hear = async |bench: &mut Bench| match bench.hear().await {
        ToNode::Service(service) => {
            let all = service.slices.iter().flat_map(|s| &s.endpoints).map(|e| e.address.to_string());
            (service.name.clone(), all.collect::<Vec<_>>())
        }
        other => panic!("{other:?}"),
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "clusterIP": "None", "ports": [{"port": 80}],
    }});
    bench.create("Service", service).await;
    assert_eq!(hear(&mut bench).await, ("web".into(), vec![]));
    bench.create_slice(slice("a", "192.0.2.1")).await;
    assert_eq!(hear(&mut bench).await, ("web".into(), vec!["192.0.2.1".into()]));
    bench.create_slice(slice("b", "192.0.2.2")).await;
    assert_eq!(hear(&mut bench).await, ("web".into(), vec!["192.0.2.1".into(), "192.0.2.2".into()]));

    // Asking again brings everything again.
    bench.greet().await;
    bench.hear_of_nodes().await;
    hear(&mut bench).await;
    let name = ServiceName { namespace: "default".into(), name: "web".into() };
    assert_eq!(bench.hear().await, ToNode::Complete { pods: Vec::new(), services: vec![name.clone()] });

    let slices = bench.slices();
    bench.registry.delete(&slices, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert_eq!(hear(&mut bench).await, ("web".into(), vec!["192.0.2.2".into()]));
    bench.registry.delete(&bench.kind("Service"), "default", "web", &DeleteOptions::default()).await.unwrap();
    assert_eq!(bench.hear().await, ToNode::ServiceGone(name));
    bench.silence().await;

    let label = |node: &mut Object| {
        meta::set_label(node, crate::kinds::node::ZONE, "east");
        Ok(())
    };
    bench.until("Node", "", "pi", |_| true).await;
    let nodes = bench.kind("Node");
    bench.registry.modify(&nodes, "", "pi", None, &WriteOptions::by("test"), label).await.unwrap();
    assert_eq!(bench.hear().await, ToNode::Zone(Some("east".into())));

    let addresses = json!([{"type": "InternalIP", "address": "192.0.2.7"}]);
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"addresses": addresses, "conditions": conditions});
    bench.say(ToServer::Node(NodeReport { labels: Object::new(), status })).await;
    let peer = Peer {
        name: "pi".into(),
        address: "192.0.2.7".parse().unwrap(),
        pod_cidr: "10.42.0.0/24".parse().unwrap(),
        announces: true,
    };
    assert_eq!(bench.hear().await, ToNode::Peer(peer));
}

/// A node that does not read is told the newest of everything once it does, and its pods do not wait for Services.
#[tokio::test]
async fn a_slow_node_hears_the_newest_of_each() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    for n in 0..100 {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}")}, "spec": {
            "clusterIP": "None", "ports": [{"port": 80}],
        }});
        bench.create("Service", service).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let kind = bench.kind("Service");
    for round in 1..=20 {
        for n in [70, 80, 99] {
            let change = |service: &mut Object| {
                meta::set(service, "/spec/ports", json!([{"port": round}]));
                Ok(())
            };
            let name = format!("s{n}");
            bench.registry.modify(&kind, "default", &name, None, &WriteOptions::by("test"), change).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let name = bench.pod("p", json!({})).await;
    // Known to have changed before anything more is taken from the link.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut told: HashMap<String, Vec<u16>> = HashMap::new();
    let mut pod_at = None;
    for n in 0..101 {
        match bench.hear().await {
            ToNode::Service(s) => told.entry(s.name.clone()).or_default().push(s.ports[0].port),
            ToNode::Pod(pod) => {
                assert_eq!(meta::uid(&pod.pod), name.uid);
                pod_at = Some(n);
            }
            other => panic!("{other:?}"),
        }
    }
    bench.silence().await;
    assert_eq!(told.len(), 100);
    assert!(told.values().all(|ports| ports.len() == 1), "each once: {told:?}");
    assert!(["s70", "s80", "s99"].iter().all(|s| told[*s] == [20]), "{told:?}");
    assert!(pod_at.unwrap() <= link::QUEUE + 1, "{pod_at:?}");
}

#[tokio::test]
async fn what_a_node_holds_is_named_and_sent_when_it_asks() {
    let mut bench = Bench::start().await;
    bench.hear_nothing().await;
    bench.create("ConfigMap", config_map("large", &"x".repeat(5000))).await;
    let name = bench.pod("p", json!({"volumes": [{"name": "v", "configMap": {"name": "large"}}]})).await;
    let whole = bench.hear_pod().await;
    assert!(whole.objects[0].object.is_some(), "what is new is sent");
    bench.greet().await;
    let ToNode::Known(known) = bench.hear().await else { panic!("everything is sent again") };
    assert!(serde_json::to_string(&known).unwrap().len() < 4000);
    let complete = known.complete(whole.clone()).unwrap();
    assert_eq!((&complete.objects, &complete.pod["spec"]), (&whole.objects, &whole.pod["spec"]));
    bench.hear_of_nodes().await;
    assert!(matches!(bench.hear().await, ToNode::Complete { pods, .. } if pods == [name.uid.clone()]));
    bench.say(ToServer::Lacks { uid: "another".into() }).await;
    bench.silence().await;
    bench.say(ToServer::Lacks { uid: name.uid }).await;
    assert_eq!(bench.hear_pod().await.objects, whole.objects);

    let pods = bench.kind("Pod");
    bench.registry.delete(&pods, "default", "p", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(bench.hear().await, ToNode::Known(_)), "nor is it sent to a pod that is to end");
}
