//! What runs on this board and what it waits for, for people who stand before it without a server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::link::message::PodReport;

/// The pods of a node in short. Cheap to clone; all clones are one view.
#[derive(Clone, Debug, Default)]
pub struct View(Arc<Mutex<BTreeMap<String, PodView>>>);

/// A pod in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `Pending`, `Running`, …
    pub phase: String,
    /// Containers that are ready.
    pub ready: usize,
    /// Containers.
    pub containers: usize,
    /// How often containers were started again.
    pub restarts: u64,
    /// What it waits for; empty: nothing.
    pub waits_for: String,
}

impl View {
    /// Every pod, in the order of namespace and name.
    pub fn pods(&self) -> Vec<PodView> {
        let mut pods: Vec<PodView> = self.lock().values().cloned().collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// Notes a pod's new status.
    pub(super) fn note(&self, report: &PodReport) {
        self.lock().insert(report.pod.uid.clone(), summary(report));
    }

    /// Forgets a pod of which nothing is left.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PodView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn summary(report: &PodReport) -> PodView {
    let status = &report.status;
    let list = |field: &str| status.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (inits, containers) = (list("initContainerStatuses"), list("containerStatuses"));
    let waiting = inits.iter().chain(containers).find_map(|container| {
        let waiting = container.pointer("/state/waiting")?;
        // The later ones wait for the earlier; what these wait for is the news.
        let reason = Some(text(waiting, "reason")).filter(|r| r != "PodInitializing" && r != "ContainerCreating")?;
        Some(joined(&format!("container {}: {reason}", text(container, "name")), &text(waiting, "message")))
    });
    let own = Some(joined(&text(status, "reason"), &text(status, "message"))).filter(|text| !text.is_empty());
    PodView {
        namespace: report.pod.namespace.clone(),
        name: report.pod.name.clone(),
        phase: text(status, "phase"),
        ready: containers.iter().filter(|c| c["ready"] == true).count(),
        containers: containers.len(),
        restarts: inits.iter().chain(containers).filter_map(|c| c["restartCount"].as_u64()).sum(),
        waits_for: own.or(waiting).unwrap_or_default(),
    }
}

fn joined(reason: &str, message: &str) -> String {
    match (reason, message) {
        (text, "") | ("", text) => text.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::message::PodName;

    #[test]
    fn a_pod_in_short() {
        let view = View::default();
        let pod = |uid: &str| PodName { uid: uid.into(), namespace: "n".into(), name: format!("p{uid}") };
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        for (status, waits_for) in [
            (json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2}]}), ""),
            (
                json!({"phase": "Pending", "containerStatuses": [
                    {"name": "a", "state": waiting("ContainerCreating", "")},
                    {"name": "c", "state": waiting("ErrImagePull", "no such image")},
                ]}),
                "container c: ErrImagePull: no such image",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
        ] {
            view.note(&PodReport { pod: pod("1"), status });
            assert_eq!(view.pods()[0].waits_for, waits_for);
        }
        view.note(&PodReport { pod: pod("0"), status: json!({}) });
        assert_eq!(view.pods().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["p0", "p1"]);
        view.forget("0");
        assert_eq!(view.pods().len(), 1);
    }
}
