//! How long to wait before the next try.

use std::time::Duration;

use tokio::time::Instant;

/// Waits that double up to a limit; after a quiet time of twice the limit they begin anew.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    initial: Duration,
    limit: Duration,
    first_at_once: bool,
    delay: Duration,
    last: Option<Instant>,
}

impl Backoff {
    /// For crashed containers: at once, 10 s, 20 s, … 5 min, as kubelet restarts them.
    pub(super) fn crash() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_secs(300), true)
    }

    /// For images and configurations: 10 s, 20 s, … 5 min.
    pub(super) fn image() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_secs(300), false)
    }

    /// For sandboxes and volumes: 1 s, 2 s, … 2 min.
    pub(super) fn setup() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(120), false)
    }

    /// For sandboxes that die: at once, 1 s, 2 s, … 2 min.
    pub(super) fn lost() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(120), true)
    }

    fn new(initial: Duration, limit: Duration, first_at_once: bool) -> Self {
        Self { initial, limit, first_at_once, delay: initial, last: None }
    }

    /// How long to wait after a failure that happened now.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let fresh = self.last.is_none_or(|last| now.saturating_duration_since(last) > self.limit * 2);
        if fresh {
            self.delay = self.initial;
        }
        let wait = if fresh && self.first_at_once { Duration::ZERO } else { self.delay };
        if !wait.is_zero() {
            self.delay = (self.delay * 2).min(self.limit);
        }
        self.last = Some(now + wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_to_its_limit_and_begins_anew() {
        let mut backoff = Backoff::crash();
        let mut now = Instant::now();
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                let wait = backoff.next(now);
                now += wait + Duration::from_secs(1);
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        now += Duration::from_secs(601);
        assert_eq!(backoff.next(now).as_secs(), 0);
        assert_eq!(backoff.next(now).as_secs(), 10);
        let mut setup = Backoff::setup();
        assert_eq!((setup.next(now).as_secs(), setup.next(now).as_secs()), (1, 2));
    }
}
