//! The node's side of the link: takes in what the node should have and keeps a worker for each pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use super::disk::{PodDir, Pods};
use super::engine::{Engine, blocking};
use super::error::Result;
use super::pod::Desired;
use super::volumes;
use super::worker::{Left, Order, Shared, Worker};
use crate::kinds::Object;
use crate::link::known::KnownPod;
use crate::link::message::{Arrivals, Dependency, DesiredPod, Envelope, Order as Sequence, Reference, ToNode};

/// What the server may change of a pod's object without the node having to know.
const IGNORED_METADATA: [&str; 2] = ["managedFields", "resourceVersion"];

/// One pod of this node.
struct Entry {
    orders: watch::Sender<Order>,
    uses: Vec<Reference>,
    dir: PodDir,
}

/// The pods of this node.
pub(super) struct Agent<E: Engine> {
    shared: Arc<Shared<E>>,
    pods: Pods,
    entries: BTreeMap<String, Entry>,
    workers: JoinSet<()>,
    names: HashMap<Id, String>,
    arrivals: Arrivals,
    resync: u64,
    /// The server's answer began with a welcome.
    welcomed: bool,
}

impl<E: Engine> Agent<E> {
    /// An agent for the pods kept in `pods`.
    pub(super) fn new(shared: Arc<Shared<E>>, pods: Pods) -> Self {
        Self {
            shared,
            pods,
            entries: BTreeMap::new(),
            workers: JoinSet::new(),
            names: HashMap::new(),
            arrivals: Arrivals::default(),
            resync: 0,
            welcomed: false,
        }
    }

    /// Starts a worker for every pod on disk; `left` is what the runtime still has of each, by UID.
    ///
    /// What is left of no pod is not touched: the caller removes it.
    pub(super) async fn resume(&mut self, mut left: HashMap<String, Left<E::Sandbox>>) -> Result<()> {
        let pods = self.pods.clone();
        for dir in blocking("reading the pods of this node", move || pods.list()).await? {
            let uid = dir.uid();
            let loaded = dir.clone();
            let read = blocking("reading a pod", move || loaded.load()).await;
            let pod = match read {
                Ok(message) => Desired::parse(&message).map(|pod| (pod, message)).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match pod {
                Ok((pod, message)) => {
                    self.spawn(uid.clone(), pod, &message, dir, left.remove(&uid).unwrap_or(Left::Nothing));
                }
                Err(error) => {
                    if dir.is_disowned() {
                        tracing::info!(pod = uid, "finishing the removal of a pod");
                    } else {
                        // Without its specification nobody can look after it; the server will send it again.
                        tracing::warn!(pod = uid, error, "forgetting a pod that cannot be read");
                    }
                    self.forget(&uid, dir).await;
                }
            }
        }
        Ok(())
    }

    /// UIDs of the pods that have a worker.
    pub(super) fn uids(&self) -> HashSet<String> {
        self.entries.keys().cloned().collect()
    }

    /// A pod's directory and the pod as it should be.
    pub(super) fn pod(&self, uid: &str) -> Option<(PodDir, Arc<Desired>)> {
        self.entries.get(uid).map(|e| (e.dir.clone(), e.orders.borrow().pod.clone()))
    }

    async fn forget(&self, uid: &str, dir: PodDir) {
        if let Err(error) = self.shared.engine.cleanup(uid).await {
            tracing::error!(pod = uid, %error, "cannot clean up");
        }
        if let Err(error) = self.shared.engine.detach(uid).await {
            tracing::error!(pod = uid, %error, "cannot take the pod's network away");
        }
        let removed = blocking("removing a pod's directory", move || {
            volumes::remove(&dir.volumes())?;
            dir.remove()
        });
        if let Err(error) = removed.await {
            tracing::error!(pod = uid, %error, "cannot remove the pod's directory");
        }
    }

    fn spawn(&mut self, uid: String, pod: Desired, message: &DesiredPod, dir: PodDir, left: Left<E::Sandbox>) {
        let order = Order { pod: Arc::new(pod), removed: false, resync: self.resync };
        let orders = watch::Sender::new(order);
        let worker = Worker::new(self.shared.clone(), orders.subscribe(), dir.clone(), left);
        let task = self.workers.spawn(worker.run());
        self.names.insert(task.id(), uid.clone());
        self.entries.insert(uid, Entry { orders, uses: uses(message), dir });
    }

    /// Waits for a worker to end and forgets its pod; never returns while there is no worker.
    pub(super) async fn reap(&mut self) {
        let ended = match self.workers.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(%error, "a pod worker broke off");
                error.id()
            }
        };
        if let Some(uid) = self.names.remove(&ended) {
            self.shared.services.own_pod_gone(&uid);
            self.entries.remove(&uid);
        }
    }

    /// Takes in one message of the server; true: it may have lost what it was told of the node, as of its pods.
    pub(super) async fn take(&mut self, envelope: Envelope<ToNode>) -> bool {
        match self.arrivals.judge(&envelope) {
            Sequence::Next => {}
            Sequence::Gap => self.shared.outbox.hello(),
            Sequence::Stale => return false,
            Sequence::Foreign => {
                tracing::warn!(version = envelope.version, "ignoring a message of another version");
                return false;
            }
        }
        let asks = self.is_asked(&envelope.body);
        match envelope.body {
            ToNode::Welcome => {}
            ToNode::Pod(message) => self.take_pod(message).await,
            ToNode::Known(known) => self.take_known(known).await,
            ToNode::Object(dependency) => self.take_object(dependency).await,
            ToNode::Remove { uid } => self.remove(&uid),
            ToNode::Complete { ref pods, .. } => {
                self.complete(pods);
                self.shared.services.take(envelope.body);
            }
            of_services => self.shared.services.take(of_services),
        }
        if asks {
            self.tell_again();
        }
        asks
    }

    /// Whether everything is to be told again: at the beginning of each answer of the server, or at the end if it is an
    /// older one that welcomes nobody.
    fn is_asked(&mut self, message: &ToNode) -> bool {
        match message {
            ToNode::Welcome => {
                self.welcomed = true;
                true
            }
            ToNode::Complete { .. } => !std::mem::replace(&mut self.welcomed, false),
            _ => false,
        }
    }

    fn tell_again(&mut self) {
        self.resync += 1;
        for entry in self.entries.values() {
            entry.orders.send_modify(|order| order.resync = self.resync);
        }
    }

    /// Takes in a pod whose large objects are on disk, or asks for them.
    async fn take_known(&mut self, known: KnownPod) {
        let uid = known.uid().to_owned();
        let dir = match self.pods.pod(&uid) {
            Ok(dir) => dir,
            Err(error) => {
                tracing::error!(%error, "ignoring a pod");
                return;
            }
        };
        // What cannot be read is not there.
        match blocking("reading a pod", move || Ok(known.complete(dir.load()?))).await {
            Ok(Some(message)) => self.take_pod(message).await,
            Ok(None) | Err(_) => self.shared.outbox.lacks(uid),
        }
    }

    async fn take_pod(&mut self, message: DesiredPod) {
        let pod = match Desired::parse(&message) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%error, "ignoring a pod that cannot be understood");
                return;
            }
        };
        let uid = pod.uid().to_owned();
        let dir = match self.pods.pod(&uid) {
            Ok(dir) => dir,
            Err(error) => {
                tracing::error!(%error, "ignoring a pod");
                return;
            }
        };
        if self.entries.get(&uid).is_some_and(|e| e.orders.borrow().removed) {
            return;
        }
        let message = Arc::new(message);
        self.keep(&dir, message.clone()).await;
        let uses = uses(&message);
        match self.entries.get_mut(&uid) {
            Some(entry) => {
                entry.uses = uses;
                entry.orders.send_modify(|order| order.pod = Arc::new(pod));
            }
            None => self.spawn(uid, pod, &message, dir, Left::Nothing),
        }
    }

    /// Writes the pod to disk unless it is there already.
    async fn keep(&self, dir: &PodDir, message: Arc<DesiredPod>) {
        let (target, uid) = (dir.clone(), dir.uid());
        let written = blocking("keeping a pod", move || {
            let same = target.load().is_ok_and(|stored| substance(&stored) == substance(&message));
            if same { Ok(()) } else { target.store(&message) }
        });
        if let Err(error) = written.await {
            // It runs all the same; only a restart without the server would not know it.
            tracing::error!(pod = uid, %error, "cannot keep the pod");
        }
    }

    async fn take_object(&mut self, dependency: Dependency) {
        let users: Vec<(String, PodDir)> = self
            .entries
            .iter()
            .filter(|(_, e)| e.uses.contains(&dependency.reference))
            .map(|(uid, e)| (uid.clone(), e.dir.clone()))
            .collect();
        for (uid, dir) in users {
            let loaded = dir.clone();
            let mut message = match blocking("reading a pod", move || loaded.load()).await {
                Ok(message) => message,
                Err(error) => {
                    tracing::error!(pod = uid, %error, "cannot update what the pod uses");
                    continue;
                }
            };
            for known in message.objects.iter_mut().filter(|d| d.reference == dependency.reference) {
                known.object.clone_from(&dependency.object);
            }
            self.take_pod(message).await;
        }
    }

    fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get(uid) {
            // At once: a daemon that dies before the worker is done must not bring the pod to life again.
            if let Err(error) = entry.dir.disown() {
                tracing::error!(pod = uid, %error, "cannot note that the pod is removed");
            }
            entry.orders.send_modify(|order| order.removed = true);
        }
    }

    fn complete(&mut self, pods: &[String]) {
        let wanted: HashSet<&str> = pods.iter().map(String::as_str).collect();
        let extra: Vec<String> = self.entries.keys().filter(|uid| !wanted.contains(uid.as_str())).cloned().collect();
        for uid in extra {
            self.remove(&uid);
        }
    }
}

fn uses(message: &DesiredPod) -> Vec<Reference> {
    message.objects.iter().map(|d| d.reference.clone()).collect()
}

/// A pod without what changes all the time and means nothing to the node.
fn substance(message: &DesiredPod) -> (Object, &[Dependency]) {
    let mut pod = message.pod.clone();
    pod.remove("status");
    if let Some(metadata) = pod.get_mut("metadata").and_then(|m| m.as_object_mut()) {
        for field in IGNORED_METADATA {
            metadata.remove(field);
        }
    }
    (pod, &message.objects)
}
