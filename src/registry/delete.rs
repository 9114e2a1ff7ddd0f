//! Delete: preconditions, propagation policy, finalizers, grace periods.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};

use super::{DeleteOptions, Propagation};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// It is removed.
    Remove,
    /// It stays, changed.
    Keep(Object),
    /// It is already on its way out and nothing about that changes.
    Nothing,
}

/// Checks `preconditions` against the stored object.
pub(super) fn check(kind: &Kind, object: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let fail = |what: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(Status::conflict(&kind.group, &kind.plural, meta::name(object), &why))
    };
    match (&options.preconditions.uid, &options.preconditions.revision) {
        (Some(uid), _) if uid != meta::uid(object) => fail("UID", uid, meta::uid(object)),
        (_, Some(rv)) if rv != meta::resource_version(object) => {
            fail("ResourceVersion", rv, meta::resource_version(object))
        }
        _ => Ok(()),
    }
}

/// What becomes of `old` when it is deleted at `now`.
pub(super) fn plan(kind: &Kind, old: &Object, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut object = old.clone();
    set_propagation(&mut object, options.propagation);
    // Negative periods mean "at once", as if 1: a client that asks for nothing sensible gets no special powers.
    let requested = options.grace.map(|g| if g < 0 { 1 } else { g });
    let grace = kind.hooks.grace(&object, requested).unwrap_or(0);
    if meta::is_deleting(&object) {
        shorten(&mut object, grace, requested.is_some(), now);
    } else {
        let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        meta::set(&mut object, "/metadata/deletionTimestamp", meta::format_time(at));
        meta::set(&mut object, "/metadata/deletionGracePeriodSeconds", grace);
        if meta::generation(&object) > 0 {
            let next = meta::generation(&object) + 1;
            meta::set_generation(&mut object, next);
        }
        terminate_namespace(kind, &mut object);
    }
    if is_finished(kind, &object) {
        Plan::Remove
    } else if object == *old {
        Plan::Nothing
    } else {
        Plan::Keep(object)
    }
}

/// A second delete with a shorter grace period brings the end forward; it can never be put off.
fn shorten(object: &mut Object, grace: i64, asked: bool, now: Timestamp) {
    let current = meta::int_at(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
    if !asked || grace >= current {
        return;
    }
    let begun = meta::deleted(object).and_then(|t| t.checked_sub(SignedDuration::from_secs(current)).ok());
    let end = begun.unwrap_or(now).checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    meta::set(object, "/metadata/deletionTimestamp", meta::format_time(end));
    meta::set(object, "/metadata/deletionGracePeriodSeconds", grace);
}

/// Whether nothing holds an object that is being deleted any more: no grace period, no finalizer.
pub(super) fn is_finished(kind: &Kind, object: &Object) -> bool {
    meta::is_deleting(object)
        && meta::int_at(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && meta::finalizers(object).next().is_none()
        && (!is_namespace(kind) || meta::list_at(object, "/spec/finalizers").is_empty())
}

fn set_propagation(object: &mut Object, policy: Option<Propagation>) {
    let Some(policy) = policy else { return };
    let mut finalizers: Vec<String> =
        meta::finalizers(object).filter(|f| ![FOREGROUND, ORPHAN].contains(f)).map(str::to_owned).collect();
    match policy {
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
        Propagation::Background => {}
    }
    if finalizers.is_empty() {
        meta::remove(object, "/metadata/finalizers");
    } else {
        meta::set(object, "/metadata/finalizers", Value::from(finalizers));
    }
}

fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Namespace"
}

fn terminate_namespace(kind: &Kind, object: &mut Object) {
    if is_namespace(kind) {
        meta::set(object, "/status/phase", "Terminating");
    }
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

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    #[test]
    fn finalizers_keep_an_object() {
        let kinds = KindTable::builtin();
        let config = kinds.by_plural("", "v1", "configmaps").unwrap();
        let namespace = kinds.by_plural("", "v1", "namespaces").unwrap();
        let bare = object(json!({"metadata": {"name": "a"}}));
        let held = object(json!({"metadata": {"name": "a", "finalizers": ["x/y"], "generation": 3}}));
        let options = |propagation| DeleteOptions { propagation, ..DeleteOptions::default() };
        assert_eq!(plan(&config, &bare, &options(None), now()), Plan::Remove);
        assert_eq!(plan(&config, &bare, &options(Some(Propagation::Background)), now()), Plan::Remove);
        let Plan::Keep(kept) = plan(&config, &held, &options(None), now()) else { panic!("removed") };
        assert_eq!(meta::str_at(&kept, "/metadata/deletionTimestamp"), "2026-01-02T03:04:05Z");
        assert_eq!(meta::generation(&kept), 4);
        assert_eq!(plan(&config, &kept, &options(None), now()), Plan::Nothing);
        for (policy, finalizer) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)] {
            let Plan::Keep(kept) = plan(&config, &bare, &options(Some(policy)), now()) else { panic!("removed") };
            assert_eq!(meta::finalizers(&kept).collect::<Vec<_>>(), [finalizer]);
        }
        let ns = object(json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}}));
        let Plan::Keep(kept) = plan(&namespace, &ns, &options(None), now()) else { panic!("removed") };
        assert_eq!(meta::str_at(&kept, "/status/phase"), "Terminating");
    }

    #[test]
    fn grace_only_gets_shorter() {
        let mut pod = object(json!({"metadata": {
            "deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30,
        }}));
        shorten(&mut pod, 60, true, now());
        assert_eq!(meta::int_at(&pod, "/metadata/deletionGracePeriodSeconds"), Some(30));
        shorten(&mut pod, 5, true, now());
        assert_eq!(meta::int_at(&pod, "/metadata/deletionGracePeriodSeconds"), Some(5));
        assert_eq!(meta::str_at(&pod, "/metadata/deletionTimestamp"), "2026-01-02T03:04:10Z");
    }

    #[test]
    fn preconditions_name_what_differs() {
        let config = KindTable::builtin().by_plural("", "v1", "configmaps").unwrap();
        let stored = object(json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "9"}}));
        assert!(check(&config, &stored, &DeleteOptions::of("1")).is_ok());
        let error = check(&config, &stored, &DeleteOptions::of("2")).unwrap_err();
        assert_eq!((error.code, error.reason), (409, "Conflict"));
        assert!(error.message.ends_with("Precondition failed: UID in precondition: 2, UID in object meta: 1"));
        let mut options = DeleteOptions::default();
        options.preconditions.revision = Some("8".into());
        assert_eq!(check(&config, &stored, &options).unwrap_err().code, 409);
    }
}
