//! Definitions of types.

use serde_json::{Map, Value, json};

use super::{Resource, gvk};
use crate::kinds::fields::{self, Field, Shape, Topology, Ty, Type};

/// OpenAPI version.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Dialect {
    /// Swagger 2.0
    V2,
    /// OpenAPI 3.0
    V3,
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

pub(super) fn reference(id: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"$ref": format!("#/definitions/{id}")}),
        Dialect::V3 => json!({"$ref": format!("#/components/schemas/{id}")}),
    }
}

/// Types that are no structs but have a name.
pub(super) fn special(dialect: Dialect) -> [(&'static str, Value); 7] {
    let one_of = |plain: Value, kinds: [&str; 2]| match dialect {
        Dialect::V2 => plain,
        Dialect::V3 => json!({"oneOf": [{"type": kinds[0]}, {"type": kinds[1]}]}),
    };
    let mut int_or_string = one_of(json!({"type": "string"}), ["integer", "string"]);
    int_or_string["format"] = "int-or-string".into();
    [
        (QUANTITY, one_of(json!({"type": "string"}), ["string", "number"])),
        (INT_OR_STRING, int_or_string),
        (TIME, json!({"type": "string", "format": "date-time"})),
        (MICRO_TIME, json!({"type": "string", "format": "date-time"})),
        (FIELDS_V1, json!({"type": "object"})),
        (RAW, json!({"type": "object"})),
        (JSON, json!({})),
    ]
}

/// The definition of a struct; `root` if it is a served kind.
pub(super) fn of_type(ty: &'static Type, root: Option<&Resource>, dialect: Dialect) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in ty.json_fields() {
        properties.insert(field.json.into(), property(field, dialect));
        if field.required() {
            required.push(field.json);
        }
    }
    let mut schema = json!({"type": "object"});
    if !properties.is_empty() {
        schema["properties"] = properties.into();
    }
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if ty.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(resource) = root {
        schema["x-kubernetes-group-version-kind"] = json!([resource.gvk()]);
    }
    schema
}

fn property(field: &'static Field, dialect: Dialect) -> Value {
    let element = element(field.ty, dialect);
    let mut schema = match field.shape {
        Shape::One => element,
        Shape::List => json!({"type": "array", "items": element}),
        Shape::Map => json!({"type": "object", "additionalProperties": element}),
    };
    let extensions = extensions(field);
    if extensions.is_empty() {
        return schema;
    }
    // In version 3 nothing may stand beside a reference.
    if dialect == Dialect::V3 && schema.get("$ref").is_some() {
        schema = json!({"allOf": [schema]});
    }
    if let Value::Object(schema) = &mut schema {
        schema.extend(extensions);
    }
    schema
}

fn element(ty: Ty, dialect: Dialect) -> Value {
    match ty {
        Ty::String => json!({"type": "string"}),
        Ty::Bool => json!({"type": "boolean"}),
        Ty::Int32 => json!({"type": "integer", "format": "int32"}),
        Ty::Int64 => json!({"type": "integer", "format": "int64"}),
        Ty::Float64 => json!({"type": "number", "format": "double"}),
        Ty::Bytes => json!({"type": "string", "format": "byte"}),
        Ty::StringList => json!({"type": "array", "items": {"type": "string"}}),
        Ty::IntOrString => reference(INT_OR_STRING, dialect),
        Ty::Quantity => reference(QUANTITY, dialect),
        Ty::Time => reference(TIME, dialect),
        Ty::MicroTime => reference(MICRO_TIME, dialect),
        Ty::FieldsV1 => reference(FIELDS_V1, dialect),
        Ty::Raw => reference(RAW, dialect),
        Ty::Json => reference(JSON, dialect),
        Ty::Struct(ty) => reference(ty.id, dialect),
        // A struct, a list or a scalar: any value.
        Ty::StructOr(_) => json!({}),
    }
}

fn extensions(field: &Field) -> Map<String, Value> {
    let rules = field.rules;
    let mut found = Map::new();
    let topology = match (rules.topology, field.shape) {
        (Topology::Atomic, Shape::List) => Some(("x-kubernetes-list-type", "atomic")),
        (Topology::Set, _) => Some(("x-kubernetes-list-type", "set")),
        (Topology::Map, _) => Some(("x-kubernetes-list-type", "map")),
        (Topology::Atomic, _) => Some(("x-kubernetes-map-type", "atomic")),
        (Topology::Granular, _) => Some(("x-kubernetes-map-type", "granular")),
        (Topology::Default, _) => None,
    };
    if let Some((key, value)) = topology {
        found.insert(key.into(), value.into());
    }
    if !rules.keys.is_empty() {
        found.insert("x-kubernetes-list-map-keys".into(), rules.keys.into());
    }
    let strategy = match (rules.merge, rules.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => None,
    };
    if let Some(strategy) = strategy {
        found.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    }
    if !rules.merge_key.is_empty() {
        found.insert("x-kubernetes-patch-merge-key".into(), rules.merge_key.into());
    }
    if !rules.default.is_empty() {
        found.insert("default".into(), rules.default.into());
    }
    found
}

/// The definition of a custom resource: its own schema with the fields every object has.
pub(super) fn of_custom(resource: &Resource, schema: &Value, dialect: Dialect) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({}) };
    schema["type"] = "object".into();
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = reference(fields::object_meta().id, dialect);
    schema["x-kubernetes-group-version-kind"] = json!([resource.gvk()]);
    schema
}

/// The definition of a kind's list.
pub(super) fn list_of(resource: &Resource, dialect: Dialect) -> Value {
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": reference(fields::list_meta().id, dialect),
            "items": {"type": "array", "items": reference(&resource.id(), dialect)},
        },
        "x-kubernetes-group-version-kind": [gvk(resource.group, resource.version, &format!("{}List", resource.kind))],
    })
}
