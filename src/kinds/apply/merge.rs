//! Merging an applied configuration into the live object, and removing what is no longer applied.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::{Set, is_member};
use super::walk::{View, field_element, list_element, view};
use crate::kinds::fields::{Field, Place};

/// `live` with everything that `applied` says.
pub(super) fn merge(place: Place, live: &Value, applied: &Value) -> Value {
    match (view(place, live), view(place, applied)) {
        (View::Object(live), View::Object(applied)) => merge_objects(place, live, applied).into(),
        (View::List(list, live), View::List(_, applied)) => merge_lists(list, live, applied).into(),
        _ => applied.clone(),
    }
}

/// [`merge`] of two objects.
pub(super) fn merge_objects(
    place: Place,
    live: &Map<String, Value>,
    applied: &Map<String, Value>,
) -> Map<String, Value> {
    let mut merged = live.clone();
    for (key, value) in applied {
        let value = match live.get(key) {
            Some(live) => merge(place.child(key), live, value),
            None => value.clone(),
        };
        merged.insert(key.clone(), value);
    }
    merged
}

/// Elements keep the order in which they are applied; those of the live object keep theirs between them.
fn merge_lists(list: &'static Field, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let keyed = |items: &[Value]| -> Vec<String> {
        items.iter().map(|item| list_element(list, item).unwrap_or_default()).collect()
    };
    let (live_keys, applied_keys) = (keyed(live), keyed(applied));
    let applied_set: HashSet<&str> = applied_keys.iter().map(String::as_str).collect();
    let mut live_at: HashMap<&str, Option<usize>> = HashMap::new();
    for (at, key) in live_keys.iter().enumerate() {
        // Duplicates in the live object do not merge.
        live_at.entry(key).and_modify(|first| *first = None).or_insert(Some(at));
    }
    let mut shared = applied_keys.iter().filter(|key| live_at.contains_key(key.as_str())).peekable();
    let mut taken: HashSet<&str> = HashSet::new();
    let mut merged = Vec::new();
    let (mut l, mut a) = (0, 0);
    while l < live.len() || a < applied.len() {
        if l < live.len() {
            let key = live_keys[l].as_str();
            if !applied_set.contains(key) {
                merged.push(live[l].clone());
                l += 1;
                continue;
            }
            if a < applied.len() && applied_keys[a] == key {
                l += 1;
            } else if a < applied.len() && shared.peek().is_some_and(|next| *next != key) {
                // A shared element out of its turn comes later, at its place among the applied.
                l += 1;
                continue;
            } else if taken.contains(key) {
                l += 1;
            }
        }
        if a < applied.len() {
            let key = applied_keys[a].as_str();
            taken.insert(key);
            merged.push(match live_at.get(key) {
                Some(Some(at)) => merge(Place::Element(list), &live[*at], &applied[a]),
                _ => applied[a].clone(),
            });
            shared.next_if(|next| *next == key);
            a += 1;
        }
    }
    merged
}

/// Removes the paths of `set`; what becomes empty by it goes too.
pub(super) fn remove(place: Place, object: &mut Map<String, Value>, set: &Set) {
    object.retain(|key, value| match set.get(&field_element(key)) {
        Some(tree) if is_member(tree) => false,
        Some(Value::Object(tree)) => remove_below(place.child(key), value, tree),
        _ => true,
    });
}

/// False if nothing is left.
fn remove_below(place: Place, value: &mut Value, set: &Set) -> bool {
    match view(place, value) {
        View::Leaf => true,
        View::Object(_) => match value {
            Value::Object(object) => {
                remove(place, object, set);
                !object.is_empty()
            }
            _ => true,
        },
        View::List(list, _) => match value {
            Value::Array(items) => {
                items.retain_mut(|item| {
                    let Some(element) = list_element(list, item) else { return true };
                    match set.get(&element) {
                        Some(tree) if is_member(tree) => false,
                        Some(Value::Object(tree)) => remove_below(Place::Element(list), item, tree),
                        _ => true,
                    }
                });
                !items.is_empty()
            }
            _ => true,
        },
    }
}
