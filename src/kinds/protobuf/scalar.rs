//! Messages that are one value in JSON: quantities, times, int-or-strings.

use jiff::Timestamp;
use serde_json::Value;

use super::Error;
use super::wire::Reader;
use crate::kinds::quantity::Quantity;

/// The first two numbers of a message, `None` where absent.
fn numbers(name: &'static str, bytes: &[u8]) -> Result<[Option<i64>; 2], Error> {
    let mut found = [None; 2];
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        if let 1 | 2 = number {
            found[number as usize - 1] = Some(wire.varint(name)? as i64);
        }
    }
    Ok(found)
}

/// `intstr.IntOrString`: type (0 for a number), number, string.
pub(super) fn int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_string, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.field()? {
        match field {
            1 => is_string = wire.varint(name)? != 0,
            2 => number = wire.varint(name)? as i32,
            3 => text = wire.text(name)?,
            _ => {}
        }
    }
    Ok(if is_string { text.into() } else { number.into() })
}

/// `resource.Quantity`: its text.
pub(super) fn quantity(name: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let mut text = "0";
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.field()? {
        if field == 1 {
            text = wire.text(name)?;
        }
    }
    let text = if text.is_empty() { "0" } else { text };
    let quantity: Quantity = text.parse().map_err(|_| Error::Value(name))?;
    Ok(quantity.to_string().into())
}

/// `metav1.Time` and `metav1.MicroTime`: seconds and nanoseconds since 1970; an empty message is no time.
pub(super) fn time(name: &'static str, bytes: &[u8], micro: bool) -> Result<Option<Value>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let [seconds, nanos] = numbers(name, bytes)?;
    let nanos = i32::try_from(nanos.unwrap_or(0)).map_err(|_| Error::Value(name))?;
    let time = Timestamp::new(seconds.unwrap_or(0), nanos).map_err(|_| Error::Value(name))?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Some(time.strftime(format).to_string().into()))
}

/// A message whose field 1 repeats a string.
pub(super) fn string_list(name: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let mut items = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.field()? {
        if field == 1 {
            items.push(Value::from(wire.text(name)?));
        }
    }
    Ok(items.into())
}
