//! How server-side apply sees a value: as one leaf, as fields, or as a list of elements with an identity.

use serde_json::{Map, Value};

use crate::kinds::fields::{Field, Place, Topology, Ty};

/// A value as apply sees it.
pub(super) enum View<'a> {
    /// Owned and replaced as a whole.
    Leaf,
    /// Owned field by field.
    Object(&'a Map<String, Value>),
    /// Owned element by element.
    List(&'static Field, &'a [Value]),
}

pub(super) fn view(place: Place, value: &Value) -> View<'_> {
    match (place, value) {
        (Place::Field(field), Value::Array(items)) if place.list().is_some() && !field.atomic() => {
            View::List(field, items)
        }
        (Place::Field(field), Value::Object(object)) if place.list().is_none() && !field.atomic() => {
            View::Object(object)
        }
        (Place::Element(field), Value::Object(object)) => match field.ty {
            Ty::Struct(ty) if !ty.atomic => View::Object(object),
            _ => View::Leaf,
        },
        (Place::Root(_) | Place::Free, Value::Object(object)) => View::Object(object),
        _ => View::Leaf,
    }
}

/// Path element of a field.
pub(super) fn field_element(name: &str) -> String {
    ["f:", name].concat()
}

/// Path element of a list's element; `None` if the element has none of the list's keys.
pub(super) fn list_element(list: &'static Field, item: &Value) -> Option<String> {
    if list.rules.topology == Topology::Set {
        return (!item.is_object() && !item.is_array() && !item.is_null()).then(|| format!("v:{item}"));
    }
    let item = item.as_object()?;
    let mut names = list.rules.keys.to_vec();
    names.sort_unstable();
    let mut text = String::from("k:{");
    for name in names {
        let value = match item.get(name) {
            Some(value) => value.to_string(),
            None => match default_of(list, name) {
                Some(default) => Value::from(default).to_string(),
                None => continue,
            },
        };
        if !text.ends_with('{') {
            text.push(',');
        }
        text.push_str(&format!("{:?}:{value}", name));
    }
    text.push('}');
    (text != "k:{}").then_some(text)
}

fn default_of(list: &'static Field, key: &str) -> Option<&'static str> {
    let default = list.struct_type()?.field(key)?.rules.default;
    (!default.is_empty()).then_some(default)
}
