//! Bounds on what happens at once, so that a burst costs time and not memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::kinds::status::Status;

/// Places for connections and requests.
pub(super) struct Limits {
    connections: Arc<Semaphore>,
    mutating: Arc<Semaphore>,
    readonly: Arc<Semaphore>,
}

/// Held while a request or connection is under way.
pub(super) type Permit = OwnedSemaphorePermit;

impl Limits {
    pub(super) fn new(connections: usize, mutating: usize, readonly: usize) -> Self {
        let places = |n| Arc::new(Semaphore::new(n));
        Self { connections: places(connections), mutating: places(mutating), readonly: places(readonly) }
    }

    /// Waits for a place for one more connection.
    pub(super) async fn connection(&self) -> Option<Permit> {
        self.connections.clone().acquire_owned().await.ok()
    }

    /// A place for a request, or 429.
    pub(super) fn request(&self, mutating: bool) -> Result<Permit, Status> {
        let places = if mutating { &self.mutating } else { &self.readonly };
        places.clone().try_acquire_owned().map_err(|_| {
            Status::too_many_requests(
                "the server has received too many requests and has asked us to try again later",
                1,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_come_back() {
        let limits = Limits::new(1, 1, 1);
        let permit = limits.request(true).unwrap();
        assert_eq!(limits.request(true).unwrap_err().code, 429);
        assert!(limits.request(false).is_ok());
        drop(permit);
        assert!(limits.request(true).is_ok());
    }
}
