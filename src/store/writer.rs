//! The writer thread: drains its queue into one transaction, answers and publishes after COMMIT, flushes lazy
//! writes and expires volatile ones when they are due.

use std::{
    collections::HashMap,
    slice,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Error, Write,
    disk::{self, Op, SLACK},
    handle::Shared,
    plan::Plan,
    state::{Held, Hold, Planned},
};

/// Most transactions of one COMMIT.
const GROUP: usize = 256;

/// What callers ask of the writer thread.
#[derive(Debug)]
pub(super) enum Message {
    Commit(Transaction),
    Shrink(oneshot::Sender<()>),
    Close(oneshot::Sender<Result<(), Error>>),
}

/// Writes that happen together, and who waits for them.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) writes: Vec<Write>,
    pub(super) reply: oneshot::Sender<Result<Vec<u64>, Error>>,
    pub(super) _room: OwnedSemaphorePermit,
}

/// Lazy objects that are newer than their rows.
#[derive(Debug, Default)]
struct Dirty {
    bodies: HashMap<i64, usize>,
    bytes: usize,
    since: Option<Instant>,
}

impl Dirty {
    fn insert(&mut self, id: i64, bytes: usize) {
        self.remove(id);
        self.bodies.insert(id, bytes);
        self.bytes += bytes;
        self.since.get_or_insert_with(Instant::now);
    }

    fn remove(&mut self, id: i64) {
        self.bytes -= self.bodies.remove(&id).unwrap_or_default();
        if self.bodies.is_empty() {
            self.since = None;
        }
    }
}

/// The state of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: disk::Writer,
    next_id: i64,
    lazy_flush: Duration,
    dirty: Dirty,
    /// After a failed flush or reservation: not again before.
    pause: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: disk::Writer, next_id: i64, lazy_flush: Duration) -> Self {
        Self { shared, disk, next_id, lazy_flush, dirty: Dirty::default(), pause: None }
    }

    /// Serves the queue until a close or until the last handle is gone.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let message = match self.deadline() {
                Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(first) => {
                    if let Some(reply) = self.serve(first, queue) {
                        // A caller that left needs no answer.
                        let _ = reply.send(self.close());
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(e) = self.close() {
                        tracing::error!("closing the store: {e}");
                    }
                    return;
                }
            }
            self.tend();
        }
    }

    /// When something is due without being asked for.
    fn deadline(&self) -> Option<Instant> {
        let flush = self.dirty.since.map(|since| since + self.lazy_flush);
        let next = flush.into_iter().chain(self.shared.state().next_expiry()).min()?;
        Some(self.pause.map_or(next, |pause| next.max(pause)))
    }

    /// Commits what is in the queue; whoever asked to close if someone did.
    fn serve(&mut self, first: Message, queue: &Receiver<Message>) -> Option<oneshot::Sender<Result<(), Error>>> {
        let (mut group, mut shrink) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        let close = loop {
            match next {
                Some(Message::Commit(transaction)) => group.push(transaction),
                Some(Message::Shrink(reply)) => shrink.push(reply),
                Some(Message::Close(reply)) => break Some(reply),
                None => break None,
            }
            next = if group.len() < GROUP { queue.try_recv().ok() } else { None };
        };
        self.commit(group);
        for reply in shrink {
            self.disk.shrink();
            self.shared.state().shrink();
            // A caller that left needs no answer.
            let _ = reply.send(());
        }
        close
    }

    fn commit(&mut self, group: Vec<Transaction>) {
        let results = match self.try_commit(&group) {
            Ok(results) => results,
            Err(e) if group.len() == 1 => vec![Err(e)],
            // Alone, those in memory succeed while the disk is full, and each durable one gets its own error.
            Err(_) => group
                .iter()
                .map(|t| {
                    self.try_commit(slice::from_ref(t))
                        .and_then(|results| results.into_iter().collect::<Result<_, _>>())
                })
                .map(|result: Result<Vec<_>, _>| result.map(|revisions| revisions.concat()))
                .collect(),
        };
        for (transaction, result) in group.into_iter().zip(results) {
            // A caller that left needs no answer.
            let _ = transaction.reply.send(result);
        }
    }

    /// One COMMIT for all transactions whose expectations hold; the inner results are theirs.
    fn try_commit(&mut self, group: &[Transaction]) -> Result<Vec<Result<Vec<u64>, Error>>, Error> {
        let mut plan = Plan::new(&self.shared, &self.disk, self.next_id, self.dirty.bytes);
        let results = group.iter().map(|t| plan.add(&t.writes)).collect();
        let (next_id, changes, ops) = plan.finish();
        self.next_id = next_id;
        self.apply(changes, &ops)?;
        Ok(results)
    }

    fn apply(&mut self, changes: Vec<Planned>, ops: &HashMap<i64, Op>) -> Result<(), Error> {
        let Some(last) = changes.last() else { return Ok(()) };
        if !ops.is_empty() || !self.disk.covers(last.revision) {
            self.shadow(&changes, ops);
            if let Err(e) = self.write(ops, last.revision) {
                self.shared.state().unshadow(ops.keys().copied());
                return Err(e);
            }
        }
        let now = Instant::now();
        let mut budget = SLACK / 2;
        let mut state = self.shared.state();
        for change in changes {
            let volatile = matches!(change.hold, Some(Hold::Volatile { .. })).then(|| change.key.resource.clone());
            match (&change.hold, &change.body) {
                (Some(Hold::Dirty { .. }), Some(body)) => self.dirty.insert(change.id, body.len()),
                _ => self.dirty.remove(change.id),
            }
            state.publish(change);
            if let Some(resource) = volatile {
                state.evict(&resource, now, &mut budget);
            }
        }
        Ok(())
    }

    fn write(&mut self, ops: &HashMap<i64, Op>, revision: u64) -> Result<(), Error> {
        let dictionaries = self.shared.codec.unsaved();
        self.disk.write(ops, &dictionaries, revision)?;
        self.shared.codec.saved(dictionaries.len());
        Ok(())
    }

    fn shadow(&self, changes: &[Planned], ops: &HashMap<i64, Op>) {
        let mut state = self.shared.state();
        for change in changes.iter().filter(|c| ops.contains_key(&c.id)) {
            if let (Some((body, index)), Some(entry)) = (&change.previous, state.entry(&change.key)) {
                let (key, body, index) = (change.key.clone(), body.clone(), index.clone());
                state.shadow(change.id, Held { key, revision: entry.revision, index, body, hold: Hold::Shadow });
            }
        }
    }

    /// Flushes and expires what is due.
    fn tend(&mut self) {
        let now = Instant::now();
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        let flush = self.dirty.since.is_some_and(|since| since + self.lazy_flush <= now);
        let done = if flush { self.flush() } else { Ok(()) };
        match done.and_then(|()| self.expire(now)) {
            Ok(()) => self.pause = None,
            Err(e) => {
                if self.pause.is_none() {
                    tracing::warn!("flushing lazy writes, trying again every {:?}: {e}", self.lazy_flush);
                }
                self.pause = Some(now + self.lazy_flush.max(Duration::from_millis(100)));
            }
        }
    }

    fn expire(&mut self, now: Instant) -> Result<(), Error> {
        let revision = self.shared.state().revision;
        if !self.disk.covers(revision) {
            self.write(&HashMap::new(), revision)?;
        }
        self.shared.state().expire(now, SLACK / 2);
        Ok(())
    }

    /// Writes every lazy object that is newer than its row.
    fn flush(&mut self) -> Result<(), Error> {
        let (ops, revision) = {
            let state = self.shared.state();
            let held = self.dirty.bodies.keys().filter_map(|id| Some((*id, Op::put(state.held(*id)?))));
            (held.collect::<HashMap<_, _>>(), state.revision)
        };
        if !ops.is_empty() {
            self.write(&ops, revision)?;
        }
        let mut state = self.shared.state();
        for id in ops.keys() {
            state.clean(*id);
        }
        self.dirty = Dirty::default();
        Ok(())
    }

    fn close(mut self) -> Result<(), Error> {
        let flushed = self.flush();
        let revision = {
            let mut state = self.shared.state();
            // The last connection to close merges the log; that must be the writer's.
            state.reader = None;
            state.wake_all();
            state.revision
        };
        flushed.and_then(|()| self.disk.close(revision))
    }
}
