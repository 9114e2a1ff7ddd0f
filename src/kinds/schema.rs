//! Reading objects by the field table as the Kubernetes API server reads them into Go structs: unknown fields, types,
//! and the form that values have afterwards.

pub mod parse;
mod value;

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::kinds::fields::{self, Field, Shape, Ty, Type};

/// Levels of JSON an object may have: one that is stored must be read again, with managed fields as deep as itself.
pub const MAX_DEPTH: usize = 100;

/// Levels of JSON in a value; a scalar has none.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Strict errors beyond this number are not listed.
pub const MAX_STRICT_ERRORS: usize = 100;

/// A value that its field cannot hold, worded as Go's JSON decoder does.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TypeError {
    /// A JSON value of the wrong type.
    #[error("json: cannot unmarshal {value} into Go struct field {owner}.{path} of type {ty}")]
    Field {
        /// `string`, `number`, `number 1.5`, `bool`, `array` or `object`.
        value: String,
        /// The struct that has the field, such as `DeploymentSpec`.
        owner: &'static str,
        /// Path of the field without indices, such as `spec.replicas`.
        path: String,
        /// Go's name of the type.
        ty: String,
    },
    /// Types that decode themselves do not tell the field.
    #[error("{0}")]
    Value(String),
}

/// The text of a 400 answer for a body that cannot be read as its kind; `cause` is a [`TypeError`] or [`strict_text`].
pub fn cannot_be_handled(kind: &str, version: &str, cause: impl std::fmt::Display) -> String {
    format!("{kind} in version {version:?} cannot be handled as a {kind}: {cause}")
}

/// The text for violations of `fieldValidation=Strict`.
pub fn strict_text(violations: &[String]) -> String {
    format!("strict decoding error: {}", violations.join(", "))
}

/// Brings an object into the form that Go gives it: fields that the type does not have are dropped, so are nulls and
/// empty values of `omitempty` fields; quantities, times and bytes get their canonical text.
///
/// Returns what was dropped as unknown, worded for warnings and strict errors: `unknown field "spec.foo"`.
///
/// # Errors
/// A value of the wrong type, the object is then partly converted; more than [`MAX_DEPTH`] levels.
pub fn conform(ty: &'static Type, object: &mut Map<String, Value>) -> Result<Vec<String>, TypeError> {
    check_depth(object)?;
    let mut walk = Walk::default();
    walk.object(ty, object)?;
    Ok(walk.unknown)
}

/// [`conform`] for the metadata of an object whose other fields are not in the table (custom resources).
///
/// # Errors
/// As [`conform`].
pub fn conform_metadata(object: &mut Map<String, Value>) -> Result<Vec<String>, TypeError> {
    check_depth(object)?;
    let mut walk = Walk::default();
    if let Some(field) = fields::partial_object().field("metadata")
        && let Some(metadata) = object.get_mut("metadata")
    {
        walk.enter(field.json);
        walk.value(fields::partial_object(), field, metadata)?;
    }
    Ok(walk.unknown)
}

fn check_depth(object: &Map<String, Value>) -> Result<(), TypeError> {
    match object.values().map(depth).max() {
        Some(levels) if levels >= MAX_DEPTH => Err(TypeError::Value("exceeded max depth".into())),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Walk {
    /// Path with indices and map keys.
    path: String,
    /// Names of the fields on the way.
    names: Vec<&'static str>,
    unknown: Vec<String>,
}

impl Walk {
    /// Appends a member to the path and returns the length to go back to.
    fn enter(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }

    fn object(&mut self, ty: &'static Type, object: &mut Map<String, Value>) -> Result<(), TypeError> {
        let mut result = Ok(());
        object.retain(|key, value| {
            if result.is_err() {
                return true;
            }
            let back = self.enter(key);
            let keep = match ty.field(key) {
                Some(field) => self.field(ty, field, value).unwrap_or_else(|error| {
                    result = Err(error);
                    true
                }),
                None => {
                    if self.unknown.len() < MAX_STRICT_ERRORS {
                        self.unknown.push(format!("unknown field {:?}", self.path));
                    }
                    false
                }
            };
            self.path.truncate(back);
            keep
        });
        result
    }

    /// Converts a field's value; false if Go would not write it again.
    fn field(&mut self, owner: &'static Type, field: &'static Field, value: &mut Value) -> Result<bool, TypeError> {
        if value.is_null() {
            return Ok(false);
        }
        self.names.push(field.json);
        match (field.shape, &mut *value) {
            (Shape::One, value) => self.value(owner, field, value)?,
            (Shape::List, Value::Array(items)) => {
                for (at, item) in items.iter_mut().enumerate() {
                    let back = self.path.len();
                    // Writing to a string cannot fail.
                    let _ = write!(self.path, "[{at}]");
                    self.element(owner, field, item)?;
                    self.path.truncate(back);
                }
            }
            (Shape::Map, Value::Object(entries)) => {
                for (key, item) in entries {
                    let back = self.enter(key);
                    self.element(owner, field, item)?;
                    self.path.truncate(back);
                }
            }
            (_, other) => return Err(self.mismatch(owner, field, value::json_type(other), field.shape)),
        }
        self.names.pop();
        Ok(!(field.omitempty() && !field.pointer() && value::is_empty(field, value)))
    }

    fn element(&mut self, owner: &'static Type, field: &'static Field, item: &mut Value) -> Result<(), TypeError> {
        if item.is_null() {
            *item = value::zero(field.ty);
        }
        self.value(owner, field, item)
    }

    fn value(&mut self, owner: &'static Type, field: &'static Field, value: &mut Value) -> Result<(), TypeError> {
        let fits = match (field.ty, &mut *value) {
            (Ty::Struct(ty) | Ty::StructOr(ty), Value::Object(object)) => return self.object(ty, object),
            (Ty::StructOr(ty), Value::Array(items)) => {
                return items.iter_mut().filter_map(Value::as_object_mut).try_for_each(|item| self.object(ty, item));
            }
            (Ty::String, Value::String(_)) | (Ty::Bool | Ty::StructOr(_), Value::Bool(_)) => true,
            (Ty::Float64, Value::Number(_)) => true,
            (Ty::Raw | Ty::Json | Ty::FieldsV1, _) => true,
            (Ty::StringList, Value::Array(items)) => items.iter().all(Value::is_string),
            (Ty::Int32 | Ty::Int64, Value::Number(number)) => {
                let Some(integer) = value::integer(number, field.ty) else {
                    let text = format!("number {number}");
                    return Err(self.mismatch(owner, field, &text, Shape::One));
                };
                *value = integer.into();
                true
            }
            (Ty::Bytes, Value::String(text)) => return value::bytes(text),
            (Ty::IntOrString, value) => return value::int_or_string(value),
            (Ty::Quantity, value) => return value::quantity(value),
            (Ty::Time, value) => return value::time(value, false),
            (Ty::MicroTime, value) => return value::time(value, true),
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.mismatch(owner, field, value::json_type(value), Shape::One)) }
    }

    fn mismatch(&self, owner: &'static Type, field: &Field, value: &str, shape: Shape) -> TypeError {
        TypeError::Field {
            value: value.to_owned(),
            owner: owner.name(),
            path: self.names.join("."),
            ty: value::go_type(field, shape),
        }
    }
}

#[cfg(test)]
mod tests;
