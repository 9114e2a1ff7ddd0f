//! The handle: reads in the caller's thread, writes through the writer thread.

use super::{Error, Key, Options, Record, Watch, Write};

/// An open store; cheap to clone. When the last handle goes without [`Store::close`], lazy writes are still flushed
/// in the background.
#[derive(Clone, Debug)]
pub struct Store {}

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
    pub fn open(_options: Options) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The revision of the newest change. Never goes back, over restarts and power cuts.
    pub fn revision(&self) -> u64 {
        unimplemented!()
    }

    /// One object. A few microseconds.
    pub fn get(&self, _key: &Key) -> Result<Option<Record>, Error> {
        unimplemented!()
    }

    /// Objects of a resource after a namespace and name (exclusive), at most `limit` (0: all).
    /// About 5 µs an object, in the caller's thread.
    pub fn list(
        &self,
        _resource: &str,
        _namespace: Option<&str>,
        _after: Option<(&str, &str)>,
        _limit: usize,
    ) -> Result<Page, Error> {
        unimplemented!()
    }

    /// Objects written with this secondary index key, in the order of their creation.
    pub fn find(&self, _resource: &str, _index_key: &str) -> Result<Vec<Record>, Error> {
        unimplemented!()
    }

    /// How many objects a resource has, in one namespace or all.
    pub fn count(&self, _resource: &str, _namespace: Option<&str>) -> usize {
        unimplemented!()
    }

    /// Applies all writes or none and gives the revision each one made, in order; the last is the newest.
    /// Returns when they are as durable as asked. Later writes see earlier ones of the same transaction.
    /// Dropping the future does not undo the transaction.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Exists`], [`Error::NotFound`], [`Error::Invalid`]; [`Error::Full`],
    /// [`Error::ReadOnly`], [`Error::Database`]; [`Error::Closed`].
    pub async fn commit(&self, _writes: Vec<Write>) -> Result<Vec<u64>, Error> {
        unimplemented!()
    }

    /// Changes of a resource after a revision, in one namespace or all.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Closed`].
    pub fn watch(&self, _resource: &str, _namespace: Option<&str>, _after: u64) -> Result<Watch, Error> {
        unimplemented!()
    }

    /// Flushes lazy writes, marks the clean stop and closes. Every later call fails with [`Error::Closed`].
    pub async fn close(&self) -> Result<(), Error> {
        unimplemented!()
    }
}
