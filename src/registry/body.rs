//! How objects are stored: JSON that begins with `{"metadata":{` and leaves out what every reader gets spliced in
//! (`kind`, `apiVersion`, `metadata.resourceVersion`), so that reading copies bytes and parses nothing.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::store::{Key, Record};

/// What every stored object begins with.
const START: &[u8] = br#"{"metadata":{"#;

/// What is spliced in front of the objects of a kind.
#[derive(Clone, Debug)]
pub struct Head(Arc<str>);

impl Head {
    /// The head of a kind's objects.
    pub fn of(kind: &Kind) -> Self {
        let (name, version) = (&kind.kind, kind.api_version());
        Self(format!(r#"{{"kind":"{name}","apiVersion":"{version}","metadata":{{"resourceVersion":""#).into())
    }
}

/// An object as it is stored, together with what it takes to serve it.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Resource, namespace and name.
    pub key: Key,
    /// Its resource version.
    pub revision: u64,
    body: Bytes,
    head: Head,
}

/// The part of an object that label selectors need.
#[derive(Deserialize)]
struct Labelled {
    metadata: Labels,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(default)]
    labels: Object,
}

#[derive(Deserialize)]
struct MetadataOnly<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

impl Raw {
    /// An object that is parsed already, in the form of a stored one.
    pub fn of(kind: &Kind, object: &Object) -> Result<Self, Status> {
        let key = Key {
            resource: kind.resource().into(),
            namespace: meta::namespace(object).into(),
            name: meta::name(object).into(),
        };
        let revision = meta::resource_version(object).parse().unwrap_or_default();
        Ok(Self { key, revision, body: encode(object)?, head: Head::of(kind) })
    }

    /// A stored record of a kind.
    pub fn new(head: &Head, record: Record) -> Self {
        Self { key: record.key, revision: record.revision, body: record.data, head: head.clone() }
    }

    /// Length of the complete object in bytes, within a few.
    pub fn size(&self) -> usize {
        self.head.0.len() + self.body.len() + 24
    }

    /// Appends the complete object as JSON.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.size());
        out.extend_from_slice(self.head.0.as_bytes());
        out.extend_from_slice(self.revision.to_string().as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(self.body.get(START.len()..).unwrap_or_default());
    }

    /// The complete object as JSON.
    pub fn json(&self) -> Bytes {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out.into()
    }

    /// Appends the object's `PartialObjectMetadata`.
    pub fn write_metadata_to(&self, out: &mut Vec<u8>) -> Result<(), Status> {
        let parsed: MetadataOnly = serde_json::from_slice(&self.body).map_err(|e| self.damaged(&e))?;
        out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#);
        out.extend_from_slice(format!(r#"{{"resourceVersion":"{}","#, self.revision).as_bytes());
        out.extend_from_slice(parsed.metadata.get().as_bytes().get(1..).unwrap_or_default());
        out.push(b'}');
        Ok(())
    }

    /// The parsed object with `kind`, `apiVersion` and `resourceVersion`.
    pub fn object(&self) -> Result<Object, Status> {
        serde_json::from_slice(&self.json()).map_err(|e| self.damaged(&e))
    }

    /// The parsed object as a typed struct, with `resourceVersion`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Status> {
        serde_json::from_slice(&self.json()).map_err(|e| self.damaged(&e))
    }

    /// Its labels as an object, without parsing the rest.
    pub fn labels(&self) -> Result<Object, Status> {
        let parsed: Labelled = serde_json::from_slice(&self.body).map_err(|e| self.damaged(&e))?;
        Ok(parsed.metadata.labels)
    }

    fn damaged(&self, error: &serde_json::Error) -> Status {
        Status::internal(format!("stored object {:?} of {}: {error}", self.key.name, self.key.resource))
    }
}

/// The bytes to store of an object.
pub(super) fn encode(object: &Object) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(START);
    let failed = |e| Status::internal(format!("encode {}: {e}", meta::name(object)));
    let metadata = object.get("metadata").and_then(Value::as_object).into_iter().flatten();
    fields(&mut out, metadata.filter(|(key, _)| *key != "resourceVersion")).map_err(failed)?;
    out.push(b'}');
    for field in object.iter().filter(|(key, _)| !["metadata", "kind", "apiVersion"].contains(&key.as_str())) {
        out.push(b',');
        fields(&mut out, std::iter::once(field)).map_err(failed)?;
    }
    out.push(b'}');
    Ok(out.into())
}

/// `"key":value` for each field, with commas between.
fn fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a String, &'a Value)>) -> serde_json::Result<()> {
    for (i, (key, value)) in fields.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        serde_json::to_writer(&mut *out, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn raw(object: &Value) -> Raw {
        let kind = crate::kinds::table::KindTable::builtin().by_plural("apps", "v1", "deployments").unwrap();
        let key = Key { resource: "deployments.apps".into(), namespace: "a".into(), name: "web".into() };
        let data = encode(object.as_object().unwrap()).unwrap();
        Raw::new(&Head::of(&kind), Record { key, revision: 42, data })
    }

    #[test]
    fn an_object_survives_storing() {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "resourceVersion": "7", "labels": {"a": "b\n\"c"}, "annotations": {}},
            "spec": {"replicas": 2, "odd\"key": [1.5, null, "ü"]}, "data": {"first": true},
        });
        let raw = raw(&object);
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(Value::Object(raw.object().unwrap()), expected);
        assert_eq!(Value::Object(raw.labels().unwrap()), object["metadata"]["labels"]);
        assert!(!raw.body.windows(15).any(|w| w == b"resourceVersion"));
        assert!(
            raw.json()
                .starts_with(br#"{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"resourceVersion":"42","#)
        );
        let mut partial = Vec::new();
        raw.write_metadata_to(&mut partial).unwrap();
        let partial: Value = serde_json::from_slice(&partial).unwrap();
        assert_eq!(partial["metadata"], expected["metadata"]);
        assert_eq!(partial["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn objects_without_labels_have_none() {
        assert!(raw(&json!({"metadata": {"name": "web"}})).labels().unwrap().is_empty());
    }
}
