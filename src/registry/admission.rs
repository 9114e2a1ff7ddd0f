//! Admission: what is refused or filled in beyond the rules of a kind. Small functions that see the registry and one
//! request.

use serde_json::json;

use crate::kinds::namespace::TERMINATING;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};

use super::{Registry, error, read};

/// Namespaces that are never deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Fills in what admission sets on a new object.
pub(super) fn mutate_create(kind: &Kind, object: &mut Object) {
    if is(kind, "", "Pod") {
        service_account(object);
    }
}

/// Refuses a new object in a namespace that is missing or on its way out (NamespaceLifecycle).
pub(super) fn namespace_accepts(registry: &Registry, kind: &Kind, ns: &str, name: &str) -> Result<(), Status> {
    if !kind.namespaced {
        return Ok(());
    }
    let Some(namespaces) = registry.kinds().by_plural("", "v1", "namespaces") else { return Ok(()) };
    let (store, key) = (registry.store(), read::key(&namespaces, "", ns));
    if !store.contains(&key) {
        return Err(Status::not_found("", "namespaces", ns));
    }
    let leaving = store.find(&key.resource, TERMINATING).map_err(|e| error::status(&key.resource, e))?;
    if !leaving.iter().any(|record| record.key == key) {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {ns} because it is being terminated");
    let mut status = Status::forbidden(&kind.group, &kind.plural, name, &why);
    status.details["causes"] = json!([{
        "reason": "NamespaceTerminating", "message": format!("namespace {ns} is being terminated"),
        "field": "metadata.namespace",
    }]);
    Err(status)
}

/// Refuses a pod whose service account does not exist (ServiceAccount). The account `default` is on its way in every
/// namespace and is not waited for.
pub(super) fn service_account_exists(registry: &Registry, kind: &Kind, pod: &Object) -> Result<(), Status> {
    let (ns, name) = (meta::namespace(pod), meta::str_at(pod, "/spec/serviceAccountName"));
    if !is(kind, "", "Pod") || name == "default" {
        return Ok(());
    }
    let Some(accounts) = registry.kinds().by_plural("", "v1", "serviceaccounts") else { return Ok(()) };
    registry.get_raw(&accounts, ns, name).map(drop).map_err(|status| match status.code {
        404 => {
            let why = format!("error looking up service account {ns}/{name}: serviceaccount {name:?} not found");
            Status::forbidden(&kind.group, &kind.plural, meta::name(pod), &why)
        }
        _ => status,
    })
}

/// Refuses the deletion of a namespace that the cluster needs.
pub(super) fn may_delete(kind: &Kind, name: &str) -> Result<(), Status> {
    if is(kind, "", "Namespace") && IMMORTAL.contains(&name) {
        return Err(Status::forbidden(&kind.group, &kind.plural, name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// A pod that names no service account runs as `default`; the deprecated field mirrors the current one.
fn service_account(pod: &mut Object) {
    let spec = meta::object_at_mut(pod, "/spec");
    let named = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|key| spec.get(*key)?.as_str().filter(|name| !name.is_empty()))
        .unwrap_or("default")
        .to_owned();
    spec.insert("serviceAccount".into(), named.as_str().into());
    spec.insert("serviceAccountName".into(), named.into());
}

fn is(kind: &Kind, group: &str, name: &str) -> bool {
    kind.group == group && kind.kind == name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_get_a_service_account() {
        for (spec, expected) in [
            (json!({}), "default"),
            (json!({"serviceAccountName": "web"}), "web"),
            (json!({"serviceAccount": "old"}), "old"),
            (json!({"serviceAccountName": "", "serviceAccount": "old"}), "old"),
        ] {
            let mut pod = json!({ "spec": spec }).as_object().unwrap().clone();
            service_account(&mut pod);
            let expected = json!({"serviceAccountName": expected, "serviceAccount": expected});
            assert_eq!(pod["spec"], expected);
        }
    }
}
