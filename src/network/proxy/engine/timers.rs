//! Time, in tenths of a second: exact enough for time-outs, coarse enough that a thousand of them are one wake-up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
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
#[derive(Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Tick, Key)>>);

impl Timers {
    pub(super) fn add(&mut self, due: Tick, key: Key) {
        self.0.push(Reverse((due, key)));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Tick> {
        self.0.peek().map(|Reverse((due, _))| *due)
    }

    /// The next one that is due, with the time it was meant for.
    pub(super) fn pop(&mut self, now: Tick) -> Option<(Tick, Key)> {
        if self.next()? > now {
            return None;
        }
        let Reverse(entry) = self.0.pop()?;
        if self.0.is_empty() {
            self.0.shrink_to(64);
        }
        Some(entry)
    }
}
