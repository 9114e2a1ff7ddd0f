//! The pods that wait for a node: those to be tried now, those backing off, and those nothing can be done for until the
//! cluster changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::store::Key;

/// The back-off after the first failed attempt; it doubles with each further one …
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// … up to this.
const LAST_BACKOFF: Duration = Duration::from_secs(10);

/// Highest priority first, then first come first served.
type Rank = (Reverse<i32>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To be tried now.
    Ready,
    /// To be tried at that time.
    Backoff(Instant),
    /// Being tried.
    Taken { woken: bool },
    /// Waits for a change; the back-off of its last attempt ends at that time.
    Unschedulable(Instant),
}

#[derive(Clone, Debug)]
struct Waiting {
    rank: Rank,
    attempts: u32,
    place: Place,
}

/// The queue. Holds no clock: the caller passes the time.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    ready: BTreeMap<Rank, Key>,
    backoff: BTreeMap<(Instant, Rank), Key>,
    serial: u64,
}

impl Queue {
    /// A pod waits, or changed in a way that calls for another attempt at once.
    pub fn add(&mut self, key: Key, priority: i32) {
        self.serial += 1;
        let known = self.pods.get(&key);
        let rank = known.map_or((Reverse(priority), self.serial), |w| (Reverse(priority), w.rank.1));
        let attempts = known.map_or(0, |w| w.attempts);
        let place = match known.map(|w| w.place) {
            Some(Place::Taken { .. }) => Place::Taken { woken: true },
            _ => Place::Ready,
        };
        self.remove(&key);
        if place == Place::Ready {
            self.ready.insert(rank, key.clone());
        }
        self.pods.insert(key, Waiting { rank, attempts, place });
    }

    /// A pod waits no longer.
    pub fn remove(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.remove(key) {
            match waiting.place {
                Place::Ready => drop(self.ready.remove(&waiting.rank)),
                Place::Backoff(at) => drop(self.backoff.remove(&(at, waiting.rank))),
                Place::Taken { .. } | Place::Unschedulable(_) => {}
            }
        }
    }

    /// Whether a pod is waiting.
    pub fn contains(&self, key: &Key) -> bool {
        self.pods.contains_key(key)
    }

    /// Takes the next pod to try.
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        while let Some(entry) = self.backoff.first_entry() {
            let (at, rank) = *entry.key();
            if at > now {
                break;
            }
            let key = entry.remove();
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.place = Place::Ready;
                self.ready.insert(rank, key);
            }
        }
        let (_, key) = self.ready.pop_first()?;
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.place = Place::Taken { woken: false };
        }
        Some(key)
    }

    /// The taken pod found no node. It waits for a change, or only for its back-off if the cluster changed meanwhile or
    /// `again` says so.
    pub fn failed(&mut self, key: &Key, again: bool, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let Place::Taken { woken } = waiting.place else { return };
        waiting.attempts = waiting.attempts.saturating_add(1);
        let at = now + backoff(waiting.attempts);
        if woken || again {
            waiting.place = Place::Backoff(at);
            self.backoff.insert((at, waiting.rank), key.clone());
        } else {
            waiting.place = Place::Unschedulable(at);
        }
    }

    /// The cluster changed so that pods that found no node could find one now.
    pub fn wake(&mut self, now: Instant) {
        for (key, waiting) in &mut self.pods {
            match waiting.place {
                Place::Unschedulable(at) if at <= now => {
                    waiting.place = Place::Ready;
                    self.ready.insert(waiting.rank, key.clone());
                }
                Place::Unschedulable(at) => {
                    waiting.place = Place::Backoff(at);
                    self.backoff.insert((at, waiting.rank), key.clone());
                }
                Place::Taken { .. } => waiting.place = Place::Taken { woken: true },
                Place::Ready | Place::Backoff(_) => {}
            }
        }
    }

    /// When the next back-off ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.backoff.first_key_value().map(|((at, _), _)| *at)
    }
}

fn backoff(attempts: u32) -> Duration {
    let factor = 2u32.saturating_pow(attempts.saturating_sub(1));
    FIRST_BACKOFF.checked_mul(factor).map_or(LAST_BACKOFF, |delay| delay.min(LAST_BACKOFF))
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::key;
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn priority_then_age() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("old", 0), ("young", 0), ("high", 10)] {
            queue.add(key(name), priority);
        }
        queue.add(key("old"), 0);
        let order: Vec<_> = std::iter::from_fn(|| queue.take(now)).map(|k| k.name.to_string()).collect();
        assert_eq!(order, ["high", "old", "young"]);
    }

    #[test]
    fn the_unschedulable_wait_for_a_change_and_their_back_off() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.add(key("a"), 0);
        assert_eq!(queue.take(start), Some(key("a")));
        queue.failed(&key("a"), false, start);
        assert_eq!(queue.take(start + seconds(99)), None, "nothing changed");
        assert_eq!(queue.next_due(), None);
        queue.wake(start);
        assert_eq!(queue.take(start), None, "it backs off");
        assert_eq!(queue.next_due(), Some(start + seconds(1)));
        assert_eq!(queue.take(start + seconds(1)), Some(key("a")));
        queue.failed(&key("a"), false, start + seconds(1));
        queue.wake(start + seconds(9));
        assert_eq!(queue.take(start + seconds(9)), Some(key("a")), "the back-off is over already");
    }

    #[test]
    fn a_change_during_an_attempt_is_not_lost() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(key("a"), 0);
        queue.take(now);
        queue.wake(now);
        queue.failed(&key("a"), false, now);
        assert_eq!(queue.take(now + seconds(1)), Some(key("a")));
        queue.add(key("a"), 0);
        queue.failed(&key("a"), false, now + seconds(1));
        assert_eq!(queue.take(now + seconds(3)), Some(key("a")));
        queue.remove(&key("a"));
        queue.failed(&key("a"), true, now);
        assert!(!queue.contains(&key("a")));
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn back_off_doubles_up_to_ten_seconds() {
        for (attempts, delay) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (99, 10)] {
            assert_eq!(backoff(attempts), seconds(delay));
        }
    }
}
