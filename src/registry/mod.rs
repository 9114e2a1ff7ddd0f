//! The verbs on objects without HTTP: defaulting, validation, admission, preconditions, managed fields, storing.
//!
//! Everything that changes an object goes through here: the API, the controllers, the scheduler and the fleet.
//!
//! # Guarantees
//! - A write that was acknowledged is as durable as its class says ([`Durability`](crate::store::Durability)): what a
//!   user wrote is on disk, status reaches it within seconds, volatile kinds never do.
//! - A write that changes nothing is answered with the stored object; the resource version stays and nothing is written.
//! - Reads copy stored bytes and parse nothing unless objects are asked for.

mod admission;
mod body;
mod bootstrap;
mod delete;
mod error;
mod identity;
mod list;
mod model;
mod options;
mod read;
mod repair;
mod select;
mod services;
mod sub;
mod watch;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::sync::watch as latest;

use crate::cidr::Cidr;
use crate::config::DEFAULT_SERVICE_CIDR;
use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::kinds::{Kind, Object, Subresource};
use crate::store::Store;

pub use body::Raw;
pub use error::too_large as future_revision;
pub use options::{
    DeleteOptions, FieldValidation, ListOptions, Patch, PatchType, Preconditions, Propagation, Warnings, WriteOptions,
};
pub use select::Filter;
pub use watch::{Event, EventType, Watch};
use write::Call;

/// Deletes of a collection under way at a time.
const DELETES: usize = 32;

/// The objects of a cluster and the rules they follow. Cheap to clone; all clones are one registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    kinds: KindTable,
    services: services::Allocator,
    /// The newest revision this registry wrote, for whoever must know that something changed somewhere.
    latest: latest::Sender<u64>,
}

/// One page of a list.
#[derive(Debug, Default)]
pub struct List {
    /// The resource version of the list: watch after this one to miss nothing.
    pub revision: u64,
    /// The objects in the order of namespace and name.
    pub items: Vec<Raw>,
    /// The token for the next page, if there is more.
    pub next: Option<String>,
    /// How many objects are left after this page; unknown with selectors.
    pub remaining: Option<u64>,
}

/// What became of a delete.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; this is its last state.
    Gone(Object),
    /// It has a `deletionTimestamp` and waits for its grace period or finalizers; this is its new state.
    Pending(Object),
}

impl Registry {
    /// A registry over a store, with the usual network of Services. Call [`Registry::bootstrap`] before serving.
    pub fn new(store: Store, kinds: KindTable) -> Self {
        Self::with_services(store, kinds, DEFAULT_SERVICE_CIDR)
    }

    /// [`Registry::new`] with another network of Services.
    pub fn with_services(store: Store, kinds: KindTable, service_cidr: Cidr) -> Self {
        let latest = latest::Sender::new(store.revision());
        let services = services::Allocator::new(service_cidr);
        Self { inner: Arc::new(Inner { store, kinds, services, latest }) }
    }

    /// The kinds served.
    pub fn kinds(&self) -> &KindTable {
        &self.inner.kinds
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Makes what every cluster has (the namespaces `default`, `kube-system`, `kube-public`, `kube-node-lease` and their
    /// `default` service accounts) where it is missing, and repairs Services whose addresses are not theirs.
    pub async fn bootstrap(&self) -> Result<(), Status> {
        bootstrap::run(self).await
    }

    /// One object; 404 if there is none. `ns` is empty for cluster-scoped kinds.
    pub fn get(&self, kind: &Kind, ns: &str, name: &str) -> Result<Object, Status> {
        self.get_raw(kind, ns, name)?.object()
    }

    /// [`Registry::get`] as a typed struct.
    pub fn get_as<T: DeserializeOwned>(&self, kind: &Kind, ns: &str, name: &str) -> Result<T, Status> {
        self.get_raw(kind, ns, name)?.parse()
    }

    /// [`Registry::get`] without parsing.
    pub fn get_raw(&self, kind: &Kind, ns: &str, name: &str) -> Result<Raw, Status> {
        read::get(&self.inner.store, kind, ns, name)
    }

    /// A page of objects, or all of them without a limit. 410 for a continue token older than the kept history.
    pub fn list(&self, kind: &Kind, options: &ListOptions) -> Result<List, Status> {
        list::list(&self.inner.store, kind, options)
    }

    /// [`Registry::list`] that lets other tasks run between every few hundred objects.
    pub async fn list_slowly(&self, kind: &Kind, options: &ListOptions) -> Result<List, Status> {
        list::list_slowly(&self.inner.store, kind, options).await
    }

    /// All objects the options select, as typed structs.
    pub fn list_as<T: DeserializeOwned>(&self, kind: &Kind, options: &ListOptions) -> Result<Vec<T>, Status> {
        self.list(kind, options)?.items.iter().map(Raw::parse).collect()
    }

    /// All objects with an index key such as `owner:UID` or `node:NAME`, as typed structs.
    pub fn indexed_as<T: DeserializeOwned>(&self, kind: &Kind, index: &str) -> Result<Vec<T>, Status> {
        read::indexed(&self.inner.store, kind, index)?.iter().map(Raw::parse).collect()
    }

    /// All objects with an index key.
    pub fn indexed(&self, kind: &Kind, index: &str) -> Result<Vec<Object>, Status> {
        read::indexed(&self.inner.store, kind, index)?.iter().map(Raw::object).collect()
    }

    /// Creates an object; name and namespace are the object's, a missing namespace is `ns`.
    pub async fn create(
        &self,
        kind: &Kind,
        ns: &str,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        Call::new(self, kind, ns, options).create(object).await
    }

    /// Replaces an object or, with a subresource, the part of it that the subresource stands for.
    /// 409 if `metadata.resourceVersion` is given and not the stored one.
    pub async fn update(
        &self,
        kind: &Kind,
        ns: &str,
        name: &str,
        sub: Option<Subresource>,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        Call::new(self, kind, ns, options).update(name, sub, object).await
    }

    /// Reads, changes and writes an object, again if somebody else wrote in between. Nothing is written if `change`
    /// changes nothing; an error of `change` ends it.
    pub async fn modify(
        &self,
        kind: &Kind,
        ns: &str,
        name: &str,
        sub: Option<Subresource>,
        options: &WriteOptions,
        change: impl FnMut(&mut Object) -> Result<(), Status>,
    ) -> Result<Object, Status> {
        Call::new(self, kind, ns, options).modify(name, sub, change).await
    }

    /// Applies a patch of one of the four types. Server-side apply creates a missing object: then `true` is returned.
    pub async fn patch(
        &self,
        kind: &Kind,
        ns: &str,
        name: &str,
        sub: Option<Subresource>,
        patch: Patch,
        options: &WriteOptions,
    ) -> Result<(Object, bool), Status> {
        Call::new(self, kind, ns, options).patch(name, sub, &patch).await
    }

    /// Deletes an object, or starts its graceful deletion.
    pub async fn delete(&self, kind: &Kind, ns: &str, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
        let write = WriteOptions { dry_run: options.dry_run, user: options.user.clone(), ..WriteOptions::default() };
        Call::new(self, kind, ns, &write).delete(name, options).await
    }

    /// Deletes every object the list options select; answers what was selected.
    pub async fn delete_collection(
        &self,
        kind: &Kind,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List, Status> {
        let selected = self.list_slowly(kind, list).await?;
        for some in selected.items.chunks(DELETES) {
            // Several at a time share one write to disk.
            let deletes: Vec<_> =
                some.iter().map(|raw| self.delete(kind, &raw.key.namespace, &raw.key.name, options)).collect();
            for result in join_all(deletes).await {
                match result {
                    Err(status) if status.code != 404 => return Err(status),
                    _ => {}
                }
            }
        }
        Ok(selected)
    }

    /// Changes of a kind after a revision (`None`: from now on), in one namespace or all. 410 if the revision is older
    /// than the kept history.
    pub fn watch(&self, kind: &Kind, ns: Option<&str>, after: Option<u64>) -> Result<Watch, Status> {
        let resource = kind.resource();
        let store = &self.inner.store;
        let watch = store.watch(&resource, ns, after.unwrap_or_else(|| store.revision()));
        Ok(Watch::new(kind, watch.map_err(|e| error::status(&resource, e))?))
    }

    /// The newest revision of the store.
    pub fn revision(&self) -> u64 {
        self.inner.store.revision()
    }

    /// Follows the newest revision written: changes when any object of any kind does.
    pub fn latest(&self) -> latest::Receiver<u64> {
        self.inner.latest.subscribe()
    }

    /// Tells followers of [`Registry::latest`] of a commit. Commits may finish out of order.
    fn announce(&self, revision: u64) {
        self.inner.latest.send_if_modified(|latest| {
            let newer = revision > *latest;
            *latest = revision.max(*latest);
            newer
        });
    }
}
