//! Watches: a cursor into the ring of changes, not a queue.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    Change, Error,
    handle::Shared,
    state::{Past, State},
};

/// Changes of one resource in order. Holds no changes itself: however slow its reader, it costs no memory.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    resource: Arc<str>,
    namespace: Option<Box<str>>,
    /// Everything up to this revision was delivered.
    cursor: u64,
    changed: Arc<Notify>,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, resource: &str, namespace: Option<&str>, after: u64) -> Result<Self, Error> {
        let mut state = shared.state();
        if after > state.revision {
            return Err(Error::Future { requested: after, current: state.revision });
        }
        let name = state.name_of(resource);
        let known = state.resource_mut(&name);
        if after < known.compacted {
            return Err(Error::Compacted { requested: after, oldest: known.compacted });
        }
        let changed = known.changed.clone();
        drop(state);
        Ok(Self { shared, resource: name, namespace: namespace.map(Into::into), cursor: after, changed })
    }

    /// The next change; waits for one. Cancel-safe: a change is given exactly once, by the call that returns it.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the reader fell behind the ring: list again; [`Error::Closed`].
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            // Made before looking, so that a change in between wakes it.
            let changed = self.changed.clone();
            let changed = changed.notified();
            if let Some(change) = self.try_next()? {
                return Ok(change);
            }
            changed.await;
        }
    }

    /// The next change if there is one now.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Change>, Error> {
        let past = {
            let state = self.shared.state();
            if state.reader.is_none() {
                return Err(Error::Closed);
            }
            seek(&state, &self.resource, self.namespace.as_deref(), &mut self.cursor)?
        };
        let Some(Past { key, revision, body, previous }) = past else { return Ok(None) };
        let decode = |body| self.shared.codec.decode(&body).map_err(|detail| self.shared.damaged(&key, &detail));
        let (data, previous) = (body.map(decode).transpose()?, previous.map(decode).transpose()?);
        self.cursor = revision;
        Ok(Some(Change { key, revision, data, previous }))
    }

    /// The revision up to which this watch has delivered everything: the store's own when nothing is waiting.
    /// What a bookmark says.
    pub fn revision(&mut self) -> u64 {
        let state = self.shared.state();
        // A watch that fell behind says so on the next call of `next`.
        let _ = seek(&state, &self.resource, self.namespace.as_deref(), &mut self.cursor);
        self.cursor
    }
}

/// The first matching change after the cursor, which moves over everything before it.
fn seek(state: &State, resource: &str, namespace: Option<&str>, cursor: &mut u64) -> Result<Option<Past>, Error> {
    let Some(known) = state.resource(resource) else { return Ok(None) };
    if *cursor < known.compacted {
        return Err(Error::Compacted { requested: *cursor, oldest: known.compacted });
    }
    for change in known.changes_after(*cursor) {
        if namespace.is_none_or(|n| n == &*change.key.namespace) {
            return Ok(Some(change.clone()));
        }
        *cursor = change.revision;
    }
    *cursor = state.revision;
    Ok(None)
}
