//! Removes pods nobody else will: those of nodes that are gone, and the oldest of very many that have ended
//! (`pkg/controller/podgc`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::json;

use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Subresource};
use crate::registry::{DeleteOptions, EventType, ListOptions, Preconditions, Registry, WriteOptions};
use crate::store::Key;

use super::model::{Meta, Pod, now};
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, still_there};

const NAME: &str = "pod-garbage-collector";
/// Pods that have ended and are kept nevertheless.
const KEPT: usize = 12_500;
/// How long a node must be gone before its pods are removed: it may just be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);

/// See the module.
pub struct PodGarbage {
    registry: Registry,
    pods: Arc<Kind>,
    nodes: Arc<Kind>,
    options: WriteOptions,
    quarantine: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since when nodes that pods are bound to are not there.
    missing: HashMap<Arc<str>, Instant>,
    /// UIDs of pods that have ended.
    finished: HashSet<Box<str>>,
}

impl PodGarbage {
    /// The controller over a registry.
    pub fn new(registry: &Registry) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            pods: kind(registry, "pods")?,
            nodes: kind(registry, "nodes")?,
            options: WriteOptions::by(NAME),
            quarantine: QUARANTINE,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_node(&self, name: &str) -> Result<bool, Status> {
        Ok(still_there(self.registry.get_raw(&self.nodes, "", name))?.is_some())
    }

    /// Removes the pods of a node that is gone for good.
    async fn of_node(&self, node: &Arc<str>) -> Result<Next, Status> {
        if self.has_node(node)? {
            self.state().missing.remove(node);
            return Ok(None);
        }
        let since = *self.state().missing.entry(node.clone()).or_insert_with(clock);
        let left = self.quarantine.saturating_sub(clock().duration_since(since));
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let pods: Vec<Pod> = self.registry.indexed_as(&self.pods, &format!("node:{node}"))?;
        for pod in &pods {
            if !pod.finished() {
                self.fail(&pod.metadata).await?;
            }
            self.remove(&pod.metadata).await?;
        }
        self.state().missing.remove(node);
        Ok(None)
    }

    /// Removes the oldest of the pods that have ended.
    async fn finished(&self) -> Result<(), Status> {
        let pods: Vec<Pod> = self.registry.list_as(&self.pods, &ListOptions::default())?;
        let mut finished: Vec<Meta> = pods.into_iter().filter(Pod::finished).map(|pod| pod.metadata).collect();
        self.state().finished = finished.iter().map(|pod| pod.uid.as_str().into()).collect();
        let surplus = finished.len().saturating_sub(KEPT);
        finished.sort_by(|a, b| (a.creation_timestamp, &a.name).cmp(&(b.creation_timestamp, &b.name)));
        for pod in &finished[..surplus] {
            self.remove(pod).await?;
        }
        Ok(())
    }

    async fn fail(&self, pod: &Meta) -> Result<(), Status> {
        let time = meta::format_time(now());
        let part = Some(Subresource::Status);
        let failed = self.registry.modify(&self.pods, &pod.namespace, &pod.name, part, &self.options, |stored| {
            if meta::uid(stored) == pod.uid {
                let mut conditions = meta::list_at(stored, "/status/conditions").to_vec();
                conditions.retain(|c| c["type"] != "DisruptionTarget");
                conditions.push(json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists", "lastTransitionTime": time,
                }));
                meta::set(stored, "/status/conditions", conditions);
                meta::set(stored, "/status/phase", "Failed");
            }
            Ok(())
        });
        still_there(failed.await).map(drop)
    }

    async fn remove(&self, pod: &Meta) -> Result<(), Status> {
        let options = DeleteOptions {
            preconditions: Preconditions { uid: Some(pod.uid.clone()), revision: None },
            user: self.options.user.clone(),
            ..DeleteOptions::now()
        };
        match self.registry.delete(&self.pods, &pod.namespace, &pod.name, &options).await {
            Err(status) if !matches!(status.code, 404 | 409) => Err(status),
            _ => Ok(()),
        }
    }

    /// Counts a pod that has ended; returns whether there are too many.
    fn count(&self, uid: &str, finished: bool) -> bool {
        let set = &mut self.state().finished;
        if !finished {
            set.remove(uid);
            return false;
        }
        set.insert(uid.into()) && set.len() > KEPT
    }
}

impl Controller for PodGarbage {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["pods", "nodes"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let node = |name: &str| Key { resource: "nodes".into(), namespace: "".into(), name: name.into() };
        if change.resource() == "nodes" {
            return if change.kind == EventType::Modified { Vec::new() } else { vec![change.key()] };
        }
        let Ok(pod) = change.object.parse::<Pod>() else { return Vec::new() };
        let gone = change.kind == EventType::Deleted;
        let mut keys = Vec::new();
        if self.count(&pod.metadata.uid, pod.finished() && !gone) {
            keys.push(Key { resource: "pods".into(), namespace: "".into(), name: "".into() });
        }
        let name = &pod.spec.node_name;
        if !gone
            && !name.is_empty()
            && change.previous_node().as_deref() != Some(name)
            && !self.has_node(name).unwrap_or(true)
        {
            keys.push(node(name));
        }
        keys
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(async {
            match &*key.resource {
                "nodes" => self.of_node(&key.name).await,
                _ => self.finished().await.map(|()| None),
            }
        })
    }
}

impl Change<'_> {
    /// The node a pod was bound to before the change.
    fn previous_node(&self) -> Option<String> {
        self.before.and_then(|pod| pod.parse::<Pod>().ok()).map(|pod| pod.spec.node_name)
    }
}

/// The runtime's clock, which tests can hold still.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::table::KindTable;
    use crate::store::{Options, Store};

    #[tokio::test]
    async fn pods_outlive_their_node_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let mut gc = PodGarbage::new(&registry).unwrap();
        let by = WriteOptions::by("test");
        let object = |value: serde_json::Value| value.as_object().unwrap().clone();
        let node = object(json!({"metadata": {"name": "here"}}));
        registry.create(&gc.nodes.clone(), "", node, &by).await.unwrap();
        for (name, node) in [("a", "here"), ("b", "gone")] {
            let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
            let pod = object(json!({"metadata": {"name": name}, "spec": spec}));
            registry.create(&gc.pods, "default", pod, &by).await.unwrap();
        }
        let names = || -> Vec<String> {
            let pods: Vec<Pod> = registry.list_as(&gc_pods(&registry), &ListOptions::default()).unwrap();
            pods.into_iter().map(|pod| pod.metadata.name).collect()
        };
        assert!(gc.of_node(&"gone".into()).await.unwrap().unwrap() > Duration::from_secs(39));
        assert_eq!(names(), ["a", "b"]);
        gc.quarantine = Duration::ZERO;
        assert_eq!(gc.of_node(&"here".into()).await.unwrap(), None);
        assert_eq!(gc.of_node(&"gone".into()).await.unwrap(), None);
        assert_eq!(names(), ["a"]);
    }

    fn gc_pods(registry: &Registry) -> Arc<Kind> {
        kind(registry, "pods").unwrap()
    }
}
