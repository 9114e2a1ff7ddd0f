//! Which fields an applied configuration owns, and whether apply can work with it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::set::{self, Set, leaf, member};
use super::walk::{View, field_element, list_element, view};
use crate::kinds::fields::{self, Place};

/// The paths an applied configuration owns: leaves, elements of lists, keys of maps, empty objects.
pub(super) fn owned(place: Place, value: &Value) -> Option<Set> {
    match view(place, value) {
        View::Leaf => Some(leaf()),
        View::Object(object) => {
            let set = owned_fields(place, object);
            (!set.is_empty()).then_some(set)
        }
        View::List(list, items) => {
            let mut set = Set::new();
            for item in items {
                let Some(element) = list_element(list, item) else { continue };
                let tree = if set.contains_key(&element) { leaf() } else { member(owned(Place::Element(list), item)) };
                set.insert(element, tree.into());
            }
            (!set.is_empty()).then_some(set)
        }
    }
}

/// [`owned`] of an object's fields.
pub(super) fn owned_fields(place: Place, object: &Map<String, Value>) -> Set {
    let mut set = Set::new();
    for (key, value) in object {
        let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let tree = owned(place.child(key), value);
        let tree = if is_empty || is_map_entry(place) { Some(member(tree)) } else { tree };
        if let Some(tree) = tree {
            set.insert(field_element(key), tree.into());
        }
    }
    set
}

/// Entries of maps are owned beside what they hold; fields of structs are not.
fn is_map_entry(place: Place) -> bool {
    matches!(place, Place::Field(_)) && place.struct_type().is_none()
}

/// Adds the structs' own paths, which sets leave out.
pub(super) fn with_structs(place: Place, set: &Set) -> Set {
    let mut full = Set::new();
    for (element, tree) in set::children(set) {
        let (place, is_field) = match element.strip_prefix("f:") {
            Some(name) => (place.child(name), place.struct_type().is_some_and(|ty| ty.field(name).is_some())),
            None => (place.element(), false),
        };
        let below = tree.as_object().map(|tree| with_structs(place, tree)).unwrap_or_default();
        let below = if is_field || set::is_member(tree) { member(Some(below)) } else { below };
        full.insert(element.clone(), below.into());
    }
    full
}

/// Checks a configuration: every violation as upstream words it, without the object's name.
pub(super) fn check(place: Place, object: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    check_object(place, object, "", &mut found);
    found
}

fn check_object(place: Place, object: &Map<String, Value>, path: &str, found: &mut Vec<String>) {
    for (key, value) in object {
        let path = format!("{path}.{key}");
        // Custom resources have fields beside those of the table.
        match (place.child(key), place.struct_type()) {
            (Place::Free, Some(ty)) if !std::ptr::eq(ty, fields::partial_object()) => {
                found.push(format!("{path}: field not declared in schema"));
            }
            (place, _) => check_value(place, value, &path, found),
        }
    }
}

fn check_value(place: Place, value: &Value, path: &str, found: &mut Vec<String>) {
    match view(place, value) {
        View::Object(object) => check_object(place, object, path, found),
        View::List(list, items) => {
            let mut seen = HashSet::new();
            for (at, item) in items.iter().enumerate() {
                match list_element(list, item) {
                    Some(element) if !seen.insert(element.clone()) => {
                        let element = set::paths(&Set::from_iter([(element, leaf().into())])).concat();
                        found.push(format!("{path}: duplicate entries for key {element}"));
                    }
                    Some(_) => check_value(Place::Element(list), item, &format!("{path}[{at}]"), found),
                    None => found.push(format!("{path}: element {at}: {}", unkeyed(list.rules.keys))),
                }
            }
        }
        View::Leaf => {
            // A leaf by its type is checked when the result is read; what should be fields or elements is not a leaf.
            if let (Value::Object(_), Some(_)) = (value, place.list()) {
                found.push(format!("{path}: expected list, got &{{map}}"));
            } else if let (Value::Array(items), Some(_), None) = (value, place.struct_type(), place.list()) {
                found.push(format!("{path}: expected map, got a list of {}", items.len()));
            }
        }
    }
}

fn unkeyed(keys: &[&str]) -> String {
    match keys {
        [] => "associative list without keys has an element that's a map type".into(),
        keys => format!(
            "associative list with keys has an element that omits all key fields {keys:?} \
             (and doesn't have default values for any key fields)"
        ),
    }
}
