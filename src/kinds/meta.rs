//! Reading and writing [`Object`]s without clutter: paths are JSON pointers such as `/spec/nodeName`.
//!
//! Getters give an empty value for what is absent or of another type; nothing here panics.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Object;

/// The value at a JSON pointer (`/spec/containers/0/name`; `~1` is `/`, `~0` is `~` in a key).
pub fn pointer<'a>(object: &'a Object, path: &str) -> Option<&'a Value> {
    let (first, rest) = split(path);
    let value = object.get(&unescape(first))?;
    if rest.is_empty() { Some(value) } else { value.pointer(rest) }
}

/// Like [`pointer`], to change it.
pub fn pointer_mut<'a>(object: &'a mut Object, path: &str) -> Option<&'a mut Value> {
    let (first, rest) = split(path);
    let value = object.get_mut(&unescape(first))?;
    if rest.is_empty() { Some(value) } else { value.pointer_mut(rest) }
}

/// The string at a path, empty if there is none.
pub fn str_at<'a>(object: &'a Object, path: &str) -> &'a str {
    pointer(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a path.
pub fn int_at(object: &Object, path: &str) -> Option<i64> {
    pointer(object, path).and_then(Value::as_i64)
}

/// The boolean at a path, `false` if there is none.
pub fn bool_at(object: &Object, path: &str) -> bool {
    pointer(object, path).and_then(Value::as_bool).unwrap_or_default()
}

/// The elements of the list at a path, empty if there is none.
pub fn list_at<'a>(object: &'a Object, path: &str) -> &'a [Value] {
    pointer(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at a path.
pub fn object_at<'a>(object: &'a Object, path: &str) -> Option<&'a Object> {
    pointer(object, path).and_then(Value::as_object)
}

/// The string under a key, empty if there is none.
pub fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The integer under a key.
pub fn int(object: &Object, key: &str) -> Option<i64> {
    object.get(key).and_then(Value::as_i64)
}

/// The boolean under a key, `false` if there is none.
pub fn flag(object: &Object, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// The object under a key.
pub fn sub<'a>(object: &'a Object, key: &str) -> Option<&'a Object> {
    object.get(key).and_then(Value::as_object)
}

/// The object at a path; it and the objects on the way are made if absent. What is in the way and no object is replaced.
/// List indexes are not followed.
pub fn object_at_mut<'a>(object: &'a mut Object, path: &str) -> &'a mut Object {
    let mut at = object;
    for step in path.split('/').skip(1) {
        at = child(at, &unescape(step));
    }
    at
}

/// Sets the value at a path, making the objects on the way.
pub fn set(object: &mut Object, path: &str, value: impl Into<Value>) {
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
    object_at_mut(object, parent).insert(unescape(last), value.into());
}

/// Removes and returns the value at a path (the last step a key of an object).
pub fn remove(object: &mut Object, path: &str) -> Option<Value> {
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() { object } else { pointer_mut(object, parent)?.as_object_mut()? };
    parent.remove(&unescape(last))
}

/// The child object under a key, made if absent.
pub fn child<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let value = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Sets `key` unless it is there. Null and the empty text count as absent, as after Kubernetes' decoders.
pub fn default_to(object: &mut Object, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(|v| v.is_null() || v == "") {
        object.insert(key.to_owned(), value.into());
    }
}

/// Sets a number unless it is there and not 0, for fields whose 0 means that nothing was said.
pub fn default_number(object: &mut Object, key: &str, value: i64) {
    if int(object, key).unwrap_or(0) == 0 && object.get(key).is_none_or(|v| v.is_null() || v.is_number()) {
        object.insert(key.to_owned(), value.into());
    }
}

/// The objects of the list under a key; elements of other types are left out.
pub fn items<'a>(object: &'a Object, key: &str) -> impl Iterator<Item = &'a Object> {
    object.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

/// Like [`items`], to change them.
pub fn items_mut<'a>(object: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// `apiVersion`.
pub fn api_version(object: &Object) -> &str {
    str_at(object, "/apiVersion")
}

/// `kind`.
pub fn kind(object: &Object) -> &str {
    str_at(object, "/kind")
}

/// `metadata.name`.
pub fn name(object: &Object) -> &str {
    str_at(object, "/metadata/name")
}

/// `metadata.namespace`, empty for cluster scope.
pub fn namespace(object: &Object) -> &str {
    str_at(object, "/metadata/namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Object) -> &str {
    str_at(object, "/metadata/uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Object) -> &str {
    str_at(object, "/metadata/resourceVersion")
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(object: &mut Object, revision: u64) {
    set(object, "/metadata/resourceVersion", revision.to_string());
}

/// `metadata.generation`, 0 if there is none.
pub fn generation(object: &Object) -> i64 {
    int_at(object, "/metadata/generation").unwrap_or_default()
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Object, generation: i64) {
    set(object, "/metadata/generation", generation);
}

/// `metadata.labels`.
pub fn labels(object: &Object) -> Option<&Object> {
    object_at(object, "/metadata/labels")
}

/// One label's value.
pub fn label<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// Sets a label.
pub fn set_label(object: &mut Object, key: &str, value: &str) {
    object_at_mut(object, "/metadata/labels").insert(key.to_owned(), value.into());
}

/// `metadata.annotations`.
pub fn annotations(object: &Object) -> Option<&Object> {
    object_at(object, "/metadata/annotations")
}

/// One annotation's value.
pub fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// Sets an annotation.
pub fn set_annotation(object: &mut Object, key: &str, value: &str) {
    object_at_mut(object, "/metadata/annotations").insert(key.to_owned(), value.into());
}

/// `metadata.creationTimestamp`.
pub fn created(object: &Object) -> Option<Timestamp> {
    time_at(object, "/metadata/creationTimestamp")
}

/// `metadata.deletionTimestamp`.
pub fn deleted(object: &Object) -> Option<Timestamp> {
    time_at(object, "/metadata/deletionTimestamp")
}

/// Whether the object is being deleted.
pub fn is_deleting(object: &Object) -> bool {
    pointer(object, "/metadata/deletionTimestamp").is_some_and(|v| !v.is_null())
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Object) -> impl Iterator<Item = &str> {
    list_at(object, "/metadata/finalizers").iter().filter_map(Value::as_str)
}

/// Removes a finalizer; returns whether it was there.
pub fn remove_finalizer(object: &mut Object, finalizer: &str) -> bool {
    let Some(Value::Array(list)) = pointer_mut(object, "/metadata/finalizers") else { return false };
    let before = list.len();
    list.retain(|f| f.as_str() != Some(finalizer));
    let removed = list.len() != before;
    if list.is_empty() {
        remove(object, "/metadata/finalizers");
    }
    removed
}

/// `metadata.ownerReferences`.
pub fn owners(object: &Object) -> impl Iterator<Item = &Object> {
    list_at(object, "/metadata/ownerReferences").iter().filter_map(Value::as_object)
}

/// The owner reference with `controller: true`.
pub fn controller(object: &Object) -> Option<&Object> {
    owners(object).find(|o| bool_at(o, "/controller"))
}

/// An owner reference to `owner` as its managing controller.
pub fn controller_reference(owner: &Object) -> Value {
    serde_json::json!({
        "apiVersion": api_version(owner), "kind": kind(owner), "name": name(owner), "uid": uid(owner),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The condition of a type in `status.conditions`.
pub fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Object> {
    list_at(object, "/status/conditions").iter().filter_map(Value::as_object).find(|c| str_at(c, "/type") == kind)
}

/// The RFC 3339 time at a path.
pub fn time_at(object: &Object, path: &str) -> Option<Timestamp> {
    str_at(object, path).parse().ok()
}

/// A time as `metav1.Time` is written: UTC, whole seconds, `2026-01-02T03:04:05Z`.
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `metav1.MicroTime` is written: UTC, `2026-01-02T03:04:05.678901Z`.
pub fn format_micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// `/a/b/c` as `a` and `/b/c`.
fn split(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.find('/').map_or((path, ""), |i| path.split_at(i))
}

fn unescape(step: &str) -> String {
    if step.contains('~') { step.replace("~1", "/").replace("~0", "~") } else { step.to_owned() }
}

/// Reads an explicit null as the default, as Kubernetes' decoders do.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn paths_read_and_write() {
        let mut o = object(json!({"spec": {"containers": [{"name": "a"}], "replicas": 3}, "metadata": {"name": "x"}}));
        assert_eq!(str_at(&o, "/spec/containers/0/name"), "a");
        assert_eq!(int_at(&o, "/spec/replicas"), Some(3));
        assert_eq!(str_at(&o, "/spec/replicas"), "");
        assert_eq!(name(&o), "x");
        set(&mut o, "/status/phase", "Running");
        set(&mut o, "/metadata/labels/app.kubernetes.io~1name", "web");
        assert_eq!(label(&o, "app.kubernetes.io/name"), Some("web"));
        assert_eq!(remove(&mut o, "/status/phase"), Some(json!("Running")));
        assert_eq!(pointer(&o, "/status"), Some(&json!({})));
        assert_eq!(remove(&mut o, "/nothing/there"), None);
    }

    #[test]
    fn finalizers_are_removed_with_their_list() {
        let mut o = object(json!({"metadata": {"finalizers": ["a", "b"]}}));
        assert!(remove_finalizer(&mut o, "a"));
        assert!(!remove_finalizer(&mut o, "a"));
        assert!(remove_finalizer(&mut o, "b"));
        assert_eq!(pointer(&o, "/metadata/finalizers"), None);
    }

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let time: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        assert_eq!(format_time(time), "2026-01-02T03:04:05Z");
        assert_eq!(format_micro_time(time), "2026-01-02T03:04:05.678901Z");
    }
}
