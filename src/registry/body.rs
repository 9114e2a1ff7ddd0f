//! How objects are stored: JSON that begins with `{"metadata":{` and leaves out what every reader gets spliced in
//! (`kind`, `apiVersion`, `metadata.resourceVersion`), so that reading copies bytes and parses nothing.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::kinds::{Kind, Object};
use crate::kinds::status::Status;
use crate::store::Key;

/// An object as it is stored, together with what it takes to serve it.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Resource, namespace and name.
    pub key: Key,
    /// Its resource version.
    pub revision: u64,
    body: Bytes,
    head: Arc<str>,
}

impl Raw {
    /// The complete object as JSON.
    pub fn json(&self) -> Bytes {
        todo!()
    }

    /// The parsed object with `kind`, `apiVersion` and `resourceVersion`.
    pub fn object(&self) -> Result<Object, Status> {
        todo!()
    }

    /// The parsed object as a typed struct, with `resourceVersion`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Status> {
        todo!()
    }
}
