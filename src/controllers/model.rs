//! The parts of objects controllers look at. Reading these few fields is several times quicker than a whole object and
//! keeps no memory; writes never go through them, so no other field can be lost.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kinds::Object;
pub(super) use crate::kinds::meta::or_default;
use crate::kinds::status::Status;
use crate::registry::Raw;

/// String to string.
pub type Annotations = BTreeMap<String, String>;

/// `metadata` of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// `name`
    pub name: String,
    /// `namespace`, empty for cluster scope.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// `uid`
    #[serde(deserialize_with = "or_default")]
    pub uid: String,
    /// `resourceVersion`
    #[serde(deserialize_with = "or_default")]
    pub resource_version: String,
    /// `generation`
    #[serde(deserialize_with = "or_default")]
    pub generation: i64,
    /// `creationTimestamp`
    pub creation_timestamp: Option<Timestamp>,
    /// `deletionTimestamp`
    pub deletion_timestamp: Option<Timestamp>,
    /// `labels`
    #[serde(deserialize_with = "or_default")]
    pub labels: Object,
    /// `annotations`
    #[serde(deserialize_with = "or_default")]
    pub annotations: Annotations,
    /// `ownerReferences`
    #[serde(deserialize_with = "or_default")]
    pub owner_references: Vec<Owner>,
    /// `finalizers`
    #[serde(deserialize_with = "or_default")]
    pub finalizers: Vec<String>,
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// `apiVersion`
    pub api_version: String,
    /// `kind`
    pub kind: String,
    /// `name`
    pub name: String,
    /// `uid`
    pub uid: String,
    /// `controller`
    #[serde(deserialize_with = "or_default")]
    pub controller: bool,
    /// `blockOwnerDeletion`
    #[serde(deserialize_with = "or_default")]
    pub block_owner_deletion: bool,
}

impl Meta {
    /// The metadata of a stored object.
    pub fn of(object: &Raw) -> Result<Self, Status> {
        #[derive(Deserialize)]
        struct Head {
            metadata: Meta,
        }
        object.parse::<Head>().map(|head| head.metadata)
    }

    /// The owner that manages the object.
    pub fn controller(&self) -> Option<&Owner> {
        self.owner_references.iter().find(|owner| owner.controller)
    }

    /// Whether the object with this UID manages the object.
    pub fn controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|owner| owner.uid == uid)
    }

    /// Whether the object is on its way out.
    pub fn deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Whether a finalizer is there.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// An owner reference of a managing controller.
pub fn controller_reference(api_version: &str, kind: &str, meta: &Meta) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "name": meta.name, "uid": meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// One of `status.conditions` of any kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `type`
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// `lastUpdateTime`, of Deployments only.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "write_time")]
    pub last_update_time: Option<Timestamp>,
    /// `lastTransitionTime`
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "write_time")]
    pub last_transition_time: Option<Timestamp>,
    /// `reason`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// `message`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A Pod as its controllers see it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: PodSpec,
    /// `status`
    pub status: PodStatus,
}

/// Of `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// `nodeName`, empty while it waits for the scheduler.
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
}

/// Of `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `phase`
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    /// `conditions`
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
    /// `containerStatuses`
    #[serde(deserialize_with = "or_default")]
    pub container_statuses: Vec<ContainerStatus>,
}

/// Of one of `status.containerStatuses`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// `restartCount`
    pub restart_count: i64,
}

impl Pod {
    /// Neither finished nor being deleted.
    pub fn active(&self) -> bool {
        !self.finished() && !self.metadata.deleting()
    }

    /// All containers have ended for good.
    pub fn finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    fn ready_condition(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == "Ready" && c.status == "True")
    }

    /// Whether the condition Ready is true.
    pub fn ready(&self) -> bool {
        self.ready_condition().is_some()
    }

    /// Since when the pod is ready.
    pub fn ready_since(&self) -> Option<Timestamp> {
        self.ready_condition()?.last_transition_time
    }

    /// Whether the pod has been ready for that long.
    pub fn available(&self, min_ready_seconds: i64, now: Timestamp) -> bool {
        self.ready() && self.seconds_to_available(min_ready_seconds, now) == Some(0)
    }

    /// Seconds until a ready pod becomes available, 0 if it is; `None` if it is not ready.
    pub fn seconds_to_available(&self, min_ready_seconds: i64, now: Timestamp) -> Option<i64> {
        let ready = self.ready_condition()?;
        if min_ready_seconds <= 0 {
            return Some(0);
        }
        // A condition that does not say since when counts from now, as if it had just become true.
        let since = ready.last_transition_time.unwrap_or(now);
        Some(
            min_ready_seconds
                .saturating_sub(now.as_second().saturating_sub(since.as_second()))
                .clamp(0, min_ready_seconds),
        )
    }
}

fn write_time<S: serde::Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.serialize_str(&crate::kinds::meta::format_time(*time)),
        None => to.serialize_none(),
    }
}

/// Now in the whole seconds `metav1.Time` has.
pub fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A serialisable part of an object as JSON.
pub fn to_object(part: &impl Serialize) -> Result<Object, Status> {
    match serde_json::to_value(part) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Status::internal("not an object")),
        Err(error) => Err(Status::internal(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_become_available_after_min_ready_seconds() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let pod = |status: &str, since: &str| -> Pod {
            serde_json::from_value(json!({"status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": since}
            ]}}))
            .unwrap()
        };
        for (status, since, min_ready, left) in [
            ("True", "2026-01-02T03:04:05Z", 0, Some(0)),
            ("True", "2026-01-02T03:04:05Z", 10, Some(10)),
            ("True", "2026-01-02T03:03:59Z", 10, Some(4)),
            ("True", "2026-01-02T03:03:55Z", 10, Some(0)),
            // A clock that was set back does not make a pod wait longer than it would have.
            ("True", "2030-01-01T00:00:00Z", 10, Some(10)),
            ("False", "2026-01-02T03:00:00Z", 10, None),
        ] {
            let pod = pod(status, since);
            assert_eq!(pod.seconds_to_available(min_ready, now), left, "{status} {since} {min_ready}");
            assert_eq!(pod.available(min_ready, now), left == Some(0));
        }
    }

    #[test]
    fn null_reads_as_absent() {
        let meta: Meta = serde_json::from_value(json!({
            "name": "a", "labels": null, "creationTimestamp": null, "ownerReferences": null
        }))
        .unwrap();
        assert!(meta.labels.is_empty() && meta.owner_references.is_empty());
    }
}
