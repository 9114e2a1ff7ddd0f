//! Objects in SQLite: compare-and-swap, index, watch ring, durability classes. Knows bytes and keys, not Kubernetes.

mod body;
mod disk;
mod error;
mod handle;
mod options;
mod plan;
mod state;
mod watch;
mod writer;

pub use error::Error;
pub use handle::{Page, Store};
pub use options::{Limits, Options};
pub use watch::Watch;

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// The name of an object: resource (for example `pods` or `deployments.apps`), namespace (empty for cluster scope), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `plural` or `plural.group`.
    pub resource: Arc<str>,
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

/// How much a write is worth to the flash it lands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk before the answer.
    Durable,
    /// In memory at once, on disk within seconds and on shutdown; recomputable after a power cut.
    Lazy,
    /// Memory only, bounded.
    Volatile,
}

impl Key {
    /// A key from its parts.
    pub fn new(resource: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

/// `resource "namespace/name"`, without the slash for cluster scope.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} \"{}{slash}{}\"", self.resource, self.namespace, self.name)
    }
}

/// What must be true of the stored object for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is none.
    Absent,
    /// It is at this revision.
    Revision(u64),
    /// There is one, whatever its revision.
    Present,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// Which object.
    pub key: Key,
    /// Precondition.
    pub expect: Expect,
    /// The new bytes, or `None` to delete.
    pub data: Option<Bytes>,
    /// Secondary index keys of the new object, for example `owner:UID`.
    pub index: Vec<String>,
    /// Durability class.
    pub durability: Durability,
}

/// A stored object.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// The revision of its last change.
    pub revision: u64,
    /// Its bytes as written.
    pub data: Bytes,
}

/// One change as watchers see it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which object.
    pub key: Key,
    /// The revision this change made; of a delete too.
    pub revision: u64,
    /// The new bytes; `None` for a delete.
    pub data: Option<Bytes>,
    /// The bytes before; `None` for a create.
    pub previous: Option<Bytes>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
