//! Keeps those who have no certificate few and brief.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How many join at once.
const AT_ONCE: usize = 16;
/// How long one may take, on a link that is slow and loses packets.
const LIFE: Duration = Duration::from_secs(120);
/// How many may begin in a row, and how often another one.
const BURST: u32 = 32;
const EVERY: Duration = Duration::from_millis(50);

/// Admission of joining clients.
pub(super) struct Joins {
    places: Arc<Semaphore>,
    /// When the burst would be used up had nobody joined since.
    rate: Mutex<Instant>,
}

/// The place of one of them.
pub(super) struct Join {
    ends: Instant,
    _place: OwnedSemaphorePermit,
}

impl Joins {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(AT_ONCE)), rate: Mutex::new(Instant::now()) })
    }

    /// A place, if there is one and it is not too soon.
    pub(super) fn begin(&self) -> Option<Join> {
        let now = Instant::now();
        let place = self.places.clone().try_acquire_owned().ok()?;
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let used = rate.max(now) + EVERY;
        if used > now + EVERY * BURST {
            return None;
        }
        *rate = used;
        Some(Join { ends: now + LIFE, _place: place })
    }
}

impl Join {
    /// Resolves when its time is over.
    pub(super) async fn over(&self) {
        tokio::time::sleep_until(self.ends).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_join_at_once_and_not_too_often() {
        let joins = Joins::new();
        let held: Vec<_> = (0..AT_ONCE + 1).map_while(|_| joins.begin()).collect();
        assert_eq!(held.len(), AT_ONCE);
        drop(held);
        let more = (0..BURST).map_while(|_| joins.begin()).count();
        assert_eq!(more, BURST as usize - AT_ONCE);
        tokio::time::advance(EVERY).await;
        assert!(joins.begin().is_some());
        assert!(joins.begin().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn joining_ends() {
        let joins = Joins::new();
        let (begun, Some(join)) = (Instant::now(), joins.begin()) else { return };
        join.over().await;
        assert!(begun.elapsed() >= LIFE);
    }
}
