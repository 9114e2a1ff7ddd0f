//! What `kubectl get pods` shows (`pkg/printers/internalversion/printers.go`, `printPod`).

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::duration::{age, since};
use crate::kinds::{Column, Object, meta};

use super::containers::is_sidecar;

/// The columns after the name.
pub(super) const COLUMNS: &[Column] = &[
    Column { name: "Ready", kind: "string", format: "", priority: 0 },
    Column { name: "Status", kind: "string", format: "", priority: 0 },
    Column { name: "Restarts", kind: "string", format: "", priority: 0 },
    Column { name: "Age", kind: "string", format: "", priority: 0 },
    Column { name: "IP", kind: "string", format: "", priority: 1 },
    Column { name: "Node", kind: "string", format: "", priority: 1 },
    Column { name: "Nominated Node", kind: "string", format: "", priority: 1 },
    Column { name: "Readiness Gates", kind: "string", format: "", priority: 1 },
];

/// The cells of one pod.
pub(super) fn cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let empty = Object::new();
    let spec = meta::sub(pod, "spec").unwrap_or(&empty);
    let state = state(pod, spec);
    let or_none = |text: &str| if text.is_empty() { json!("<none>") } else { json!(text) };
    let ip = match meta::str_at(pod, "/status/podIPs/0/ip") {
        "" => meta::str_at(pod, "/status/podIP"),
        ip => ip,
    };
    vec![
        json!(format!("{}/{}", state.ready, state.total)),
        json!(state.reason),
        json!(state.restarts(now)),
        json!(age(pod, now)),
        or_none(ip),
        or_none(meta::text(spec, "nodeName")),
        or_none(meta::str_at(pod, "/status/nominatedNodeName")),
        json!(readiness_gates(pod, spec)),
    ]
}

/// What the status of a pod comes down to.
struct State {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl State {
    /// Counts the restarts of a container and notes when the last one was.
    fn count_restarts(&mut self, status: &Object) {
        self.restarts += meta::int(status, "restartCount").unwrap_or(0);
        self.last_restart = self.last_restart.max(meta::time_at(status, "/lastState/terminated/finishedAt"));
    }

    /// `3 (5m ago)`, or the number alone.
    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(_) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, since(self.last_restart, now)),
            _ => self.restarts.to_string(),
        }
    }
}

fn state(pod: &Object, spec: &Object) -> State {
    let empty = Object::new();
    let status = meta::sub(pod, "status").unwrap_or(&empty);
    let reason = match meta::text(status, "reason") {
        "" => meta::text(status, "phase"),
        reason => reason,
    };
    let sidecars: Vec<&str> =
        meta::items(spec, "initContainers").filter(|c| is_sidecar(c)).map(|c| meta::text(c, "name")).collect();
    let total = meta::items(spec, "containers").count() + sidecars.len();
    let mut state = State { ready: 0, total, reason: reason.to_owned(), restarts: 0, last_restart: None };
    if meta::items(status, "conditions")
        .any(|c| meta::text(c, "type") == "PodScheduled" && meta::text(c, "reason") == "SchedulingGated")
    {
        state.reason = "SchedulingGated".to_owned();
    }
    let initializing = initialization(&mut state, spec, status, &sidecars);
    if !initializing || is_initialized(status) {
        main_containers(&mut state, status, &sidecars);
    }
    if meta::is_deleting(pod) {
        let finished = matches!(meta::text(status, "phase"), "Failed" | "Succeeded");
        if meta::text(status, "reason") == "NodeLost" {
            state.reason = "Unknown".to_owned();
        } else if !finished {
            state.reason = "Terminating".to_owned();
        }
    }
    state
}

/// Looks at the init containers; returns whether one of them is not done.
fn initialization(state: &mut State, spec: &Object, status: &Object, sidecars: &[&str]) -> bool {
    let total = meta::items(spec, "initContainers").count();
    for (i, container) in meta::items(status, "initContainerStatuses").enumerate() {
        state.count_restarts(container);
        let sidecar = sidecars.contains(&meta::text(container, "name"));
        let terminated = meta::object_at(container, "/state/terminated");
        let waiting = meta::str_at(container, "/state/waiting/reason");
        if terminated.is_some_and(|t| meta::int(t, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && meta::flag(container, "started") {
            state.ready += usize::from(meta::flag(container, "ready"));
            continue;
        }
        state.reason = match terminated {
            Some(terminated) => format!("Init:{}", termination(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{total}"),
        };
        return true;
    }
    false
}

fn is_initialized(status: &Object) -> bool {
    let condition = |c: &Object| meta::text(c, "type") == "Initialized" && meta::text(c, "status") == "True";
    meta::items(status, "conditions").any(condition)
}

/// The reason, the signal or the exit code.
fn termination(terminated: &Object) -> String {
    match (meta::text(terminated, "reason"), meta::int(terminated, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", meta::int(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn main_containers(state: &mut State, status: &Object, sidecars: &[&str]) {
    // Restarts of init containers that are done do not count, those of sidecars do.
    state.restarts = 0;
    state.last_restart = None;
    for container in meta::items(status, "initContainerStatuses") {
        if sidecars.contains(&meta::text(container, "name")) {
            state.count_restarts(container);
        }
    }
    let mut running = false;
    let containers: Vec<&Object> = meta::items(status, "containerStatuses").collect();
    for container in containers.into_iter().rev() {
        state.count_restarts(container);
        let waiting = meta::str_at(container, "/state/waiting/reason");
        if !waiting.is_empty() {
            state.reason = waiting.to_owned();
        } else if let Some(terminated) = meta::object_at(container, "/state/terminated") {
            state.reason = termination(terminated);
        } else if meta::flag(container, "ready") && meta::object_at(container, "/state/running").is_some() {
            running = true;
            state.ready += 1;
        }
    }
    // One container is done, another runs.
    if state.reason == "Completed" && running {
        let ready = meta::items(status, "conditions")
            .any(|c| meta::text(c, "type") == "Ready" && meta::text(c, "status") == "True");
        state.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn readiness_gates(pod: &Object, spec: &Object) -> String {
    let gates: Vec<&str> = meta::items(spec, "readinessGates").map(|g| meta::text(g, "conditionType")).collect();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = |gate: &&&str| meta::condition(pod, gate).is_some_and(|c| meta::text(c, "status") == "True");
    format!("{}/{}", gates.iter().filter(met).count(), gates.len())
}
