//! JSON merge patch, RFC 7386 (`application/merge-patch+json`).

use serde_json::{Map, Value};

/// Merges `patch` into `object`: objects merge, null removes, everything else replaces.
pub fn apply(object: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => drop(object.remove(&key)),
            Value::Object(inner) => {
                let target = object.entry(key).or_insert(Value::Null);
                let mut merged = match target.take() {
                    Value::Object(existing) => existing,
                    _ => Map::new(),
                };
                apply(&mut merged, inner);
                *target = merged.into();
            }
            other => drop(object.insert(key, other)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_as_rfc_7386_says() {
        for (object, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": "x"}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}})),
        ] {
            let mut got = object.as_object().unwrap().clone();
            apply(&mut got, patch.as_object().unwrap().clone());
            assert_eq!(Value::from(got), want, "{object} + {patch}");
        }
    }
}
