//! Finds nodes for pods: filters, scores and preemption are pure functions on a snapshot of numbers; one loop keeps the
//! snapshot up to date from watches, takes pods from a priority queue and binds them.

pub mod affinity;
pub mod decide;
pub mod filter;
pub mod message;
pub mod model;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod spread;
pub mod taints;
mod write;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tracing::{debug, warn};

use crate::events::EventRecorder;
use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::registry::{Event, EventType, ListOptions, Raw, Registry, Watch};
use crate::store::Key;

use decide::{Decision, Nominated};
use model::{Node, Pod};
use queue::Queue;
use snapshot::{Assigned, Effect, Snapshot};
use spread::Nearness;
use write::{Failure, Writer};

/// Most writes under way at a time.
const CONCURRENT: usize = 32;
/// Objects read at a time when everything is listed.
const PAGE: usize = 500;
/// The pause before watches are set up again after they could not be.
const RETRY: Duration = Duration::from_secs(1);

/// Schedules pods until `shutdown` ends.
///
/// # Errors
/// If pods or nodes are not served.
pub async fn run(
    registry: &Registry,
    events: &EventRecorder,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Status> {
    let kind = |resource| {
        let served = registry.kinds().by_resource(resource);
        served.ok_or_else(|| Status::internal(format!("{resource} are not served")))
    };
    let (pods, nodes) = (kind("pods")?, kind("nodes")?);
    let writer = Arc::new(Writer::new(registry, events, pods.clone()));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // A watch that fell behind leaves a wrong snapshot, so everything starts anew.
        let mut scheduler = Scheduler {
            registry,
            pods: &pods,
            nodes: &nodes,
            writer: writer.clone(),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            nominated: Nominated::new(),
            binding: HashMap::new(),
            writes: FuturesUnordered::new(),
        };
        let ended = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            status = scheduler.follow() => status,
        };
        debug!(reason = %ended, "listing all pods and nodes again");
        if ended.code != 410 {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// A write that has ended.
enum Done {
    Bound(Key, Box<str>, Result<(), Status>),
    Noted(Result<(), Status>),
}

struct Scheduler<'a> {
    registry: &'a Registry,
    pods: &'a Kind,
    nodes: &'a Kind,
    writer: Arc<Writer>,
    snapshot: Snapshot,
    queue: Queue,
    nominated: Nominated,
    /// Pods that are in the snapshot already although the API does not say so yet, with their UIDs.
    binding: HashMap<Key, Box<str>>,
    writes: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Scheduler<'_> {
    /// Lists, watches and schedules until a watch ends.
    async fn follow(&mut self) -> Status {
        let (mut nodes, mut pods) = match self.start().await {
            Ok(watches) => watches,
            Err(status) => return status,
        };
        loop {
            while self.writes.len() < CONCURRENT
                && let Some(key) = self.queue.take(now())
            {
                self.attempt(&key);
            }
            let due = self.queue.next_due().filter(|_| self.writes.len() < CONCURRENT);
            tokio::select! {
                event = nodes.next() => match event {
                    Ok(event) => self.node(&event),
                    Err(status) => return status,
                },
                event = pods.next() => match event {
                    Ok(event) => self.pod(&event),
                    Err(status) => return status,
                },
                Some(done) = self.writes.next(), if !self.writes.is_empty() => self.done(done),
                () = sleep_until(due), if due.is_some() => {}
            }
        }
    }

    /// Reads all nodes and pods and watches them from there.
    async fn start(&mut self) -> Result<(Watch, Watch), Status> {
        let after = self.list(self.nodes, Self::node).await?;
        let nodes = self.registry.watch(self.nodes, None, Some(after))?;
        let after = self.list(self.pods, Self::pod).await?;
        let pods = self.registry.watch(self.pods, None, Some(after))?;
        Ok((nodes, pods))
    }

    async fn list(&mut self, kind: &Kind, heard: fn(&mut Self, &Event)) -> Result<u64, Status> {
        let mut options = ListOptions { limit: PAGE, ..ListOptions::default() };
        let mut revision = None;
        loop {
            let page = self.registry.list(kind, &options)?;
            for object in page.items {
                heard(self, &Event { kind: EventType::Added, object, previous: None });
            }
            let revision = *revision.get_or_insert(page.revision);
            let Some(next) = page.next else { return Ok(revision) };
            options.next = next;
            tokio::task::yield_now().await;
        }
    }

    fn node(&mut self, event: &Event) {
        let name = &event.object.key.name;
        if event.kind == EventType::Deleted {
            return self.snapshot.node_gone(name);
        }
        if let Some(node) = parse::<Node>(&event.object)
            && self.snapshot.node_changed(node) == Effect::MayHelp
        {
            self.queue.wake(now());
        }
    }

    fn pod(&mut self, event: &Event) {
        let key = &event.object.key;
        if event.kind == EventType::Deleted {
            return self.gone(key);
        }
        let Some(pod) = parse::<Pod>(&event.object) else { return };
        if pod.wants_node() {
            // While it is being bound the API is behind the snapshot.
            if !self.binding.contains_key(key) && self.is_news(key, &pod, event.previous.as_ref()) {
                self.queue.add(key.clone(), pod.spec.priority);
            }
            return;
        }
        if pod.spec.node_name.is_empty() {
            return self.gone(key);
        }
        self.queue.remove(key);
        self.nominated.remove(key);
        if self.snapshot.pod_changed(key, &pod) == Effect::MayHelp {
            self.queue.wake(now());
        }
    }

    /// Whether a waiting pod changed in a way that matters for scheduling: what is said of its status does not.
    fn is_news(&self, key: &Key, pod: &Pod, previous: Option<&Raw>) -> bool {
        let before = previous.and_then(parse::<Pod>);
        !self.queue.contains(key)
            || before.is_none_or(|old| old.spec != pod.spec || old.metadata.labels != pod.metadata.labels)
    }

    fn gone(&mut self, key: &Key) {
        self.queue.remove(key);
        self.binding.remove(key);
        let was_nominated = self.nominated.remove(key).is_some();
        if self.snapshot.pod_gone(key) == Effect::MayHelp || was_nominated {
            self.queue.wake(now());
        }
    }

    /// Tries to find a node for a pod.
    fn attempt(&mut self, key: &Key) {
        let pod = match self.registry.get_as::<Pod>(self.pods, &key.namespace, &key.name) {
            Ok(pod) if pod.wants_node() => pod,
            Ok(_) => return self.queue.remove(key),
            Err(status) if status.code == 404 => return self.queue.remove(key),
            Err(status) => {
                warn!(?key, %status, "cannot read the pod to schedule");
                return self.queue.failed(key, true, now());
            }
        };
        if pod.gated() {
            self.queue.failed(key, false, now());
            let (writer, key) = (self.writer.clone(), key.clone());
            return self.writes.push(Box::pin(async move { Done::Noted(writer.gated(&key, &pod).await) }));
        }
        // A wish that cannot be looked up is no reason not to run.
        let near = Nearness::of(&pod, &self.snapshot, self.registry, self.pods).unwrap_or_default();
        match decide::decide(key, &pod, &self.snapshot, &self.nominated, &near) {
            Decision::Bind(node) => {
                let node = node.name.clone();
                self.bind(key, pod, node);
            }
            Decision::Fail { refusals, hope, preempt } => {
                let message = message::failure(&refusals, hope);
                let victims = preempt.iter().flat_map(|c| &c.victims).map(|(k, v)| ((*k).clone(), v.uid.clone()));
                let failure =
                    Failure { message, victims: victims.collect(), node: preempt.map(|c| c.node.name.clone()) };
                self.fail(key, pod, failure);
            }
        }
    }

    fn bind(&mut self, key: &Key, pod: Pod, node: Arc<str>) {
        self.snapshot.assign(key, Assigned::of(&pod, node.clone()));
        let uid: Box<str> = pod.metadata.uid.as_str().into();
        self.binding.insert(key.clone(), uid.clone());
        let (writer, key) = (self.writer.clone(), key.clone());
        self.writes.push(Box::pin(async move {
            let result = writer.bind(&key, &pod, &node).await;
            Done::Bound(key, uid, result)
        }));
    }

    fn fail(&mut self, key: &Key, pod: Pod, failure: Failure) {
        if let Some(node) = &failure.node {
            self.nominated.insert(key.clone(), Assigned::of(&pod, node.clone()));
        }
        self.queue.failed(key, false, now());
        let (writer, key) = (self.writer.clone(), key.clone());
        self.writes.push(Box::pin(async move { Done::Noted(writer.failed(&key, &pod, failure).await) }));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Bound(key, uid, result) => {
                // Otherwise the pod is gone meanwhile, and there may be another one of that name.
                if self.binding.get(&key) != Some(&uid) {
                    return;
                }
                self.binding.remove(&key);
                let Err(status) = result else {
                    self.queue.remove(&key);
                    self.nominated.remove(&key);
                    return;
                };
                debug!(?key, %status, "not bound");
                if self.snapshot.pod_gone(&key) == Effect::MayHelp {
                    self.queue.wake(now());
                }
                self.queue.failed(&key, true, now());
            }
            Done::Noted(Ok(())) => {}
            Done::Noted(Err(status)) => debug!(%status, "the state of a waiting pod was not written"),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(object: &Raw) -> Option<T> {
    object.parse().inspect_err(|status| warn!(key = ?object.key, %status, "stored object is not readable")).ok()
}

/// The runtime's clock, which tests can hold still.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}
