#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use futures_util::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::kinds::table::KindTable;
use crate::registry::{DeleteOptions, Patch, Registry, WriteOptions};
use crate::store::{Durability, Expect, Options, Write};

struct Cluster {
    registry: Registry,
    kind: Arc<Kind>,
    directory: TempDir,
}

impl Cluster {
    async fn new(cidr: &str) -> Self {
        Self::open(tempfile::tempdir().unwrap(), cidr).await
    }

    async fn open(directory: TempDir, cidr: &str) -> Self {
        let store = Store::open(Options::new(directory.path().join("state.db"))).unwrap();
        let registry = Registry::with_services(store, KindTable::builtin(), cidr.parse().unwrap());
        registry.bootstrap().await.unwrap();
        let kind = registry.kinds().by_resource("services").unwrap();
        Self { registry, kind, directory }
    }

    async fn again(self, cidr: &str) -> Self {
        self.registry.store().close().await.unwrap();
        Self::open(self.directory, cidr).await
    }

    async fn create(&self, name: &str, spec: Value) -> Result<Object, Status> {
        self.create_by(name, spec, &by()).await
    }

    async fn create_by(&self, name: &str, mut spec: Value, options: &WriteOptions) -> Result<Object, Status> {
        if spec.get("ports").is_none() {
            spec["ports"] = json!([{"port": 80}]);
        }
        let object = json!({"metadata": {"name": name}, "spec": spec}).as_object().unwrap().clone();
        self.registry.create(&self.kind, "default", object, options).await
    }

    async fn patch(&self, name: &str, spec: Value) -> Result<Object, Status> {
        let patch = Patch::merge(&json!({"spec": spec}));
        self.registry.patch(&self.kind, "default", name, None, patch, &by()).await.map(|(object, _)| object)
    }

    async fn delete(&self, name: &str) {
        self.registry.delete(&self.kind, "default", name, &DeleteOptions::default()).await.unwrap();
    }

    fn get(&self, name: &str) -> Object {
        self.registry.get(&self.kind, "default", name).unwrap()
    }

    /// Nothing is in flight.
    fn at_rest(&self) -> bool {
        self.registry.inner.services.taking.lock().unwrap().is_empty()
    }

    /// Writes past all rules, as whoever edits the database does.
    async fn smuggle(&self, service: &Object) {
        let key = super::super::read::key(&self.kind, "default", meta::name(service));
        let data = super::super::body::encode(service).unwrap();
        let index = self.kind.hooks.index(service);
        let write = Write { key, expect: Expect::Present, data: Some(data), index, durability: Durability::Durable };
        self.registry.store().commit(vec![write]).await.unwrap();
    }
}

fn by() -> WriteOptions {
    WriteOptions::by("test")
}

fn ip(service: &Object) -> String {
    meta::str_at(service, "/spec/clusterIP").to_owned()
}

fn port(service: &Object, i: usize) -> i64 {
    meta::int_at(service, &format!("/spec/ports/{i}/nodePort")).unwrap_or(0)
}

const USUAL: &str = "10.43.0.0/16";

#[tokio::test]
async fn addresses_are_picked_or_asked_for() {
    let cluster = Cluster::new(USUAL).await;
    let picked = cluster.create("picked", json!({})).await.unwrap();
    let cidr: Cidr = USUAL.parse().unwrap();
    assert!(cidr.index(ip(&picked).parse().unwrap()).unwrap() > 256, "{} is left to those who ask", ip(&picked));
    assert_eq!(picked["spec"]["clusterIPs"], json!([ip(&picked)]));
    let asked = cluster.create("asked", json!({"clusterIP": "10.43.0.77"})).await.unwrap();
    assert_eq!(ip(&asked), "10.43.0.77");
    for (address, why) in [
        ("10.43.0.77", "provided IP is already allocated"),
        ("10.43.0.1", "provided IP is already allocated"),
        ("10.43.0.10", "provided IP is already allocated"),
        ("10.44.0.5", "the provided IP (10.44.0.5) is not in the valid range. The range of valid IPs is 10.43.0.0/16"),
        (
            "10.43.255.255",
            "the provided IP (10.43.255.255) is not in the valid range. The range of valid IPs is 10.43.0.0/16",
        ),
    ] {
        let refused = cluster.create("other", json!({"clusterIP": address})).await.unwrap_err();
        let text = format!("spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: {why}");
        assert_eq!((refused.code, refused.message), (422, format!("Service \"other\" is invalid: {text}")));
    }
    let headless = cluster.create("headless", json!({"clusterIP": "None"})).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let twin = cluster.create("asked", json!({"clusterIP": "10.43.0.77"})).await.unwrap_err();
    assert_eq!(twin.reason, "AlreadyExists");
    cluster.delete("asked").await;
    assert_eq!(ip(&cluster.create("heir", json!({"clusterIP": "10.43.0.77"})).await.unwrap()), "10.43.0.77");
    assert!(cluster.at_rest());
}

#[tokio::test]
async fn a_failed_write_and_a_dry_run_take_nothing() {
    let cluster = Cluster::new(USUAL).await;
    let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30036}]});
    let dry = WriteOptions { dry_run: true, ..by() };
    assert_eq!(ip(&cluster.create_by("dry", spec.clone(), &dry).await.unwrap()), "10.43.0.9");
    let mut wrong = spec.clone();
    wrong["sessionAffinity"] = "Sometimes".into();
    assert_eq!(cluster.create("wrong", wrong).await.unwrap_err().code, 422);
    assert!(cluster.at_rest());
    cluster.create("right", spec).await.unwrap();
    assert!(cluster.at_rest());
}

#[tokio::test]
async fn nothing_is_given_out_twice_at_the_same_time() {
    let cluster = Cluster::new("10.43.0.0/26").await;
    let specs = |i: usize| match i % 4 {
        0 => json!({"clusterIP": "10.43.0.20"}),
        1 => json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30036}]}),
        _ => json!({"type": "NodePort"}),
    };
    let names: Vec<String> = (0..40).map(|i| format!("s{i}")).collect();
    let results = join_all(names.iter().enumerate().map(|(i, name)| cluster.create(name, specs(i)))).await;
    let made: Vec<Object> = results.into_iter().flatten().collect();
    assert_eq!(made.len(), 20 + 2, "each of what was asked for went to one");
    let addresses: HashSet<String> = made.iter().map(ip).collect();
    assert_eq!(addresses.len(), made.len());
    let ports: HashSet<i64> = made.iter().map(|s| port(s, 0)).filter(|p| *p != 0).collect();
    assert_eq!(ports.len(), made.len() - 1);
    assert!(cluster.at_rest());
}

#[tokio::test]
async fn a_write_nobody_waits_for_keeps_what_it_takes() {
    let cluster = Cluster::new(USUAL).await;
    let spec = json!({"clusterIP": "10.43.0.9"});
    let mut create = Box::pin(cluster.create("quick", spec.clone()));
    // Far enough to be on its way to the disk, not far enough to be there.
    assert!(futures_util::poll!(create.as_mut()).is_pending());
    drop(create);
    let refused = cluster.create("late", spec).await.unwrap_err();
    assert!(refused.message.ends_with("provided IP is already allocated"), "{refused}");
    while !cluster.at_rest() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ip(&cluster.get("quick")), "10.43.0.9");
}

#[tokio::test]
async fn a_full_range_says_so() {
    let cluster = Cluster::new("10.43.0.0/28").await;
    let mut seen = HashSet::new();
    for i in 0..12 {
        seen.insert(ip(&cluster.create(&format!("s{i}"), json!({})).await.unwrap()));
    }
    assert_eq!(seen.len(), 12, "all but the network, broadcast, the API and the name server: {seen:?}");
    assert!(["10.43.0.0", "10.43.0.1", "10.43.0.10", "10.43.0.15"].iter().all(|ip| !seen.contains(*ip)));
    let full = cluster.create("more", json!({})).await.unwrap_err();
    assert_eq!(full.message, "Internal error occurred: failed to allocate a serviceIP: range is full");
    cluster.delete("s3").await;
    cluster.create("more", json!({})).await.unwrap();
}

#[tokio::test]
async fn node_ports_are_picked_or_asked_for() {
    let cluster = Cluster::new(USUAL).await;
    let node = |ports: Value| json!({"type": "NodePort", "ports": ports});
    let first = cluster.create("first", node(json!([{"port": 80, "nodePort": 30036}]))).await.unwrap();
    assert_eq!(port(&first, 0), 30036);
    for (number, why) in [
        (30036, "provided port is already allocated"),
        (80, "provided port is not in the valid range. The range of valid ports is 30000-32767"),
        (32768, "provided port is not in the valid range. The range of valid ports is 30000-32767"),
    ] {
        let refused = cluster.create("other", node(json!([{"port": 80, "nodePort": number}]))).await.unwrap_err();
        let text = format!("Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: {number}: {why}");
        assert_eq!(refused.message, text);
    }
    let both =
        json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}, {"name": "x", "port": 9}]);
    let dns = cluster.create("dns", node(both)).await.unwrap();
    assert!((30086..=32767).contains(&port(&dns, 0)));
    assert_eq!(port(&dns, 0), port(&dns, 1), "TCP and UDP of one number share");
    assert_ne!(port(&dns, 0), port(&dns, 2));
    let wish = json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53, "nodePort": 30053}]);
    assert_eq!(port(&cluster.create("wish", node(wish)).await.unwrap(), 0), 30053);
    let moved = cluster.patch("first", json!({"ports": [{"port": 80, "nodePort": 30037}]})).await.unwrap();
    assert_eq!(port(&moved, 0), 30037);
    cluster.create("heir", node(json!([{"port": 80, "nodePort": 30036}]))).await.unwrap();
}

#[tokio::test]
async fn types_change_back_and_forth() {
    let cluster = Cluster::new(USUAL).await;
    let created = cluster.create("web", json!({})).await.unwrap();
    let kind = |kind: &str| json!({"type": kind});
    let node = cluster.patch("web", kind("NodePort")).await.unwrap();
    assert_eq!(ip(&node), ip(&created));
    let held = port(&node, 0);
    assert!(held != 0);
    let balanced =
        cluster.patch("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})).await.unwrap();
    assert_eq!(port(&balanced, 0), held);
    let check = meta::int_at(&balanced, "/spec/healthCheckNodePort").unwrap();
    assert_ne!(check, held);
    let taken = cluster.create("thief", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": check}]})).await;
    assert!(taken.unwrap_err().message.ends_with("provided port is already allocated"));
    let plain = cluster.patch("web", kind("ClusterIP")).await.unwrap();
    assert_eq!((ip(&plain), port(&plain, 0)), (ip(&created), 0));
    cluster.create("heir", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": check}]})).await.unwrap();
    let named = cluster.patch("web", json!({"type": "ExternalName", "externalName": "example.com"})).await.unwrap();
    assert_eq!(ip(&named), "");
    cluster.create("tenant", json!({"clusterIP": ip(&created)})).await.unwrap();
    let back = cluster.patch("web", kind("ClusterIP")).await.unwrap();
    assert!(!ip(&back).is_empty() && ip(&back) != ip(&created));
    let unwanted = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    assert_eq!(port(&cluster.create("bare", unwanted).await.unwrap(), 0), 0);
}

#[tokio::test]
async fn damage_is_repaired_at_the_start() {
    let cluster = Cluster::new(USUAL).await;
    let spec =
        |ip: &str, port: u16| json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]});
    let old = cluster.create("old", spec("10.43.0.20", 30020)).await.unwrap();
    let mut young = cluster.create("young", spec("10.43.0.21", 30021)).await.unwrap();
    let fine = cluster.create("fine", spec("10.43.0.22", 30022)).await.unwrap();
    meta::set(&mut young, "/metadata/creationTimestamp", "2099-01-01T00:00:00Z");
    young.insert("spec".into(), old["spec"].clone());
    cluster.smuggle(&young).await;
    let cluster = cluster.again(USUAL).await;
    assert_eq!(cluster.get("old"), old);
    assert_eq!(cluster.get("fine"), fine);
    let young = cluster.get("young");
    assert!(!ip(&young).is_empty() && ip(&young) != ip(&old));
    assert!(![0, 30020, 30022].contains(&port(&young, 0)));
    let revision = cluster.registry.revision();
    let cluster = cluster.again(USUAL).await;
    assert_eq!(cluster.registry.revision(), revision, "what is right is left alone");
    // Another network: everybody moves, ports stay.
    let cluster = cluster.again("10.99.0.0/24").await;
    let cidr: Cidr = "10.99.0.0/24".parse().unwrap();
    let now: HashSet<String> = ["old", "young", "fine"].iter().map(|name| ip(&cluster.get(name))).collect();
    assert_eq!(now.len(), 3);
    assert!(now.iter().all(|ip| cidr.contains(ip.parse().unwrap())), "{now:?}");
    assert_eq!(port(&cluster.get("old"), 0), 30020);
}
