//! Controllers and scheduler together on a real registry. A pretended node runs what is bound to it at once.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

use crate::events::{self, EventWriter};
use crate::fleet::presence::{Why, mark_unknown};
use crate::fleet::tokens::{NewToken, PREFIX};
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

fn config() -> Config {
    Config {
        ca: "PEM".to_owned(),
        pools: Vec::new(),
        api: "192.0.2.1:6443".parse().unwrap(),
        service_cidr: crate::config::DEFAULT_SERVICE_CIDR,
        reserved: Vec::new(),
    }
}

/// Runs a story on a cluster with all controllers, the scheduler and, if `healthy`, a node that runs pods.
fn with_cluster<F: Future<Output = ()>>(story: impl FnOnce(Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::new().await;
        let registry = cluster.registry.clone();
        let (recorder, writer): (_, EventWriter) = events::recorder();
        let config = config();
        let never = || std::future::pending::<()>();
        tokio::select! {
            result = controllers::run(&registry, &recorder, &config, never()) => panic!("ended: {result:?}"),
            result = scheduler::run(&registry, &recorder, never()) => panic!("ended: {result:?}"),
            () = writer.run(&registry) => panic!("no more events"),
            () = kubelet(&registry) => panic!("the node is gone"),
            result = tokio::time::timeout(Duration::from_secs(60), story(cluster)) => result.unwrap(),
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
    /// A cluster with one node in which nothing runs yet.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let cluster = Self { registry, _dir: dir };
        cluster.add_node("pi").await;
        cluster
    }

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
        let namespace =
            object["metadata"]["namespace"].as_str().unwrap_or(if kind.namespaced { "default" } else { "" });
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

    async fn set_image(&self, name: &str, image: &str) {
        self.change(DEPLOYMENTS, name, |deployment| {
            *meta::pointer_mut(deployment, "/spec/template/spec/containers/0/image").unwrap() = image.into();
        })
        .await;
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
        let options =
            ListOptions { namespace: kind.namespaced.then(|| "default".to_owned()), ..ListOptions::default() };
        self.registry.list(&kind, &options).unwrap().items.iter().map(|raw| raw.object().unwrap()).collect()
    }

    fn events(&self) -> Vec<String> {
        let text = |e: &Object| format!("{} {}", meta::str_at(e, "/reason"), meta::str_at(e, "/message"));
        self.list("events").iter().map(text).collect()
    }

    /// Waits until something is so; says how it is otherwise.
    async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if test(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let dump = |resource| self.list(resource).into_iter().map(Value::Object).collect::<Vec<_>>();
        panic!("never: {what}\n{:#}\n{:#?}", json!([dump(DEPLOYMENTS), dump(SETS), dump("pods")]), self.events());
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
        c.set_image("web", "two").await;
        c.rolled_out("web", 3).await;
        assert_eq!((c.images(), c.list(SETS).len()), (vec!["two".to_owned(); 3], 2));
        c.change(DEPLOYMENTS, "web", |d| meta::set(d, "/spec/replicas", 5)).await;
        c.rolled_out("web", 5).await;
        assert_eq!(c.list(SETS).len(), 2);
        c.set_image("web", "one").await;
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

        let set = meta::name(set);
        for expected in [
            format!("Scaled up replica set {set} from 0 to 3"),
            format!("Scaled down replica set {set} from 5 to 0"),
            format!("Deleted pod: {set}-"),
            format!("Created pod: {set}-"),
            format!("Successfully assigned default/{set}-"),
        ] {
            c.until(&expected, |c| c.events().iter().any(|e| e.contains(&expected))).await;
        }
    });
}

#[test]
fn a_broken_image_stops_the_rollout() {
    with_cluster(|c| async move {
        c.deploy("web", 2).await;
        c.rolled_out("web", 2).await;
        c.set_image("web", "bad").await;
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
        c.create(
            "pods",
            json!({"metadata": {"name": "picky"}, "spec": {
                "nodeSelector": {"disktype": "ssd"}, "containers": [{"name": "c", "image": "one"}],
            }}),
        )
        .await;
        c.create(
            "pods",
            json!({"metadata": {"name": "other"}, "spec": {
                "schedulerName": "mine", "containers": [{"name": "c", "image": "one"}],
            }}),
        )
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
        c.create(
            "pods",
            json!({"metadata": {"name": "stray", "labels": {"app": "web"}}, "spec": {
                "containers": [{"name": "c", "image": "one"}],
            }}),
        )
        .await;
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}});
        c.create(
            SETS,
            json!({"metadata": {"name": "web"}, "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template,
            }}),
        )
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
        c.create(
            "pods",
            json!({"metadata": {"name": "surplus", "labels": {"app": "web"}}, "spec": {
                "containers": [{"name": "c", "image": "one"}],
            }}),
        )
        .await;
        c.until("one too many goes", |c| c.list("pods").len() == 3).await;
    });
}

#[test]
fn dependents_go_with_their_owner() {
    with_cluster(|c| async move {
        for (propagation, name) in [(Propagation::Background, "back"), (Propagation::Foreground, "fore")] {
            c.deploy(name, 2).await;
            c.rolled_out(name, 2).await;
            let deleted = c.delete(DEPLOYMENTS, name, Some(propagation)).await;
            assert_eq!(matches!(deleted, Deleted::Gone(_)), propagation == Propagation::Background);
            if propagation == Propagation::Foreground {
                let pods = || c.list("pods").len();
                assert_eq!(pods(), 2, "the owner is only marked yet");
            }
            c.until("everything is gone", |c| {
                c.get(DEPLOYMENTS, name).is_none() && c.list(SETS).is_empty() && c.list("pods").is_empty()
            })
            .await;
        }
        c.deploy("orphans", 2).await;
        c.rolled_out("orphans", 2).await;
        c.delete(DEPLOYMENTS, "orphans", Some(Propagation::Orphan)).await;
        c.until("the deployment is gone", |c| c.get(DEPLOYMENTS, "orphans").is_none()).await;
        assert_eq!((c.list(SETS).len(), c.list("pods").len()), (1, 2));
        assert!(meta::controller(&c.list(SETS)[0]).is_none());
        // The same deployment finds its set again.
        let set = meta::uid(&c.list(SETS)[0]).to_owned();
        c.deploy("orphans", 2).await;
        c.rolled_out("orphans", 2).await;
        assert_eq!(c.list(SETS).iter().map(meta::uid).collect::<Vec<_>>(), [set]);
    });
}

#[test]
fn objects_of_owners_that_never_were_go() {
    with_cluster(|c| async move {
        let owner = |kind: &str, uid: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "nobody", "uid": uid}]);
        for (name, owners) in [("lost", owner("Pod", "x")), ("strange", owner("Dragon", "x"))] {
            c.create("configmaps", json!({"metadata": {"name": name, "ownerReferences": owners}})).await;
        }
        c.until("lost is gone", |c| c.get("configmaps", "lost").is_none()).await;
        assert!(c.get("configmaps", "strange").is_some(), "nothing is known of dragons");
    });
}

/// What was left half done when the server stopped is found at the start.
#[tokio::test]
async fn a_restart_finds_what_is_to_be_done() {
    let c = Cluster::new().await;
    c.deploy("web", 2).await;
    let owner = c.create("configmaps", json!({"metadata": {"name": "owner"}})).await;
    let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": meta::uid(&owner)}]);
    c.create("configmaps", json!({"metadata": {"name": "left", "ownerReferences": reference}})).await;
    c.delete("configmaps", "owner", None).await;
    c.create("namespaces", json!({"metadata": {"name": "shop"}})).await;
    c.delete("namespaces", "shop", None).await;
    assert!(c.get("namespaces", "shop").is_some());

    let (recorder, _writer) = events::recorder();
    let config = config();
    let done = async {
        c.until("pods are made, the left one goes, the namespace too", |c| {
            c.list("pods").len() == 2 && c.get("configmaps", "left").is_none() && c.get("namespaces", "shop").is_none()
        })
        .await;
    };
    controllers::run(&c.registry, &recorder, &config, done).await.unwrap();
}

#[test]
fn a_namespace_goes_with_all_it_has() {
    with_cluster(|c| async move {
        c.create("namespaces", json!({"metadata": {"name": "shop"}})).await;
        let (accounts, maps) =
            (kind(&c.registry, "serviceaccounts").unwrap(), kind(&c.registry, "configmaps").unwrap());
        c.until("it has what every namespace has", |c| {
            let ca = c.registry.get(&maps, "shop", "kube-root-ca.crt");
            c.registry.get(&accounts, "shop", "default").is_ok()
                && ca.is_ok_and(|map| map["data"] == json!({"ca.crt": "PEM"}))
        })
        .await;
        c.registry.delete(&accounts, "shop", "default", &DeleteOptions::default()).await.unwrap();
        c.until("the account is back", |c| c.registry.get(&accounts, "shop", "default").is_ok()).await;

        let mut web = deployment("web", 3);
        web["metadata"]["namespace"] = "shop".into();
        c.create(DEPLOYMENTS, web).await;
        c.create("configmaps", json!({"metadata": {"name": "held", "namespace": "shop", "finalizers": ["x/y"]}})).await;
        let pods = kind(&c.registry, "pods").unwrap();
        let within = ListOptions::within("shop");
        c.until("it runs", |c| c.registry.list(&pods, &within).unwrap().items.len() == 3).await;

        c.delete("namespaces", "shop", None).await;
        let message = "Some content in the namespace has finalizers remaining: x/y in 1 resource instances";
        c.until("only the held one is left", |c| {
            let namespace = c.get("namespaces", "shop").unwrap();
            let waiting = meta::condition(&namespace, "NamespaceFinalizersRemaining");
            waiting.is_some_and(|condition| meta::str_at(condition, "/message") == message)
        })
        .await;
        assert!(c.registry.list(&pods, &within).unwrap().items.is_empty());
        let by = WriteOptions::by("test");
        let free = c.registry.modify(&maps, "shop", "held", None, &by, |map| {
            meta::remove_finalizer(map, "x/y");
            Ok(())
        });
        free.await.unwrap();
        c.until("the namespace is gone", |c| c.get("namespaces", "shop").is_none()).await;
        for kind in c.registry.kinds().all().iter().filter(|k| k.namespaced && !k.volatile) {
            assert!(c.registry.list(kind, &within).unwrap().items.is_empty(), "{}", kind.plural);
        }
    });
}

#[test]
fn nodes_are_tainted_by_their_state() {
    with_cluster(|c| async move {
        let taints = |c: &Cluster| -> Vec<String> {
            let node = c.get("nodes", "pi").unwrap();
            let text = |t: &Value| format!("{}:{}", t["key"].as_str().unwrap(), t["effect"].as_str().unwrap());
            meta::list_at(&node, "/spec/taints").iter().map(text).collect()
        };
        c.change("nodes", "pi", |node| meta::set(node, "/spec/unschedulable", true)).await;
        c.until("cordoned", |c| taints(c) == ["node.kubernetes.io/unschedulable:NoSchedule"]).await;
        c.deploy("web", 1).await;
        c.until("nothing is scheduled", |c| c.events().iter().any(|e| e.starts_with("FailedScheduling 0/1"))).await;
        c.change("nodes", "pi", |node| meta::set(node, "/spec/unschedulable", false)).await;
        c.rolled_out("web", 1).await;
        let bystander = json!({"metadata": {"name": "leaves"}, "spec": {
            "nodeName": "pi", "containers": [{"name": "c", "image": "one"}],
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                             "tolerationSeconds": 1}],
        }});
        c.create("pods", bystander).await;
        let nodes = kind(&c.registry, "nodes").unwrap();
        let by = WriteOptions::by("test");
        let silent = c.registry.modify(&nodes, "", "pi", Some(Subresource::Status), &by, |node| {
            mark_unknown(node, Why::Silent, jiff::Timestamp::now());
            Ok(())
        });
        silent.await.unwrap();
        let unreachable = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        c.until("unreachable", |c| taints(c) == unreachable).await;
        c.until("evicted", |c| c.get("pods", "leaves").is_none()).await;
        let left = c.list("pods");
        assert_eq!(left.len(), 1, "the other one waits for its node");
        let ready = |c: &Cluster| meta::condition(&c.list("pods")[0], "Ready").unwrap()["status"].clone();
        c.until("not ready", |c| ready(c) == "False").await;
    });
}

#[test]
fn the_more_important_pod_gets_the_room() {
    with_cluster(|c| async move {
        let pod = |name: &str, class: &str| {
            let requests = json!({"requests": {"cpu": "3"}});
            json!({"metadata": {"name": name}, "spec": {"priorityClassName": class, "containers": [
                {"name": "c", "image": "one", "resources": requests}
            ]}})
        };
        c.create("pods", pod("low", "")).await;
        c.until("low runs", |c| meta::str_at(&c.get("pods", "low").unwrap(), "/status/phase") == "Running").await;
        c.create("pods", pod("high", "system-cluster-critical")).await;
        c.until("high runs", |c| meta::str_at(&c.get("pods", "high").unwrap(), "/status/phase") == "Running").await;
        assert!(c.get("pods", "low").is_none());
        c.until("people are told", |c| c.events().iter().any(|e| e.starts_with("Preempted Preempted by pod"))).await;
    });
}

#[test]
fn a_replication_controller_keeps_its_pods() {
    with_cluster(|cluster| async move {
        const CONTROLLERS: &str = "replicationcontrollers";
        let template = json!({
            "metadata": {"labels": {"run": "kubia"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        let spec = json!({"replicas": 2, "template": template});
        cluster.create(CONTROLLERS, json!({"metadata": {"name": "kubia"}, "spec": spec})).await;
        let ready = |c: &Cluster| meta::int_at(&c.get(CONTROLLERS, "kubia").unwrap(), "/status/readyReplicas");
        cluster.until("two ready pods", |c| ready(c) == Some(2)).await;
        let pods = cluster.list("pods");
        assert_eq!(pods.len(), 2);
        let owner = meta::controller(&pods[0]).unwrap();
        assert_eq!((meta::text(owner, "apiVersion"), meta::text(owner, "kind")), ("v1", "ReplicationController"));
        let kind = kind(&cluster.registry, CONTROLLERS).unwrap();
        let scale = json!({"kind": "Scale", "metadata": {"name": "kubia"}, "spec": {"replicas": 1}});
        let (scale, options) = (scale.as_object().unwrap().clone(), WriteOptions::by("test"));
        cluster.registry.update(&kind, "default", "kubia", Some(Subresource::Scale), scale, &options).await.unwrap();
        cluster.until("one pod", |c| c.list("pods").len() == 1).await;
        cluster.delete(CONTROLLERS, "kubia", None).await;
        cluster.until("no pods", |c| c.list("pods").is_empty()).await;
    });
}

#[test]
fn the_clusters_own_services_are_there_and_come_back() {
    with_cluster(|cluster| async move {
        const SLICES: &str = "endpointslices.discovery.k8s.io";
        cluster.until("the slice", |c| c.get(SLICES, "kubernetes").is_some()).await;
        let api = cluster.get("services", "kubernetes").unwrap();
        assert_eq!(meta::str_at(&api, "/spec/clusterIP"), "10.43.0.1");
        assert_eq!(meta::int_at(&api, "/spec/ports/0/targetPort"), Some(6443));
        let slice = cluster.get(SLICES, "kubernetes").unwrap();
        assert_eq!(slice["endpoints"], json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}]));
        let endpoints = cluster.get("endpoints", "kubernetes").unwrap();
        assert_eq!(meta::str_at(&endpoints, "/subsets/0/addresses/0/ip"), "192.0.2.1");
        let kind = kind(&cluster.registry, "services").unwrap();
        let dns = |c: &Cluster| c.registry.get(&kind, "kube-system", "kube-dns").ok();
        cluster.until("the name server", |c| dns(c).is_some()).await;
        assert_eq!(meta::str_at(&dns(&cluster).unwrap(), "/spec/clusterIP"), "10.43.0.10");
        cluster.delete("services", "kubernetes", None).await;
        cluster
            .until("it again", |c| c.get("services", "kubernetes").is_some_and(|s| meta::uid(&s) != meta::uid(&api)))
            .await;
        assert_eq!(cluster.list(SLICES).len(), 1, "nothing is mirrored");
    });
}

#[test]
fn tokens_go_when_their_time_is_over() {
    with_cluster(|c| async move {
        let (mut ids, secrets) = (Vec::new(), kind(&c.registry, "secrets").unwrap());
        for ttl in [1, 3600, 0] {
            let new = NewToken { ttl: Duration::from_secs(ttl), ..NewToken::default() };
            let (id, _, object) = new.make(jiff::Timestamp::now()).unwrap();
            c.create("secrets", object).await;
            ids.push(format!("{PREFIX}{id}"));
        }
        let there = |c: &Cluster, n: usize| c.registry.get_raw(&secrets, "kube-system", &ids[n]).is_ok();
        c.until("the first is gone", |c| !there(c, 0)).await;
        assert!(there(&c, 1) && there(&c, 2));
    });
}
