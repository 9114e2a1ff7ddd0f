//! Controllers and scheduler together on a real registry. A pretended node runs what is bound to it at once.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

use crate::events::{self, EventWriter};
use crate::kinds::table::KindTable;
use crate::kinds::{Object, Subresource, meta};
use crate::registry::{DeleteOptions, Deleted, EventType, ListOptions, Propagation, WriteOptions};
use crate::store::{self, Store};
use crate::{controllers, scheduler};

use super::*;

const DEPLOYMENTS: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";

struct Cluster {
    registry: Registry,
    _dir: tempfile::TempDir,
}

/// Runs a story on a cluster with all controllers, the scheduler and, if `healthy`, a node that runs pods.
fn with_cluster<F: Future<Output = ()>>(story: impl FnOnce(Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let cluster = Cluster { registry: registry.clone(), _dir: dir };
        cluster.add_node("pi").await;
        let (recorder, writer): (_, EventWriter) = events::recorder();
        let config = Config { ca: "PEM".to_owned() };
        let never = || std::future::pending::<()>();
        tokio::select! {
            result = controllers::run(&registry, &recorder, &config, never()) => panic!("ended: {result:?}"),
            result = scheduler::run(&registry, &recorder, never()) => panic!("ended: {result:?}"),
            () = writer.run(&registry) => panic!("no more events"),
            () = kubelet(&registry) => panic!("the node is gone"),
            result = tokio::time::timeout(Duration::from_secs(20), story(cluster)) => result.unwrap(),
        }
    });
}

/// Runs bound pods and lets go of those that are to leave. A pod with the image `bad` never becomes ready.
async fn kubelet(registry: &Registry) {
    let pods = kind(registry, "pods").unwrap();
    let mut watch = registry.watch(&pods, None, None).unwrap();
    let options = WriteOptions::by("kubelet");
    loop {
        let event = watch.next().await.unwrap();
        let pod = event.object.object().unwrap();
        let (namespace, name) = (meta::namespace(&pod), meta::name(&pod));
        if event.kind == EventType::Deleted || meta::str_at(&pod, "/spec/nodeName").is_empty() {
            continue;
        }
        if meta::is_deleting(&pod) {
            let gone = registry.delete(&pods, namespace, name, &DeleteOptions::now()).await;
            still_there(gone).unwrap();
        } else if meta::str_at(&pod, "/status/phase") != "Running" {
            let ready = if meta::str_at(&pod, "/spec/containers/0/image") == "bad" { "False" } else { "True" };
            let time = meta::format_time(jiff::Timestamp::now());
            let run = registry.modify(&pods, namespace, name, Some(Subresource::Status), &options, |pod| {
                let mut conditions = meta::list_at(pod, "/status/conditions").to_vec();
                conditions.push(json!({"type": "Ready", "status": ready, "lastTransitionTime": time}));
                meta::set(pod, "/status/conditions", conditions);
                meta::set(pod, "/status/phase", "Running");
                Ok(())
            });
            still_there(run.await).unwrap();
        }
    }
}

impl Cluster {
    async fn add_node(&self, name: &str) {
        self.create(
            "nodes",
            json!({
                "metadata": {"name": name},
                "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                           "conditions": [{"type": "Ready", "status": "True"}]},
            }),
        )
        .await;
        let options = WriteOptions::by("kubelet");
        let nodes = kind(&self.registry, "nodes").unwrap();
        let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                            "conditions": [{"type": "Ready", "status": "True"}]});
        let ready = self.registry.modify(&nodes, "", name, Some(Subresource::Status), &options, |node| {
            node.insert("status".to_owned(), status.clone());
            Ok(())
        });
        ready.await.unwrap();
    }

    async fn create(&self, resource: &str, object: Value) -> Object {
        let kind = kind(&self.registry, resource).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(if kind.namespaced { "default" } else { "" });
        let options = WriteOptions::by("test");
        let object = object.as_object().unwrap().clone();
        self.registry.create(&kind, namespace, object.clone(), &options).await.unwrap()
    }

    async fn deploy(&self, name: &str, replicas: i64) {
        self.create(DEPLOYMENTS, deployment(name, replicas)).await;
    }

    async fn change(&self, resource: &str, name: &str, change: impl Fn(&mut Object) + Send + Sync) {
        let kind = kind(&self.registry, resource).unwrap();
        let options = WriteOptions::by("test");
        let namespace = if kind.namespaced { "default" } else { "" };
        let changed = self.registry.modify(&kind, namespace, name, None, &options, |object| {
            change(object);
            Ok(())
        });
        changed.await.unwrap();
    }

    async fn delete(&self, resource: &str, name: &str, propagation: Option<Propagation>) -> Deleted {
        let kind = kind(&self.registry, resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.registry.delete(&kind, namespace, name, &options).await.unwrap()
    }

    fn get(&self, resource: &str, name: &str) -> Option<Object> {
        let kind = kind(&self.registry, resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        self.registry.get(&kind, namespace, name).ok()
    }

    fn list(&self, resource: &str) -> Vec<Object> {
        let kind = kind(&self.registry, resource).unwrap();
        let options = ListOptions { namespace: kind.namespaced.then(|| "default".to_owned()), ..ListOptions::default() };
        self.registry.list(&kind, &options).unwrap().items.iter().map(|raw| raw.object().unwrap()).collect()
    }

    fn events(&self) -> Vec<String> {
        let text = |e: &Object| format!("{} {}", meta::str_at(e, "/reason"), meta::str_at(e, "/message"));
        self.list("events").iter().map(text).collect()
    }

    /// Waits until something is so; says how it is otherwise.
    async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if test(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let dump = |resource| self.list(resource).into_iter().map(Value::Object).collect::<Vec<_>>();
        panic!(
            "never: {what}\n{:#}\n{:#?}",
            json!([dump(DEPLOYMENTS), dump(SETS), dump("pods")]),
            self.events()
        );
    }

    /// Waits until a Deployment has so many updated and available pods and no others.
    async fn rolled_out(&self, name: &str, replicas: i64) {
        self.until(&format!("{name} has {replicas} pods"), |c| {
            let d = c.get(DEPLOYMENTS, name).unwrap();
            let count = |field: &str| meta::int_at(&d, &format!("/status/{field}")).unwrap_or_default();
            count("observedGeneration") == meta::generation(&d)
                && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| count(field) == replicas)
                && i64::try_from(c.list("pods").len()).unwrap() == replicas
        })
        .await;
    }

    fn images(&self) -> Vec<String> {
        self.list("pods").iter().map(|p| meta::str_at(p, "/spec/containers/0/image").to_owned()).collect()
    }
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"kubernetes.io/change-cause": "first"}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "one"}]}},
        },
    })
}

#[test]
fn a_deployment_lives() {
    with_cluster(|c| async move {
        c.deploy("web", 3).await;
        c.rolled_out("web", 3).await;
        let d = c.get(DEPLOYMENTS, "web").unwrap();
        assert_eq!(meta::annotation(&d, "deployment.kubernetes.io/revision"), Some("1"));
        assert_eq!(meta::str_at(meta::condition(&d, "Progressing").unwrap(), "/reason"), "NewReplicaSetAvailable");
        assert_eq!(meta::str_at(meta::condition(&d, "Available").unwrap(), "/status"), "True");
        let set = &c.list(SETS)[0];
        assert_eq!(meta::annotation(set, "kubernetes.io/change-cause"), Some("first"));
        for pod in c.list("pods") {
            assert!(meta::name(&pod).starts_with(meta::name(set)));
            assert_eq!(meta::label(&pod, "pod-template-hash"), meta::label(set, "pod-template-hash"));
            assert_eq!(meta::str_at(meta::condition(&pod, "PodScheduled").unwrap(), "/status"), "True");
        }

        // Rolled out, scaled, undone.
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/template/spec/containers/0/image", "two")).await;
        c.rolled_out("web", 3).await;
        assert_eq!((c.images(), c.list(SETS).len()), (vec!["two".to_owned(); 3], 2));
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/replicas", 5)).await;
        c.rolled_out("web", 5).await;
        assert_eq!(c.list(SETS).len(), 2);
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/template/spec/containers/0/image", "one")).await;
        c.rolled_out("web", 5).await;
        assert_eq!((c.images(), c.list(SETS).len()), (vec!["one".to_owned(); 5], 2));
        let d = c.get(DEPLOYMENTS, "web").unwrap();
        assert_eq!(meta::annotation(&d, "deployment.kubernetes.io/revision"), Some("3"));

        // A pod that is lost is replaced.
        let lost = meta::name(&c.list("pods")[0]).to_owned();
        c.delete("pods", &lost, None).await;
        c.until("the lost pod is replaced", |c| c.get("pods", &lost).is_none() && c.list("pods").len() == 5).await;
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/replicas", 0)).await;
        c.rolled_out("web", 0).await;

        let events = c.events();
        let set = meta::name(set);
        for expected in [
            format!("ScalingReplicaSet Scaled up replica set {set} from 0 to 3"),
            format!("ScalingReplicaSet Scaled down replica set {set} from 5 to 0"),
            format!("SuccessfulDelete Deleted pod: {set}-"),
            format!("SuccessfulCreate Created pod: {set}-"),
            format!("Scheduled Successfully assigned default/{set}-"),
        ] {
            assert!(events.iter().any(|e| e.starts_with(&expected)), "{expected}: {events:#?}");
        }
    });
}

#[test]
fn a_broken_image_stops_the_rollout() {
    with_cluster(|c| async move {
        c.deploy("web", 2).await;
        c.rolled_out("web", 2).await;
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/template/spec/containers/0/image", "bad")).await;
        c.until("one broken pod", |c| c.images().contains(&"bad".to_owned())).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(c.images().iter().filter(|i| *i == "one").count(), 2, "all good pods stay");
        let d = c.get(DEPLOYMENTS, "web").unwrap();
        assert_eq!(meta::int_at(&d, "/status/availableReplicas"), Some(2));
        assert_eq!(meta::int_at(&d, "/status/updatedReplicas"), Some(1));
    });
}

#[test]
fn pods_wait_for_their_node() {
    with_cluster(|c| async move {
        c.create("pods", json!({"metadata": {"name": "picky"}, "spec": {
            "nodeSelector": {"disktype": "ssd"}, "containers": [{"name": "c", "image": "one"}],
        }}))
        .await;
        c.create("pods", json!({"metadata": {"name": "other"}, "spec": {
            "schedulerName": "mine", "containers": [{"name": "c", "image": "one"}],
        }}))
        .await;
        let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
                   preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        c.until("picky is told why", |c| {
            let pod = c.get("pods", "picky").unwrap();
            meta::condition(&pod, "PodScheduled").is_some_and(|condition| {
                meta::str_at(condition, "/reason") == "Unschedulable" && meta::str_at(condition, "/message") == why
            })
        })
        .await;
        c.until("so are people", |c| c.events().contains(&format!("FailedScheduling {why}"))).await;
        c.change("nodes", "pi", |node| meta::set_label(node, "disktype", "ssd")).await;
        c.until("picky runs", |c| meta::str_at(&c.get("pods", "picky").unwrap(), "/status/phase") == "Running").await;
        let picky = c.get("pods", "picky").unwrap();
        assert_eq!(meta::str_at(meta::condition(&picky, "PodScheduled").unwrap(), "/status"), "True");
        assert_eq!(meta::str_at(&c.get("pods", "other").unwrap(), "/spec/nodeName"), "");
    });
}

#[test]
fn sets_adopt_and_release() {
    with_cluster(|c| async move {
        c.create("pods", json!({"metadata": {"name": "stray", "labels": {"app": "web"}}, "spec": {
            "containers": [{"name": "c", "image": "one"}],
        }}))
        .await;
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}});
        c.create(SETS, json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template,
        }}))
        .await;
        c.until("two pods, one of them adopted", |c| {
            let adopted = meta::controller(&c.get("pods", "stray").unwrap()).is_some();
            adopted && c.list("pods").len() == 2
        })
        .await;
        c.change("pods", "stray", |pod| meta::set_label(pod, "app", "mine")).await;
        c.until("released and replaced", |c| {
            let released = meta::controller(&c.get("pods", "stray").unwrap()).is_none();
            released && c.list("pods").len() == 3
        })
        .await;
        c.create("pods", json!({"metadata": {"name": "surplus", "labels": {"app": "web"}}, "spec": {
            "containers": [{"name": "c", "image": "one"}],
        }}))
        .await;
        c.until("one too many goes", |c| c.list("pods").len() == 3).await;
    });
}
