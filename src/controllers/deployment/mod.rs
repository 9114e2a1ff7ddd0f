//! The Deployment controller: rolls a pod template out over ReplicaSets.

pub mod model;
pub mod plan;
pub mod progress;
pub mod revision;
mod rollout;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::hash::template_hash;
use crate::kinds::meta;
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource};
use crate::registry::{DeleteOptions, Registry, WriteOptions};
use crate::store::Key;

use super::claim::{self, Owner};
use super::model::{Meta, Pod, controller_reference, now, to_object};
use super::replicaset::plan::ReplicaSet;
use super::runner::{Change, Controller, Interest, Next, Orphans};
use super::{kind, namespace_is_terminating, still_there};
use model::Deployment;
use plan::{Creation, Plan, Update, View};
use revision::{HASH, REVISION};

const NAME: &str = "deployment-controller";
const RESOURCE: &str = "deployments.apps";

/// See the module.
pub struct Deployments {
    registry: Registry,
    events: EventRecorder,
    deployments: Arc<Kind>,
    sets: Arc<Kind>,
    pods: Arc<Kind>,
    orphans: Orphans,
    options: WriteOptions,
}

impl Deployments {
    /// The controller over a registry.
    pub fn new(registry: &Registry, events: &EventRecorder) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            events: events.of(NAME, ""),
            deployments: kind(registry, RESOURCE)?,
            sets: kind(registry, "replicasets.apps")?,
            pods: kind(registry, "pods")?,
            orphans: Orphans::default(),
            options: WriteOptions::by(NAME),
        })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let found = self.registry.get_as::<Deployment>(&self.deployments, &key.namespace, &key.name);
        let Some(deployment) = still_there(found)? else { return Ok(None) };
        let sets = self.claimed(&deployment).await?;
        let collisions = deployment.status.collision_count.unwrap_or_default();
        let hash = template_hash(&deployment.spec.template, collisions);
        let new_name = format!("{}-{hash}", deployment.metadata.name);
        let running = if deployment.rolling() { Vec::new() } else { self.running(&sets)? };
        let view = View { deployment: &deployment, sets, running, new_name: &new_name, now: now() };
        let plan = plan::plan(view);
        let next = plan.next;
        self.carry_out(&deployment, plan, &hash).await?;
        Ok(next)
    }

    /// The sets a Deployment manages, after adopting and releasing.
    async fn claimed(&self, deployment: &Deployment) -> Result<Vec<ReplicaSet>, Status> {
        let meta = &deployment.metadata;
        let mut sets: Vec<ReplicaSet> = self.registry.indexed_as(&self.sets, &format!("owner:{}", meta.uid))?;
        for name in self.orphans.within(&meta.namespace) {
            sets.extend(still_there(self.registry.get_as::<ReplicaSet>(&self.sets, &meta.namespace, &name))?);
        }
        sets.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        sets.dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
        let owner = Owner { api_version: "apps/v1", kind: "Deployment", meta };
        let selector = LabelSelector::from_object(&deployment.spec.selector);
        let mut claimed = Vec::with_capacity(sets.len());
        for set in sets {
            let claim = claim::claim(meta, &selector, &set.metadata);
            if claim::settle(&self.registry, &self.sets, &owner, &set.metadata, claim, &self.options).await? {
                claimed.push(set);
            }
        }
        Ok(claimed)
    }

    /// UIDs of the sets that have unfinished pods.
    fn running(&self, sets: &[ReplicaSet]) -> Result<Vec<String>, Status> {
        let mut running = Vec::new();
        for set in sets {
            let pods: Vec<Pod> = self.registry.indexed_as(&self.pods, &format!("owner:{}", set.metadata.uid))?;
            if pods.iter().any(|pod| !pod.finished()) {
                running.push(set.metadata.uid.clone());
            }
        }
        Ok(running)
    }

    async fn carry_out(&self, deployment: &Deployment, plan: Plan, hash: &str) -> Result<(), Status> {
        if let Some(creation) = &plan.create
            && !self.create(deployment, creation, hash).await?
        {
            return Ok(());
        }
        for update in &plan.updates {
            self.update(update).await?;
        }
        for set in &plan.deletes {
            let options = DeleteOptions { user: self.options.user.clone(), ..DeleteOptions::of(&set.uid) };
            let deleted = self.registry.delete(&self.sets, &set.namespace, &set.name, &options).await;
            still_there(deleted)?;
        }
        if plan.status.is_some() || plan.revision.is_some() {
            self.write_status(deployment, plan.status.as_ref(), plan.revision.as_deref()).await?;
        }
        for (kind, reason, message) in plan.events {
            self.event(deployment, kind, reason, message);
        }
        Ok(())
    }

    /// Creates the set of the current template. `false`: the namespace is going away, nothing more is to be done.
    async fn create(&self, deployment: &Deployment, creation: &Creation, hash: &str) -> Result<bool, Status> {
        let set = new_set(deployment, creation, hash)?;
        let name = meta::name(&set).to_owned();
        let namespace = &deployment.metadata.namespace;
        let Err(status) = self.registry.create(&self.sets, namespace, set, &self.options).await else {
            return Ok(true);
        };
        if namespace_is_terminating(&status) {
            return Ok(false);
        }
        if status.reason == "AlreadyExists" {
            return self.taken(deployment, &name, status).await;
        }
        let text = format!("Failed to create new replica set {name:?}: {status}");
        if deployment.progress_deadline().is_some() {
            let mut failed = deployment.status.clone();
            failed.set_condition(model::condition(
                "Progressing",
                "False",
                "ReplicaSetCreateError",
                text.as_str(),
                now(),
            ));
            self.write_status(deployment, Some(&failed), None).await?;
        }
        self.event(deployment, EventKind::Warning, "ReplicaSetCreateError", text);
        Err(status)
    }

    /// The name of the new set is taken. Unless it is our own set, the next try uses another hash.
    async fn taken(&self, deployment: &Deployment, name: &str, status: Status) -> Result<bool, Status> {
        let found = self.registry.get_as::<ReplicaSet>(&self.sets, &deployment.metadata.namespace, name);
        let ours = still_there(found)?.is_some_and(|set| {
            set.metadata.controlled_by(&deployment.metadata.uid)
                && revision::same_template(&set.spec.template, &deployment.spec.template)
        });
        if !ours {
            let collisions = deployment.status.collision_count.unwrap_or_default() + 1;
            let bumped = model::Status { collision_count: Some(collisions), ..deployment.status.clone() };
            self.write_status(deployment, Some(&bumped), None).await?;
        }
        Err(status)
    }

    async fn update(&self, update: &Update) -> Result<(), Status> {
        let Meta { namespace, name, uid, .. } = &update.set;
        let written = self.registry.modify(&self.sets, namespace, name, None, &self.options, |set| {
            if meta::uid(set) == uid {
                meta::set(set, "/spec/replicas", update.replicas);
                if meta::int_at(set, "/spec/minReadySeconds").unwrap_or_default() != update.min_ready_seconds {
                    meta::set(set, "/spec/minReadySeconds", update.min_ready_seconds);
                }
                for (key, value) in &update.annotations {
                    meta::set_annotation(set, key, value);
                }
            }
            Ok(())
        });
        still_there(written.await).map(drop)
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        status: Option<&model::Status>,
        revision: Option<&str>,
    ) -> Result<(), Status> {
        let status = status.map(to_object).transpose()?;
        let Meta { namespace, name, uid, .. } = &deployment.metadata;
        let part = Some(Subresource::Status);
        let written = self.registry.modify(&self.deployments, namespace, name, part, &self.options, |deployment| {
            if meta::uid(deployment) == uid {
                if let Some(status) = &status {
                    deployment.insert("status".to_owned(), Value::Object(status.clone()));
                }
                if let Some(revision) = revision {
                    meta::set_annotation(deployment, REVISION, revision);
                }
            }
            Ok(())
        });
        still_there(written.await).map(drop)
    }

    fn event(&self, deployment: &Deployment, kind: EventKind, reason: &str, message: String) {
        let about = Reference {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: deployment.metadata.namespace.clone(),
            name: deployment.metadata.name.clone(),
            uid: deployment.metadata.uid.clone(),
            field_path: String::new(),
        };
        self.events.record(&about, kind, reason, message);
    }

    /// The Deployment of a pod that came to its end: one that recreates waits for that.
    fn of_pod(&self, change: &Change<'_>) -> Option<Key> {
        let set = change.meta.controller().filter(|owner| owner.kind == "ReplicaSet")?;
        let set = self.registry.get_as::<ReplicaSet>(&self.sets, &change.meta.namespace, &set.name).ok()?;
        let owner = set.metadata.controller().filter(|owner| owner.kind == "Deployment")?;
        Some(deployment_key(&change.meta.namespace, &owner.name))
    }
}

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["deployments.apps", "replicasets.apps", "pods"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        match change.resource() {
            RESOURCE => return vec![change.key()],
            "pods" => {
                let gone = change.kind == crate::registry::EventType::Deleted;
                return if gone { self.of_pod(change).into_iter().collect() } else { Vec::new() };
            }
            _ => self.orphans.note(change),
        }
        let namespace = &change.meta.namespace;
        let owners = [Some(&change.meta), change.previous.as_ref()].into_iter().flatten().filter_map(Meta::controller);
        let ours: BTreeSet<&str> = owners.filter(|o| o.kind == "Deployment").map(|o| o.name.as_str()).collect();
        let mut keys: Vec<Key> = ours.into_iter().map(|name| deployment_key(namespace, name)).collect();
        if change.meta.controller().is_none() && !change.meta.deleting() {
            keys.extend(claim::adopters(&self.registry, &self.deployments, namespace, &change.meta.labels));
        }
        keys
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}

fn deployment_key(namespace: &str, name: &str) -> Key {
    Key { resource: RESOURCE.into(), namespace: namespace.into(), name: name.into() }
}

/// The ReplicaSet of a Deployment's current template.
fn new_set(deployment: &Deployment, creation: &Creation, hash: &str) -> Result<Object, Status> {
    let meta = &deployment.metadata;
    let mut template = deployment.spec.template.clone();
    meta::set(&mut template, &format!("/metadata/labels/{HASH}"), hash);
    let labels = meta::pointer(&template, "/metadata/labels").cloned();
    let mut selector = deployment.spec.selector.clone();
    meta::set(&mut selector, &format!("/matchLabels/{HASH}"), hash);
    let mut spec = json!({"replicas": creation.replicas, "selector": selector, "template": template});
    if deployment.spec.min_ready_seconds != 0 {
        spec["minReadySeconds"] = deployment.spec.min_ready_seconds.into();
    }
    to_object(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", meta.name), "namespace": meta.namespace, "labels": labels,
            "annotations": creation.annotations,
            "ownerReferences": [controller_reference("apps/v1", "Deployment", meta)],
        },
        "spec": spec,
    }))
}

#[cfg(test)]
mod tests;
