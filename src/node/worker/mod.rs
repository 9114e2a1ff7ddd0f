//! One pod's worker: a task that brings the pod to where it should be, woken by orders, exits, probes and deadlines.
//!
//! Every wake-up is one [`Worker::step`]: look at what is ([`observe`]), then do what is missing ([`bring_up`]) or take
//! down what is too much ([`wind_down`]). A step repeated changes nothing, so a worker that starts in the middle (after
//! a restart of the daemon or of the machine) needs no path of its own.

mod backoff;
mod bring_up;
mod observe;
mod start;
mod stop;
#[cfg(test)]
mod tests;
mod wind_down;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::container;
use super::disk::{History, PodDir};
use super::engine::{Engine, Sandbox, blocking};
use super::events::Recorder;
use super::files::DnsConfig;
use super::outbox::Outbox;
use super::pod::{Desired, Facts};
use super::probes::Found;
use super::service_view::ServiceView;
use super::status::{self, Now, View, Waiting};
use super::volumes::Prepared;
use crate::link::message::PodReport;
use crate::runtime::{ContainerId, Exit, SandboxState};
use backoff::Backoff;

/// What all workers of a node share.
pub(super) struct Shared<E: Engine> {
    /// Runtime, images, network.
    pub(super) engine: E,
    /// Towards the server.
    pub(super) outbox: Outbox,
    /// Changes when the set of present images does.
    pub(super) images: watch::Receiver<u64>,
    /// Name resolution in pods.
    pub(super) dns: DnsConfig,
    /// Directory of seccomp profiles.
    pub(super) seccomp: PathBuf,
    /// The node's part of what pods can learn.
    pub(super) facts: Facts,
    /// The living sandboxes by pod UID, for streams into pods.
    pub(super) sandboxes: Sandboxes<E::Sandbox>,
    /// The cluster's Services.
    pub(super) services: ServiceView,
}

/// Sandboxes by pod UID.
pub(super) type Sandboxes<S> = Arc<Mutex<HashMap<String, S>>>;

/// What a pod's worker should see to.
#[derive(Clone)]
pub(super) struct Order {
    /// The pod as it should be.
    pub(super) pod: Arc<Desired>,
    /// The pod's object is gone: end it and forget it.
    pub(super) removed: bool,
    /// A new number asks for a report even if nothing changed.
    pub(super) resync: u64,
}

/// What an earlier daemon left of a pod.
pub(super) enum Left<S> {
    /// Nothing.
    Nothing,
    /// A sandbox that lives.
    Live(S),
    /// A sandbox that died, and the exits it recorded.
    Dead(Vec<(ContainerId, Exit)>),
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A container as the worker sees it at this moment; what must outlive the daemon is in [`History`].
struct Unit {
    now: Now,
    /// Not before this time; `None`: no failure stands in the way.
    retry_at: Option<Instant>,
    crash: Backoff,
    image: Backoff,
    /// Probes, or the postStart hook before them.
    watcher: Option<Task>,
    stop: Option<Stopping>,
    /// The specification changed: restart whatever the policy.
    changed: bool,
    /// What the shim keeps of `now` for the next daemon.
    noted: &'static str,
}

struct Stopping {
    _task: Task,
    deadline: Instant,
}

impl Default for Unit {
    fn default() -> Self {
        Self {
            now: Now::default(),
            retry_at: None,
            crash: Backoff::crash(),
            image: Backoff::image(),
            watcher: None,
            stop: None,
            changed: false,
            noted: "",
        }
    }
}

/// A hook after the start came to its end.
struct Hooked {
    id: ContainerId,
    result: Result<(), String>,
}

/// Whether the worker has more to do.
#[derive(PartialEq, Eq, Debug)]
enum Flow {
    /// It waits to be woken.
    Wait,
    /// Nothing of the pod is left.
    Gone,
}

/// The worker of one pod.
pub(super) struct Worker<E: Engine> {
    node: Arc<Shared<E>>,
    orders: watch::Receiver<Order>,
    pod: Arc<Desired>,
    removed: bool,
    resync: u64,
    dir: PodDir,
    events: Recorder,
    history: History,
    /// What is on disk of it.
    saved: History,
    /// [`History::started`] on a clock that does not jump when the board learns the time.
    begun: Instant,
    sandbox: Option<E::Sandbox>,
    state: watch::Receiver<SandboxState>,
    /// Keeps `state` open while there is no sandbox.
    no_state: watch::Sender<SandboxState>,
    facts: Facts,
    volumes: Option<BTreeMap<String, Prepared>>,
    volumes_stale: bool,
    initialized: bool,
    units: BTreeMap<String, Unit>,
    found: (mpsc::Sender<Found>, mpsc::Receiver<Found>),
    hooked: (mpsc::Sender<Hooked>, mpsc::Receiver<Hooked>),
    images: watch::Receiver<u64>,
    setup: Backoff,
    lost: Backoff,
    setup_retry: Option<Instant>,
    setup_problem: Option<Waiting>,
    winding_since: Option<Instant>,
    cleaned: bool,
    wake_at: Option<Instant>,
    published: Option<PodStatus>,
    reported: Option<u64>,
}

impl<E: Engine> Worker<E> {
    /// A worker for the pod of `orders`, kept in `dir`, with what an earlier daemon left of it.
    pub(super) fn new(
        node: Arc<Shared<E>>,
        mut orders: watch::Receiver<Order>,
        dir: PodDir,
        left: Left<E::Sandbox>,
    ) -> Self {
        let order = orders.borrow_and_update().clone();
        let no_state = watch::Sender::new(SandboxState::default());
        let mut worker = Self {
            events: Recorder::new(node.outbox.clone()),
            saved: History::default(),
            begun: Instant::now(),
            history: dir.history(),
            facts: node.facts.clone(),
            images: node.images.clone(),
            state: no_state.subscribe(),
            no_state,
            pod: order.pod,
            removed: order.removed,
            resync: order.resync,
            orders,
            node,
            dir,
            sandbox: None,
            volumes: None,
            volumes_stale: false,
            initialized: false,
            units: BTreeMap::new(),
            found: mpsc::channel(16),
            hooked: mpsc::channel(16),
            setup: Backoff::setup(),
            lost: Backoff::lost(),
            setup_retry: None,
            setup_problem: None,
            winding_since: None,
            cleaned: false,
            wake_at: None,
            published: None,
            reported: None,
        };
        worker.saved = worker.history.clone();
        if worker.history.started == 0 {
            worker.history.started = now();
        }
        let age = stop::period(now().saturating_sub(worker.history.started));
        worker.begun = worker.begun.checked_sub(age).unwrap_or(worker.begun);
        match left {
            Left::Nothing => worker.bury(Vec::new()),
            Left::Live(sandbox) => worker.adopt(sandbox),
            Left::Dead(exits) => worker.bury(exits),
        }
        worker
    }

    /// Works until nothing of the pod is left, or the node stops (then the pod goes on without it).
    pub(super) async fn run(mut self) {
        loop {
            self.wake_at = None;
            let flow = self.step().await;
            if flow == Flow::Gone {
                return;
            }
            self.publish();
            self.note_readiness().await;
            if !self.wait().await {
                return;
            }
        }
    }

    async fn step(&mut self) -> Flow {
        self.observe().await;
        self.expire();
        self.admit();
        if self.history.outcome.is_none() && !self.ending() {
            self.bring_up().await;
        }
        if self.history.outcome.is_some() || self.ending() {
            return self.wind_down().await;
        }
        Flow::Wait
    }

    fn ending(&self) -> bool {
        self.removed || self.pod.deleting()
    }

    /// Waits for the next reason to look; `false` when there will be none.
    async fn wait(&mut self) -> bool {
        let needs_image =
            self.units.values().any(|u| u.now.waiting.as_ref().is_some_and(|w| w.reason.contains("Image")));
        let deadline = self.wake_at;
        let sleep = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let unknown = !self.node.services.is_known();
        tokio::select! {
            () = self.node.services.known(), if unknown => {}
            changed = self.orders.changed() => {
                if changed.is_err() {
                    return false;
                }
                self.take_order();
            }
            changed = self.state.changed() => {
                if changed.is_err() {
                    // The runtime's end of a sandbox is gone without a last word: look for it anew.
                    self.state = self.no_state.subscribe();
                }
            }
            Some(found) = self.found.1.recv() => self.take_finding(found),
            Some(hooked) = self.hooked.1.recv() => self.take_hook(hooked),
            Ok(()) = self.images.changed(), if needs_image => self.retry_now(),
            () = sleep => {}
        }
        true
    }

    fn take_order(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        (self.pod, self.removed, self.resync) = (order.pod, order.removed, order.resync);
        self.volumes_stale = true;
        self.setup_retry = None;
        self.retry_now();
        self.restart_changed();
    }

    /// What kept containers from starting may be mended: only crashes go on waiting.
    fn retry_now(&mut self) {
        for unit in self.units.values_mut() {
            if unit.now.waiting.as_ref().is_some_and(|w| w.reason != "CrashLoopBackOff") {
                unit.retry_at = None;
            }
        }
    }

    /// Ends a pod that ran longer than it may.
    fn expire(&mut self) {
        let Some(seconds) = self.pod.spec().active_deadline_seconds else { return };
        if self.history.outcome.is_some() || self.ending() {
            return;
        }
        let left = stop::period(seconds).saturating_sub(self.begun.elapsed());
        if !left.is_zero() {
            self.wake_in(left);
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.events.normal(&self.pod, None, "DeadlineExceeded", message);
        self.history.outcome = Some(super::disk::Outcome {
            phase: "Failed".to_owned(),
            reason: "DeadlineExceeded".to_owned(),
            message: message.to_owned(),
        });
    }

    /// Refuses, before anything is made, what a cluster's operator has to allow first.
    fn admit(&mut self) {
        if self.sandbox.is_some() || self.history.outcome.is_some() || self.ending() {
            return;
        }
        let Some(name) = container::unsafe_sysctl(&self.pod) else { return };
        let message = format!("forbidden sysctl: {name:?} not allowlisted");
        self.events.warning(&self.pod, None, "SysctlForbidden", &message);
        self.history.outcome = Some(super::disk::Outcome {
            phase: "Failed".to_owned(),
            reason: "SysctlForbidden".to_owned(),
            message: format!("Pod was rejected: {message}"),
        });
    }

    fn wake_in(&mut self, delay: std::time::Duration) {
        self.wake(Instant::now() + delay);
    }

    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    fn unit(&mut self, name: &str) -> &mut Unit {
        self.units.entry(name.to_owned()).or_default()
    }

    fn running(&self, name: &str) -> bool {
        self.units.get(name).is_some_and(|u| u.now.running.is_some())
    }

    /// Keeps the history on disk, if it changed.
    async fn save(&mut self) {
        if self.saved == self.history {
            return;
        }
        self.saved = self.history.clone();
        let (dir, history) = (self.dir.clone(), self.history.clone());
        if let Err(error) = blocking("keeping a pod's history", move || dir.store_history(&history)).await {
            tracing::error!(pod = self.pod.uid(), %error, "cannot keep the pod's history");
        }
    }

    /// Works in this sandbox, or in none, from now on.
    fn enter(&mut self, sandbox: Option<E::Sandbox>) {
        let mut all = self.node.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        match &sandbox {
            Some(sandbox) => drop(all.insert(self.pod.uid().to_owned(), sandbox.clone())),
            None => drop(all.remove(self.pod.uid())),
        }
        drop(all);
        self.state = sandbox.as_ref().map_or_else(|| self.no_state.subscribe(), Sandbox::state);
        self.sandbox = sandbox;
    }

    /// Reports the pod's status if it changed, or if the server asked.
    fn publish(&mut self) {
        let now_by_name: BTreeMap<String, Now> = self
            .pod
            .containers
            .iter()
            .map(|c| {
                let mut now = self.units.get(&c.spec.name).map(|u| u.now.clone()).unwrap_or_default();
                let never_ran = !self.history.containers.contains_key(&c.spec.name);
                if now.waiting.is_none() && never_ran && now.running.is_none() {
                    now.waiting.clone_from(&self.setup_problem);
                }
                (c.spec.name.clone(), now)
            })
            .collect();
        let view = View {
            pod: &self.pod,
            history: &self.history,
            now: &now_by_name,
            facts: &self.facts,
            sandbox: self.sandbox.is_some() && (self.pod.host_network() || !self.facts.pod_ips.is_empty()),
            initialized: self.initialized || self.pod.containers.iter().all(|c| !c.role.starts_before()),
        };
        let before = self.published.as_ref().or(self.pod.pod.status.as_ref());
        let status = status::compute(&view, before, now());
        if self.published.as_ref() == Some(&status) && self.reported == Some(self.resync) {
            return;
        }
        match serde_json::to_value(&status) {
            Ok(value) => self.node.outbox.status(PodReport { pod: self.pod.pod_name(), status: value }),
            Err(error) => tracing::error!(pod = self.pod.uid(), %error, "cannot write the pod's status"),
        }
        if !self.pod.host_network() {
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            self.node.services.own_pod(self.pod.uid(), &self.facts.pod_ips, ready);
        }
        self.published = Some(status);
        self.reported = Some(self.resync);
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Seconds of a time in nanoseconds since 1970.
fn seconds(nanoseconds: i64) -> i64 {
    nanoseconds.div_euclid(1_000_000_000)
}
