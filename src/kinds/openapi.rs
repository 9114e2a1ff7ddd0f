//! The OpenAPI documents of `/openapi/v2` and `/openapi/v3`, written on request from the field table and the list of
//! served resources. Nothing is kept in memory; a document is written piece by piece into (compressed) bytes.

mod paths;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::kinds::fields::{self, Type};
use types::Dialect;

/// Raised when the form of the documents changes, so that clients do not use what they have cached.
const FORMAT: u32 = 1;

/// A served resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resource<'a> {
    /// API group, empty for the core group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// CamelCase kind.
    pub kind: &'a str,
    /// Plural name in URLs.
    pub plural: &'a str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself, as discovery names them.
    pub verbs: &'a [&'a str],
    /// Subresources by name, such as `status`.
    pub subresources: &'a [&'a str],
    /// `openAPIV3Schema` of a custom resource; built-in kinds are described by the field table.
    pub schema: Option<&'a Value>,
}

impl Resource<'_> {
    /// `api/v1` or `apis/GROUP/VERSION`.
    fn root(&self) -> String {
        match self.group {
            "" => format!("api/{}", self.version),
            group => format!("apis/{group}/{}", self.version),
        }
    }

    /// The type in the field table; a custom resource has a schema instead.
    fn ty(&self) -> Option<&'static Type> {
        match self.schema {
            Some(_) => None,
            None => fields::of(self.group, self.version, self.kind),
        }
    }

    /// Name of the kind's definition. A custom resource's group is turned around: `com.example.v1.Foo`.
    fn id(&self) -> String {
        match self.ty() {
            Some(ty) => ty.id.to_owned(),
            None => {
                let mut parts: Vec<&str> = self.group.split('.').rev().collect();
                parts.extend([self.version, self.kind]);
                parts.join(".")
            }
        }
    }

    fn gvk(&self) -> Value {
        gvk(self.group, self.version, self.kind)
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// `/openapi/v3`: where each group version's document is. The hashes let clients cache the documents.
pub fn v3_index(served: &[Resource]) -> Value {
    let roots: BTreeSet<String> = served.iter().map(Resource::root).collect();
    let paths: serde_json::Map<String, Value> = roots
        .into_iter()
        .map(|root| {
            let url = format!("/openapi/v3/{root}?hash={}", hash(&of_root(served, &root)));
            (root, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The hash of a group version's document (`api/v1`, `apis/apps/v1`), for its `ETag`; `None` if nothing is served there.
pub fn v3_etag(served: &[Resource], root: &str) -> Option<String> {
    let served = of_root(served, root);
    (!served.is_empty()).then(|| hash(&served))
}

/// `/openapi/v3/ROOT`: the document of a group version; `None` if nothing is served there.
pub fn v3_document(served: &[Resource], root: &str, gzip: bool) -> Option<Vec<u8>> {
    let served = of_root(served, root);
    (!served.is_empty()).then(|| bytes(gzip, |out| write_document(out, &served, Dialect::V3)))
}

/// The hash of the `/openapi/v2` document, for its `ETag`.
pub fn v2_etag(served: &[Resource]) -> String {
    hash(&served.iter().collect::<Vec<_>>())
}

/// `/openapi/v2` as JSON: one document of everything.
pub fn v2_document(served: &[Resource], gzip: bool) -> Vec<u8> {
    bytes(gzip, |out| write_document(out, &served.iter().collect::<Vec<_>>(), Dialect::V2))
}

/// `/openapi/v2` as protobuf (`application/com.github.proto-openapi.spec.v2.v1.0+protobuf`): a document without paths
/// and definitions, which makes kubectl 1.27 and 1.28 fall back to what they know.
pub fn v2_protobuf() -> Vec<u8> {
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        // All lengths are below 128: one byte each.
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }
    let info = [field(1, TITLE.as_bytes()), field(2, VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b""), field(9, b"")].concat()
}

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.35.0";

fn of_root<'s, 'a>(served: &'s [Resource<'a>], root: &str) -> Vec<&'s Resource<'a>> {
    served.iter().filter(|resource| resource.root() == root).collect()
}

/// SHA-256 of everything that a document is made from.
fn hash(served: &[&Resource]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(format!("{FORMAT} {}", env!("CARGO_PKG_VERSION")).as_bytes());
    for resource in served {
        context.update(format!("{resource:?}").as_bytes());
    }
    for ty in reachable(served).values() {
        context.update(ty.id.as_bytes());
        for field in ty.fields {
            context.update(format!("{} {:?} {:?}", field.json, field.shape, field.rules.topology).as_bytes());
        }
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Every type that the documents of these resources refer to, by id.
fn reachable(served: &[&Resource]) -> BTreeMap<&'static str, &'static Type> {
    let mut todo: Vec<&'static Type> =
        ["DeleteOptions", "Status"].iter().filter_map(|kind| fields::of("", "v1", kind)).collect();
    todo.extend([fields::list_meta(), fields::object_meta()]);
    for resource in served {
        todo.extend(resource.ty());
        todo.extend(resource.subresources.iter().filter_map(|name| paths::subresource_type(name)));
    }
    let mut found = BTreeMap::new();
    while let Some(ty) = todo.pop() {
        if found.insert(ty.id, ty).is_none() {
            todo.extend(ty.json_fields().filter_map(fields::Field::struct_type));
        }
    }
    found
}

/// Runs a writer into memory; neither that nor the compressor can fail.
fn bytes(gzip: bool, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
    if !gzip {
        let mut plain = Vec::new();
        return write(&mut plain).map(|()| plain).unwrap_or_default();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    write(&mut encoder).and_then(|()| encoder.finish()).unwrap_or_default()
}

fn write_document(out: &mut dyn Write, served: &[&Resource], dialect: Dialect) -> io::Result<()> {
    let info = json!({"title": TITLE, "version": VERSION});
    match dialect {
        Dialect::V2 => write!(out, r#"{{"swagger":"2.0","info":{info},"paths":{{"#)?,
        Dialect::V3 => write!(out, r#"{{"openapi":"3.0.0","info":{info},"paths":{{"#)?,
    }
    let mut separator = "";
    for resource in served {
        for (path, item) in paths::of(resource, dialect) {
            write!(out, "{separator}{}:{item}", Value::from(path))?;
            separator = ",";
        }
    }
    out.write_all(match dialect {
        Dialect::V2 => br#"},"definitions":{"#,
        Dialect::V3 => br#"},"components":{"schemas":{"#,
    })?;
    let roots: BTreeMap<String, &Resource> = served.iter().map(|resource| (resource.id(), *resource)).collect();
    separator = "";
    let mut define = |out: &mut dyn Write, id: &str, schema: Value| {
        let result = write!(out, "{separator}{}:{schema}", Value::from(id));
        separator = ",";
        result
    };
    for (id, schema) in types::special(dialect) {
        define(out, id, schema)?;
    }
    for (id, ty) in reachable(served) {
        define(out, id, types::of_type(ty, roots.get(id).copied(), dialect))?;
    }
    for (id, resource) in &roots {
        if let Some(schema) = resource.schema {
            define(out, id, types::of_custom(resource, schema, dialect))?;
        }
        if resource.verbs.contains(&"list") {
            define(out, &format!("{id}List"), types::list_of(resource, dialect))?;
        }
    }
    out.write_all(match dialect {
        Dialect::V2 => b"}}",
        Dialect::V3 => b"}}}",
    })
}

#[cfg(test)]
mod tests;
