//! Events about a pod, repetitions counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::json;

use super::outbox::Outbox;
use super::pod::{Desired, Role};
use crate::link::message::EventReport;

/// Different events of one pod that are remembered to count their repetitions.
const REMEMBERED: usize = 24;

/// Records the events of one pod. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    outbox: Outbox,
    seen: Arc<Mutex<VecDeque<EventReport>>>,
}

impl Recorder {
    /// A recorder that reports through `outbox`.
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox, seen: Arc::default() }
    }

    /// Something went as it should. `container` is the name of the one concerned.
    pub fn normal(&self, pod: &Desired, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record("Normal", pod, container, reason, message.into());
    }

    /// Something the user should look at.
    pub fn warning(&self, pod: &Desired, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record("Warning", pod, container, reason, message.into());
    }

    fn record(&self, kind: &str, pod: &Desired, container: Option<&str>, reason: &str, message: String) {
        let mut involved = json!({
            "kind": "Pod", "apiVersion": "v1", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
        });
        if let Some(spec) = container.and_then(|name| pod.container(name)) {
            let list = match spec.role {
                Role::Init | Role::Sidecar => "initContainers",
                Role::App => "containers",
                Role::Ephemeral => "ephemeralContainers",
            };
            involved["fieldPath"] = json!(format!("spec.{list}{{{}}}", spec.spec.name));
        }
        let now = Timestamp::now();
        let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |e: &EventReport| e.reason == reason && e.message == message && e.involved == involved;
        let event = match seen.iter().position(same).and_then(|at| seen.remove(at)) {
            Some(mut event) => {
                event.count = event.count.saturating_add(1);
                event.last = time;
                event
            }
            None => EventReport {
                name: format!("{}.{:x}", pod.name(), now.as_nanosecond()),
                involved,
                kind: kind.to_owned(),
                reason: reason.to_owned(),
                message,
                count: 1,
                first: time.clone(),
                last: time,
            },
        };
        if seen.len() >= REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(event.clone());
        drop(seen);
        self.outbox.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::tests::desired;
    use super::*;
    use crate::link::message::ToServer;

    #[test]
    fn repetitions_are_counted() {
        let outbox = Outbox::default();
        let recorder = Recorder::new(outbox.clone());
        let pod = desired(json!({"containers": [{"name": "c"}]}), &[]);
        for _ in 0..3 {
            recorder.warning(&pod, Some("c"), "BackOff", "again");
        }
        recorder.normal(&pod, None, "Other", "x");
        let events: Vec<_> = outbox
            .drain()
            .into_iter()
            .map(|m| match m {
                ToServer::Event(e) => (e.reason, e.count, e.involved["fieldPath"].clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(events, [("BackOff".into(), 3, json!("spec.containers{c}")), ("Other".into(), 1, json!(null))]);
    }
}
