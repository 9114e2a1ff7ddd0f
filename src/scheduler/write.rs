//! What the scheduler writes: bindings, conditions, events, and the deletion of victims.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource};
use crate::registry::{DeleteOptions, Registry, WriteOptions};
use crate::store::Key;

use super::model::Pod;

const NAME: &str = "default-scheduler";

/// Why a pod found no node, and what is done about it.
pub(super) struct Failure {
    pub(super) message: String,
    /// The node the pod is to have once its victims are gone.
    pub(super) node: Option<Arc<str>>,
    /// Pods that have to go, with their UIDs.
    pub(super) victims: Vec<(Key, Box<str>)>,
}

pub(super) struct Writer {
    registry: Registry,
    events: EventRecorder,
    pods: Arc<Kind>,
    options: WriteOptions,
}

impl Writer {
    pub(super) fn new(registry: &Registry, events: &EventRecorder, pods: Arc<Kind>) -> Self {
        let options = WriteOptions::by("kube-scheduler");
        Self { registry: registry.clone(), events: events.of(NAME, ""), pods, options }
    }

    /// Binds a pod: the node and the condition in one write.
    pub(super) async fn bind(&self, key: &Key, pod: &Pod, node: &str) -> Result<(), Status> {
        let part = Some(Subresource::Binding);
        let bound = self.registry.modify(&self.pods, &key.namespace, &key.name, part, &self.options, |stored| {
            let taken = meta::str_at(stored, "/spec/nodeName");
            if meta::uid(stored) != pod.metadata.uid || !taken.is_empty() {
                let why = format!("pod {} is already assigned to node {taken:?}", key.name);
                return Err(Status::conflict("", "pods/binding", &key.name, &why));
            }
            meta::set(stored, "/spec/nodeName", node);
            meta::remove(stored, "/status/nominatedNodeName");
            set_condition(stored, "True", "", "", Timestamp::now());
            Ok(())
        });
        bound.await?;
        let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
        self.events.record(&about(key, &pod.metadata.uid), EventKind::Normal, "Scheduled", message);
        Ok(())
    }

    /// Says why a pod found no node, and removes its victims.
    pub(super) async fn failed(&self, key: &Key, pod: &Pod, failure: Failure) -> Result<(), Status> {
        let text = failure.message.as_str();
        self.events.record(&about(key, &pod.metadata.uid), EventKind::Warning, "FailedScheduling", text);
        for (victim, uid) in &failure.victims {
            self.evict(victim, uid, pod, failure.node.as_deref().unwrap_or_default()).await?;
        }
        self.note(key, pod, |stored| {
            set_condition(stored, "False", "Unschedulable", text, Timestamp::now());
            if let Some(node) = &failure.node {
                meta::set(stored, "/status/nominatedNodeName", &**node);
            }
        })
        .await
    }

    /// Says that a pod has to be allowed by others first.
    pub(super) async fn gated(&self, key: &Key, pod: &Pod) -> Result<(), Status> {
        let text = "Scheduling is blocked due to non-empty scheduling gates";
        self.note(key, pod, |stored| set_condition(stored, "False", "SchedulingGated", text, Timestamp::now())).await
    }

    async fn note(&self, key: &Key, pod: &Pod, change: impl Fn(&mut Object) + Send + Sync) -> Result<(), Status> {
        let part = Some(Subresource::Status);
        let noted = self.registry.modify(&self.pods, &key.namespace, &key.name, part, &self.options, |stored| {
            if meta::uid(stored) == pod.metadata.uid && meta::str_at(stored, "/spec/nodeName").is_empty() {
                change(stored);
            }
            Ok(())
        });
        or_gone(noted.await)
    }

    async fn evict(&self, key: &Key, uid: &str, preemptor: &Pod, node: &str) -> Result<(), Status> {
        let now = Timestamp::now();
        let scheduler = match preemptor.spec.scheduler_name.as_str() {
            "" => NAME,
            name => name,
        };
        let text = format!("{scheduler}: preempting to accommodate a higher priority pod");
        let part = Some(Subresource::Status);
        let marked = self.registry.modify(&self.pods, &key.namespace, &key.name, part, &self.options, |stored| {
            if meta::uid(stored) == uid {
                set(stored, "DisruptionTarget", "True", "PreemptionByScheduler", &text, now);
            }
            Ok(())
        });
        or_gone(marked.await)?;
        let options = DeleteOptions { user: self.options.user.clone(), ..DeleteOptions::of(uid) };
        match self.registry.delete(&self.pods, &key.namespace, &key.name, &options).await {
            Ok(_) => {
                let message = format!("Preempted by pod {} on node {node}", preemptor.metadata.uid);
                self.events.record(&about(key, uid), EventKind::Normal, "Preempted", message);
                Ok(())
            }
            // Gone, or another one of that name.
            Err(status) if status.code == 404 || status.code == 409 => Ok(()),
            Err(status) => Err(status),
        }
    }
}

fn or_gone<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

fn about(key: &Key, uid: &str) -> Reference {
    Reference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: uid.to_owned(),
        field_path: String::new(),
    }
}

fn set_condition(pod: &mut Object, status: &str, reason: &str, message: &str, now: Timestamp) {
    set(pod, "PodScheduled", status, reason, message, now);
}

/// Sets a condition of a pod; one that says the same already is left alone.
fn set(pod: &mut Object, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    let generation = meta::generation(pod);
    let mut conditions = meta::list_at(pod, "/status/conditions").to_vec();
    let known = conditions.iter().position(|c| c["type"] == kind);
    let mut condition = json!({
        "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": meta::format_time(now),
    });
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    if generation > 0 {
        condition["observedGeneration"] = generation.into();
    }
    match known {
        Some(at) => {
            let old = &conditions[at];
            let same =
                |field: &str| old.get(field).and_then(Value::as_str) == condition.get(field).and_then(Value::as_str);
            if same("status") {
                if same("reason") && same("message") {
                    return;
                }
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            conditions[at] = condition;
        }
        None => conditions.push(condition),
    }
    meta::set(pod, "/status/conditions", conditions);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn conditions_change_only_with_news() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut pod = json!({"metadata": {"generation": 2}}).as_object().unwrap().clone();
        let state = |pod: &Object| {
            let c = |field: &str| meta::str_at(pod, &format!("/status/conditions/0/{field}")).to_owned();
            [c("status"), c("reason"), c("message"), c("lastTransitionTime")]
        };
        set_condition(&mut pod, "False", "Unschedulable", "x", at(0));
        assert_eq!(state(&pod), ["False", "Unschedulable", "x", "1970-01-01T00:00:00Z"]);
        let before = pod.clone();
        set_condition(&mut pod, "False", "Unschedulable", "x", at(5));
        assert_eq!(pod, before);
        set_condition(&mut pod, "False", "Unschedulable", "y", at(5));
        assert_eq!(state(&pod), ["False", "Unschedulable", "y", "1970-01-01T00:00:00Z"]);
        set_condition(&mut pod, "True", "", "", at(9));
        assert_eq!(state(&pod), ["True", "", "", "1970-01-01T00:00:09Z"]);
        assert_eq!(meta::list_at(&pod, "/status/conditions").len(), 1);
    }
}
