//! The controller on a real registry, with MetalLB's kinds defined while it runs.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::controllers::runner;
use crate::events;
use crate::kinds::Object;
use crate::kinds::table::KindTable;
use crate::registry::DeleteOptions;
use crate::store::{Options, Store};

struct Cluster {
    registry: Registry,
    _dir: tempfile::TempDir,
}

/// Runs a story beside the controller; the pool `fixed` is the configuration's.
fn story<F: Future<Output = ()>>(story: impl FnOnce(Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let pools: Vec<Pool> =
            serde_json::from_value(json!([{"name": "fixed", "addresses": ["10.0.0.1-10.0.0.2"]}])).unwrap();
        let (recorder, writer) = events::recorder();
        let reserved = ["10.42.0.0/16".parse().unwrap()];
        let controller = LoadBalancers::new(&registry, &recorder, &pools, &reserved).unwrap();
        let controllers: [Box<dyn Controller>; 1] = [Box::new(controller)];
        let cluster = Cluster { registry: registry.clone(), _dir: dir };
        tokio::select! {
            () = runner::run(&registry, &controllers, std::future::pending()) => panic!("the controller ended"),
            () = writer.run(&registry) => panic!("no more events"),
            result = tokio::time::timeout(Duration::from_secs(60), story(cluster)) => result.unwrap(),
        }
    });
}

impl Cluster {
    /// What installing MetalLB's CRDs does.
    fn define_kinds(&self) {
        for (kind, plural) in [("IPAddressPool", "ipaddresspools"), ("L2Advertisement", "l2advertisements")] {
            let mut custom = (*self.kind("configmaps")).clone();
            (custom.group, custom.version) = ("metallb.io".into(), "v1beta1".into());
            (custom.kind, custom.plural) = (kind.into(), plural.into());
            self.registry.kinds().insert(custom);
        }
    }

    fn kind(&self, resource: &str) -> Arc<Kind> {
        self.registry.kinds().by_resource(resource).unwrap()
    }

    async fn create(&self, resource: &str, object: Value) {
        let kind = self.kind(resource);
        let place = if kind.namespaced { "default" } else { "" };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(place).to_owned();
        let object = object.as_object().unwrap().clone();
        self.registry.create(&kind, &namespace, object, &WriteOptions::by("test")).await.unwrap();
    }

    async fn service(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["type"] = json!("LoadBalancer");
        spec["ports"] = json!([{"port": 80}]);
        self.create("services", json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    async fn change(&self, resource: &str, namespace: &str, name: &str, change: impl Fn(&mut Object)) {
        let (kind, options) = (self.kind(resource), WriteOptions::by("test"));
        let done = self.registry.modify(&kind, namespace, name, None, &options, |object| {
            change(object);
            Ok(())
        });
        done.await.unwrap();
    }

    fn addresses(&self) -> Vec<String> {
        let all = self.registry.list(&self.kind("services"), &ListOptions::default()).unwrap().items;
        let shown = |raw: &Raw| {
            let service = raw.object().unwrap();
            let ingress = meta::list_at(&service, "/status/loadBalancer/ingress");
            let address = ingress.first().and_then(|i| i["ip"].as_str()).unwrap_or("-");
            format!("{} {address}", meta::name(&service))
        };
        all.iter().map(shown).collect()
    }

    fn events(&self) -> Vec<String> {
        let all = self.registry.list(&self.kind("events"), &ListOptions::default()).unwrap().items;
        let text = |e: Object| {
            let object = meta::str_at(&e, "/involvedObject/name").to_owned();
            format!("{object} {} {}", meta::str_at(&e, "/reason"), meta::str_at(&e, "/message"))
        };
        all.iter().map(|raw| text(raw.object().unwrap())).collect()
    }

    async fn until(&self, expected: &[&str]) {
        for _ in 0..2000 {
            if self.addresses() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?} instead of {expected:?}; {:#?}", self.addresses(), self.events());
    }

    async fn until_event(&self, part: &str) {
        while !self.events().iter().any(|e| e.contains(part)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn pools_of_all_sources() {
    story(async |cluster| {
        cluster.create("namespaces", json!({"metadata": {"name": "metallb-system"}})).await;
        for name in ["a", "b", "c"] {
            cluster.service(name, json!({})).await;
        }
        cluster.until(&["a 10.0.0.1", "b 10.0.0.2", "c -"]).await;
        cluster
            .until_event("c AllocationFailed Failed to allocate IP for \"default/c\": no free address in fixed")
            .await;
        cluster.until_event("a IPAllocated Assigned IP [\"10.0.0.1\"]").await;

        // A pool as an object is of use once it is announced.
        cluster.define_kinds();
        let pool = json!({
            "metadata": {"name": "objects", "namespace": "metallb-system", "labels": {"zone": "x"}},
            "spec": {"addresses": ["10.0.1.0/29"], "avoidBuggyIPs": true, "serviceAllocation": {"priority": 5}},
        });
        cluster.create(POOLS, pool).await;
        cluster.until_event("objects InvalidConfiguration no L2Advertisement announces it").await;
        let advertisement = json!({
            "metadata": {"name": "all", "namespace": "metallb-system"},
            "spec": {"ipAddressPoolSelectors": [{"matchLabels": {"zone": "x"}}]},
        });
        cluster.create(ADVERTISEMENTS, advertisement).await;
        cluster.until(&["a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.1"]).await;

        // MetalLB's ConfigMap; one that is wrong changes nothing.
        let text = "address-pools:\n- {name: old, protocol: layer2, addresses: [10.0.2.7/32]}\n";
        let place = json!({"name": "config", "namespace": "metallb-system"});
        cluster.create("configmaps", json!({"metadata": place, "data": {"config": text}})).await;
        cluster.service("d", json!({"loadBalancerIP": "10.0.2.7"})).await;
        cluster.until(&["a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.1", "d 10.0.2.7"]).await;
        for (wrong, says) in [
            ("address-pools: [{name: old", "data.config"),
            ("address-pools: [{name: fixed, addresses: [10.0.9.0/24]}]", "two pools called \"fixed\""),
            ("address-pools: [{name: o, addresses: [10.42.0.0/24]}]", "the cluster's own network"),
            ("peers: []", "peers"),
        ] {
            let set = |map: &mut Object| meta::set(map, "/data/config", wrong);
            cluster.change("configmaps", "metallb-system", "config", set).await;
            cluster.until_event(says).await;
        }
        cluster.until(&["a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.1", "d 10.0.2.7"]).await;

        // What is no load balancer any more, what is gone, and a pool that is gone.
        cluster.change("services", "default", "a", |s| meta::set(s, "/spec/type", "ClusterIP")).await;
        cluster.until(&["a -", "b 10.0.0.2", "c 10.0.1.1", "d 10.0.2.7"]).await;
        let kind = cluster.kind("services");
        cluster.registry.delete(&kind, "default", "b", &DeleteOptions::now()).await.unwrap();
        cluster.service("e", json!({"loadBalancerIP": "10.0.0.2"})).await;
        cluster.until(&["a -", "c 10.0.1.1", "d 10.0.2.7", "e 10.0.0.2"]).await;
        let kind = cluster.kind(POOLS);
        cluster.registry.delete(&kind, "metallb-system", "objects", &DeleteOptions::now()).await.unwrap();
        cluster.until(&["a -", "c 10.0.0.1", "d 10.0.2.7", "e 10.0.0.2"]).await;

        // A kind that is no longer served has no objects.
        let pool = json!({"metadata": {"name": "more", "namespace": "metallb-system", "labels": {"zone": "x"}},
            "spec": {"addresses": ["10.0.1.1/32"]}});
        cluster.create(POOLS, pool).await;
        cluster.service("f", json!({})).await;
        cluster.until(&["a -", "c 10.0.0.1", "d 10.0.2.7", "e 10.0.0.2", "f 10.0.1.1"]).await;
        cluster.registry.kinds().remove(POOLS);
        cluster.until(&["a -", "c 10.0.0.1", "d 10.0.2.7", "e 10.0.0.2", "f -"]).await;
    });
}
