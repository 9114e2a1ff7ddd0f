//! The controllers of ReplicaSets and ReplicationControllers: keep the wanted number of pods.
//!
//! Kubernetes' controller counts "expectations" because its reads come from a cache that lags behind its own writes.
//! Here reads come from the registry, which shows every acknowledged write, and one set is worked on once at a time.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::meta;
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource};
use crate::registry::{DeleteOptions, Registry, WriteOptions};
use crate::store::Key;

use super::claim::{self, Owner};
use super::model::{Meta, Pod, controller_reference, now, to_object};
use super::runner::{Change, Controller, Interest, Next, Orphans};
use super::{kind, namespace_is_terminating, still_there};
use plan::{ReplicaSet, Step};

/// What the two kinds differ in.
pub struct Family {
    name: &'static str,
    interest: [&'static str; 2],
    api_version: &'static str,
    kind: &'static str,
}

/// ReplicaSets.
pub static REPLICA_SETS: Family = Family {
    name: "replicaset-controller",
    interest: ["replicasets.apps", "pods"],
    api_version: "apps/v1",
    kind: "ReplicaSet",
};

/// ReplicationControllers.
pub static REPLICATION_CONTROLLERS: Family = Family {
    name: "replication-controller",
    interest: ["replicationcontrollers", "pods"],
    api_version: "v1",
    kind: "ReplicationController",
};

impl Family {
    fn resource(&self) -> &'static str {
        self.interest[0]
    }
}

/// See the module.
pub struct ReplicaSets {
    family: &'static Family,
    registry: Registry,
    events: EventRecorder,
    sets: Arc<Kind>,
    pods: Arc<Kind>,
    orphans: Orphans,
    options: WriteOptions,
}

impl ReplicaSets {
    /// The controller of a family over a registry.
    pub fn new(registry: &Registry, events: &EventRecorder, family: &'static Family) -> Result<Self, Status> {
        Ok(Self {
            family,
            registry: registry.clone(),
            events: events.of(family.name, ""),
            sets: kind(registry, family.resource())?,
            pods: kind(registry, "pods")?,
            orphans: Orphans::default(),
            options: WriteOptions::by(family.name),
        })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let Some(set) = still_there(self.registry.get_as::<ReplicaSet>(&self.sets, &key.namespace, &key.name))? else {
            return Ok(None);
        };
        let pods = self.claimed(&set).await?;
        let now = now();
        // Only which pods are to go depends on the other sets.
        let surplus = i64::try_from(pods.len()).is_ok_and(|count| count > set.spec.replicas);
        let related = if surplus { self.related(&set)? } else { HashMap::new() };
        let (failure, outcome) = match plan::step(&set, &pods, &related, now) {
            Step::Enough => (None, Ok(())),
            Step::Create(count) => ("FailedCreate".into(), self.create(&set, count).await),
            Step::Delete(victims) => ("FailedDelete".into(), self.delete(&set, &victims).await),
        };
        let text = outcome.as_ref().err().map(ToString::to_string);
        let status = plan::status(&set, &pods, failure.zip(text.as_deref()), now);
        if status != set.status {
            self.write_status(&set, &status).await?;
        }
        outcome?;
        let next = plan::next_available(&set, &pods, now).and_then(|seconds| u64::try_from(seconds).ok());
        Ok(next.map(std::time::Duration::from_secs))
    }

    /// The active pods of a set, after adopting and releasing.
    async fn claimed(&self, set: &ReplicaSet) -> Result<Vec<Pod>, Status> {
        let mut pods: Vec<Pod> = self.registry.indexed_as(&self.pods, &format!("owner:{}", set.metadata.uid))?;
        for name in self.orphans.within(&set.metadata.namespace) {
            pods.extend(still_there(self.registry.get_as::<Pod>(&self.pods, &set.metadata.namespace, &name))?);
        }
        let Family { api_version, kind, .. } = *self.family;
        let owner = Owner { api_version, kind, meta: &set.metadata };
        let selector = LabelSelector::of_spec(&set.spec.selector);
        let mut claimed = Vec::with_capacity(pods.len());
        for pod in pods.into_iter().filter(Pod::active) {
            let claim = claim::claim(&set.metadata, &selector, &pod.metadata);
            if claim::settle(&self.registry, &self.pods, &owner, &pod.metadata, claim, &self.options).await? {
                claimed.push(pod);
            }
        }
        claimed.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        claimed.dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
        Ok(claimed)
    }

    /// Active pods by node of all sets with the same owner.
    fn related(&self, set: &ReplicaSet) -> Result<HashMap<String, usize>, Status> {
        let siblings: Vec<ReplicaSet> = match set.metadata.controller() {
            Some(owner) => self.registry.indexed_as(&self.sets, &format!("owner:{}", owner.uid))?,
            None => Vec::new(),
        };
        let mut uids: Vec<&str> = siblings.iter().map(|s| s.metadata.uid.as_str()).collect();
        if !uids.contains(&set.metadata.uid.as_str()) {
            uids.push(&set.metadata.uid);
        }
        let mut by_node = HashMap::new();
        for uid in uids {
            for pod in self.registry.indexed_as::<Pod>(&self.pods, &format!("owner:{uid}"))? {
                if pod.active() {
                    *by_node.entry(pod.spec.node_name).or_default() += 1;
                }
            }
        }
        Ok(by_node)
    }

    /// Creates pods in batches of 1, 2, 4, … so that a set whose pods are refused does not try them all.
    async fn create(&self, set: &ReplicaSet, count: usize) -> Result<(), Status> {
        let pod = pod_from(self.family, set)?;
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(set, pod.clone()))).await;
            results.into_iter().collect::<Result<(), _>>()?;
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &ReplicaSet, pod: Object) -> Result<(), Status> {
        match self.registry.create(&self.pods, &set.metadata.namespace, pod, &self.options).await {
            Ok(pod) => {
                self.event(set, EventKind::Normal, "SuccessfulCreate", format!("Created pod: {}", meta::name(&pod)));
                Ok(())
            }
            // The set goes with its namespace.
            Err(status) if namespace_is_terminating(&status) => Ok(()),
            Err(status) => {
                self.event(set, EventKind::Warning, "FailedCreate", format!("Error creating: {status}"));
                Err(status)
            }
        }
    }

    async fn delete(&self, set: &ReplicaSet, victims: &[&Pod]) -> Result<(), Status> {
        let results = join_all(victims.iter().map(|pod| self.delete_one(set, &pod.metadata))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, set: &ReplicaSet, pod: &Meta) -> Result<(), Status> {
        let options = DeleteOptions { user: self.options.user.clone(), ..DeleteOptions::of(&pod.uid) };
        match self.registry.delete(&self.pods, &pod.namespace, &pod.name, &options).await {
            Ok(_) => {
                self.event(set, EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name));
                Ok(())
            }
            // Gone, or another one of that name.
            Err(status) if status.code == 404 || status.code == 409 => Ok(()),
            Err(status) => {
                self.event(set, EventKind::Warning, "FailedDelete", format!("Error deleting: {status}"));
                Err(status)
            }
        }
    }

    async fn write_status(&self, set: &ReplicaSet, status: &plan::Status) -> Result<(), Status> {
        let status = to_object(status)?;
        let Meta { namespace, name, uid, .. } = &set.metadata;
        let written =
            self.registry.modify(&self.sets, namespace, name, Some(Subresource::Status), &self.options, |set| {
                if meta::uid(set) == uid {
                    set.insert("status".to_owned(), Value::Object(status.clone()));
                }
                Ok(())
            });
        still_there(written.await).map(drop)
    }

    fn key(&self, namespace: &str, name: &str) -> Key {
        Key::new(self.family.resource(), namespace, name)
    }

    fn event(&self, set: &ReplicaSet, kind: EventKind, reason: &str, message: String) {
        let about = Reference {
            api_version: self.family.api_version.to_owned(),
            kind: self.family.kind.to_owned(),
            namespace: set.metadata.namespace.clone(),
            name: set.metadata.name.clone(),
            uid: set.metadata.uid.clone(),
            field_path: String::new(),
        };
        self.events.record(&about, kind, reason, message);
    }
}

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        self.family.name
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&self.family.interest)
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        if change.resource() == self.family.resource() {
            return vec![change.key()];
        }
        self.orphans.note(change);
        let namespace = &change.meta.namespace;
        let owners = [Some(&change.meta), change.previous.as_ref()].into_iter().flatten().filter_map(Meta::controller);
        let mut keys: Vec<Key> =
            owners.filter(|o| o.kind == self.family.kind).map(|o| self.key(namespace, &o.name)).collect();
        if change.meta.controller().is_none() && !change.meta.deleting() {
            keys.extend(claim::adopters(&self.registry, &self.sets, namespace, &change.meta.labels));
        }
        keys
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}

/// A new pod from a set's template.
fn pod_from(family: &Family, set: &ReplicaSet) -> Result<Object, Status> {
    let template = &set.spec.template;
    let mut metadata = Object::new();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = meta::pointer(template, &format!("/metadata/{field}")) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    metadata.insert("generateName".to_owned(), format!("{}-", set.metadata.name).into());
    metadata.insert("namespace".to_owned(), set.metadata.namespace.as_str().into());
    let owner = controller_reference(family.api_version, family.kind, &set.metadata);
    metadata.insert("ownerReferences".to_owned(), json!([owner]));
    let spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
    to_object(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_are_made_from_the_template() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web-5d", "namespace": "shop", "uid": "u1"},
            "spec": {"template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}, "creationTimestamp": null, "name": "no"},
                "spec": {"containers": [{"name": "c", "futureField": 1}]},
            }},
        }))
        .unwrap();
        assert_eq!(
            Value::Object(pod_from(&REPLICA_SETS, &set).unwrap()),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "generateName": "web-5d-", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"a": "b"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "u1",
                                         "controller": true, "blockOwnerDeletion": true}],
                },
                "spec": {"containers": [{"name": "c", "futureField": 1}]},
            })
        );
    }
}
