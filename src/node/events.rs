//! Events about a pod, on their way to the server, which counts repetitions.

use super::outbox::Outbox;
use super::pod::{Desired, Role};
use crate::link::message::EventReport;

/// Records the events of pods. Cheap to clone.
#[derive(Clone)]
pub(super) struct Recorder {
    outbox: Outbox,
}

impl Recorder {
    /// A recorder that reports through `outbox`.
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox }
    }

    /// Something went as it should. `container` is the name of the one concerned.
    pub(super) fn normal(&self, pod: &Desired, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record(false, pod, container, reason, message.into());
    }

    /// Something the user should look at.
    pub(super) fn warning(&self, pod: &Desired, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record(true, pod, container, reason, message.into());
    }

    fn record(&self, warning: bool, pod: &Desired, container: Option<&str>, reason: &str, message: String) {
        let container = container.and_then(|name| pod.container(name));
        let field_path = container.map_or(String::new(), |c| {
            let list = match c.role {
                Role::Init | Role::Sidecar => "initContainers",
                Role::App => "containers",
                Role::Ephemeral => "ephemeralContainers",
            };
            format!("spec.{list}{{{}}}", c.spec.name)
        });
        self.outbox.event(EventReport { pod: pod.pod_name(), field_path, warning, reason: reason.to_owned(), message });
    }
}
