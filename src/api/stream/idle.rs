//! Streams that nobody uses end.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Time without data in either direction after which a stream ends: the kubelet's default
/// (`streamingConnectionIdleTimeout`).
pub(super) const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Time a client has to open the streams it announced, and a pair of port-forward streams to become complete.
pub(super) const SETUP: Duration = Duration::from_secs(30);
/// Time a client has to close its end after the last byte.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// When a stream was used last.
#[derive(Debug)]
pub(super) struct Idle {
    last: Mutex<Instant>,
    limit: Duration,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self::lasting(IDLE)
    }

    fn lasting(limit: Duration) -> Self {
        Self { last: Mutex::new(Instant::now()), limit }
    }

    /// Data went through.
    pub(super) fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has happened for the limit. One timer, however busy the stream.
    pub(super) async fn expired(&self) {
        loop {
            let end = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + self.limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn use_puts_the_end_off() {
        let limit = Duration::from_millis(200);
        let (idle, start) = (Idle::lasting(limit), Instant::now());
        let used = async {
            tokio::time::sleep(limit / 2).await;
            idle.touch();
        };
        tokio::join!(used, idle.expired());
        assert!(start.elapsed() >= limit * 3 / 2);
    }
}
