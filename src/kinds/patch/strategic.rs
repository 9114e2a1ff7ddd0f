//! Strategic merge patch (`application/strategic-merge-patch+json`): kubectl's own patch language.
//!
//! Lists of objects merge by a key of the field table; the directives `$patch`, `$retainKeys`, `$setElementOrder/LIST`
//! and `$deleteFromPrimitiveList/LIST` steer it. Behaviour and order of results follow
//! `k8s.io/apimachinery/pkg/util/strategicpatch`.

mod order;

use serde_json::{Map, Value};

use crate::kinds::fields::{Field, Place, Type};
use order::{Ranks, identity};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Why a patch cannot be applied: a fault of the patch, 400 except where told.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// `$patch` with a directive that does not exist.
    #[error("unknown patch type: {directive} in map: {map}")]
    UnknownDirective {
        /// Value of `$patch`.
        directive: Value,
        /// The rest of the object.
        map: Value,
    },
    /// An element of a keyed list without its key.
    #[error("map: {map} does not contain declared merge key: {key}")]
    NoMergeKey {
        /// The element.
        map: Value,
        /// Name of the key.
        key: &'static str,
    },
    /// A list that mixes objects and scalars, or has the wrong of them.
    #[error("list element types are not identical: {0}")]
    Mixed(Value),
    /// Lists in lists do not merge (422).
    #[error("lists of lists are not supported")]
    ListOfLists,
    /// Objects in a merging list without a merge key.
    #[error("cannot merge lists without merge key for {0}")]
    NoKeyForList(&'static str),
    /// `$retainKeys` is malformed or leaves out a field of the patch.
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    /// `$deleteFromPrimitiveList` is malformed.
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    /// `$setElementOrder` is malformed.
    #[error("invalid patch format of setElementOrder list")]
    SetElementOrder,
    /// `$setElementOrder` contradicts the list of the patch.
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    OrderMismatch {
        /// The list in the patch.
        patch: Value,
        /// The list of the directive.
        order: Value,
    },
}

impl Error {
    /// HTTP status code the API server answers with.
    pub fn code(&self) -> u16 {
        if *self == Error::ListOfLists { 422 } else { 400 }
    }
}

/// Applies a patch to an object of a type; fields the table does not know merge as plain JSON.
///
/// # Errors
/// See [`Error`].
pub fn apply(
    ty: &'static Type,
    object: Map<String, Value>,
    patch: Map<String, Value>,
) -> Result<Map<String, Value>, Error> {
    merge_map(object, patch, Place::Root(ty))
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    place: Place,
) -> Result<Map<String, Value>, Error> {
    match patch.remove(PATCH) {
        Some(directive) if directive == "replace" => return Ok(clean_map(patch)),
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        Some(directive) => return Err(Error::UnknownDirective { directive, map: patch.into() }),
        None => {}
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, place)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, list, value)?;
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (_, Value::Null) => None,
            (Some(Value::Object(original)), Value::Object(patch)) => {
                Some(merge_map(original, patch, place.child(&key))?.into())
            }
            (Some(Value::Array(original)), Value::Array(patch)) => {
                Some(merge_list(original, patch, place.child(&key))?.into())
            }
            (_, value) => clean(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: drops every field that the directive does not name; for unions such as a volume's source.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Error> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or(Error::RetainKeys)?;
    let retained = |key: &str| keys.iter().any(|retained| retained == key);
    let is_directive = |key: &str| key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !retained(key)) {
        return Err(Error::RetainKeys);
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// `$deleteFromPrimitiveList/LIST`: removes scalars from a list.
fn delete_from_list(original: &mut Map<String, Value>, list: &str, value: Value) -> Result<(), Error> {
    let Value::Array(doomed) = value else { return Err(Error::PrimitiveList) };
    if let Some(Value::Array(items)) = original.get_mut(list) {
        let doomed = Ranks::new(&doomed, "")?;
        items.retain(|item| !doomed.has(item));
    }
    Ok(())
}

/// `$setElementOrder/LIST`: merges the lists it names and puts their elements in the order it gives.
fn set_element_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    place: Place,
) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let key = &directive[SET_ELEMENT_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(Error::SetElementOrder) };
        let live = list_of(original.remove(key))?;
        let change = list_of(patch.remove(key))?;
        let place = place.child(key);
        let merge_key = place.list().map_or("", |field| field.rules.merge_key);
        order::check(change.as_deref().unwrap_or_default(), &order, merge_key)?;
        let server = Ranks::new(live.as_deref().unwrap_or_default(), merge_key)?;
        let merged = match (live, change) {
            (Some(live), None) => live,
            (None, Some(change)) => clean_list(change),
            (Some(live), Some(change)) => merge_list(live, change, place)?,
            (None, None) => continue,
        };
        let sorted = order::sort(merged, &Ranks::new(&order, merge_key)?, &server, merge_key)?;
        original.insert(key.to_owned(), sorted.into());
    }
    Ok(())
}

fn list_of(value: Option<Value>) -> Result<Option<Vec<Value>>, Error> {
    match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(Error::SetElementOrder),
    }
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, place: Place) -> Result<Vec<Value>, Error> {
    let Some(field) = place.list().filter(|field| field.rules.merge) else {
        return Ok(clean_list(patch));
    };
    let mut items = original.iter().chain(&patch);
    let Some(first) = items.next() else { return Ok(original) };
    if first.is_array() {
        return Err(Error::ListOfLists);
    }
    if let Some(other) = items.find(|item| item.is_object() != first.is_object()) {
        return Err(Error::Mixed(other.clone()));
    }
    if first.is_object() { merge_objects(original, patch, field) } else { merge_scalars(original, patch) }
}

fn merge_scalars(original: Vec<Value>, patch: Vec<Value>) -> Result<Vec<Value>, Error> {
    let (server, client) = (Ranks::new(&original, "")?, Ranks::new(&patch, "")?);
    let all = Ranks::new(original.iter().chain(&patch), "")?;
    let unique = original.into_iter().chain(patch).enumerate().filter(|(at, item)| all.rank(item) == Some(*at));
    order::sort(unique.map(|(_, item)| item).collect(), &client, &server, "")
}

fn merge_objects(mut original: Vec<Value>, patch: Vec<Value>, field: &'static Field) -> Result<Vec<Value>, Error> {
    let key = field.rules.merge_key;
    if key.is_empty() {
        return Err(Error::NoKeyForList(field.json));
    }
    let (changes, replace) = special_elements(&mut original, patch, key)?;
    if replace {
        return Ok(clean_list(changes));
    }
    let (server, client) = (Ranks::new(&original, key)?, Ranks::new(&changes, key)?);
    let mut known = Ranks::new(&original, key)?;
    for change in changes {
        let id = identity(&change, key)?;
        match (known.get(&id), change) {
            (Some(at), Value::Object(change)) => {
                let Value::Object(live) = original[at].take() else { continue };
                original[at] = merge_map(live, change, Place::Element(field))?.into();
            }
            (_, change) => {
                known.insert(id, original.len());
                original.extend(clean(change));
            }
        }
    }
    order::sort(original, &client, &server, key)
}

/// Carries out `$patch` in elements of a list: the remaining elements, and whether they replace the list.
fn special_elements(
    original: &mut Vec<Value>,
    patch: Vec<Value>,
    key: &'static str,
) -> Result<(Vec<Value>, bool), Error> {
    let mut changes = Vec::new();
    let mut replace = false;
    for element in patch {
        match element.get(PATCH).and_then(Value::as_str) {
            Some("delete") => {
                let doomed = element.get(key).ok_or_else(|| Error::NoMergeKey { map: element.clone(), key })?;
                original.retain(|item| item.get(key) != Some(doomed));
            }
            Some("replace") => replace = true,
            _ => match element.get(PATCH).cloned() {
                Some(directive) => return Err(Error::UnknownDirective { directive, map: element }),
                None => changes.push(element),
            },
        }
    }
    Ok((changes, replace))
}

/// A value taken from the patch as it is, without nulls and directives; nothing if it is itself a directive.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(clean_map(map).into()),
        Value::Array(items) => Some(clean_list(items).into()),
        scalar => Some(scalar),
    }
}

fn clean_map(map: Map<String, Value>) -> Map<String, Value> {
    let is_directive =
        |key: &str| key == RETAIN_KEYS || key.starts_with(SET_ELEMENT_ORDER) || key.starts_with(DELETE_FROM_LIST);
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .filter_map(|(key, value)| Some((key, clean(value)?)))
        .collect()
}

fn clean_list(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(clean).collect()
}

#[cfg(test)]
mod tests;
