//! Garbage collection by owner references: background, foreground and orphaning (`pkg/controller/garbagecollector`).
//!
//! Kubernetes keeps a graph of all objects in memory. Here the store's index `owner:UID` answers who depends on an
//! object, and every object with owners is looked at once at the start, in case its owner went while nobody looked.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;

use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};
use crate::registry::{DeleteOptions, EventType, Preconditions, Propagation, Registry, WriteOptions};
use crate::store::Key;

use super::claim::drop_owner;
use super::model::{Meta, Owner};
use super::runner::{Change, Controller, Interest, Next};
use super::still_there;

const NAME: &str = "generic-garbage-collector";
/// The finalizer of an owner whose dependents are deleted first.
const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner whose dependents stay.
const ORPHAN: &str = "orphan";

/// See the module.
pub struct Garbage {
    registry: Registry,
    options: WriteOptions,
}

/// An object of any kind.
#[derive(Deserialize)]
struct Head {
    metadata: Meta,
}

/// An object and what depends on it or not.
struct Found {
    kind: std::sync::Arc<Kind>,
    meta: Meta,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerState {
    /// It is there.
    Solid,
    /// It is gone.
    Dangling,
    /// It is going, after its dependents.
    Waiting,
}

/// What becomes of an object because of its owners.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It stays as it is.
    Keep,
    /// It stays, without the owners of these UIDs.
    Drop(Vec<String>),
    /// It goes.
    Delete(Propagation),
}

/// Judges an object by the state of each of its owners.
fn judge(item: &Meta, owners: &[OwnerState], has_dependents: bool) -> Verdict {
    let gone = |state: &OwnerState| *state != OwnerState::Solid;
    if owners.contains(&OwnerState::Solid) {
        let losing = item.owner_references.iter().zip(owners).filter(|(_, state)| gone(state));
        let uids: Vec<String> = losing.map(|(owner, _)| owner.uid.clone()).collect();
        return if uids.is_empty() { Verdict::Keep } else { Verdict::Drop(uids) };
    }
    let propagation = if owners.contains(&OwnerState::Waiting) && has_dependents || item.has_finalizer(FOREGROUND) {
        Propagation::Foreground
    } else if item.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else {
        Propagation::Background
    };
    Verdict::Delete(propagation)
}

impl Garbage {
    /// The controller over a registry.
    pub fn new(registry: &Registry) -> Self {
        Self { registry: registry.clone(), options: WriteOptions::by(NAME) }
    }

    async fn sync(&self, key: &Key) -> Result<(), Status> {
        let Some(kind) = self.registry.kinds().by_resource(&key.resource) else { return Ok(()) };
        let found = self.registry.get_as::<Head>(&kind, &key.namespace, &key.name);
        let Some(Head { metadata: meta }) = still_there(found)? else { return Ok(()) };
        let item = Found { kind, meta };
        match item.meta.deleting() {
            true if item.meta.has_finalizer(ORPHAN) => self.orphan(&item).await,
            true if item.meta.has_finalizer(FOREGROUND) => self.delete_dependents(&item).await,
            true => Ok(()),
            false => self.collect(&item).await,
        }
    }

    /// Frees the dependents of an object that goes without them.
    async fn orphan(&self, owner: &Found) -> Result<(), Status> {
        for dependent in self.dependents(&owner.meta.uid)? {
            self.drop_owners(&dependent, std::slice::from_ref(&owner.meta.uid)).await?;
        }
        self.drop_finalizer(owner, ORPHAN).await
    }

    /// Deletes the dependents of an object that goes after them, or lets it go when none is left that blocks it.
    async fn delete_dependents(&self, owner: &Found) -> Result<(), Status> {
        let dependents = self.dependents(&owner.meta.uid)?;
        let blocks = |o: &Owner| o.uid == owner.meta.uid && o.block_owner_deletion;
        if !dependents.iter().any(|d| d.meta.owner_references.iter().any(blocks)) {
            return self.drop_finalizer(owner, FOREGROUND).await;
        }
        for dependent in dependents.iter().filter(|d| !d.meta.deleting()) {
            self.collect(dependent).await?;
        }
        Ok(())
    }

    /// Deletes an object whose owners are all gone or going.
    async fn collect(&self, item: &Found) -> Result<(), Status> {
        let owners = &item.meta.owner_references;
        if owners.is_empty() {
            return Ok(());
        }
        let states: Vec<OwnerState> = owners.iter().map(|o| self.state(item, o)).collect::<Result<_, _>>()?;
        if states.iter().all(|state| *state == OwnerState::Solid) {
            return Ok(());
        }
        let dependents = self.dependents(&item.meta.uid)?;
        match judge(&item.meta, &states, !dependents.is_empty()) {
            Verdict::Keep => Ok(()),
            Verdict::Drop(uids) => self.drop_owners(item, &uids).await,
            Verdict::Delete(propagation) => {
                // Objects that own one another would wait for one another for ever.
                let circle = |d: &Found| d.meta.deleting() && d.meta.has_finalizer(FOREGROUND);
                if propagation == Propagation::Foreground && dependents.iter().any(circle) {
                    self.unblock(item).await?;
                    return self.delete(item, Propagation::Foreground, false).await;
                }
                self.delete(item, propagation, true).await
            }
        }
    }

    fn state(&self, item: &Found, owner: &Owner) -> Result<OwnerState, Status> {
        let Some(kind) = self.registry.kinds().by_api_version(&owner.api_version, &owner.kind) else {
            // Of a kind that is not served nothing can be said, so nothing is deleted for it.
            return Ok(OwnerState::Solid);
        };
        if kind.namespaced && !item.kind.namespaced {
            // Refers to nothing that could be found; Kubernetes leaves such objects alone, too.
            return Ok(OwnerState::Solid);
        }
        let namespace = if kind.namespaced { item.meta.namespace.as_str() } else { "" };
        let found = still_there(self.registry.get_as::<Head>(&kind, namespace, &owner.name))?;
        Ok(match found.map(|head| head.metadata) {
            Some(meta) if meta.uid == owner.uid && meta.deleting() && meta.has_finalizer(FOREGROUND) => {
                OwnerState::Waiting
            }
            Some(meta) if meta.uid == owner.uid => OwnerState::Solid,
            _ => OwnerState::Dangling,
        })
    }

    /// Everything that refers to an owner.
    fn dependents(&self, uid: &str) -> Result<Vec<Found>, Status> {
        let index = format!("owner:{uid}");
        let mut seen = HashSet::new();
        let mut dependents = Vec::new();
        for kind in self.registry.kinds().all() {
            if seen.insert(kind.resource()) {
                let found: Vec<Head> = self.registry.indexed_as(&kind, &index)?;
                dependents.extend(found.into_iter().map(|head| Found { kind: kind.clone(), meta: head.metadata }));
            }
        }
        Ok(dependents)
    }

    async fn delete(&self, item: &Found, propagation: Propagation, unchanged: bool) -> Result<(), Status> {
        // Whoever gives the object a new owner meanwhile keeps it.
        let revision = unchanged.then(|| item.meta.resource_version.clone());
        let options = DeleteOptions {
            preconditions: Preconditions { uid: Some(item.meta.uid.clone()), revision },
            propagation: Some(propagation),
            user: self.options.user.clone(),
            ..DeleteOptions::default()
        };
        let Meta { namespace, name, .. } = &item.meta;
        still_there(self.registry.delete(&item.kind, namespace, name, &options).await).map(drop)
    }

    async fn drop_owners(&self, item: &Found, uids: &[String]) -> Result<(), Status> {
        self.change(item, |object| uids.iter().for_each(|uid| drop_owner(object, uid))).await
    }

    async fn drop_finalizer(&self, item: &Found, finalizer: &str) -> Result<(), Status> {
        self.change(item, |object| {
            meta::remove_finalizer(object, finalizer);
        })
        .await
    }

    /// Lets an object's owners go without waiting for it.
    async fn unblock(&self, item: &Found) -> Result<(), Status> {
        self.change(item, |object| {
            if let Some(Value::Array(owners)) = meta::pointer_mut(object, "/metadata/ownerReferences") {
                owners.iter_mut().for_each(|owner| owner["blockOwnerDeletion"] = false.into());
            }
        })
        .await
    }

    async fn change(&self, item: &Found, change: impl Fn(&mut Object) + Send + Sync) -> Result<(), Status> {
        let Meta { namespace, name, uid, .. } = &item.meta;
        let changed = self.registry.modify(&item.kind, namespace, name, None, &self.options, |object| {
            if meta::uid(object) == uid {
                change(object);
            }
            Ok(())
        });
        still_there(changed.await).map(drop)
    }

    /// The keys of an object's owners.
    fn owners<'a>(&'a self, of: &'a Meta) -> impl Iterator<Item = Key> + 'a {
        of.owner_references.iter().filter_map(|owner| {
            let kind = self.registry.kinds().by_api_version(&owner.api_version, &owner.kind)?;
            let namespace = if kind.namespaced { of.namespace.as_str() } else { "" };
            Some(key(&kind, namespace, &owner.name))
        })
    }
}

fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    Key { resource: kind.resource().into(), namespace: namespace.into(), name: name.into() }
}

impl Controller for Garbage {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Everything
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let meta = &change.meta;
        if change.kind == EventType::Deleted {
            let mut keys: Vec<Key> = self.owners(meta).collect();
            match self.dependents(&meta.uid) {
                Ok(found) => keys.extend(found.iter().map(|d| key(&d.kind, &d.meta.namespace, &d.meta.name))),
                Err(status) => {
                    tracing::error!(%status, uid = meta.uid, "cannot find the dependents of a deleted object")
                }
            }
            return keys;
        }
        let before = change.previous.as_ref();
        let owners_changed = before.map_or(&[][..], |b| &b.owner_references) != meta.owner_references;
        let finalizing = meta.deleting() && (meta.has_finalizer(FOREGROUND) || meta.has_finalizer(ORPHAN));
        let mut keys = Vec::new();
        if owners_changed || finalizing {
            keys.push(change.key());
        }
        if let Some(before) = before.filter(|_| owners_changed) {
            // An owner that waits for this object may be waiting no longer.
            keys.extend(self.owners(before));
        }
        keys
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(async { self.sync(key).await.map(|()| None) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::OwnerState::{Dangling, Solid, Waiting};
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_go_with_their_last_owner() {
        use Propagation::{Background, Foreground, Orphan};
        let drop = |uids: &[&str]| Verdict::Drop(uids.iter().map(|u| (*u).to_owned()).collect());
        for (what, owners, finalizer, has_dependents, expected) in [
            ("has its owner", vec![Solid], "", false, Verdict::Keep),
            ("lost its owner", vec![Dangling], "", true, Verdict::Delete(Background)),
            ("lost one of two", vec![Dangling, Solid], "", true, drop(&["0"])),
            ("is to lose one of three", vec![Solid, Waiting, Dangling], "", true, drop(&["1", "2"])),
            ("goes first", vec![Waiting], "", false, Verdict::Delete(Background)),
            ("goes first, after its own", vec![Waiting, Dangling], "", true, Verdict::Delete(Foreground)),
            ("is to leave orphans", vec![Dangling], ORPHAN, true, Verdict::Delete(Orphan)),
            ("is to go last", vec![Dangling], FOREGROUND, true, Verdict::Delete(Foreground)),
        ] {
            let references: Vec<Value> = (0..owners.len()).map(|i| json!({"uid": i.to_string()})).collect();
            let item = json!({"name": "x", "ownerReferences": references, "finalizers": [finalizer]});
            let item: Meta = serde_json::from_value(item).unwrap();
            assert_eq!(judge(&item, &owners, has_dependents), expected, "{what}");
        }
    }
}
