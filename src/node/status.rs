//! The status of a pod, computed from what its worker knows. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::disk::{ContainerHistory, Ended, History};
use super::pod::{ContainerSpec, Desired, Facts, Role};
use super::resources;

/// Why a container does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// CamelCase, for example `CrashLoopBackOff`.
    pub(super) reason: &'static str,
    /// For people; may be empty.
    pub(super) message: String,
}

/// What is known of a container at this moment, beside its history.
#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    /// Seconds since 1970 when the current run began, while it runs.
    pub(super) running: Option<i64>,
    /// Set while something keeps it from running.
    pub(super) waiting: Option<Waiting>,
    /// Its readiness probe, if any, is content.
    pub(super) ready: bool,
    /// Its startup probe, if any, has succeeded and its postStart hook is done.
    pub(super) started: bool,
}

/// All that a pod's status is made from.
pub(super) struct View<'a> {
    /// The pod.
    pub(super) pod: &'a Desired,
    /// Its past.
    pub(super) history: &'a History,
    /// Its containers by name.
    pub(super) now: &'a BTreeMap<String, Now>,
    /// Its surroundings.
    pub(super) facts: &'a Facts,
    /// It has namespaces and network.
    pub(super) sandbox: bool,
    /// Its init containers are done in this sandbox.
    pub(super) initialized: bool,
}

/// Whole seconds, as Kubernetes writes times.
pub(super) fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The pod's status. Times of conditions that stay as they were are taken from `before`.
pub(super) fn compute(view: &View<'_>, before: Option<&PodStatus>, now: i64) -> PodStatus {
    let pod = view.pod;
    // What the containers of a rejected pod wait for would hide the reason.
    let rejected = view.history.outcome.is_some() && view.history.containers.is_empty();
    let list = |roles: &[Role]| -> Option<Vec<ContainerStatus>> {
        let statuses: Vec<_> =
            pod.containers.iter().filter(|c| roles.contains(&c.role)).map(|c| container(view, c)).collect();
        (!statuses.is_empty() && !rejected).then_some(statuses)
    };
    let phase = phase(view);
    let addresses = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (pod_ips, host_ips) = (addresses(&view.facts.pod_ips), addresses(&view.facts.host_ips));
    let outcome = view.history.outcome.as_ref();
    let text = |text: Option<&String>| text.filter(|t| !t.is_empty()).cloned();
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: text(outcome.map(|o| &o.reason)),
        message: text(outcome.map(|o| &o.message)),
        start_time: Some(time(view.history.started)),
        qos_class: Some(resources::qos(pod).to_owned()),
        observed_generation: pod.pod.metadata.generation,
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        host_ip: host_ips.first().cloned(),
        host_ips: (!host_ips.is_empty()).then(|| host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        init_container_statuses: list(&[Role::Init, Role::Sidecar]),
        container_statuses: list(&[Role::App]),
        ephemeral_container_statuses: list(&[Role::Ephemeral]),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions(view, phase, &status, before, now));
    status
}

fn phase<'a>(view: &'a View<'_>) -> &'a str {
    if let Some(outcome) = &view.history.outcome {
        return &outcome.phase;
    }
    let history = |name: &str| view.history.containers.get(name);
    let apps = || view.pod.containers.iter().filter(|c| c.role == Role::App);
    let all_ended = apps().all(|c| history(&c.spec.name).is_some_and(|h| h.ended.is_some()));
    if view.pod.deleting() && all_ended && apps().next().is_some() {
        let good = apps().all(|c| history(&c.spec.name).and_then(|h| h.ended.as_ref()).is_some_and(|e| e.code == 0));
        return if good { "Succeeded" } else { "Failed" };
    }
    let all_made = apps().all(|c| history(&c.spec.name).is_some());
    if view.initialized && all_made { "Running" } else { "Pending" }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn terminated(uid: &str, name: &str, ended: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(uid, name, ended.attempt)),
            exit_code: ended.code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: (!ended.message.is_empty()).then(|| ended.message.clone()),
            started_at: Some(time(ended.started)),
            finished_at: Some(time(ended.finished)),
        }),
        ..ContainerState::default()
    }
}

/// `containerID` of a run.
pub(super) fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("umiak://{uid}-{name}-{attempt}")
}

fn container(view: &View<'_>, spec: &ContainerSpec) -> ContainerStatus {
    let name = &spec.spec.name;
    let uid = view.pod.uid();
    let none = (ContainerHistory::default(), Now::default());
    let known = view.history.containers.get(name);
    let history = known.unwrap_or(&none.0);
    let now = view.now.get(name).unwrap_or(&none.1);
    let default_wait = match spec.role {
        Role::App if !view.initialized && view.pod.containers.iter().any(|c| c.role == Role::Init) => "PodInitializing",
        Role::Init | Role::Sidecar => "PodInitializing",
        _ => "ContainerCreating",
    };
    let ended = history.ended.as_ref();
    let (state, last) = match (now.running, &now.waiting, ended) {
        (Some(started), _, _) => {
            let running = ContainerStateRunning { started_at: Some(time(started)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, history.previous.as_ref())
        }
        (None, Some(wait), _) => (waiting(wait.reason, &wait.message), ended.or(history.previous.as_ref())),
        (None, None, Some(ended)) => (terminated(uid, name, ended), history.previous.as_ref()),
        (None, None, None) => (waiting(default_wait, ""), history.previous.as_ref()),
    };
    let runs = now.running.is_some();
    let ready = match spec.role {
        Role::Init => state.terminated.as_ref().is_some_and(|t| t.exit_code == 0),
        Role::App | Role::Sidecar => runs && now.started && now.ready,
        Role::Ephemeral => false,
    };
    let limits = spec.spec.resources.clone().filter(|_| known.is_some());
    ContainerStatus {
        name: name.clone(),
        state: Some(state),
        last_state: Some(last.map_or_else(ContainerState::default, |ended| terminated(uid, name, ended))),
        ready,
        started: Some(runs && now.started),
        restart_count: i32::try_from(history.attempt).unwrap_or(i32::MAX),
        image: spec.spec.image.clone().unwrap_or_default(),
        image_id: history.image_id.clone(),
        container_id: known.map(|h| container_id(uid, name, h.attempt)),
        allocated_resources: limits.as_ref().and_then(|l| l.requests.clone()),
        resources: limits,
        ..ContainerStatus::default()
    }
}

fn conditions(
    view: &View<'_>,
    phase: &str,
    status: &PodStatus,
    before: Option<&PodStatus>,
    now: i64,
) -> Vec<PodCondition> {
    let not_ready = |list: &Option<Vec<ContainerStatus>>, role: Role| -> Vec<String> {
        let with_role = |name: &str| view.pod.container(name).is_some_and(|c| c.role == role);
        list.iter().flatten().filter(|c| !c.ready && with_role(&c.name)).map(|c| c.name.clone()).collect()
    };
    let mut unready = not_ready(&status.init_container_statuses, Role::Sidecar);
    unready.extend(not_ready(&status.container_statuses, Role::App));
    let mut incomplete = not_ready(&status.init_container_statuses, Role::Init);
    if !view.initialized {
        incomplete.extend(not_ready(&status.init_container_statuses, Role::Sidecar));
    }
    let ended = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let initialized = match (phase, view.initialized) {
        ("Succeeded", _) => (true, "PodCompleted", String::new()),
        (_, true) => (true, "", String::new()),
        _ => (
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ),
    };
    let containers = match (ended, unready.is_empty()) {
        (Some(reason), _) => (false, reason, String::new()),
        (None, true) => (true, "", String::new()),
        (None, false) => {
            (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        }
    };
    let gates = closed_gates(view.pod);
    let ready = match (containers.0, gates.is_empty()) {
        (true, false) => (false, "ReadinessGatesNotReady", gates.join(", ")),
        _ => containers.clone(),
    };
    let wanted = [
        ("PodReadyToStartContainers", (view.sandbox, "", String::new())),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers),
    ];
    wanted
        .into_iter()
        .map(|(kind, (is, reason, message))| {
            let value = if is { "True" } else { "False" };
            let same = |c: &&PodCondition| c.type_ == kind && c.status == value;
            let old = before.and_then(|s| s.conditions.as_ref()?.iter().find(same)?.last_transition_time.clone());
            PodCondition {
                type_: kind.to_owned(),
                status: value.to_owned(),
                reason: (!reason.is_empty()).then(|| reason.to_owned()),
                message: (!message.is_empty()).then_some(message),
                last_transition_time: Some(old.unwrap_or_else(|| time(now))),
                observed_generation: view.pod.pod.metadata.generation,
                ..PodCondition::default()
            }
        })
        .collect()
}

fn closed_gates(pod: &Desired) -> Vec<String> {
    let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let open = |kind: &str| conditions.is_some_and(|c| c.iter().any(|c| c.type_ == kind && c.status == "True"));
    let gates = pod.spec().readiness_gates.iter().flatten();
    gates
        .filter(|g| !open(&g.condition_type))
        .map(|g| {
            format!(
                "corresponding condition of pod readiness gate {:?} does not exist or is not True.",
                g.condition_type
            )
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pod::tests::desired;
    use super::*;

    fn spec() -> Value {
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]})
    }

    fn ended(code: i32) -> Option<Ended> {
        Some(Ended { code, reason: if code == 0 { "Completed" } else { "Error" }.into(), ..Ended::default() })
    }

    struct Case {
        history: History,
        now: BTreeMap<String, Now>,
        initialized: bool,
    }

    impl Case {
        fn new(initialized: bool) -> Self {
            Self { history: History::default(), now: BTreeMap::new(), initialized }
        }

        fn ran(mut self, name: &str, attempt: u32, ended: Option<Ended>) -> Self {
            let history = ContainerHistory { attempt, ended, ..ContainerHistory::default() };
            self.history.containers.insert(name.into(), history);
            self
        }

        fn runs(mut self, name: &str, ready: bool) -> Self {
            self = self.ran(name, 0, None);
            self.now.insert(name.into(), Now { running: Some(7), ready, started: true, waiting: None });
            self
        }

        fn waits(mut self, name: &str, reason: &'static str) -> Self {
            let waiting = Some(Waiting { reason, message: "m".into() });
            self.now.insert(name.into(), Now { waiting, ..Now::default() });
            self
        }

        fn compute(&self) -> PodStatus {
            let pod = desired(spec(), &[]);
            let view = View {
                pod: &pod,
                history: &self.history,
                now: &self.now,
                facts: &Facts::default(),
                sandbox: true,
                initialized: self.initialized,
            };
            compute(&view, None, 100)
        }
    }

    fn summary(status: &PodStatus) -> String {
        let condition = |kind: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            format!("{}{}", found.status, found.reason.as_ref().map_or(String::new(), |r| format!("({r})")))
        };
        let state = |c: &ContainerStatus| {
            let state = c.state.as_ref().unwrap();
            let text = match (&state.waiting, &state.terminated) {
                (Some(w), _) => w.reason.clone().unwrap(),
                (_, Some(t)) => t.reason.clone().unwrap(),
                _ => "Running".to_owned(),
            };
            format!("{}={text}/{}", c.name, c.restart_count)
        };
        let lists = [&status.init_container_statuses, &status.container_statuses];
        let states: Vec<_> = lists.into_iter().flatten().flatten().map(state).collect();
        format!(
            "{} init {} ready {} {}",
            status.phase.as_deref().unwrap(),
            condition("Initialized"),
            condition("Ready"),
            states.join(" ")
        )
    }

    #[test]
    fn phases_and_conditions() {
        let outcome = |case: Case, phase: &str| {
            let mut case = case;
            case.history.outcome = Some(Outcome { phase: phase.into(), reason: String::new(), message: String::new() });
            case
        };
        use super::super::disk::Outcome;
        for (case, expected) in [
            (
                Case::new(false),
                "Pending init False(ContainersNotInitialized) ready False(ContainersNotReady) \
                 i=PodInitializing/0 a=PodInitializing/0 b=PodInitializing/0",
            ),
            (
                Case::new(true).ran("i", 0, ended(0)).runs("a", true),
                "Pending init True ready False(ContainersNotReady) i=Completed/0 a=Running/0 b=ContainerCreating/0",
            ),
            (
                Case::new(true).ran("i", 0, ended(0)).runs("a", true).runs("b", true),
                "Running init True ready True i=Completed/0 a=Running/0 b=Running/0",
            ),
            (
                Case::new(true).ran("i", 0, ended(0)).runs("a", true).runs("b", false),
                "Running init True ready False(ContainersNotReady) i=Completed/0 a=Running/0 b=Running/0",
            ),
            (
                Case::new(true)
                    .ran("i", 0, ended(0))
                    .runs("a", true)
                    .ran("b", 4, ended(1))
                    .waits("b", "CrashLoopBackOff"),
                "Running init True ready False(ContainersNotReady) i=Completed/0 a=Running/0 b=CrashLoopBackOff/4",
            ),
            (
                outcome(Case::new(true).ran("i", 0, ended(0)).ran("a", 0, ended(0)).ran("b", 0, ended(0)), "Succeeded"),
                "Succeeded init True(PodCompleted) ready False(PodCompleted) i=Completed/0 a=Completed/0 b=Completed/0",
            ),
            (
                outcome(Case::new(true).ran("i", 0, ended(0)).ran("a", 0, ended(2)).ran("b", 0, ended(0)), "Failed"),
                "Failed init True ready False(PodFailed) i=Completed/0 a=Error/0 b=Completed/0",
            ),
        ] {
            assert_eq!(summary(&case.compute()), expected);
        }
    }

    #[test]
    fn a_crashed_container_shows_its_last_state() {
        let case = Case::new(true).ran("a", 2, ended(3)).waits("a", "CrashLoopBackOff");
        let status = case.compute();
        let a = &status.container_statuses.as_ref().unwrap()[0];
        let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, a.restart_count), (3, 2));
        assert_eq!(a.container_id.as_deref(), Some("umiak://u-1-a-2"));
    }

    #[test]
    fn times_stay_while_conditions_do() {
        let pod = desired(spec(), &[]);
        let case = Case::new(true).runs("a", true).runs("b", true);
        let view = View {
            pod: &pod,
            history: &case.history,
            now: &case.now,
            facts: &Facts::default(),
            sandbox: true,
            initialized: true,
        };
        let first = compute(&view, None, 100);
        assert_eq!(compute(&view, Some(&first), 200), first);
        let unready = Case::new(true).runs("a", true).runs("b", false);
        let later = compute(&View { now: &unready.now, ..view }, Some(&first), 200);
        let at = |kind: &str| {
            let condition = later.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            condition.last_transition_time.clone().unwrap()
        };
        assert_eq!((at("Ready"), at("Initialized")), (time(200), time(100)));
    }
}
