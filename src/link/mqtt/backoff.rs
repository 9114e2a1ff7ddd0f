//! How long to wait before the next attempt.

use std::time::Duration;

use super::random;

/// Between attempts at a server that cannot be reached: a board that comes back into reach is to be there in seconds,
/// and an attempt that reaches nobody costs one packet.
const UNREACHABLE: Duration = Duration::from_secs(4);
/// After an attempt that took its time because nobody said a word.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Either when it has been so for more than [`PATIENCE`] attempts, about an hour.
const LONG_GONE: Duration = Duration::from_secs(30);
const PATIENCE: u32 = 1000;
/// Between attempts that the other side answers and refuses.
const REFUSED: Duration = Duration::from_secs(300);

/// Why the last attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody is there, or not for long.
    Unreachable,
    /// Nobody answered, neither yes nor no.
    Unanswered,
    /// Somebody answered, and it did not work out.
    Refused,
}

/// Counts failures and spreads the attempts of many nodes.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether the last attempt worked.
    pub(super) fn is_reset(&self) -> bool {
        self.failures == 0
    }

    /// It failed: how long to wait. The first attempt after a success comes within a second.
    pub(super) fn next(&mut self, failure: Failure) -> Duration {
        let longest = self.longest(failure);
        self.failures = self.failures.saturating_add(1);
        let from = if self.failures == 1 { Duration::ZERO } else { longest / 2 };
        let spread = (longest - from).as_millis() as u64;
        from + Duration::from_millis(random() % spread.max(1))
    }

    fn longest(&self, failure: Failure) -> Duration {
        let ceiling = match failure {
            Failure::Refused => REFUSED,
            _ if self.failures > PATIENCE => LONG_GONE,
            Failure::Unreachable => UNREACHABLE,
            Failure::Unanswered => UNANSWERED,
        };
        Duration::from_secs(1 << self.failures.min(16)).min(ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_ceiling_and_are_spread() {
        for (failure, seconds) in [
            (Failure::Unreachable, &[1, 2, 4, 4, 4][..]),
            (Failure::Unanswered, &[1, 1, 1]),
            (Failure::Refused, &[1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        ] {
            let mut backoff = Backoff::default();
            for (n, seconds) in seconds.iter().enumerate() {
                let longest = Duration::from_secs(*seconds);
                assert_eq!(backoff.longest(failure), longest);
                let wait = backoff.next(failure);
                assert!(wait < longest && (n == 0 || wait >= longest / 2), "{failure:?} {n} {wait:?}");
            }
            backoff.reset();
            assert!(backoff.next(failure) < Duration::from_secs(1));
        }
    }
}
