//! Get, and what an index finds.

use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::store::{Key, Store};

use super::body::{Head, Raw};
use super::error;

/// The store's key of an object.
pub(super) fn key(kind: &Kind, ns: &str, name: &str) -> Key {
    Key { resource: kind.resource().into(), namespace: ns.into(), name: name.into() }
}

pub(super) fn get(store: &Store, kind: &Kind, ns: &str, name: &str) -> Result<Raw, Status> {
    let key = key(kind, ns, name);
    match store.get(&key) {
        Ok(Some(record)) => Ok(Raw::new(&Head::of(kind), record)),
        Ok(None) => Err(Status::not_found(&kind.group, &kind.plural, name)),
        Err(e) => Err(error::status(&key.resource, e)),
    }
}

pub(super) fn indexed(store: &Store, kind: &Kind, index: &str) -> Result<Vec<Raw>, Status> {
    let (resource, head) = (kind.resource(), Head::of(kind));
    let records = store.find(&resource, index).map_err(|e| error::status(&resource, e))?;
    Ok(records.into_iter().map(|record| Raw::new(&head, record)).collect())
}
