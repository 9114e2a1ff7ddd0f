//! Sets of field paths in the form of `FieldsV1`, on which all operations work directly.
//!
//! A set is a tree: keys are path elements (`f:NAME` a field, `k:{…}` a list element by its keys, `v:…` a scalar list
//! element), values the trees below. A path is in the set if its tree is empty or has the marker `.`. What is not an
//! object counts as an empty tree: clients may send anything.

use serde_json::{Map, Value};

/// A set, or a subtree of one.
pub(super) type Set = Map<String, Value>;

const MEMBER: &str = ".";

/// A path that is in the set and has none below it.
pub(super) fn leaf() -> Set {
    Map::new()
}

fn tree(value: &mut Value) -> &mut Set {
    if !value.is_object() {
        *value = Value::Object(leaf());
    }
    // The line above made it an object.
    match value {
        Value::Object(set) => set,
        _ => unreachable!(),
    }
}

/// Whether the path of this tree itself is in the set.
pub(super) fn is_member(value: &Value) -> bool {
    value.as_object().is_none_or(|set| set.is_empty() || set.contains_key(MEMBER))
}

/// The paths below, without the marker.
pub(super) fn children(set: &Set) -> impl Iterator<Item = (&String, &Value)> {
    set.iter().filter(|(key, _)| *key != MEMBER)
}

/// Adds the path of a tree itself; `None` is a tree of nothing.
pub(super) fn member(tree: Option<Set>) -> Set {
    let mut set = tree.unwrap_or_default();
    mark(&mut set, true);
    set
}

fn mark(set: &mut Set, member: bool) {
    if member && !set.is_empty() {
        set.insert(MEMBER.into(), leaf().into());
    }
}

/// Adds all paths of `other`.
pub(super) fn unite(set: &mut Set, other: &Set) {
    for (key, theirs) in children(other) {
        let Some(ours) = set.get_mut(key) else {
            set.insert(key.clone(), theirs.clone());
            continue;
        };
        let both = is_member(ours) || is_member(theirs);
        let ours = tree(ours);
        ours.remove(MEMBER);
        if let Value::Object(theirs) = theirs {
            unite(ours, theirs);
        }
        mark(ours, both);
    }
}

/// Removes the paths of `other`, not those below them.
pub(super) fn subtract(set: &mut Set, other: &Set) {
    for (key, theirs) in children(other) {
        let Some(ours) = set.get_mut(key) else { continue };
        let stays = is_member(ours) && !is_member(theirs);
        let ours = tree(ours);
        ours.remove(MEMBER);
        if let Value::Object(theirs) = theirs {
            subtract(ours, theirs);
        }
        if ours.is_empty() && !stays {
            set.remove(key);
        } else {
            mark(ours, stays);
        }
    }
}

/// The paths in both sets.
pub(super) fn intersect(one: &Set, other: &Set) -> Set {
    let mut common = Set::new();
    for (key, ours) in children(one) {
        let Some(theirs) = other.get(key) else { continue };
        let both = is_member(ours) && is_member(theirs);
        let mut below = match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => intersect(ours, theirs),
            _ => Set::new(),
        };
        if both || !below.is_empty() {
            mark(&mut below, both);
            common.insert(key.clone(), below.into());
        }
    }
    common
}

/// Every path as error texts write it, such as `.spec.containers[name="web"].image`.
pub(super) fn paths(set: &Set) -> Vec<String> {
    let mut found = Vec::new();
    collect(set, "", &mut found);
    found
}

fn collect(set: &Set, prefix: &str, found: &mut Vec<String>) {
    let path = |key: &str| format!("{prefix}{}", display(key));
    found.extend(children(set).filter(|(_, tree)| is_member(tree)).map(|(key, _)| path(key)));
    for (key, below) in children(set) {
        if let Value::Object(below) = below {
            collect(below, &path(key), found);
        }
    }
}

fn display(element: &str) -> String {
    let (kind, text) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(keys) => {
                let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{text}]"),
        },
        "v" => format!("[={text}]"),
        "i" => format!("[{text}]"),
        _ => format!(".{text}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Set {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn operations() {
        for (a, b, union, difference, common) in [
            (json!({"f:a": {}}), json!({"f:b": {}}), json!({"f:a": {}, "f:b": {}}), json!({"f:a": {}}), json!({})),
            (json!({"f:a": {}}), json!({"f:a": {}}), json!({"f:a": {}}), json!({}), json!({"f:a": {}})),
            // a parent and its child are different paths
            (
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({}),
            ),
            (
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {"f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
            ),
            (json!({"f:a": 1}), json!({"f:a": "x"}), json!({"f:a": {}}), json!({}), json!({"f:a": {}})),
        ] {
            let (a, b) = (set(a), set(b));
            let mut united = a.clone();
            unite(&mut united, &b);
            let mut rest = a.clone();
            subtract(&mut rest, &b);
            assert_eq!(
                (Value::from(united), Value::from(rest), Value::from(intersect(&a, &b))),
                (union, difference, common),
                "{a:?} {b:?}"
            );
        }
    }

    #[test]
    fn paths_are_written_as_upstream_does() {
        let set = set(json!({
            "f:spec": {"f:replicas": {}, "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
            "f:metadata": {"f:finalizers": {"v:\"a\"": {}}},
        }));
        assert_eq!(
            paths(&set),
            [
                ".metadata.finalizers[=\"a\"]",
                ".spec.replicas",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
    }
}
