//! Small helpers of the validation code: every rule appends to a list of errors under the path of its field.

use std::collections::HashSet;

use serde_json::Value;

use super::Object;
use super::format;
use super::meta;
use super::status::FieldError;

/// The errors found so far.
pub type Errors = Vec<FieldError>;

/// The text of Kubernetes for a field that may not change.
pub const IMMUTABLE: &str = "field is immutable";

/// The objects of the list under `key`, each with its path.
pub fn each<'a>(object: &'a Object, path: &str, key: &str) -> impl Iterator<Item = (String, &'a Object)> {
    let list = object.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let path = join(path, key);
    list.iter().enumerate().filter_map(move |(i, v)| Some((format!("{path}[{i}]"), v.as_object()?)))
}

/// The strings of the list under `key`, each with its path.
pub fn each_str<'a>(object: &'a Object, path: &str, key: &str) -> impl Iterator<Item = (String, &'a str)> {
    let list = object.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let path = join(path, key);
    list.iter().enumerate().filter_map(move |(i, v)| Some((format!("{path}[{i}]"), v.as_str()?)))
}

/// `path.key`, or `key` at the top.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// One `Invalid value` error for each problem.
pub fn all_invalid(errors: &mut Errors, path: &str, value: impl Into<Value>, wrong: Vec<String>) {
    if wrong.is_empty() {
        return;
    }
    let value = value.into();
    errors.extend(wrong.into_iter().map(|w| FieldError::invalid(path, value.clone(), w)));
}

/// A string that must be there. Returns it if it is.
pub fn required<'a>(errors: &mut Errors, path: &str, object: &'a Object, key: &str) -> Option<&'a str> {
    let value = meta::text(object, key);
    if value.is_empty() {
        errors.push(FieldError::required(join(path, key), ""));
        return None;
    }
    Some(value)
}

/// A string that must be there and follow a format.
pub fn formatted(errors: &mut Errors, path: &str, object: &Object, key: &str, rule: fn(&str) -> Vec<String>) {
    if let Some(value) = required(errors, path, object, key) {
        all_invalid(errors, &join(path, key), value, rule(value));
    }
}

/// A string, if it is there, that must be one of a list.
pub fn one_of(errors: &mut Errors, path: &str, object: &Object, key: &str, supported: &[&str]) {
    if let Some(value) = object.get(key).and_then(Value::as_str)
        && !supported.contains(&value)
    {
        errors.push(FieldError::not_supported(join(path, key), value, supported));
    }
}

/// A string that must be there and be one of a list.
pub fn required_one_of(errors: &mut Errors, path: &str, object: &Object, key: &str, supported: &[&str]) {
    if required(errors, path, object, key).is_some() {
        one_of(errors, path, object, key, supported);
    }
}

/// An integer, if it is there, that may not be negative.
pub fn not_negative(errors: &mut Errors, path: &str, object: &Object, key: &str) {
    at_least(errors, path, object, key, 0);
}

/// An integer, if it is there, with a lower bound.
pub fn at_least(errors: &mut Errors, path: &str, object: &Object, key: &str, low: i64) {
    if let Some(value) = meta::int(object, key)
        && value < low
    {
        errors.push(FieldError::invalid(join(path, key), value, format!("must be greater than or equal to {low}")));
    }
}

/// A user or group id, if it is there.
pub fn id(errors: &mut Errors, path: &str, object: &Object, key: &str) {
    if let Some(value) = meta::int(object, key) {
        all_invalid(errors, &join(path, key), value, format::in_range(value, 0, i64::from(i32::MAX)));
    }
}

/// Reports values seen before. One value per call.
pub struct Unique<T>(HashSet<T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: std::hash::Hash + Eq + Clone + Into<Value>> Unique<T> {
    /// Notes `value`, with an error at `path` if it was noted before.
    pub fn note(&mut self, errors: &mut Errors, path: &str, value: T) {
        if !self.0.insert(value.clone()) {
            errors.push(FieldError::duplicate(path, value));
        }
    }

    /// Whether a value was noted.
    pub fn has(&self, value: &T) -> bool {
        self.0.contains(value)
    }
}

/// The value under `key`, an explicit null or empty list or object counting as absent (as Go's decoders see it).
pub fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !is_empty(v))
}

/// Whether a value is more than null, an empty text, list or object.
pub fn present_value(value: &Value) -> bool {
    !is_empty(value)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

/// Whether two values mean the same to Kubernetes: null, empty and absent are equal
/// (`apiequality.Semantic.DeepEqual` after a round trip through structs with `omitempty`).
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.filter(|v| !is_empty(v)), b.filter(|v| !is_empty(v))) {
        (None, None) => true,
        (Some(Value::Object(a)), Some(Value::Object(b))) => a.keys().chain(b.keys()).all(|k| same(a.get(k), b.get(k))),
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        // An object with only empty members is as good as none.
        (Some(Value::Object(o)), None) | (None, Some(Value::Object(o))) => o.values().all(|v| same(Some(v), None)),
        (a, b) => a == b,
    }
}

/// An error at `path` if the value there may not change and did.
pub fn immutable(errors: &mut Errors, path: &str, new: Option<&Value>, old: Option<&Value>) {
    if !same(new, old) {
        errors.push(FieldError::invalid(path, new.cloned().unwrap_or(Value::Null), IMMUTABLE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_null_and_empty_are_the_same() {
        let cases = [
            (json!(null), json!({}), true),
            (json!({"a": {}, "b": 1}), json!({"b": 1, "c": []}), true),
            (json!({"a": {"b": null}}), json!({}), true),
            (json!({"a": 0}), json!({}), false),
            (json!([1, 2]), json!([2, 1]), false),
            (json!({"a": "x"}), json!({"a": "y"}), false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(same(Some(&a), Some(&b)), expected, "{a} {b}");
            assert_eq!(same(Some(&b), Some(&a)), expected, "{b} {a}");
        }
    }
}
