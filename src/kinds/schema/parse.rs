//! JSON bodies to objects, noting duplicate fields, which `serde_json` alone would pass over in silence.

use std::fmt::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::MAX_STRICT_ERRORS;

/// A JSON object as read.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    /// The object; of duplicate fields the last.
    pub object: Map<String, Value>,
    /// Worded for warnings and strict errors: `duplicate field "spec.replicas"`.
    pub duplicates: Vec<String>,
}

/// Reads a body that must be one JSON object.
///
/// # Errors
/// Malformed JSON, more than 128 levels deep, or not an object.
pub fn parse(body: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Node(&mut notes).deserialize(&mut deserializer)?;
    deserializer.end()?;
    match value {
        Value::Object(object) => Ok(Parsed { object, duplicates: notes.duplicates }),
        other => Err(serde_json::Error::custom(format_args!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            super::value::json_type(&other)
        ))),
    }
}

#[derive(Default)]
struct Notes {
    path: String,
    duplicates: Vec<String>,
}

struct Node<'a>(&'a mut Notes);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let back = self.0.path.len();
        loop {
            // Writing to a string cannot fail.
            let _ = write!(self.0.path, "[{}]", list.len());
            let item = items.next_element_seed(Node(self.0))?;
            self.0.path.truncate(back);
            match item {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let back = self.0.path.len();
        while let Some(key) = entries.next_key::<String>()? {
            if back > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&key);
            let value = entries.next_value_seed(Node(self.0))?;
            if object.insert(key, value).is_some() && self.0.duplicates.len() < MAX_STRICT_ERRORS {
                self.0.duplicates.push(format!("duplicate field {:?}", self.0.path));
            }
            self.0.path.truncate(back);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_with_duplicates() {
        for (body, want, duplicates) in [
            (r#"{"a":1,"b":[true,null,"x",1.5,-1]}"#, json!({"a": 1, "b": [true, null, "x", 1.5, -1]}), vec![]),
            (r#"{"a":1,"a":2}"#, json!({"a": 2}), vec![r#"duplicate field "a""#]),
            (
                r#"{"s":{"c":[{"n":1},{"n":1,"n":2}],"r":1,"r":1}}"#,
                json!({"s": {"c": [{"n": 1}, {"n": 2}], "r": 1}}),
                vec![r#"duplicate field "s.c[1].n""#, r#"duplicate field "s.r""#],
            ),
        ] {
            let parsed = parse(body.as_bytes()).unwrap();
            assert_eq!(
                (Value::from(parsed.object), parsed.duplicates),
                (want, duplicates.into_iter().map(str::to_owned).collect())
            );
        }
    }

    #[test]
    fn bad_bodies() {
        for body in ["", "{", "[]", "1", "{} x", r#"{"a":}"#, "\u{feff}{}", &"[".repeat(100_000)] {
            assert!(parse(body.as_bytes()).is_err(), "{body:.20}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(1000), "}".repeat(1000));
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse(b"[]").unwrap_err().to_string().starts_with("json: cannot unmarshal array into Go value"));
    }

    #[test]
    fn duplicates_are_bounded() {
        let body = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(1000));
        assert_eq!(parse(body.as_bytes()).unwrap().duplicates.len(), MAX_STRICT_ERRORS);
    }
}
