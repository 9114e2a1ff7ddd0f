//! What changed, and whom it concerns: one watch of each kind for all nodes.
//!
//! Were every node to look at every change for itself, a change would cost as much as there are nodes. Here it is looked
//! at once, and the node is told the name only: it looks up the newest when it comes to it. However slow a node, what
//! waits for it is at most the name of everything it has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;

use super::Kinds;
use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::link::message::Reference;
use crate::registry::{Event, Registry, Watch};
use crate::store::Key;

/// Between a failed look at the registry and the next.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Which nodes wait for what.
#[derive(Default)]
pub(super) struct Changes(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// By the node's name; there may be two for a moment, when a node connects anew.
    nodes: HashMap<String, Vec<Arc<Subscriber>>>,
    users: HashMap<Reference, Vec<Arc<Subscriber>>>,
}

/// One node's connection.
#[derive(Default)]
struct Subscriber {
    news: Mutex<News>,
    changed: Notify,
}

/// What a node has to look at again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Nobody knows what changed: everything.
    pub(super) all: bool,
    /// Pods of the node.
    pub(super) pods: BTreeSet<Key>,
    /// Objects it uses.
    pub(super) objects: BTreeSet<Reference>,
    /// UIDs of pods of which it asks for everything.
    pub(super) lacking: BTreeSet<String>,
}

impl Subscriber {
    fn note(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

impl Changes {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a node hears of its changes, for as long as the answer lives.
    pub(super) fn subscribe<'a>(&'a self, node: &'a str) -> Subscription<'a> {
        let subscriber = Arc::new(Subscriber::default());
        self.waiting().nodes.entry(node.to_owned()).or_default().push(subscriber.clone());
        Subscription { changes: self, node, subscriber, uses: HashSet::new() }
    }

    /// Passes on what changes; never ends. Without it nodes hear of no change.
    pub(super) async fn follow(&self, registry: &Registry, kinds: &Kinds) {
        loop {
            let Err(status) = self.try_follow(registry, kinds).await;
            // The history was too short: everything is looked at anew.
            if status.code != 410 {
                tracing::error!(%status, "cannot see what changes for nodes");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }

    async fn try_follow(&self, registry: &Registry, kinds: &Kinds) -> Result<Infallible, Status> {
        let mut pods = registry.watch(&kinds.pods, None, None)?;
        let mut used = kinds.used.iter().map(|k| registry.watch(k, None, None)).collect::<Result<Vec<Watch>, _>>()?;
        self.waiting().nodes.values().flatten().for_each(|s| s.note(|news| news.all = true));
        loop {
            tokio::select! {
                event = pods.next() => self.pod(&event?)?,
                (kind, event) = first(&mut used) => {
                    let event = event?;
                    if let Some(kind) = kinds.used.get(kind) {
                        self.object(reference(kind, &event.object.key));
                    }
                }
            }
        }
    }

    fn pod(&self, event: &Event) -> Result<(), Status> {
        let Bound { spec } = event.object.parse()?;
        let waiting = self.waiting();
        for subscriber in waiting.nodes.get(&spec.node_name).into_iter().flatten() {
            subscriber.note(|news| news.pods.extend([event.object.key.clone()]));
        }
        Ok(())
    }

    /// A node asks for everything of a pod.
    pub(super) fn lacks(&self, node: &str, uid: &str) {
        for subscriber in self.waiting().nodes.get(node).into_iter().flatten() {
            subscriber.note(|news| news.lacking.extend([uid.to_owned()]));
        }
    }

    fn object(&self, reference: Reference) {
        let waiting = self.waiting();
        for subscriber in waiting.users.get(&reference).into_iter().flatten() {
            subscriber.note(|news| news.objects.extend([reference.clone()]));
        }
    }
}

/// Which node a pod is bound to.
#[derive(Deserialize)]
struct Bound {
    #[serde(default)]
    spec: BoundSpec,
}

#[derive(Default, Deserialize)]
struct BoundSpec {
    #[serde(default, rename = "nodeName")]
    node_name: String,
}

/// One node's share of the changes.
pub(super) struct Subscription<'a> {
    changes: &'a Changes,
    node: &'a str,
    subscriber: Arc<Subscriber>,
    uses: HashSet<Reference>,
}

impl Subscription<'_> {
    /// Waits until something changed and takes it. Cancel safe.
    pub(super) async fn next(&self) -> News {
        loop {
            let news = std::mem::take(&mut *self.subscriber.news.lock().unwrap_or_else(PoisonError::into_inner));
            if news != News::default() {
                return news;
            }
            self.subscriber.changed.notified().await;
        }
    }

    /// From now on the node hears of an object. To be said before it is looked up, so that no change is missed.
    pub(super) fn uses(&mut self, reference: &Reference) {
        if self.uses.insert(reference.clone()) {
            let mut waiting = self.changes.waiting();
            waiting.users.entry(reference.clone()).or_default().push(self.subscriber.clone());
        }
    }

    /// It hears of no others any more.
    pub(super) fn uses_only(&mut self, now: &HashSet<&Reference>) {
        let mut waiting = self.changes.waiting();
        self.uses.retain(|reference| {
            let used = now.contains(reference);
            if !used {
                leave(&mut waiting.users, reference, &self.subscriber);
            }
            used
        });
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        self.uses_only(&HashSet::new());
        leave(&mut self.changes.waiting().nodes, self.node, &self.subscriber);
    }
}

/// Takes a subscriber out, and the entry with its last.
fn leave<K, Q>(from: &mut HashMap<K, Vec<Arc<Subscriber>>>, key: &Q, subscriber: &Arc<Subscriber>)
where
    K: std::borrow::Borrow<Q> + Eq + std::hash::Hash,
    Q: Eq + std::hash::Hash + ?Sized,
{
    if let Some(all) = from.get_mut(key) {
        all.retain(|s| !Arc::ptr_eq(s, subscriber));
        if all.is_empty() {
            from.remove(key);
        }
    }
}

/// The next change of any of several watches, with the watch's number.
async fn first(watches: &mut [Watch]) -> (usize, Result<Event, Status>) {
    let next = watches.iter_mut().enumerate().map(|(n, watch)| Box::pin(async move { (n, watch.next().await) }));
    futures_util::future::select_all(next).await.0
}

fn reference(kind: &Kind, key: &Key) -> Reference {
    Reference {
        resource: kind.plural.clone().into_owned(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(name: &str) -> Reference {
        Reference { resource: "configmaps".into(), namespace: "n".into(), name: name.into() }
    }

    #[tokio::test]
    async fn who_uses_an_object_hears_of_it() {
        let changes = Changes::default();
        let (mut a, mut b) = (changes.subscribe("a"), changes.subscribe("b"));
        let (x, y) = (config_map("x"), config_map("y"));
        a.uses(&x);
        a.uses(&y);
        b.uses(&y);
        changes.object(config_map("x"));
        changes.object(config_map("y"));
        changes.object(config_map("z"));
        assert_eq!(a.next().await.objects, [config_map("x"), config_map("y")].into());
        assert_eq!(b.next().await.objects, [config_map("y")].into());
        a.uses_only(&[&y].into());
        changes.object(config_map("x"));
        changes.object(config_map("y"));
        assert_eq!(a.next().await.objects, [config_map("y")].into());
        drop((a, b));
        let waiting = changes.waiting();
        assert!(waiting.nodes.is_empty() && waiting.users.is_empty());
    }
}
