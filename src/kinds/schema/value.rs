//! Single values: what fits a type, its canonical form, and Go's words for what does not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Number, Value};

use super::TypeError;
use crate::kinds::fields::{Field, Shape, Ty};
use crate::kinds::quantity::Quantity;

/// JSON type as Go's errors name it.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go's name for the type of a field (or of its elements if `shape` is [`Shape::One`]).
pub(super) fn go_type(field: &Field, shape: Shape) -> String {
    let element = match field.ty {
        _ if !field.rules.go.is_empty() => field.rules.go.to_owned(),
        Ty::String => "string".into(),
        Ty::Bool => "bool".into(),
        Ty::Int32 => "int32".into(),
        Ty::Int64 => "int64".into(),
        Ty::Float64 => "float64".into(),
        Ty::Bytes => "[]uint8".into(),
        Ty::IntOrString => "intstr.IntOrString".into(),
        Ty::Quantity => "resource.Quantity".into(),
        Ty::Time => "v1.Time".into(),
        Ty::MicroTime => "v1.MicroTime".into(),
        Ty::FieldsV1 => "v1.FieldsV1".into(),
        Ty::Raw => "runtime.RawExtension".into(),
        Ty::Json => "v1.JSON".into(),
        Ty::StringList => "[]string".into(),
        Ty::Struct(ty) | Ty::StructOr(ty) => {
            let mut parts = ty.id.rsplit('.');
            let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{version}.{name}")
        }
    };
    match shape {
        Shape::One => element,
        Shape::List => format!("[]{element}"),
        Shape::Map => format!("map[string]{element}"),
    }
}

/// Whether Go leaves out the value of an `omitempty` field.
pub(super) fn is_empty(field: &Field, value: &Value) -> bool {
    match (field.shape, field.ty, value) {
        (Shape::List, _, Value::Array(items)) => items.is_empty(),
        (Shape::Map, _, Value::Object(entries)) => entries.is_empty(),
        (Shape::One, Ty::Quantity | Ty::Time | Ty::MicroTime | Ty::Raw | Ty::Json, _) => false,
        (Shape::One, Ty::IntOrString, _) => false,
        (Shape::One, _, Value::String(text)) => text.is_empty(),
        (Shape::One, _, Value::Bool(flag)) => !flag,
        (Shape::One, _, Value::Number(number)) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

/// What null becomes as an element of a list or map.
pub(super) fn zero(ty: Ty) -> Value {
    match ty {
        Ty::Struct(_) => Value::Object(Default::default()),
        Ty::Bool => false.into(),
        Ty::Int32 | Ty::Int64 | Ty::IntOrString => 0.into(),
        Ty::Float64 => 0.0.into(),
        Ty::Quantity => "0".into(),
        Ty::StringList => Value::Array(Vec::new()),
        Ty::String | Ty::Bytes => "".into(),
        _ => Value::Null,
    }
}

/// The number as an integer of the type. Floats without a fraction pass: YAML writers make them of large integers.
pub(super) fn integer(number: &Number, ty: Ty) -> Option<i64> {
    let integer = number.as_i64().or_else(|| {
        number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15).map(|float| float as i64)
    })?;
    (!matches!(ty, Ty::Int32) || i32::try_from(integer).is_ok()).then_some(integer)
}

fn plain(value: &Value, ty: &str) -> TypeError {
    TypeError::Value(format!("json: cannot unmarshal {} into Go value of type {ty}", json_type(value)))
}

pub(super) fn bytes(text: &mut String) -> Result<(), TypeError> {
    // Go ignores line breaks, and writes none.
    text.retain(|c| c != '\n' && c != '\r');
    let bad = match STANDARD.decode(text.as_bytes()) {
        Ok(_) => return Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _)) => at,
        Err(_) => text.len(),
    };
    Err(TypeError::Value(format!("illegal base64 data at input byte {bad}")))
}

pub(super) fn int_or_string(value: &mut Value) -> Result<(), TypeError> {
    match value {
        Value::String(_) => Ok(()),
        Value::Number(number) => match integer(number, Ty::Int32) {
            Some(integer) => {
                *value = integer.into();
                Ok(())
            }
            None => {
                Err(TypeError::Value(format!("json: cannot unmarshal number {number} into Go value of type int32")))
            }
        },
        other => Err(plain(other, "int32")),
    }
}

pub(super) fn quantity(value: &mut Value) -> Result<(), TypeError> {
    let parsed = match &*value {
        Value::String(text) => text.trim().parse(),
        other => Quantity::from_json(other),
    };
    *value = parsed.map_err(|error| TypeError::Value(error.to_string()))?.to_string().into();
    Ok(())
}

/// Go's `time.Time` as `metav1.Time` (whole seconds) or `metav1.MicroTime` writes it: UTC.
pub(super) fn time(value: &mut Value, micro: bool) -> Result<(), TypeError> {
    let Value::String(text) = value else { return Err(plain(value, "string")) };
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let parsed: Option<Timestamp> = if is_rfc3339(text.as_bytes()) { text.parse().ok() } else { None };
    let time = parsed.ok_or_else(|| {
        TypeError::Value(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
    })?;
    let form = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    *text = time.strftime(form).to_string();
    Ok(())
}

/// The shape `YYYY-MM-DDTHH:MM:SS…`: the parser takes shorter and longer forms too, Go does not.
fn is_rfc3339(text: &[u8]) -> bool {
    let fits = |(at, byte): (usize, &u8)| match at {
        4 | 7 => *byte == b'-',
        10 => *byte == b'T',
        13 | 16 => *byte == b':',
        _ => byte.is_ascii_digit(),
    };
    text.len() > 19 && text[..19].iter().enumerate().all(fits) && !text.contains(&b'[')
}
