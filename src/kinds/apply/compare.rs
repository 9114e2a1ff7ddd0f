//! Which fields differ between two objects.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::set::{Set, leaf, member};
use super::walk::{View, field_element, list_element, view};
use crate::kinds::fields::{Field, Place, Shape, Ty};

/// Paths that differ.
#[derive(Default)]
pub(super) struct Difference {
    /// Added or with another value.
    pub changed: Option<Set>,
    /// No longer there.
    pub removed: Option<Set>,
}

/// Compares two versions of the value at a place.
pub(super) fn compare(place: Place, before: Option<&Value>, after: Option<&Value>) -> Difference {
    if before == after {
        return Difference::default();
    }
    match (before, after) {
        (None, None) => Difference::default(),
        (None, Some(after)) => Difference { changed: Some(whole(place, after)), removed: None },
        (Some(before), None) => Difference { changed: None, removed: Some(whole(place, before)) },
        (Some(before), Some(after)) => match (view(place, before), view(place, after)) {
            (View::Object(before), View::Object(after)) => objects(place, before, after),
            (View::List(list, before), View::List(_, after)) => lists(list, before, after),
            _ => Difference { changed: Some(leaf()), removed: None },
        },
    }
}

/// Compares two objects field by field.
pub(super) fn objects(place: Place, before: &Map<String, Value>, after: &Map<String, Value>) -> Difference {
    let mut found = Collector::default();
    let only_after = after.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(only_after) {
        let (old, new) = (before.get(key), after.get(key));
        if old == new {
            continue;
        }
        let place = place.child(key);
        found.add(&field_element(key), compare(place, old.or(unset(place)), new.or(unset(place))));
    }
    found.finish()
}

/// What Go has for a field that JSON leaves out: structs that are no pointers, and lists that are always written, are
/// there even if empty, so filling them does not add them.
fn unset(place: Place) -> Option<&'static Value> {
    static STRUCT: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
    static LIST: LazyLock<Value> = LazyLock::new(|| Value::Array(Vec::new()));
    let Place::Field(field) = place else { return None };
    match (field.shape, field.ty) {
        (Shape::One, Ty::Struct(_)) if !field.pointer() => Some(&STRUCT),
        (Shape::Map, _) if !field.omitempty() => Some(&STRUCT),
        (Shape::List, _) if !field.omitempty() => Some(&LIST),
        _ => None,
    }
}

fn lists(list: &'static Field, before: &[Value], after: &[Value]) -> Difference {
    let mut found = Collector::default();
    let mut groups: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for item in before {
        groups.entry(list_element(list, item).unwrap_or_default()).or_default().0.push(item);
    }
    for item in after {
        groups.entry(list_element(list, item).unwrap_or_default()).or_default().1.push(item);
    }
    groups.remove("");
    let place = Place::Element(list);
    for (element, (old, new)) in &groups {
        // Duplicates are owned by their element alone, as one.
        let difference = match (&old[..], &new[..]) {
            (old, new) if old == new => continue,
            (old @ ([] | [_]), new @ ([] | [_])) => compare(place, old.first().copied(), new.first().copied()),
            ([_, _, ..], []) => Difference { changed: None, removed: Some(leaf()) },
            ([_, _, ..], [new]) => Difference { changed: Some(whole(place, new)), removed: Some(leaf()) },
            (old, _) => {
                let removed = old.first().filter(|_| old.len() == 1).map(|old| whole(place, old));
                Difference { changed: Some(leaf()), removed }
            }
        };
        found.add(element, difference);
    }
    found.finish()
}

/// Every path of a value, those of structs and lists included.
pub(super) fn whole(place: Place, value: &Value) -> Set {
    let mut below = Set::new();
    match view(place, value) {
        View::Leaf => {}
        View::Object(object) => {
            for (key, value) in object {
                below.insert(field_element(key), whole(place.child(key), value).into());
            }
        }
        View::List(list, items) => {
            for item in items {
                let Some(element) = list_element(list, item) else { continue };
                let tree = if below.contains_key(&element) { leaf() } else { whole(Place::Element(list), item) };
                below.insert(element, tree.into());
            }
        }
    }
    member(Some(below))
}

#[derive(Default)]
struct Collector {
    changed: Set,
    removed: Set,
}

impl Collector {
    fn add(&mut self, element: &str, difference: Difference) {
        if let Some(tree) = difference.changed {
            self.changed.insert(element.to_owned(), tree.into());
        }
        if let Some(tree) = difference.removed {
            self.removed.insert(element.to_owned(), tree.into());
        }
    }

    fn finish(self) -> Difference {
        let some = |set: Set| (!set.is_empty()).then_some(set);
        Difference { changed: some(self.changed), removed: some(self.removed) }
    }
}
