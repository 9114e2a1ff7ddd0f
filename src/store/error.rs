//! What can go wrong in the store.

use std::{io, path::PathBuf};

use super::Key;

/// A failed operation of the store. After any of them the state in memory is what it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Expect::Revision`](super::Expect::Revision) did not hold.
    #[error("{key} is at revision {actual}, not the expected one")]
    Conflict {
        /// Which object.
        key: Key,
        /// The revision it is at.
        actual: u64,
    },
    /// [`Expect::Absent`](super::Expect::Absent) did not hold.
    #[error("{0} exists already")]
    Exists(Key),
    /// The object to be changed is not there.
    #[error("{0} not found")]
    NotFound(Key),
    /// A write that means nothing: too large, an index key with a line feed, a delete that expects absence.
    #[error("write of {key}: {reason}")]
    Invalid {
        /// Which object.
        key: Key,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Changes after this revision are no longer known: list again.
    #[error("changes after revision {requested} are gone, the oldest known is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: u64,
        /// The oldest revision a watch of this resource can start after.
        oldest: u64,
    },
    /// A revision that was never given out.
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future {
        /// The revision asked for.
        requested: u64,
        /// The current revision.
        current: u64,
    },
    /// No space left; writes work again once there is some.
    #[error("{}: disk full", path.display())]
    Full {
        /// The database file.
        path: PathBuf,
    },
    /// The file or its file system cannot be written.
    #[error("{}: read-only: {detail}", path.display())]
    ReadOnly {
        /// The database file.
        path: PathBuf,
        /// SQLite's words.
        detail: String,
    },
    /// The database file is damaged. Nothing was deleted or repaired.
    #[error("{}: damaged database, restore it from a backup or move it away: {detail}", path.display())]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file was written by a newer version.
    #[error("{}: format {found} is newer than the supported {supported}", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest this program knows.
        supported: i64,
    },
    /// Another process has this store open.
    #[error("{}: in use by another process", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// Any other failure of the database.
    #[error("{}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// A failed file operation outside the database.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}
