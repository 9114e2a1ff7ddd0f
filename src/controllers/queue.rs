//! The work queue: each key waits at most once, is worked on at most once at a time, and backs off when it fails.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The first delay after a failure; it doubles with each further one (client-go's default for controllers).
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest delay after a failure.
const LAST_RETRY: Duration = Duration::from_secs(1000);

/// Keys to work on. Holds no clock: the caller passes the time, so the queue is a plain data structure.
///
/// # Guarantees
/// - A key added any number of times before it is taken is taken once.
/// - A key added while it is worked on is taken again after [`Queue::done`], never at the same time.
/// - Of several delays for a key the earliest counts.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    working: HashSet<K>,
    /// Keys due later, by time; the number keeps equal times apart.
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    serial: u64,
    failures: HashMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            serial: 0,
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Adds a key to be worked on as soon as possible.
    pub fn add(&mut self, key: K) {
        if self.queued.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Adds a key to be worked on after a delay.
    pub fn add_after(&mut self, key: K, delay: Duration, now: Instant) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = (now + delay, self.serial);
        if let Some(due) = self.due.get(&key) {
            if due.0 <= at.0 {
                return;
            }
            self.later.remove(&due.clone());
        }
        self.serial += 1;
        self.due.insert(key.clone(), at);
        self.later.insert(at, key);
    }

    /// Takes the next key; it counts as worked on until [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// The work on a key has ended.
    pub fn done(&mut self, key: &K) {
        if self.working.remove(key) && self.queued.contains(key) {
            self.ready.push_back(key.clone());
        }
    }

    /// Forgets the failures of a key: it was worked on with success.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Adds a key again after its back-off; returns the delay.
    pub fn failed(&mut self, key: K, now: Instant) -> Duration {
        let count = self.failures.entry(key.clone()).or_default();
        let delay = backoff(*count);
        *count = count.saturating_add(1);
        self.add_after(key, delay, now);
        delay
    }

    /// When the next delayed key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.first_key_value().map(|((at, _), _)| *at)
    }
}

/// The delay after the given number of earlier failures in a row.
fn backoff(earlier: u32) -> Duration {
    2u32.checked_pow(earlier)
        .and_then(|factor| FIRST_RETRY.checked_mul(factor))
        .map_or(LAST_RETRY, |d| d.min(LAST_RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_key_is_taken_once_and_never_twice_at_a_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.take(now), Some("a"));
        queue.add("a");
        assert_eq!(queue.take(now), Some("b"));
        assert_eq!(queue.take(now), None, "a is being worked on");
        queue.done(&"b");
        queue.done(&"a");
        assert_eq!(queue.take(now), Some("a"), "it was added meanwhile");
        queue.done(&"a");
        assert_eq!(queue.take(now), None);
    }

    #[test]
    fn the_earliest_delay_counts() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.add_after("a", seconds(9), start);
        queue.add_after("a", seconds(3), start);
        queue.add_after("a", seconds(6), start);
        queue.add_after("b", seconds(3), start);
        assert_eq!(queue.next_due(), Some(start + seconds(3)));
        assert_eq!(queue.take(start + seconds(2)), None);
        assert_eq!(queue.take(start + seconds(3)), Some("a"));
        assert_eq!(queue.take(start + seconds(3)), Some("b"));
        assert_eq!(queue.take(start + seconds(100)), None);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn failures_back_off_until_a_success() {
        for (earlier, delay) in [(0, 5), (1, 10), (5, 160), (17, 655_360), (18, 1_000_000), (u32::MAX, 1_000_000)] {
            assert_eq!(backoff(earlier), Duration::from_millis(delay), "after {earlier} failures");
        }
        let now = Instant::now();
        let mut queue = Queue::default();
        assert_eq!(queue.failed("a", now), Duration::from_millis(5));
        assert_eq!(queue.failed("a", now), Duration::from_millis(10));
        queue.succeeded(&"a");
        assert_eq!(queue.failed("a", now), Duration::from_millis(5));
    }
}
