//! Kubernetes' protobuf to JSON: kubectl and client-go ≥ 1.32 send typed requests this way.
//!
//! The body is `k8s\0` and a `runtime.Unknown` message around the object. Only decoding exists: clients that send
//! protobuf accept JSON answers. The result is what Go's JSON encoding of the same object would be, less the fields
//! that are empty: `null`, `omitempty` zero values, and `omitempty` structs without a field set.

mod scalar;
mod wire;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, map::Entry};

use crate::kinds::fields::{self, Field, Shape, Ty, Type};
use wire::{Reader, Wire};

/// First bytes of a protobuf body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Messages nested deeper than this are refused; the deepest type of the table needs about 15, schemas of custom
/// resources recurse.
const DEPTH: usize = 64;

/// Why a body cannot be decoded.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The body does not start with the magic bytes.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// The bytes end within a value.
    #[error("unexpected EOF")]
    Truncated,
    /// A number of more than 64 bits.
    #[error("proto: integer overflow")]
    Overflow,
    /// A field has another wire type than its definition.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// JSON name of the field.
        field: &'static str,
        /// Wire type found.
        wire: u8,
    },
    /// A field number or wire type that protobuf does not have.
    #[error("proto: illegal tag {0}")]
    Tag(u64),
    /// Text that is not UTF-8.
    #[error("proto: field {0} contains invalid UTF-8")]
    Utf8(&'static str),
    /// A value that has no JSON form: a time out of range or an embedded object that is not JSON.
    #[error("proto: field {0} has an invalid value")]
    Value(&'static str),
    /// Messages nested too deep.
    #[error("proto: exceeded max depth")]
    Depth,
    /// The object is compressed or otherwise encoded within the envelope.
    #[error("unsupported content encoding {0:?}")]
    Encoding(String),
    /// The kind is not in the field table.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Unregistered {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
}

/// Decodes a body into the object's JSON, `apiVersion` and `kind` included.
///
/// # Errors
/// On anything that is not a well-formed message of a kind of the field table. Unknown fields are skipped, as Go does.
pub fn decode(body: &[u8]) -> Result<Map<String, Value>, Error> {
    decode_envelope(body, 0)
}

/// The parts of `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    content_encoding: &'a str,
    content_type: &'a str,
}

fn decode_envelope(body: &[u8], depth: usize) -> Result<Map<String, Value>, Error> {
    let mut reader = Reader::new(body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?);
    let mut envelope = Envelope::default();
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => (envelope.api_version, envelope.kind) = type_meta(wire.bytes("typeMeta")?)?,
            2 => envelope.raw = wire.bytes("raw")?,
            3 => envelope.content_encoding = wire.text("contentEncoding")?,
            4 => envelope.content_type = wire.text("contentType")?,
            _ => {}
        }
    }
    if !envelope.content_encoding.is_empty() {
        return Err(Error::Encoding(envelope.content_encoding.to_owned()));
    }
    if envelope.content_type == "application/json" {
        return serde_json::from_slice(envelope.raw).map_err(|_| Error::Value("raw"));
    }
    let (group, version) = envelope.api_version.split_once('/').unwrap_or(("", envelope.api_version));
    let ty = fields::of(group, version, envelope.kind).ok_or_else(|| Error::Unregistered {
        api_version: envelope.api_version.to_owned(),
        kind: envelope.kind.to_owned(),
    })?;
    let mut object = Map::new();
    message(ty, envelope.raw, &mut object, depth)?;
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    Ok(object)
}

fn type_meta(bytes: &[u8]) -> Result<(&str, &str), Error> {
    let (mut api_version, mut kind) = ("", "");
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => api_version = wire.text("apiVersion")?,
            2 => kind = wire.text("kind")?,
            _ => {}
        }
    }
    Ok((api_version, kind))
}

/// Decodes a message into `object`, merging with what an earlier part of the same message left there.
fn message(ty: &'static Type, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::Depth);
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        let Some(field) = ty.fields.iter().find(|field| u32::from(field.number) == number) else { continue };
        match (field.inline(), field.ty) {
            (true, Ty::Struct(embedded)) => message(embedded, wire.bytes("embedded")?, object, depth + 1)?,
            _ => match field.shape {
                Shape::One => one(field, wire, object, depth)?,
                Shape::List => list(field, wire, object, depth)?,
                Shape::Map => map(field, wire, object, depth)?,
            },
        }
    }
    Ok(())
}

fn one(field: &'static Field, wire: Wire, object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    if let Ty::Struct(ty) = field.ty {
        let mut inner = match object.remove(field.json) {
            Some(Value::Object(earlier)) => earlier,
            _ => Map::new(),
        };
        message(ty, wire.bytes(field.json)?, &mut inner, depth + 1)?;
        if field.pointer() || !field.omitempty() || !inner.is_empty() {
            object.insert(field.json.into(), inner.into());
        }
        return Ok(());
    }
    match value(field, wire, depth)? {
        Some(value) if field.pointer() || !field.omitempty() || !is_zero(&value) => {
            object.insert(field.json.into(), value);
        }
        // The last occurrence of a field counts, even if it is empty.
        _ => drop(object.remove(field.json)),
    }
    Ok(())
}

fn list(field: &'static Field, wire: Wire, object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    let Value::Array(items) = object.entry(field.json).or_insert_with(|| Value::Array(Vec::new())) else {
        return Ok(());
    };
    if let (Ty::Bool | Ty::Int32 | Ty::Int64, Wire::Bytes(packed)) = (field.ty, &wire) {
        let mut reader = Reader::new(packed);
        while !reader.is_empty() {
            items.extend(value(field, Wire::Varint(reader.varint()?), depth)?);
        }
        return Ok(());
    }
    items.extend(value(field, wire, depth)?);
    Ok(())
}

fn map(field: &'static Field, wire: Wire, object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    let mut reader = Reader::new(wire.bytes(field.json)?);
    let (mut key, mut found) = ("", None);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => key = wire.text(field.json)?,
            2 => found = value(field, wire, depth)?,
            _ => {}
        }
    }
    let found = match found {
        Some(found) => found,
        None => empty(field, depth)?,
    };
    match object.entry(field.json) {
        Entry::Vacant(entry) => drop(entry.insert(Map::from_iter([(key.to_owned(), found)]).into())),
        Entry::Occupied(mut entry) => {
            entry.get_mut().as_object_mut().and_then(|entries| entries.insert(key.to_owned(), found));
        }
    }
    Ok(())
}

/// The value of a map entry that leaves it out.
fn empty(field: &'static Field, depth: usize) -> Result<Value, Error> {
    let wire = match field.ty {
        Ty::Bool | Ty::Int32 | Ty::Int64 => Wire::Varint(0),
        Ty::Float64 => Wire::Fixed64(0),
        _ => Wire::Bytes(&[]),
    };
    Ok(value(field, wire, depth)?.unwrap_or(Value::Null))
}

/// One value; `None` stands for Go's null (an unset time).
fn value(field: &'static Field, wire: Wire, depth: usize) -> Result<Option<Value>, Error> {
    let name = field.json;
    Ok(Some(match field.ty {
        Ty::String => wire.text(name)?.into(),
        Ty::Bool => (wire.varint(name)? != 0).into(),
        Ty::Int32 => (wire.varint(name)? as i32).into(),
        Ty::Int64 => (wire.varint(name)? as i64).into(),
        Ty::Float64 => f64::from_bits(wire.fixed64(name)?).into(),
        Ty::Bytes => STANDARD.encode(wire.bytes(name)?).into(),
        Ty::IntOrString => scalar::int_or_string(name, wire.bytes(name)?)?,
        Ty::Quantity => scalar::quantity(name, wire.bytes(name)?)?,
        Ty::Time => return scalar::time(name, wire.bytes(name)?, false),
        Ty::MicroTime => return scalar::time(name, wire.bytes(name)?, true),
        Ty::Raw | Ty::Json | Ty::FieldsV1 => return raw(name, wire.bytes(name)?, depth),
        Ty::StringList => scalar::string_list(name, wire.bytes(name)?)?,
        Ty::Struct(ty) => {
            let mut object = Map::new();
            message(ty, wire.bytes(name)?, &mut object, depth + 1)?;
            object.into()
        }
        Ty::StructOr(ty) => struct_or(field, ty, wire.bytes(name)?, depth)?,
    }))
}

/// An embedded object: JSON, or an envelope of its own.
fn raw(name: &'static str, bytes: &[u8], depth: usize) -> Result<Option<Value>, Error> {
    let mut reader = Reader::new(bytes);
    let mut content: &[u8] = &[];
    while let Some((number, wire)) = reader.field()? {
        if number == 1 {
            content = wire.bytes(name)?;
        }
    }
    match content {
        [] => Ok(None),
        _ if depth >= DEPTH => Err(Error::Depth),
        _ if content.starts_with(MAGIC) => decode_envelope(content, depth + 1).map(|object| Some(object.into())),
        _ => serde_json::from_slice(content).map(Some).map_err(|_| Error::Value(name)),
    }
}

/// `JSONSchemaPropsOrBool` {allows, schema}, `…OrArray` {schema, schemas} or `…OrStringArray` {schema, strings}. Go
/// always writes `allows`, which tells the first from the others; the last is only found in maps.
fn struct_or(field: &'static Field, ty: &'static Type, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let (mut allows, mut schema, mut items) = (None, None, Vec::<Value>::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Varint(flag)) => allows = Some(flag != 0),
            (2, wire) if field.shape == Shape::Map => items.push(wire.text(field.json)?.into()),
            (1 | 2, wire) => {
                let mut object = Map::new();
                message(ty, wire.bytes(field.json)?, &mut object, depth + 1)?;
                match (number, allows) {
                    (2, None) => items.push(object.into()),
                    _ => schema = Some(object.into()),
                }
            }
            _ => {}
        }
    }
    Ok(match (schema, allows) {
        (Some(schema), _) => schema,
        (None, Some(flag)) => flag.into(),
        (None, None) => items.into(),
    })
}

/// Zero values that `omitempty` leaves out. Go never leaves out structs, a quantity among them.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(flag) => !flag,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
