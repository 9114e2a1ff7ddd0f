//! Changes of objects as they happen.

use crate::kinds::status::Status;

use super::Raw;

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
    /// The object before the change; none when created.
    pub previous: Option<Raw>,
}

/// The changes of one kind in the order they happened.
pub struct Watch {
}

impl Watch {
    /// The next change; waits for it. 410 when the watcher fell behind the kept history: list again and watch anew.
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Event, Status> {
        todo!()
    }
}
