//! The handle: reads in the caller's thread, writes through the writer thread.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

use super::{
    Error, Key, Options, Record, Watch, Write,
    body::{Body, Codec},
    disk,
    state::State,
    writer::{Message, Transaction, Writer},
};

/// Bytes of writes that may wait for the writer thread, in units of [`QUEUE_UNIT`].
const QUEUE_UNITS: u32 = 8192;
const QUEUE_UNIT: usize = 1024;

/// An open store; cheap to clone. When the last handle goes without [`Store::close`], lazy writes are still flushed
/// in the background.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

/// What handles, watches and the writer thread share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) codec: Codec,
    pub(super) path: PathBuf,
}

impl Shared {
    /// The state. Held for microseconds, by a listing for as long as it reads rows.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere ends the daemon; in tests it must not hide the first failure.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record from its parts.
    pub(super) fn record(&self, key: Key, revision: u64, body: &Body) -> Result<Record, Error> {
        let data = self.codec.decode(body).map_err(|detail| self.damaged(&key, &detail))?;
        Ok(Record { key, revision, data })
    }

    /// The error for a body that cannot be read.
    pub(super) fn damaged(&self, key: &Key, detail: &str) -> Error {
        Error::Corrupt { path: self.path.clone(), detail: format!("{key}: {detail}") }
    }
}

/// A part of a listing: a consistent state of the resource at one revision.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Objects in order of namespace, then name.
    pub records: Vec<Record>,
    /// The store's revision this page is from: watch after it (after that of the first page) to miss nothing.
    pub revision: u64,
    /// Matching objects after the last record; 0 on the last page.
    pub remaining: usize,
}

impl Page {
    /// Whether another page follows, after the namespace and name of the last record.
    pub fn more(&self) -> bool {
        self.remaining > 0
    }
}

impl Store {
    /// Opens or creates the store. Blocks (milliseconds; longer after an unclean stop, when the file is checked).
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Corrupt`], [`Error::Newer`], [`Error::Full`], [`Error::ReadOnly`], [`Error::File`].
    pub fn open(options: Options) -> Result<Self, Error> {
        let Options { path, ring_bytes, lazy_flush, volatile, private } = options;
        let opened = disk::open(&path)?;
        let (state, next_id) = State::load(opened.reader, opened.revision, ring_bytes, volatile)?;
        let codec = Codec::new(opened.dictionaries, private);
        let shared = Arc::new(Shared { state: Mutex::new(state), codec, path: path.clone() });
        let (queue, messages) = mpsc::channel();
        let writer = Writer::new(shared.clone(), opened.writer, next_id, lazy_flush);
        thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&messages))
            .map_err(|source| Error::File { action: "start the writer thread of", path, source })?;
        Ok(Self { shared, queue, room: Arc::new(Semaphore::new(QUEUE_UNITS as usize)) })
    }

    /// The revision of the newest change. Never goes back, over restarts and power cuts.
    pub fn revision(&self) -> u64 {
        self.shared.state().revision
    }

    /// One object. A few microseconds.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Database`], [`Error::Closed`].
    pub fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        let (revision, body) = {
            let state = self.shared.state();
            match state.entry(key) {
                Some(entry) => state.read(entry.id)?,
                None if state.reader.is_none() => return Err(Error::Closed),
                None => return Ok(None),
            }
        };
        self.shared.record(key.clone(), revision, &body).map(Some)
    }

    /// Whether there is such an object. Reads nothing from disk.
    pub fn contains(&self, key: &Key) -> bool {
        self.shared.state().entry(key).is_some()
    }

    /// Objects of a resource after a namespace and name (exclusive), at most `limit` (0: all).
    /// About 5 µs an object, in the caller's thread.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Page, Error> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let state = self.shared.state();
        if state.reader.is_none() {
            return Err(Error::Closed);
        }
        let (name, revision) = (state.name_of(resource), state.revision);
        let Some(found) = state.resource(resource) else { return Ok(Page { revision, ..Page::default() }) };
        let mut entries = found.entries(namespace, after);
        let mut bodies = Vec::new();
        for (namespace, object, entry) in entries.by_ref().take(limit) {
            let key = Key { resource: name.clone(), namespace: namespace.clone(), name: object.into() };
            bodies.push((key, state.read(entry.id)?));
        }
        let remaining = entries.count();
        drop(state);
        let records = bodies
            .into_iter()
            .map(|(key, (revision, body))| self.shared.record(key, revision, &body))
            .collect::<Result<_, _>>()?;
        Ok(Page { records, revision, remaining })
    }

    /// Objects written with this secondary index key, in the order of their creation.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn find(&self, resource: &str, index_key: &str) -> Result<Vec<Record>, Error> {
        let state = self.shared.state();
        let name = state.name_of(resource);
        let bodies: Vec<_> =
            state.find(resource, index_key).map(|id| state.read_named(&name, id)).collect::<Result<_, _>>()?;
        drop(state);
        bodies.into_iter().map(|(key, revision, body)| self.shared.record(key, revision, &body)).collect()
    }

    /// How many objects a resource has, in one namespace or all.
    pub fn count(&self, resource: &str, namespace: Option<&str>) -> usize {
        self.shared.state().resource(resource).map_or(0, |r| r.count(namespace))
    }

    /// Applies all writes or none and gives the revision each one made, in order; the last is the newest.
    /// Returns when they are as durable as asked. Later writes see earlier ones of the same transaction.
    /// Dropping the future does not undo a transaction that is under way.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Exists`], [`Error::NotFound`], [`Error::Invalid`]; [`Error::Full`],
    /// [`Error::ReadOnly`], [`Error::Database`]; [`Error::Closed`].
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<u64>, Error> {
        let bytes: usize = writes.iter().map(|w| QUEUE_UNIT + w.data.as_ref().map_or(0, |d| d.len())).sum();
        let units = u32::try_from(bytes / QUEUE_UNIT).unwrap_or(QUEUE_UNITS).min(QUEUE_UNITS);
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        let transaction = Transaction { writes, reply, _room: room };
        self.queue.send(Message::Commit(transaction)).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Changes of a resource after a revision, in one namespace or all.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Closed`].
    pub fn watch(&self, resource: &str, namespace: Option<&str>, after: u64) -> Result<Watch, Error> {
        Watch::new(self.shared.clone(), resource, namespace, after)
    }

    /// Gives back memory that is not needed at rest.
    pub async fn shrink(&self) {
        let (reply, done) = oneshot::channel();
        // Both fail only when the store is closed.
        let _ = self.queue.send(Message::Shrink(reply));
        let _ = done.await;
    }

    /// Flushes lazy writes, marks the clean stop and closes. Every later call fails with [`Error::Closed`].
    ///
    /// # Errors
    /// Those of the last transaction; the store is closed all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Close(reply)).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}
