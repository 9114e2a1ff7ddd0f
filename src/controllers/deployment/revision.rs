//! Revisions: which ReplicaSet runs the current template, and the history kept in annotations.

use serde_json::Value;

use crate::controllers::model::Annotations;
use crate::controllers::replicaset::plan::ReplicaSet;
use crate::kinds::Object;

use super::model::Deployment;

/// The label that keeps the pods of a Deployment's sets apart.
pub const HASH: &str = "pod-template-hash";
/// The number of a rollout, on the Deployment and its sets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a set that was rolled back to.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The replicas the Deployment wanted when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most replicas there could be then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The longest history kept, in characters.
const HISTORY_LENGTH: usize = 2000;

/// The place of the set that runs the Deployment's template: the oldest one, should there be several.
/// `sets` are in the order of their creation.
pub fn find_new(deployment: &Deployment, sets: &[ReplicaSet]) -> Option<usize> {
    sets.iter().position(|set| same_template(&set.spec.template, &deployment.spec.template))
}

/// Whether two pod templates mean the same, apart from the hash label. What is empty equals what is absent where the
/// API cannot tell them apart.
pub fn same_template(a: &Object, b: &Object) -> bool {
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => same_objects(a, b),
            (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
            _ => a == b,
        }
    }
    fn same_objects(a: &Object, b: &Object) -> bool {
        a.iter().all(|(key, value)| match b.get(key) {
            Some(other) => same(value, other),
            None => absent(key, value),
        }) && b.iter().all(|(key, value)| a.contains_key(key) || absent(key, value))
    }
    same_objects(a, b)
}

fn absent(key: &str, value: &Value) -> bool {
    const MAPS: [&str; 8] =
        ["labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests", "metadata", "resources"];
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => MAPS.contains(&key) && map.iter().all(|(k, v)| absent(k, v)),
        _ => key == HASH,
    }
}

/// The revision a set carries; 0 without one.
pub fn revision(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or_default()
}

/// Brings the annotations of the set of the current template up to date: the Deployment's own (change-cause among them)
/// and the revision, which is above that of every old set. A set that is used again keeps its earlier revisions.
pub fn annotate(deployment: &Deployment, annotations: &mut Annotations, highest_old: i64) {
    for (key, value) in &deployment.metadata.annotations {
        if !stays_behind(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let next = highest_old.saturating_add(1);
    let current = annotations.get(REVISION).cloned();
    let Ok(number) = current.as_deref().unwrap_or("0").parse::<i64>() else { return };
    if number >= next {
        return;
    }
    annotations.insert(REVISION.to_owned(), next.to_string());
    if let Some(current) = current {
        let history = annotations.entry(HISTORY.to_owned()).or_default();
        *history = extended(history, &current);
    }
}

fn extended(history: &str, revision: &str) -> String {
    let mut kept: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
    kept.push(revision);
    let mut length = kept.iter().map(|r| r.len() + 1).sum::<usize>();
    let mut first = 0;
    while length > HISTORY_LENGTH + 1 && first + 1 < kept.len() {
        length -= kept[first].len() + 1;
        first += 1;
    }
    kept[first..].join(",")
}

/// Annotations of a Deployment that are about itself.
fn stays_behind(key: &str) -> bool {
    matches!(
        key,
        "kubectl.kubernetes.io/last-applied-configuration"
            | "deprecated.deployment.rollback.to"
            | REVISION
            | HISTORY
            | DESIRED
            | MAX
    )
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
    fn templates_are_compared_by_meaning() {
        let base =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        for (other, equal) in [
            (
                json!({"metadata": {"labels": {"app": "web", "pod-template-hash": "x"}, "creationTimestamp": null},
                    "spec": {"containers": [{"name": "c", "image": "i", "env": [], "resources": {}}]}}),
                true,
            ),
            (
                json!({"metadata": {"labels": {"app": "web"}, "annotations": {}},
                    "spec": {"containers": [{"name": "c", "image": "i"}], "nodeSelector": {}}}),
                true,
            ),
            (
                json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "j"}]}}),
                false,
            ),
            (
                json!({"metadata": {"labels": {"app": "web", "v": "2"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]}}),
                false,
            ),
            (
                json!({"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "i", "stdin": true}]}}),
                false,
            ),
            // What is present without a value can be a choice, as an emptyDir is.
            (
                json!({"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}], "securityContext": {}}}),
                false,
            ),
        ] {
            assert_eq!(same_template(&object(base.clone()), &object(other.clone())), equal, "{other}");
            assert_eq!(same_template(&object(other.clone()), &object(base.clone())), equal, "{other}");
        }
    }

    #[test]
    fn revisions_rise_and_are_remembered() {
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"annotations": {
            "kubernetes.io/change-cause": "image 2", REVISION: "9",
            "kubectl.kubernetes.io/last-applied-configuration": "{}"
        }}}))
        .unwrap();
        let mut fresh = Annotations::new();
        annotate(&deployment, &mut fresh, 0);
        assert_eq!(fresh[REVISION], "1");
        assert_eq!(fresh["kubernetes.io/change-cause"], "image 2");
        assert_eq!(fresh.len(), 2);

        for (revision, history) in [(3, "1"), (5, "1,3"), (8, "1,3,5")] {
            annotate(&deployment, &mut fresh, revision - 1);
            assert_eq!((fresh[REVISION].as_str(), fresh[HISTORY].as_str()), (revision.to_string().as_str(), history));
        }
        let before = fresh.clone();
        annotate(&deployment, &mut fresh, 7);
        assert_eq!(fresh, before);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut history = String::new();
        for revision in 1..2000 {
            history = extended(&history, &revision.to_string());
        }
        assert!(history.len() <= HISTORY_LENGTH);
        assert!(history.ends_with(",1998,1999"));
    }
}
