//! The controllers on a real registry, with pods whose statuses the tests write.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;

use crate::controllers::endpoints::mirror::Mirror;
use crate::controllers::runner;
use crate::kinds::Subresource;
use crate::kinds::table::KindTable;
use crate::registry::ListOptions;
use crate::store::{Options, Store};

use super::*;

struct Bench {
    registry: Registry,
    _dir: tempfile::TempDir,
}

fn story<F: Future<Output = ()>>(story: impl FnOnce(Bench) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(Store::open(Options::new(dir.path().join("db"))).unwrap(), KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let bench = Bench { registry: registry.clone(), _dir: dir };
        let node = json!({"metadata": {"name": "pi", "labels": {"topology.kubernetes.io/zone": "east"}}});
        bench.create("nodes", node).await;
        let (events, writer) = crate::events::recorder();
        let endpoints = Endpoints::new(&registry, &events).unwrap();
        let controllers: Vec<Box<dyn Controller>> =
            vec![Box::new(endpoints), Box::new(Mirror::new(&registry).unwrap())];
        tokio::select! {
            () = writer.run(&registry) => panic!("the writer ended"),
            () = runner::run(&registry, &controllers, std::future::pending()) => panic!("the controllers ended"),
            result = tokio::time::timeout(Duration::from_secs(60), story(bench)) => result.unwrap(),
        }
    });
}

impl Bench {
    async fn create(&self, resource: &str, object: Value) {
        let kind = kind(&self.registry, resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        let object = object.as_object().unwrap().clone();
        self.registry.create(&kind, namespace, object, &WriteOptions::by("test")).await.unwrap();
    }

    async fn change(&self, resource: &str, name: &str, sub: Option<Subresource>, change: impl Fn(&mut Object)) {
        let kind = kind(&self.registry, resource).unwrap();
        let change = |object: &mut Object| {
            change(object);
            Ok(())
        };
        self.registry.modify(&kind, "default", name, sub, &WriteOptions::by("test"), change).await.unwrap();
    }

    async fn delete(&self, resource: &str, name: &str) {
        let kind = kind(&self.registry, resource).unwrap();
        self.registry.delete(&kind, "default", name, &DeleteOptions::default()).await.unwrap();
    }

    async fn service(&self, name: &str, more: Value) {
        let mut spec = json!({
            "clusterIP": "None", "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        });
        crate::kinds::patch::merge::apply(spec.as_object_mut().unwrap(), more.as_object().unwrap().clone());
        self.create("services", json!({"metadata": {"name": name, "labels": {"a": "b"}}, "spec": spec})).await;
    }

    /// A running pod of the Service `web`.
    async fn pod(&self, n: usize, ready: bool) {
        let container = json!({"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]});
        let spec = json!({"nodeName": "pi", "containers": [container]});
        self.create("pods", json!({"metadata": {"name": format!("p{n}"), "labels": {"app": "web"}}, "spec": spec}))
            .await;
        self.status(n, ready).await;
    }

    async fn status(&self, n: usize, ready: bool) {
        let status = json!({
            "phase": "Running", "podIP": format!("10.42.{}.{}", n / 250, n % 250 + 2),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        });
        let change = |pod: &mut Object| drop(pod.insert("status".into(), status.clone()));
        self.change("pods", &format!("p{n}"), Some(Subresource::Status), change).await;
    }

    fn list(&self, resource: &str) -> Vec<Object> {
        let kind = kind(&self.registry, resource).unwrap();
        let listed = self.registry.list(&kind, &ListOptions::within("default")).unwrap();
        listed.items.iter().map(|raw| raw.object().unwrap()).collect()
    }

    fn slices(&self) -> Vec<Object> {
        self.list("endpointslices.discovery.k8s.io")
    }

    /// All endpoints: address and its conditions, `r`eady, `s`erving, `t`erminating.
    fn told(&self) -> String {
        let slices = self.slices();
        let flags = |e: &Object| -> String {
            let is = |key: &str| meta::bool_at(e, &format!("/conditions/{key}"));
            [("ready", 'r'), ("serving", 's'), ("terminating", 't')]
                .iter()
                .filter(|(k, _)| is(k))
                .map(|(_, c)| c)
                .collect()
        };
        let endpoints = slices.iter().flat_map(|slice| meta::items(slice, "endpoints"));
        let mut told: Vec<String> =
            endpoints.map(|e| format!("{}:{}", meta::str_at(e, "/addresses/0"), flags(e))).collect();
        told.sort();
        told.join(" ")
    }

    /// Ready and other addresses of the Endpoints.
    fn endpoints(&self) -> String {
        let all = self.list("endpoints");
        let subsets = all.iter().flat_map(|e| meta::items(e, "subsets"));
        let ips = |subset: &Object, key: &str| {
            meta::items(subset, key).map(|a| meta::text(a, "ip").to_owned()).collect::<Vec<_>>().join(",")
        };
        subsets
            .map(|s| format!("{}|{}", ips(s, "addresses"), ips(s, "notReadyAddresses")))
            .collect::<Vec<_>>()
            .join(" ")
    }

    async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        for _ in 0..5_000 {
            if test(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}: {} and {}", self.told(), self.endpoints());
    }

    async fn becomes(&self, slices: &str, endpoints: &str) {
        self.until(&format!("{slices} and {endpoints}"), |b| b.told() == slices && b.endpoints() == endpoints).await;
    }
}

#[test]
fn endpoints_follow_their_pods() {
    story(|b| async move {
        b.service("web", json!({})).await;
        b.until("a placeholder", |b| b.slices().len() == 1 && b.list("endpoints").len() == 1).await;
        b.pod(1, true).await;
        b.pod(2, false).await;
        b.becomes("10.42.0.3:rs 10.42.0.4:", "10.42.0.3|10.42.0.4").await;
        assert_eq!(b.slices().len(), 1, "the placeholder was used");
        let slice = &b.slices()[0];
        assert!(meta::name(slice).starts_with("web-"), "{slice:?}");
        let labels = json!({
            "a": "b", "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        });
        assert_eq!(slice["metadata"]["labels"], labels);
        assert_eq!(slice["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        let owner = meta::controller(slice).unwrap();
        assert_eq!((&owner["kind"], &owner["name"]), (&json!("Service"), &json!("web")));
        let endpoint = &slice["endpoints"][0];
        assert_eq!((&endpoint["nodeName"], &endpoint["zone"]), (&json!("pi"), &json!("east")));
        assert_eq!(endpoint["targetRef"]["name"], "p1");
        assert!(meta::annotation(slice, "endpoints.kubernetes.io/last-change-trigger-time").is_some());

        b.status(2, true).await;
        b.becomes("10.42.0.3:rs 10.42.0.4:rs", "10.42.0.3,10.42.0.4|").await;
        b.delete("pods", "p1").await;
        b.becomes("10.42.0.3:st 10.42.0.4:rs", "10.42.0.4|").await;
        let kind = kind(&b.registry, "pods").unwrap();
        b.registry.delete(&kind, "default", "p1", &DeleteOptions::now()).await.unwrap();
        b.becomes("10.42.0.4:rs", "10.42.0.4|").await;
        b.change("services", "web", None, |s| meta::set(s, "/spec/publishNotReadyAddresses", true)).await;
        b.status(2, false).await;
        b.becomes("10.42.0.4:r", "10.42.0.4|").await;
        b.change("services", "web", None, |s| meta::set(s, "/metadata/labels/a", "c")).await;
        b.until("labels follow", |b| meta::label(&b.slices()[0], "a") == Some("c")).await;
        b.change("pods", "p2", None, |pod| meta::set_label(pod, "app", "other")).await;
        b.becomes("", "").await;

        // What somebody spoils is mended.
        let name = meta::name(&b.slices()[0]).to_owned();
        b.delete("endpointslices.discovery.k8s.io", &name).await;
        b.delete("endpoints", "web").await;
        b.until("both are made again", |b| b.slices().len() == 1 && b.list("endpoints").len() == 1).await;
        b.delete("services", "web").await;
        b.until("the Endpoints go", |b| b.list("endpoints").is_empty()).await;
    });
}

#[test]
fn a_hundred_endpoints_a_slice_and_one_write_for_one_more() {
    story(|b| async move {
        for n in 0..230 {
            b.pod(n, true).await;
        }
        b.service("web", json!({})).await;
        let sizes = |b: &Bench| {
            let mut sizes: Vec<_> = b.slices().iter().map(|s| meta::list_at(s, "/endpoints").len()).collect();
            sizes.sort_unstable();
            sizes
        };
        b.until("three slices", |b| sizes(b) == [30, 100, 100]).await;
        b.until("the Endpoints", |b| b.endpoints().len() > 230).await;
        let versions =
            |b: &Bench| b.slices().iter().map(|s| meta::resource_version(s).to_owned()).collect::<HashSet<_>>();
        let before = versions(&b);
        b.pod(230, true).await;
        b.until("one more", |b| sizes(b) == [31, 100, 100]).await;
        assert_eq!(versions(&b).intersection(&before).count(), 2);
    });
}

#[test]
fn zones_share_the_endpoints_of_a_service_that_asks_for_it() {
    story(|b| async move {
        let status =
            |cpu: &str| json!({"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]});
        for (name, zone) in [("tau", "west"), ("phi", "east")] {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            b.create("nodes", json!({"metadata": {"name": name, "labels": labels}, "status": status("4")})).await;
        }
        let auto = |service: &mut Object| meta::set_annotation(service, "service.kubernetes.io/topology-mode", "Auto");
        b.service("web", json!({})).await;
        b.change("services", "web", None, auto).await;
        b.pod(1, true).await;
        let said = |b: &Bench, reason: &str, text: &str| {
            let events = b.list("events");
            events.iter().any(|e| meta::text(e, "reason") == reason && meta::text(e, "message").contains(text))
        };
        let hints = |b: &Bench| {
            let endpoints: Vec<Object> = b.slices().iter().flat_map(|s| meta::items(s, "endpoints").cloned()).collect();
            endpoints.iter().map(|e| meta::str_at(e, "/hints/forZones/0/name").to_owned()).collect::<Vec<_>>().join(",")
        };
        b.until("too few", |b| said(b, "TopologyAwareHintsDisabled", "(1 endpoints, 2 zones), addressType: IPv4"))
            .await;
        assert_eq!(hints(&b), "");
        b.pod(2, true).await;
        b.until("one for each zone", |b| hints(b) == "west,east").await;
        b.until("news", |b| said(b, "TopologyAwareHintsEnabled", "has been enabled")).await;
        let kind = kind(&b.registry, "nodes").unwrap();
        let by = WriteOptions::by("test");
        let change = |node: &mut Object| {
            node.insert("status".into(), json!({"allocatable": {"cpu": "4"}, "conditions": []}));
            Ok(())
        };
        b.registry.modify(&kind, "", "tau", Some(Subresource::Status), &by, change).await.unwrap();
        b.until("a zone fails", |b| hints(b) == ",").await;
        b.until("news of it", |b| said(b, "TopologyAwareHintsDisabled", "Insufficient Node information")).await;
    });
}

#[test]
fn endpoints_by_hand_are_mirrored() {
    story(|b| async move {
        let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 8080}]}]);
        b.create(
            "endpoints",
            json!({"metadata": {"name": "web", "labels": {"l": "x"}, "annotations": {"n": "y"}}, "subsets": subsets}),
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((b.told(), b.list("endpoints").len()), (String::new(), 1), "there is no Service yet");
        b.service("web", json!({"selector": null})).await;
        b.until("mirrored", |b| b.told() == "192.0.2.1:r 192.0.2.2:").await;
        let slice = &b.slices()[0];
        assert_eq!(meta::label(slice, MANAGED_BY), Some("endpointslicemirroring-controller.k8s.io"));
        assert_eq!((meta::label(slice, "l"), meta::annotation(slice, "n")), (Some("x"), Some("y")));
        assert_eq!(meta::controller(slice).unwrap()["kind"], "Endpoints");
        assert_eq!(slice["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
        let ready = json!([{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 80}]}]);
        b.change("endpoints", "web", None, |e| drop(e.insert("subsets".into(), ready.clone()))).await;
        b.until("changed", |b| b.told() == "192.0.2.3:r").await;
        b.change("endpoints", "web", None, |e| meta::set_label(e, "endpointslice.kubernetes.io/skip-mirror", "true"))
            .await;
        b.until("skipped", |b| b.slices().is_empty()).await;
        b.change("endpoints", "web", None, |e| meta::set_label(e, "endpointslice.kubernetes.io/skip-mirror", "")).await;
        b.until("again", |b| b.told() == "192.0.2.3:r").await;
        b.delete("services", "web").await;
        b.until("all gone", |b| b.slices().is_empty() && b.list("endpoints").is_empty()).await;
    });
}
