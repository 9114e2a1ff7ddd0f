//! Runs controllers: one queue, one set of watches, a bounded number of reconciliations at a time, all in one task.
//!
//! Nothing polls. A controller is called when an object it watches changes, when a delay it asked for is over, and for
//! every object once at the start and whenever a watch fell behind the kept history or kinds came or went.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use tracing::{debug, warn};

use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::registry::{Event, EventType, ListOptions, Raw, Registry};
use crate::store::Key;

use super::model::Meta;
use super::queue::Queue;

/// Most reconciliations in flight. They wait for the disk only, so a few are enough to fill its group commits.
const CONCURRENT: usize = 16;
/// Objects read at a time when all keys are listed, so that a big cluster does not stall the other tasks for long.
const PAGE: usize = 500;
/// The pause before watches are set up again after they could not be.
const RETRY: Duration = Duration::from_secs(1);

/// Which resources a controller hears of.
#[derive(Clone, Copy, Debug)]
pub enum Interest {
    /// These, as `pods` or `deployments.apps`.
    Resources(&'static [&'static str]),
    /// Every served kind but Events.
    Everything,
}

impl Interest {
    fn covers(self, resource: &str) -> bool {
        match self {
            Self::Resources(list) => list.contains(&resource),
            Self::Everything => resource != "events",
        }
    }
}

/// A change of an object with the metadata every controller looks at, parsed once for all of them.
#[derive(Debug)]
pub struct Change<'a> {
    /// What happened.
    pub kind: EventType,
    /// Metadata after the change; the last one of an object that is gone.
    pub meta: Meta,
    /// Metadata before the change.
    pub previous: Option<Meta>,
    /// The object after the change.
    pub object: &'a Raw,
    /// The object before the change.
    pub before: Option<&'a Raw>,
}

impl Change<'_> {
    /// The resource, as `pods` or `deployments.apps`.
    pub fn resource(&self) -> &str {
        &self.object.key.resource
    }

    /// The key of the changed object.
    pub fn key(&self) -> Key {
        self.object.key.clone()
    }

    /// The key of another object in the same namespace.
    pub fn beside(&self, resource: &str, name: &str) -> Key {
        Key { resource: resource.into(), namespace: self.object.key.namespace.clone(), name: name.into() }
    }
}

/// What a reconciliation asks for besides being called on changes.
pub type Next = Option<Duration>;

/// One controller. Its decisions are pure functions elsewhere in its file; this is the thin layer that reads and writes.
pub trait Controller: Send + Sync {
    /// As it appears in logs and as field manager, for example `deployment-controller`.
    fn name(&self) -> &'static str;

    /// What it hears of.
    fn interest(&self) -> Interest;

    /// The keys a change concerns. Quick; may read the registry.
    fn keys(&self, change: &Change<'_>) -> Vec<Key>;

    /// Brings what the key stands for one step closer to what is wanted. Called again after the returned delay, and
    /// with back-off after an error.
    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>>;
}

/// A key of one of the controllers, named by its place.
type Item = (usize, Key);

/// Runs the controllers until `shutdown` ends.
pub async fn run(registry: &Registry, controllers: &[Box<dyn Controller>], shutdown: impl Future<Output = ()>) {
    let mut work = Work { controllers, queue: Queue::default(), running: FuturesUnordered::new() };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let ended = tokio::select! {
            biased;
            () = &mut shutdown => return,
            status = work.follow(registry) => status,
        };
        // The watch fell behind, or the store failed. What is queued stays; everything is looked at anew.
        debug!(reason = %ended, "listing all objects again");
        if ended.code != 410 {
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

struct Work<'a> {
    controllers: &'a [Box<dyn Controller>],
    queue: Queue<Item>,
    running: FuturesUnordered<BoxFuture<'a, (Item, Result<Next, Status>)>>,
}

impl Work<'_> {
    /// Lists and watches, and works off the queue, until a watch ends.
    async fn follow(&mut self, registry: &Registry) -> Status {
        let mut served = registry.kinds().subscribe();
        let watched = self.kinds(registry);
        let mut changes = match self.start(registry, &watched).await {
            Ok(changes) => changes,
            Err(status) => return status,
        };
        loop {
            self.start_ready();
            let due = self.queue.next_due();
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(event)) => self.heard(&event),
                    Some(Err(status)) => return status,
                    None => return Status::unavailable("there is nothing to watch"),
                },
                Some((item, result)) = self.running.next(), if !self.running.is_empty() => self.finished(item, result),
                () = sleep_until(due), if due.is_some() => {}
                // The table lives as long as the registry.
                _ = served.changed() => if !same(&watched, &self.kinds(registry)) {
                    return Status::expired("other kinds are served now");
                },
            }
        }
    }

    /// Queues every object there is and returns the changes from there on.
    async fn start(
        &mut self,
        registry: &Registry,
        kinds: &[Arc<Kind>],
    ) -> Result<SelectAll<BoxStream<'static, Result<Event, Status>>>, Status> {
        let mut changes = SelectAll::new();
        for kind in kinds {
            let mut options = ListOptions { limit: PAGE, ..ListOptions::default() };
            let mut after = None;
            loop {
                let page = registry.list(kind, &options)?;
                after = after.or(Some(page.revision));
                for object in page.items {
                    self.heard(&Event { kind: EventType::Added, object, previous: None });
                }
                tokio::task::yield_now().await;
                let Some(next) = page.next else { break };
                options.next = next;
            }
            let watch = registry.watch(kind, None, after)?;
            let events = stream::unfold(watch, |mut watch| async { Some((watch.next().await, watch)) });
            changes.push(events.boxed());
        }
        Ok(changes)
    }

    /// The kinds some controller is interested in, each resource once.
    fn kinds(&self, registry: &Registry) -> Vec<Arc<Kind>> {
        let mut seen = HashSet::new();
        let mut kinds = registry.kinds().all();
        kinds.retain(|kind| {
            let resource = kind.resource();
            self.controllers.iter().any(|c| c.interest().covers(&resource)) && seen.insert(resource)
        });
        kinds
    }

    fn heard(&mut self, event: &Event) {
        let change = match change(event) {
            Ok(change) => change,
            Err(status) => return warn!(key = ?event.object.key, %status, "stored object is not readable"),
        };
        for (place, controller) in self.controllers.iter().enumerate() {
            if controller.interest().covers(change.resource()) {
                for key in controller.keys(&change) {
                    self.queue.add((place, key));
                }
            }
        }
    }

    fn start_ready(&mut self) {
        let now = now();
        while self.running.len() < CONCURRENT {
            let Some(item) = self.queue.take(now) else { return };
            let controller = &self.controllers[item.0];
            self.running.push(Box::pin(async move {
                let result = controller.reconcile(&item.1).await;
                (item, result)
            }));
        }
    }

    fn finished(&mut self, item: Item, result: Result<Next, Status>) {
        let now = now();
        self.queue.done(&item);
        match result {
            Ok(next) => {
                self.queue.succeeded(&item);
                if let Some(delay) = next {
                    self.queue.add_after(item, delay, now);
                }
            }
            Err(status) => {
                let name = self.controllers[item.0].name();
                let key = item.1.clone();
                let delay = self.queue.failed(item, now);
                // Conflicts and refusals are everyday; what the server itself cannot do is not.
                if status.code >= 500 {
                    warn!(controller = name, ?key, %status, ?delay, "will try again");
                } else {
                    debug!(controller = name, ?key, %status, ?delay, "will try again");
                }
            }
        }
    }
}

fn same(some: &[Arc<Kind>], others: &[Arc<Kind>]) -> bool {
    some.iter().map(|kind| kind.resource()).eq(others.iter().map(|kind| kind.resource()))
}

fn change(event: &Event) -> Result<Change<'_>, Status> {
    let previous = event.previous.as_ref().map(Meta::of).transpose()?;
    let meta = Meta::of(&event.object)?;
    Ok(Change { kind: event.kind, meta, previous, object: &event.object, before: event.previous.as_ref() })
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

/// Names by namespace: what a controller remembers of objects nobody controls, which are few. They are what it could
/// adopt, so that it need not search a whole namespace each time.
#[derive(Debug, Default)]
pub struct Orphans {
    names: std::sync::Mutex<HashMap<Arc<str>, HashSet<Arc<str>>>>,
}

impl Orphans {
    /// Notes whether a changed object has a controller.
    pub fn note(&self, change: &Change<'_>) {
        let mut names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = &change.object.key;
        if change.kind != EventType::Deleted && change.meta.controller().is_none() {
            names.entry(key.namespace.clone()).or_default().insert(key.name.clone());
        } else if let Some(in_namespace) = names.get_mut(&key.namespace) {
            in_namespace.remove(&key.name);
            if in_namespace.is_empty() {
                names.remove(&key.namespace);
            }
        }
    }

    /// The names in a namespace.
    pub fn within(&self, namespace: &str) -> Vec<Arc<str>> {
        let names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        names.get(namespace).map(|set| set.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::table::KindTable;
    use crate::registry::WriteOptions;
    use crate::store::{Options, Store};
    use std::sync::Mutex;

    /// Notes the ConfigMaps it is called for; fails for those called `bad` until the third time.
    #[derive(Default)]
    struct Recorder {
        calls: Arc<Mutex<Vec<String>>>,
    }

    impl Controller for Recorder {
        fn name(&self) -> &'static str {
            "recorder"
        }

        fn interest(&self) -> Interest {
            Interest::Resources(&["configmaps"])
        }

        fn keys(&self, change: &Change<'_>) -> Vec<Key> {
            vec![change.key()]
        }

        fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
            let mut calls = self.calls.lock().unwrap();
            calls.push(key.name.to_string());
            let earlier = calls.iter().filter(|name| **name == *key.name).count();
            let fails = &*key.name == "bad" && earlier < 3;
            Box::pin(async move { if fails { Err(Status::internal("not yet")) } else { Ok(None) } })
        }
    }

    async fn make(registry: &Registry, name: &str) {
        let kind = registry.kinds().by_resource("configmaps").unwrap();
        let filler = "x".repeat(3000);
        let map = serde_json::json!({"metadata": {"name": name}, "data": {"a": filler, "b": name.repeat(200)}});
        let map = map.as_object().unwrap().clone();
        registry.create(&kind, "default", map, &WriteOptions::by("test")).await.unwrap();
    }

    fn story<F: Future<Output = ()>>(ring: usize, story: impl FnOnce(Registry, Arc<Mutex<Vec<String>>>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { ring_bytes: ring, ..Options::new(dir.path().join("db")) };
            let registry = Registry::new(Store::open(options).unwrap(), KindTable::builtin());
            registry.bootstrap().await.unwrap();
            let recorder = Recorder::default();
            let calls = recorder.calls.clone();
            let controllers: Vec<Box<dyn Controller>> = vec![Box::new(recorder)];
            // The shutdown ends it.
            let story = Box::pin(story(registry.clone(), calls));
            tokio::time::timeout(Duration::from_secs(30), run(&registry, &controllers, story)).await.unwrap();
        });
    }

    async fn until(calls: &Mutex<Vec<String>>, test: impl Fn(&[String]) -> bool) {
        while !test(&calls.lock().unwrap()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn failures_are_tried_again() {
        story(1 << 20, |registry, calls| async move {
            make(&registry, "bad").await;
            make(&registry, "good").await;
            until(&calls, |calls| calls.iter().filter(|c| *c == "bad").count() == 3).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(calls.lock().unwrap().iter().filter(|c| *c == "good").count(), 1);
        });
    }

    #[test]
    fn a_watch_that_falls_behind_loses_nothing() {
        story(2_000, |registry, calls| async move {
            make(&registry, "first").await;
            until(&calls, |calls| calls.contains(&"first".to_owned())).await;
            // Far more than the ring holds, without letting the runner run in between.
            let names: Vec<String> = (0..200).map(|i| format!("map-{i}")).collect();
            let all = futures_util::future::join_all(names.iter().map(|name| make(&registry, name)));
            all.await;
            until(&calls, |calls| names.iter().all(|name| calls.contains(name))).await;
            // It was listed again, although nothing changed about it.
            until(&calls, |calls| calls.iter().filter(|c| *c == "first").count() >= 2).await;
        });
    }
}
