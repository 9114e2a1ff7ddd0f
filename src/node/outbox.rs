//! What waits to be told to the server: the newest status of each pod, events, the node itself.
//!
//! Nothing here blocks a pod worker, with or without a server: statuses replace each other, events beyond
//! [`MAX_EVENTS`] push out the oldest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::view::View;
use crate::link::channel;
use crate::link::message::{AddressReport, Envelope, EventReport, NodeReport, PodName, PodReport, Sequence, ToServer};

/// Events kept while there is no server.
const MAX_EVENTS: usize = 256;

/// Cheap to clone; all clones are one outbox.
#[derive(Clone, Default)]
pub(super) struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
    view: View,
}

#[derive(Default)]
struct Waiting {
    hello: bool,
    /// UIDs of pods.
    lacks: BTreeSet<String>,
    node: Option<NodeReport>,
    statuses: BTreeMap<String, PodReport>,
    gone: BTreeMap<String, PodName>,
    events: VecDeque<ToServer>,
}

impl Outbox {
    /// An empty outbox; what is said of pods is shown in a view, too.
    pub(super) fn new(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Asks the server for everything the node should have.
    pub(super) fn hello(&self) {
        self.add(|w| w.hello = true);
    }

    /// Asks the server for everything of a pod.
    pub(super) fn lacks(&self, uid: String) {
        self.add(|w| {
            w.lacks.insert(uid);
        });
    }

    /// Reports the node.
    pub(super) fn node(&self, report: NodeReport) {
        self.add(|w| w.node = Some(report));
    }

    /// Reports a pod's status.
    pub(super) fn status(&self, report: PodReport) {
        self.view.note(&report);
        self.add(|w| {
            w.statuses.insert(report.pod.uid.clone(), report);
        });
    }

    /// Reports that nothing of a pod is left.
    pub(super) fn gone(&self, pod: PodName) {
        self.view.forget(&pod.uid);
        self.add(|w| {
            w.gone.insert(pod.uid.clone(), pod);
        });
    }

    /// Reports an event of a pod.
    pub(super) fn event(&self, event: EventReport) {
        self.news(ToServer::Event(event));
    }

    /// Reports an event of a load-balancer address.
    pub(super) fn address(&self, report: AddressReport) {
        self.news(ToServer::Address(report));
    }

    fn news(&self, event: ToServer) {
        self.add(|w| {
            if w.events.len() >= MAX_EVENTS {
                w.events.pop_front();
            }
            w.events.push_back(event);
        });
    }

    fn add(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    /// The next message. A pod's last status goes before the news that it is gone.
    fn take(&self) -> Option<ToServer> {
        let mut w = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut w.hello) {
            return Some(ToServer::Hello);
        }
        if let Some(uid) = w.lacks.pop_first() {
            return Some(ToServer::Lacks { uid });
        }
        if let Some(node) = w.node.take() {
            return Some(ToServer::Node(node));
        }
        if let Some((_, status)) = w.statuses.pop_first() {
            return Some(ToServer::PodStatus(status));
        }
        if let Some((_, pod)) = w.gone.pop_first() {
            return Some(ToServer::PodGone(pod));
        }
        w.events.pop_front()
    }

    /// Sends what comes in until the carrier is gone.
    pub(super) async fn run(&self, to_server: channel::Sender<Envelope<ToServer>>) {
        let mut sequence = Sequence::start();
        loop {
            while let Ok(permit) = to_server.reserve().await {
                match self.take() {
                    Some(message) => permit.send(sequence.wrap(message)),
                    None => break,
                }
            }
            if to_server.is_closed() {
                return;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = to_server.closed() => return,
            }
        }
    }

    /// Everything that waits, for tests.
    #[cfg(test)]
    pub(super) fn drain(&self) -> Vec<ToServer> {
        std::iter::from_fn(|| self.take()).collect()
    }
}
