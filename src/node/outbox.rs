//! What waits to be told to the server: the newest status of each pod, events, the node itself.
//!
//! Nothing here blocks a pod worker, with or without a server: statuses replace each other, events beyond
//! [`MAX_EVENTS`] push out the oldest. Events that find no server go to a [`Journal`]; of statuses the pods' own
//! directories know.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::journal::Journal;
use super::view::View;
use crate::link::channel;
use crate::link::message::{AddressReport, Envelope, EventReport, NodeReport, PodName, PodReport, Sequence, ToServer};
use crate::link::underway::Underway;

/// Events kept while there is no server.
pub(super) const MAX_EVENTS: usize = 256;
/// From an event to the journal, if it has not arrived by then.
const KEEP: Duration = Duration::from_secs(5);

/// Cheap to clone; all clones are one outbox.
#[derive(Clone, Default)]
pub(super) struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
    /// Something changed that may concern the journal.
    stir: Arc<Notify>,
    view: View,
}

#[derive(Default)]
struct Waiting {
    hello: bool,
    node: Option<NodeReport>,
    statuses: BTreeMap<String, PodReport>,
    gone: BTreeMap<String, PodName>,
    events: VecDeque<ToServer>,
    /// Events given to the carrier since all it had was seen to have arrived.
    handed: VecDeque<ToServer>,
    /// How many of the newest of both are not in the journal.
    new: usize,
}

impl Outbox {
    /// An empty outbox; what is said of pods is shown in a view, too.
    pub(super) fn new(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Events of an earlier run, which are in the journal.
    pub(super) fn restore(&self, events: Vec<ToServer>) {
        self.add(|w| w.events = events.into());
    }

    /// Asks the server for everything the node should have.
    pub(super) fn hello(&self) {
        self.add(|w| w.hello = true);
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
            w.new += 1;
        });
    }

    fn add(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
        self.stir.notify_one();
    }

    /// The next message. A pod's last status goes before the news that it is gone.
    fn take(&self) -> Option<ToServer> {
        let mut w = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut w.hello) {
            return Some(ToServer::Hello);
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
        let event = w.events.pop_front()?;
        if w.handed.len() >= MAX_EVENTS {
            w.handed.pop_front();
        }
        w.handed.push_back(event.clone());
        Some(event)
    }

    /// Sends what comes in until the carrier is gone, and keeps in the journal what does not arrive.
    pub(super) async fn run(
        &self,
        to_server: channel::Sender<Envelope<ToServer>>,
        underway: Underway,
        journal: Journal,
    ) {
        let all_arrived = || to_server.is_empty() && underway.is_nothing();
        tokio::select! {
            () = self.send(&to_server) => {}
            () = self.keep(all_arrived, journal) => {}
        }
    }

    /// Never ends.
    async fn keep(&self, all_arrived: impl Fn() -> bool, mut journal: Journal) {
        loop {
            self.stir.notified().await;
            tokio::time::sleep(KEEP).await;
            let kept = match self.unsent(all_arrived()) {
                Some((events, new)) => journal.keep(events, new).await,
                None => journal.clear(),
            };
            if let Err(error) = kept {
                tracing::error!(%error, "events may be lost if this board loses power before its server hears of them");
            }
        }
    }

    /// The events that no server knows of for certain, the oldest first, and how many of the last are new.
    fn unsent(&self, all_arrived: bool) -> Option<(Vec<ToServer>, usize)> {
        let mut w = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if all_arrived {
            w.handed.clear();
        }
        let new = std::mem::take(&mut w.new);
        let events: Vec<ToServer> = w.handed.iter().chain(&w.events).cloned().collect();
        (!events.is_empty()).then(|| {
            let new = new.min(events.len());
            (events, new)
        })
    }

    async fn send(&self, to_server: &channel::Sender<Envelope<ToServer>>) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event(reason: &str) -> EventReport {
        let pod = PodName { uid: "u".into(), namespace: "n".into(), name: "p".into() };
        EventReport { pod, field_path: String::new(), warning: true, reason: reason.into(), message: "m".into() }
    }

    /// Runs an outbox beside some work.
    async fn with<T>(
        outbox: &Outbox,
        dir: &std::path::Path,
        work: impl AsyncFnOnce(channel::Receiver<Envelope<ToServer>>) -> T,
    ) -> T {
        let (tx, rx) = channel::channel(1);
        let (journal, events) = Journal::open(dir).unwrap();
        outbox.restore(events);
        tokio::select! {
            () = outbox.run(tx, Underway::default(), journal) => panic!("the carrier is there"),
            done = work(rx) => done,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_without_a_server_are_told_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let (first, second) = (Outbox::default(), Outbox::default());
        with(&first, dir.path(), async |_rx| {
            for reason in ["One", "Two", "Three"] {
                first.event(event(reason));
            }
            tokio::time::sleep(KEEP * 2).await;
            while !file.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let told = with(&second, dir.path(), async |mut rx| {
            let mut told = Vec::new();
            while told.len() < 3 {
                let ToServer::Event(event) = rx.recv().await.unwrap().body else { panic!() };
                told.push(event.reason);
            }
            tokio::time::sleep(KEEP * 2).await;
            assert!(!file.exists(), "the server knows them");
            second.event(event("Four"));
            assert!(rx.recv().await.is_some());
            tokio::time::sleep(KEEP * 2).await;
            told
        })
        .await;
        assert_eq!(told, ["One", "Two", "Three"]);
        assert!(!file.exists(), "with a server nothing is written");
    }
}
