//! Watches: a cursor into the ring of changes, not a queue.

use super::{Change, Error};

/// Changes of one resource in order. Holds no changes itself: however slow its reader, it costs no memory.
#[derive(Debug)]
pub struct Watch {}

impl Watch {
    /// The next change; waits for one. Cancel-safe: a change is given exactly once, by the call that returns it.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the reader fell behind the ring: list again; [`Error::Closed`].
    pub async fn next(&mut self) -> Result<Change, Error> {
        unimplemented!()
    }

    /// The next change if there is one now.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Change>, Error> {
        unimplemented!()
    }

    /// The revision up to which this watch has delivered everything: the store's own when nothing is waiting.
    /// What a bookmark says.
    pub fn revision(&mut self) -> u64 {
        unimplemented!()
    }
}
