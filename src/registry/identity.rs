//! The identity of objects: type, name, namespace, UID, and the metadata that only the server sets.

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta, names};

/// Refuses an object of another type than the endpoint's; a missing `apiVersion` or `kind` is the endpoint's.
pub(super) fn check_type(kind: &Kind, object: &mut Object) -> Result<(), Status> {
    let version = kind.api_version();
    for (key, expected) in [("apiVersion", version.as_str()), ("kind", &*kind.kind)] {
        let given = meta::str_at(object, &format!("/{key}")).to_owned();
        if given.is_empty() {
            object.insert(key.into(), expected.into());
        } else if given != expected && key == "kind" {
            let text = format!("{given} in version {:?} cannot be handled as a {expected}", kind.version);
            return Err(Status::bad_request(text));
        } else if given != expected {
            let what = format!("the API version in the data ({given}) does not match the expected API version");
            return Err(Status::bad_request(format!("{what} ({expected})")));
        }
    }
    Ok(())
}

/// Puts an object without namespace into `ns`; refuses one of another namespace.
pub(super) fn check_namespace(kind: &Kind, ns: &str, object: &mut Object) -> Result<(), Status> {
    if !object.get("metadata").is_none_or(|m| m.is_object() || m.is_null()) {
        return Err(Status::bad_request("metadata: must be an object"));
    }
    let given = meta::namespace(object).to_owned();
    if !kind.namespaced {
        // What a client says of a namespace here means nothing; validation would refuse it, Kubernetes drops it.
        meta::remove(object, "/metadata/namespace");
    } else if given.is_empty() {
        meta::set(object, "/metadata/namespace", ns);
    } else if given != ns {
        let text = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(text));
    }
    Ok(())
}

/// Refuses an update that means another object than the stored one.
pub(super) fn check_same(kind: &Kind, new: &Object, old: &Object) -> Result<(), Status> {
    let name = meta::name(old);
    if meta::name(new) != name {
        return Err(other_name(meta::name(new), name));
    }
    let (given, stored) = (meta::uid(new), meta::uid(old));
    if !given.is_empty() && given != stored {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {stored}");
        return Err(Status::conflict(&kind.group, &kind.plural, name, &why));
    }
    match meta::resource_version(new) {
        "" | "0" => Ok(()),
        given if given == meta::resource_version(old) => Ok(()),
        given if given.parse::<u64>().is_err() => {
            let error = crate::kinds::status::FieldError::invalid(
                "metadata.resourceVersion",
                given,
                "must be a resource version of this server",
            );
            Err(Status::invalid(&kind.group, &kind.kind, name, &[error]))
        }
        _ => Err(Status::stale(&kind.group, &kind.plural, name)),
    }
}

/// 400 for an object with another name than its URL.
pub(super) fn other_name(given: &str, name: &str) -> Status {
    Status::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({name})"))
}

/// Drops from a new object what only the server sets.
pub(super) fn strip(object: &mut Object) -> Result<(), Status> {
    if !meta::resource_version(object).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = meta::child(object, "metadata");
    for key in
        ["resourceVersion", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"]
    {
        metadata.remove(key);
    }
    Ok(())
}

/// Gives a new object its UID and time.
pub(super) fn stamp(object: &mut Object, now: Timestamp) {
    meta::set(object, "/metadata/uid", Uuid::new_v4().to_string());
    meta::set(object, "/metadata/creationTimestamp", meta::format_time(now));
}

/// Keeps on update what only the server sets.
pub(super) fn keep(new: &mut Object, old: &Object) {
    let empty = Object::new();
    let old = meta::object_at(old, "/metadata").unwrap_or(&empty);
    let new = meta::child(new, "metadata");
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generateName",
        "generation",
    ] {
        match old.get(key) {
            Some(value) => new.insert(key.into(), value.clone()),
            None => new.remove(key),
        };
    }
}

/// Gives an object a random name that begins with its `generateName`.
pub(super) fn generate_name(object: &mut Object) {
    let name = names::generate(meta::str_at(object, "/metadata/generateName"));
    meta::set(object, "/metadata/name", name);
}

/// Whether two objects differ in nothing but `metadata.managedFields`.
pub(super) fn same_but_managed(a: &Object, b: &Object) -> bool {
    let rest = |o: &Object| o.len();
    let others =
        |value: &Value| value.as_object().map_or(0, |m| m.len() - usize::from(m.contains_key("managedFields")));
    rest(a) == rest(b)
        && a.iter().all(|(key, value)| match (key.as_str(), value, b.get(key)) {
            ("metadata", Value::Object(map), Some(other)) => {
                others(value) == others(other)
                    && map.iter().all(|(key, value)| key == "managedFields" || other.get(key) == Some(value))
            }
            (_, value, other) => other == Some(value),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::table::KindTable;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn managed_fields_are_not_a_change() {
        let a = object(json!({"metadata": {"name": "a", "managedFields": [1]}, "spec": 1}));
        let b = object(json!({"metadata": {"name": "a"}, "spec": 1}));
        assert!(same_but_managed(&a, &b) && same_but_managed(&b, &a));
        for other in [
            json!({"metadata": {"name": "a"}, "spec": 2}),
            json!({"metadata": {"name": "a", "labels": {}}, "spec": 1}),
            json!({"metadata": {"name": "a"}}),
        ] {
            assert!(!same_but_managed(&a, &object(other)));
        }
    }

    #[test]
    fn type_and_namespace_follow_the_endpoint() {
        let kinds = KindTable::builtin();
        let config = kinds.by_plural("", "v1", "configmaps").unwrap();
        let node = kinds.by_plural("", "v1", "nodes").unwrap();
        let mut o = object(json!({"metadata": {"name": "a"}}));
        check_type(&config, &mut o).unwrap();
        check_namespace(&config, "here", &mut o).unwrap();
        assert_eq!((meta::api_version(&o), meta::kind(&o), meta::namespace(&o)), ("v1", "ConfigMap", "here"));
        assert_eq!(check_namespace(&config, "there", &mut o).unwrap_err().code, 400);
        assert_eq!(check_type(&node, &mut o).unwrap_err().code, 400);
        check_namespace(&node, "", &mut o).unwrap();
        assert_eq!(meta::namespace(&o), "");
    }

    #[test]
    fn updates_mean_the_stored_object() {
        let config = KindTable::builtin().by_plural("", "v1", "configmaps").unwrap();
        let old = object(json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5"}}));
        for (new, code) in [
            (json!({"name": "a"}), 0),
            (json!({"name": "a", "uid": "1", "resourceVersion": "5"}), 0),
            (json!({"name": "b"}), 400),
            (json!({"name": "a", "uid": "2"}), 409),
            (json!({"name": "a", "resourceVersion": "4"}), 409),
            (json!({"name": "a", "resourceVersion": "x"}), 422),
        ] {
            let result = check_same(&config, &object(json!({ "metadata": new })), &old);
            assert_eq!(result.err().map_or(0, |s| s.code), code);
        }
    }
}
