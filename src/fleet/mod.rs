//! The server's side of the link: what each node should have, what it reported.
//!
//! [`Fleet::serve`] looks after one node for as long as its carrier lives: [`desired`] sends, [`report`] applies what
//! comes back, [`lease`] shows that the node is there and [`presence`] that it is not. [`members`] says who is a node.

pub mod addresses;
mod changes;
mod desired;
mod lease;
pub mod members;
#[cfg(test)]
mod members_tests;
mod node;
mod peers;
mod nodes;
pub mod presence;
mod report;
mod services;
pub mod tokens;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::events::EventRecorder;
use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::link::message::{Arrivals, Envelope, Order, ToServer};
use crate::link::stream::{Stream, StreamRequest};
use crate::link::{Open, ServerEnd, channel};
use crate::registry::Registry;

/// The field manager of what nodes report.
const MANAGER: &str = "kubelet";
/// After a report could not be applied (the disk is full, say) the node is told all it should have, on which it says
/// again how everything is.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// All nodes of the cluster. Share it by `Arc`.
pub struct Fleet {
    registry: Registry,
    kinds: Kinds,
    events: EventRecorder,
    cluster: services::Cluster,
    changes: changes::Changes,
    sessions: Mutex<HashMap<String, Session>>,
}

/// A connected node.
struct Session {
    streams: channel::Sender<Open>,
    uid: Option<String>,
    /// Ends a session of a member; asks the server's own node, which is one by itself, for everything.
    end: Arc<Notify>,
}

/// The kinds nodes have to do with.
struct Kinds {
    pods: Arc<Kind>,
    nodes: Arc<Kind>,
    leases: Arc<Kind>,
    services: Arc<Kind>,
    slices: Arc<Kind>,
    /// What pods refer to, as far as it is served.
    used: Vec<Arc<Kind>>,
}

impl Kinds {
    fn of(registry: &Registry) -> Result<Self, Status> {
        let kind = |group: &str, name: &str| {
            let found = registry.kinds().by_kind(group, "v1", name);
            found.ok_or_else(|| Status::internal(format!("the kind {name} is not served")))
        };
        Ok(Self {
            pods: kind("", "Pod")?,
            nodes: kind("", "Node")?,
            leases: kind("coordination.k8s.io", "Lease")?,
            services: kind("", "Service")?,
            slices: kind("discovery.k8s.io", "EndpointSlice")?,
            used: ["ConfigMap", "Secret"]
                .into_iter()
                .filter_map(|name| registry.kinds().by_kind("", "v1", name))
                .collect(),
        })
    }

    fn used(&self, plural: &str) -> Option<&Kind> {
        self.used.iter().find(|k| k.plural == plural).map(|k| &**k)
    }
}

/// What the server knows of a node by itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The addresses of its pods, for example `10.42.0.0/24`.
    pub pod_cidr: String,
    /// Of its Node object, which is there already. `None`: the server's own node, which registers by itself.
    pub uid: Option<String>,
}

impl Fleet {
    /// A fleet without nodes. Fails if the registry does not serve the kinds it needs.
    pub fn new(registry: Registry, events: EventRecorder) -> Result<Arc<Self>, Status> {
        let kinds = Kinds::of(&registry)?;
        Ok(Arc::new(Self {
            registry,
            kinds,
            events,
            cluster: services::Cluster::default(),
            changes: changes::Changes::default(),
            sessions: Mutex::default(),
        }))
    }

    /// Keeps up to date what nodes are told; never ends. Without it they are told of no Service and of no change.
    pub async fn follow(&self) {
        tokio::join!(
            self.cluster.follow(&self.registry, &self.kinds),
            self.changes.follow(&self.registry, &self.kinds),
        );
    }

    /// Looks after one node until its carrier is gone, a newer one takes its place, or its Node object is removed: the
    /// carrier ends when this returns. [`Fleet::lost`] is to follow.
    pub async fn serve(&self, member: &Member, link: ServerEnd) {
        let ServerEnd { rx, tx, streams } = link;
        let end = Arc::new(Notify::new());
        let session = Session { streams: streams.clone(), uid: member.uid.clone(), end: end.clone() };
        if let Some(older) = self.connected().insert(member.name.clone(), session) {
            older.end.notify_one();
        }
        // The node asks for everything; it has said how it is.
        let (asked, present) = (Notify::new(), Notify::new());
        let renew = async {
            present.notified().await;
            lease::keep(&self.registry, &self.kinds, &member.name).await;
        };
        let ended = async {
            loop {
                end.notified().await;
                match member.uid {
                    Some(_) => return,
                    None => asked.notify_one(),
                }
            }
        };
        tokio::select! {
            () = self.receive(member, rx, &asked, &present) => {}
            () = desired::keep(self, &member.name, &asked, tx) => {}
            () = renew => {}
            () = ended => {}
        }
        let mut connected = self.connected();
        // A new carrier of the same node may have taken the place already.
        if connected.get(&member.name).is_some_and(|session| session.streams.same_channel(&streams)) {
            connected.remove(&member.name);
        }
    }

    async fn receive(
        &self,
        member: &Member,
        mut rx: channel::Receiver<Envelope<ToServer>>,
        asked: &Notify,
        present: &Notify,
    ) {
        let mut arrivals = Arrivals::default();
        let mut lost: Option<Instant> = None;
        loop {
            let envelope = tokio::select! {
                envelope = rx.recv() => envelope,
                () = sleep_until(lost.unwrap_or_else(Instant::now)), if lost.is_some() => {
                    lost = None;
                    asked.notify_one();
                    continue;
                }
            };
            let Some(envelope) = envelope else { return };
            match arrivals.judge(&envelope) {
                Order::Next => {}
                // Whatever was missed, the newest of it will be told again.
                Order::Gap => asked.notify_one(),
                Order::Stale => continue,
                Order::Foreign => {
                    tracing::warn!(node = member.name, version = envelope.version, "ignoring a foreign message");
                    continue;
                }
            }
            match envelope.body {
                ToServer::Hello => asked.notify_one(),
                message => {
                    // Boxed: what a report needs is not to lie in every session for the rest of its life.
                    if let Err(status) = Box::pin(self.take(member, message, present)).await {
                        tracing::error!(node = member.name, %status, "cannot apply a report");
                        // What the server refuses now it would refuse again; what it cannot do now it may later.
                        if status.code >= 500 {
                            lost.get_or_insert_with(|| Instant::now() + ASK_AGAIN);
                        }
                    }
                }
            }
        }
    }

    async fn take(&self, member: &Member, message: ToServer, present: &Notify) -> Result<(), Status> {
        match message {
            ToServer::Hello => Ok(()),
            ToServer::Node(report) => {
                node::register(&self.registry, &self.kinds, member, report).await?;
                present.notify_one();
                Ok(())
            }
            ToServer::PodStatus(report) => report::status(&self.registry, &self.kinds, member, report).await,
            ToServer::PodGone(pod) => report::gone(&self.registry, &self.kinds, &member.name, pod).await,
            ToServer::Event(event) => report::event(&self.registry, &self.kinds, &self.events, &member.name, event),
            ToServer::Address(news) => report::address(&self.registry, &self.kinds, &self.events, &member.name, news),
        }
    }

    /// Opens a stream to a pod; 503 if its node is not connected.
    pub async fn open(&self, node: &str, request: StreamRequest) -> Result<Stream, Status> {
        let absent = || Status::unavailable(format!("node {node:?} is not connected"));
        let sender = self.connected().get(node).map(|session| session.streams.clone()).ok_or_else(absent)?;
        let (ours, theirs) = Stream::pair();
        sender.send(Open { request, stream: theirs }).await.map_err(|_| absent())?;
        Ok(ours)
    }

    /// Whether a node's carrier lives.
    pub fn is_connected(&self, node: &str) -> bool {
        self.connected().contains_key(node)
    }

    /// Ends the session of a node whose object is gone.
    fn removed(&self, node: &str) {
        if let Some(session) = self.connected().get(node) {
            tracing::info!(node, "the node is removed");
            session.end.notify_one();
        }
    }

    /// Names of the connected nodes, sorted.
    pub fn connected_nodes(&self) -> Vec<String> {
        let mut names: Vec<String> = self.connected().keys().cloned().collect();
        names.sort();
        names
    }

    /// Names of the connected nodes, and the UIDs of their objects.
    fn sessions(&self) -> Vec<(String, Option<String>)> {
        self.connected().iter().map(|(name, session)| (name.clone(), session.uid.clone())).collect()
    }

    fn connected(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
