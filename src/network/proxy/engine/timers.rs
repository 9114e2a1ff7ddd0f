//! Time, in tenths of a second: exact enough for time-outs, coarse enough that a thousand of them are one wake-up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::slab::Key;

/// Tenths of a second since the engine's thread started; 13 years fit.
pub(super) type Tick = u32;

/// Ticks per second.
pub(super) const SECOND: Tick = 10;

/// The engine's clock.
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Tick {
        (self.0.elapsed().as_millis() / 100) as Tick
    }

    /// How long until `tick` has begun; zero where it has.
    pub(super) fn until(&self, tick: Tick) -> Duration {
        (Duration::from_millis(100) * tick).saturating_sub(self.0.elapsed())
    }
}

/// Who is to be looked at when. An entry is not taken back: whoever it finds says whether it still means anything.
///
/// Most are added in the order in which they are due, thousands a second, each with the same time-out: those form a queue,
/// and only the others are sorted.
#[derive(Default)]
pub(super) struct Timers {
    queue: VecDeque<(Tick, Key)>,
    others: BinaryHeap<Reverse<(Tick, Key)>>,
}

impl Timers {
    pub(super) fn add(&mut self, due: Tick, key: Key) {
        if self.queue.back().is_none_or(|(last, _)| *last <= due) {
            self.queue.push_back((due, key));
        } else {
            self.others.push(Reverse((due, key)));
        }
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Tick> {
        let queued = self.queue.front().map(|(due, _)| *due);
        let other = self.others.peek().map(|Reverse((due, _))| *due);
        queued.into_iter().chain(other).min()
    }

    /// The next one that is due, with the time it was meant for.
    pub(super) fn pop(&mut self, now: Tick) -> Option<(Tick, Key)> {
        let next = self.next().filter(|next| *next <= now)?;
        if self.queue.front().is_some_and(|(due, _)| *due == next) {
            let entry = self.queue.pop_front();
            if self.queue.is_empty() {
                self.queue.shrink_to(64);
            }
            return entry;
        }
        let Reverse(entry) = self.others.pop()?;
        if self.others.is_empty() {
            self.others.shrink_to(64);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::*;

    #[test]
    fn the_earliest_comes_first_however_they_were_added() {
        let (mut slab, mut timers) = (Slab::default(), Timers::default());
        let key = slab.insert(());
        for due in [20, 20, 300, 21, 5, 301, 22] {
            timers.add(due, key);
        }
        assert_eq!((timers.next(), timers.pop(4)), (Some(5), None));
        let order: Vec<Tick> = std::iter::from_fn(|| timers.pop(300)).map(|(due, _)| due).collect();
        assert_eq!(order, [5, 20, 20, 21, 22, 300]);
        assert_eq!((timers.next(), timers.pop(301)), (Some(301), Some((301, key))));
        assert_eq!(timers.next(), None);
    }
}
