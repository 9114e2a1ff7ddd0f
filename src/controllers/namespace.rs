//! Emptying namespaces that are being deleted (`pkg/controller/namespace`): pods first, then everything else; the
//! namespace itself goes when nothing is left.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::kinds::meta;
use crate::kinds::namespace::FINALIZER;
use crate::kinds::status::{Status, qualified};
use crate::kinds::{Kind, Object, Subresource};
use crate::registry::{DeleteOptions, EventType, ListOptions, Propagation, Registry, WriteOptions};
use crate::store::Key;

use super::model::{Condition, Meta, now, or_default};
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, still_there};

const NAME: &str = "namespace-controller";

/// See the module.
pub struct Namespaces {
    registry: Registry,
    namespaces: Arc<Kind>,
    /// Those on their way out: changes in all others are none of our business.
    terminating: Mutex<HashSet<Arc<str>>>,
    options: WriteOptions,
}

#[derive(Deserialize)]
struct Namespace {
    metadata: Meta,
    #[serde(default)]
    status: NamespaceStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespaceStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Head {
    metadata: Meta,
}

/// What is left in a namespace, and what could not be deleted.
#[derive(Debug, Default)]
struct Rest {
    /// Objects by `plural.group`.
    resources: BTreeMap<String, usize>,
    /// Objects that wait for a finalizer, by finalizer.
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.errors.is_empty()
    }

    fn add(&mut self, kind: &Kind, meta: &Meta) {
        *self.resources.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += 1;
        for finalizer in &meta.finalizers {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

impl Namespaces {
    /// The controller over a registry.
    pub fn new(registry: &Registry) -> Result<Self, Status> {
        let namespaces = kind(registry, "namespaces")?;
        let options = WriteOptions::by(NAME);
        Ok(Self { registry: registry.clone(), namespaces, terminating: Mutex::default(), options })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let name = &key.name;
        let found = still_there(self.registry.get_as::<Namespace>(&self.namespaces, "", name))?;
        let Some(namespace) = found.filter(|n| n.metadata.deleting()) else { return Ok(None) };
        let rest = self.empty(name).await?;
        if rest.is_empty() {
            return self.finalize(&namespace.metadata).await.map(|()| None);
        }
        let conditions = conditions(&namespace.status.conditions, &rest, now());
        if conditions != namespace.status.conditions {
            self.write_conditions(&namespace.metadata, &conditions).await?;
        }
        match rest.errors.first() {
            Some(error) => Err(Status::internal(error)),
            // What is left goes by itself, and each object that does calls again.
            None => Ok(None),
        }
    }

    /// Deletes what is in a namespace; returns what is left of it. Nothing else is touched before the last pod is gone,
    /// so that no pod runs without what guards it.
    async fn empty(&self, namespace: &str) -> Result<Rest, Status> {
        let mut seen = HashSet::new();
        let mut kinds = self.registry.kinds().all();
        kinds.retain(|kind| kind.namespaced && seen.insert(kind.resource()));
        let (pods, others): (Vec<_>, Vec<_>) = kinds.into_iter().partition(|kind| kind.resource() == "pods");
        let mut rest = Rest::default();
        for kind in &pods {
            self.delete_all(kind, namespace, &mut rest).await?;
        }
        if rest.is_empty() {
            for kind in &others {
                self.delete_all(kind, namespace, &mut rest).await?;
            }
        }
        Ok(rest)
    }

    async fn delete_all(&self, kind: &Kind, namespace: &str, rest: &mut Rest) -> Result<(), Status> {
        let within = ListOptions::within(namespace);
        let all: Vec<Head> = self.registry.list_as(kind, &within)?;
        for Head { metadata } in all.iter().filter(|head| !head.metadata.deleting()) {
            let propagation = Some(Propagation::Background);
            let user = self.options.user.clone();
            let options = DeleteOptions { propagation, user, ..DeleteOptions::of(&metadata.uid) };
            if let Err(status) = self.registry.delete(kind, namespace, &metadata.name, &options).await
                && !matches!(status.code, 404 | 409)
            {
                rest.errors.push(format!("{}/{}: {status}", qualified(&kind.plural, &kind.group), metadata.name));
            }
        }
        if !all.is_empty() {
            let left: Vec<Head> = self.registry.list_as(kind, &within)?;
            left.iter().for_each(|head| rest.add(kind, &head.metadata));
        }
        Ok(())
    }

    async fn finalize(&self, namespace: &Meta) -> Result<(), Status> {
        let part = Some(Subresource::Other("finalize"));
        let done = self.registry.modify(&self.namespaces, "", &namespace.name, part, &self.options, |object| {
            if meta::uid(object) == namespace.uid
                && let Some(Value::Array(list)) = meta::pointer_mut(object, "/spec/finalizers")
            {
                list.retain(|finalizer| finalizer != FINALIZER);
            }
            Ok(())
        });
        still_there(done.await).map(drop)
    }

    async fn write_conditions(&self, namespace: &Meta, conditions: &[Condition]) -> Result<(), Status> {
        let conditions = json!(conditions);
        let part = Some(Subresource::Status);
        let written =
            self.registry.modify(&self.namespaces, "", &namespace.name, part, &self.options, |object: &mut Object| {
                if meta::uid(object) == namespace.uid {
                    meta::set(object, "/status/conditions", conditions.clone());
                }
                Ok(())
            });
        still_there(written.await).map(drop)
    }

    fn note(&self, change: &Change<'_>) -> bool {
        let mut terminating = self.terminating.lock().unwrap_or_else(PoisonError::into_inner);
        let name = &change.object.key.name;
        if change.kind != EventType::Deleted && change.meta.deleting() {
            terminating.insert(name.clone());
            return true;
        }
        terminating.remove(name);
        false
    }
}

/// The conditions of a namespace of which something is left. The time is that of the last change of a status.
fn conditions(old: &[Condition], rest: &Rest, now: Timestamp) -> Vec<Condition> {
    let list = |counts: &BTreeMap<String, usize>, unit: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {unit} {count} resource instances")).collect();
        parts.join(", ")
    };
    let deleted =
        ("False", "ContentDeleted", "All content successfully deleted, may be waiting on finalization".to_owned());
    let removed = ("False", "ContentRemoved", "All content successfully removed".to_owned());
    let finalized = ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned());
    let failed = || {
        let text =
            format!("Failed to delete all resource types, {} remaining: {}", rest.errors.len(), rest.errors.join(", "));
        ("True", "ContentDeletionFailed", text)
    };
    let remaining = || {
        let text = format!("Some resources are remaining: {}", list(&rest.resources, "has"));
        ("True", "SomeResourcesRemain", text)
    };
    let waiting = || {
        let text = format!("Some content in the namespace has finalizers remaining: {}", list(&rest.finalizers, "in"));
        ("True", "SomeFinalizersRemain", text)
    };
    [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("False", "ResourcesDiscovered", "All resources successfully discovered".to_owned()),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned()),
        ),
        ("NamespaceDeletionContentFailure", if rest.errors.is_empty() { deleted } else { failed() }),
        ("NamespaceContentRemaining", if rest.resources.is_empty() { removed } else { remaining() }),
        ("NamespaceFinalizersRemaining", if rest.finalizers.is_empty() { finalized } else { waiting() }),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| {
        let known = old.iter().find(|c| c.kind == kind && c.status == status);
        let since = known.and_then(|c| c.last_transition_time).or(Some(now));
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            last_update_time: None,
            last_transition_time: since,
            reason: reason.to_owned(),
            message,
        }
    })
    .collect()
}

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Everything
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        if change.resource() == "namespaces" {
            return if self.note(change) { vec![change.key()] } else { Vec::new() };
        }
        let namespace = &change.object.key.namespace;
        let concerned = change.kind != EventType::Modified
            && self.terminating.lock().unwrap_or_else(PoisonError::into_inner).contains(namespace);
        if concerned { vec![namespace_key(namespace)] } else { Vec::new() }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}

/// The key of a namespace.
pub(super) fn namespace_key(name: &str) -> Key {
    Key { resource: "namespaces".into(), namespace: "".into(), name: name.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut rest = Rest::default();
        rest.resources.insert("pods.".to_owned(), 2);
        rest.resources.insert("deployments.apps".to_owned(), 1);
        rest.finalizers.insert("example.com/x".to_owned(), 1);
        let first = conditions(&[], &rest, at(1));
        let text = |list: &[Condition], i: usize| {
            format!("{} {} {}: {}", list[i].kind, list[i].status, list[i].reason, list[i].message)
        };
        assert_eq!(
            text(&first, 3),
            "NamespaceContentRemaining True SomeResourcesRemain: Some resources are remaining: \
             deployments.apps has 1 resource instances, pods. has 2 resource instances"
        );
        assert_eq!(
            text(&first, 4),
            "NamespaceFinalizersRemaining True SomeFinalizersRemain: Some content in the namespace has finalizers \
             remaining: example.com/x in 1 resource instances"
        );
        rest.finalizers.clear();
        let second = conditions(&first, &rest, at(9));
        assert_eq!(second[3], first[3]);
        assert_eq!((second[4].status.as_str(), second[4].last_transition_time), ("False", Some(at(9))));
    }
}
