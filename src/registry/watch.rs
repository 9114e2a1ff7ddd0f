//! Changes of objects as they happen.

use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::store::{self, Change, Record};

use super::body::{Head, Raw};
use super::error;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Created.
    Added,
    /// Changed.
    Modified,
    /// Gone.
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventType,
    /// The object after the change; its last state, with the revision of the delete, when it is gone.
    pub object: Raw,
    /// The object before the change, with the revision of the change; none when created.
    pub previous: Option<Raw>,
}

/// The changes of one kind in the order they happened. A cursor into the store's history: a slow reader costs no memory.
#[derive(Debug)]
pub struct Watch {
    inner: store::Watch,
    head: Head,
    resource: String,
}

impl Watch {
    pub(super) fn new(kind: &Kind, inner: store::Watch) -> Self {
        Self { inner, head: Head::of(kind), resource: kind.resource() }
    }

    /// The next change; waits for it. Cancel safe.
    ///
    /// # Errors
    /// 410 when the reader fell behind the kept history: list again and watch anew. 503 when the store closes.
    pub async fn next(&mut self) -> Result<Event, Status> {
        let change = self.inner.next().await.map_err(|e| error::status(&self.resource, e))?;
        Ok(self.event(change))
    }

    /// The next change if there is one now.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Event>, Status> {
        let change = self.inner.try_next().map_err(|e| error::status(&self.resource, e))?;
        Ok(change.map(|change| self.event(change)))
    }

    /// The revision up to which everything was delivered: what a bookmark says.
    pub fn revision(&mut self) -> u64 {
        self.inner.revision()
    }

    fn event(&self, change: Change) -> Event {
        let Change { key, revision, data, previous } = change;
        let raw = |data| Raw::new(&self.head, Record { key: key.clone(), revision, data });
        let previous = previous.map(raw);
        match (data.map(raw), previous) {
            (Some(object), None) => Event { kind: EventType::Added, object, previous: None },
            (Some(object), previous) => Event { kind: EventType::Modified, object, previous },
            (None, Some(last)) => Event { kind: EventType::Deleted, object: last.clone(), previous: Some(last) },
            (None, None) => Event { kind: EventType::Deleted, object: raw(bare(&key)), previous: None },
        }
    }
}

/// What is known of a deleted object whose last state was not kept.
fn bare(key: &store::Key) -> bytes::Bytes {
    let mut metadata = serde_json::json!({ "name": &*key.name });
    if !key.namespace.is_empty() {
        metadata["namespace"] = (*key.namespace).into();
    }
    serde_json::json!({ "metadata": metadata }).to_string().into()
}
