//! Adoption and release: which dependents an owner with a selector manages (`controller_ref_manager.go`).

use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use crate::kinds::meta;
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};
use crate::registry::{ListOptions, Registry, WriteOptions};
use crate::store::Key;

use super::model::{Meta, controller_reference};

/// What an owner does about a possible dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It manages it already.
    Keep,
    /// It matches and nobody manages it.
    Adopt,
    /// It manages it, but its labels match no longer.
    Release,
    /// It is none of its business.
    Ignore,
}

/// What `owner` with `selector` does about `dependent`.
pub fn claim(owner: &Meta, selector: &LabelSelector, dependent: &Meta) -> Claim {
    let matches = selector.matches_labels(Some(&dependent.labels));
    match dependent.controller() {
        Some(controller) if controller.uid != owner.uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.deleting() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !owner.deleting() && !dependent.deleting() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// An owner as its dependents refer to it.
pub struct Owner<'a> {
    /// `apps/v1`
    pub api_version: &'static str,
    /// `ReplicaSet`
    pub kind: &'static str,
    /// Its metadata.
    pub meta: &'a Meta,
}

/// The owners of a kind that could adopt an object with these labels.
pub fn adopters(registry: &Registry, kind: &Kind, namespace: &str, labels: &Object) -> Vec<Key> {
    #[derive(Deserialize)]
    struct Candidate {
        metadata: Meta,
        spec: Selecting,
    }
    #[derive(Deserialize)]
    struct Selecting {
        selector: Object,
    }
    let candidates: Vec<Candidate> = match registry.list_as(kind, &ListOptions::within(namespace)) {
        Ok(candidates) => candidates,
        Err(status) => {
            warn!(%status, namespace, kind = %kind.kind, "cannot list who could adopt");
            return Vec::new();
        }
    };
    let matching =
        candidates.into_iter().filter(|c| LabelSelector::of_spec(&c.spec.selector).matches_labels(Some(labels)));
    let resource = kind.resource();
    let key = |c: Candidate| Key {
        resource: resource.as_str().into(),
        namespace: namespace.into(),
        name: c.metadata.name.into(),
    };
    matching.map(key).collect()
}

/// Carries out a claim on the stored dependent. Returns whether the owner manages it now.
pub async fn settle(
    registry: &Registry,
    kind: &Kind,
    owner: &Owner<'_>,
    dependent: &Meta,
    claim: Claim,
    options: &WriteOptions,
) -> Result<bool, Status> {
    let change: fn(&mut Object, &Owner<'_>) -> bool = match claim {
        Claim::Keep => return Ok(true),
        Claim::Ignore => return Ok(false),
        Claim::Adopt => adopt,
        Claim::Release => release,
    };
    let mut managed = false;
    let (namespace, name) = (&dependent.namespace, &dependent.name);
    let result = registry
        .modify(kind, namespace, name, None, options, |object| {
            managed = meta::uid(object) == dependent.uid && change(object, owner);
            Ok(())
        })
        .await;
    match result {
        Ok(_) => Ok(managed),
        Err(status) if status.code == 404 => Ok(false),
        Err(status) => Err(status),
    }
}

fn adopt(object: &mut Object, owner: &Owner<'_>) -> bool {
    if meta::controller(object).is_some() || meta::is_deleting(object) {
        return false;
    }
    let mut references = meta::list_at(object, "/metadata/ownerReferences").to_vec();
    references.retain(|r| r.get("uid").and_then(Value::as_str) != Some(&owner.meta.uid));
    references.push(controller_reference(owner.api_version, owner.kind, owner.meta));
    meta::set(object, "/metadata/ownerReferences", references);
    true
}

fn release(object: &mut Object, owner: &Owner<'_>) -> bool {
    drop_owner(object, &owner.meta.uid);
    false
}

/// Removes the reference to an owner.
pub(super) fn drop_owner(object: &mut Object, uid: &str) {
    let Some(Value::Array(references)) = meta::pointer_mut(object, "/metadata/ownerReferences") else { return };
    references.retain(|r| r.get("uid").and_then(Value::as_str) != Some(uid));
    if references.is_empty() {
        meta::remove(object, "/metadata/ownerReferences");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn meta(value: Value) -> Meta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn owners_claim_what_matches_and_nobody_else_has() {
        let time = "2026-01-01T00:00:00Z";
        let owner = meta(json!({"uid": "o"}));
        let leaving = meta(json!({"uid": "o", "deletionTimestamp": time}));
        let selector = LabelSelector::parse("app=web").unwrap();
        let by = |uid: &str| json!([{"uid": uid, "controller": true}]);
        let web = json!({"app": "web"});
        for (what, owner, dependent, expected) in [
            ("managed, matching", &owner, json!({"labels": web, "ownerReferences": by("o")}), Claim::Keep),
            ("managed, not matching", &owner, json!({"ownerReferences": by("o")}), Claim::Release),
            ("of a leaving owner", &leaving, json!({"ownerReferences": by("o")}), Claim::Ignore),
            ("of somebody else", &owner, json!({"labels": web, "ownerReferences": by("x")}), Claim::Ignore),
            ("free, matching", &owner, json!({"labels": web}), Claim::Adopt),
            (
                "owned but not controlled",
                &owner,
                json!({"labels": web, "ownerReferences": [{"uid": "x"}]}),
                Claim::Adopt,
            ),
            ("free, not matching", &owner, json!({}), Claim::Ignore),
            ("free, leaving", &owner, json!({"labels": web, "deletionTimestamp": time}), Claim::Ignore),
            ("free, owner leaving", &leaving, json!({"labels": web}), Claim::Ignore),
        ] {
            assert_eq!(claim(owner, &selector, &meta(dependent)), expected, "{what}");
        }
    }

    #[test]
    fn references_come_and_go() {
        let web = meta(json!({"name": "web", "uid": "u1"}));
        let owner = Owner { api_version: "apps/v1", kind: "ReplicaSet", meta: &web };
        let mut object = json!({"metadata": {"name": "p"}}).as_object().unwrap().clone();
        assert!(adopt(&mut object, &owner));
        assert_eq!(meta::str_at(&object, "/metadata/ownerReferences/0/uid"), "u1");
        assert!(!adopt(&mut object, &owner), "somebody controls it now");
        assert!(!release(&mut object, &owner));
        assert_eq!(meta::pointer(&object, "/metadata/ownerReferences"), None);
    }
}
