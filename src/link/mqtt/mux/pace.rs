//! How much may be under way: enough to fill the link, not so much that it queues up in front of it.
//!
//! Whatever is sent waits behind what was sent before, in the socket, in the broker, on the wire. So the time that an
//! acknowledgement takes beyond the shortest seen tells how long a control message would wait; it is kept below about
//! a second by a window that grows and shrinks, as in TCP Vegas.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::frame::{HEADER, MAX_CONTENT};

const SMALLEST: usize = 4 * 1024;
const FIRST: usize = 8 * 1024;
const LARGEST: usize = 512 * 1024;
/// Frames under way, however small.
const FRAMES: usize = 256;
/// Acknowledgements delayed by less than this let the window grow.
const QUICK: Duration = Duration::from_millis(400);
/// Those delayed by more make it shrink, if so many come in a row: a queue delays all of them, a packet that was lost and
/// sent again only some. They all let it grow slowly from then on.
const SLOW: Duration = Duration::from_millis(700);
const IN_A_ROW: u32 = 6;

/// The window of one direction.
#[derive(Debug)]
pub(super) struct Pace {
    window: usize,
    /// Above it the window grows slowly.
    careful: usize,
    flying: VecDeque<usize>,
    bytes: usize,
    sent: u64,
    /// The shortest round trip.
    base: Option<Duration>,
    /// A frame whose round trip is being measured.
    sample: Option<(u64, Instant)>,
    /// Slow round trips in a row.
    slow: u32,
    /// The window was the limit since the last measurement.
    limited: bool,
    /// When the other end last confirmed something, or something was sent after a pause.
    alive: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: FIRST,
            careful: LARGEST,
            flying: VecDeque::new(),
            bytes: 0,
            sent: 0,
            base: None,
            sample: None,
            slow: 0,
            limited: false,
            alive: now,
        }
    }

    /// Whether another frame may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < self.window && self.flying.len() < FRAMES
    }

    /// Largest content a frame should have now: several are to fit into the window.
    pub(super) fn chunk(&self) -> usize {
        (self.window / 4 - HEADER).min(MAX_CONTENT - 1)
    }

    /// Since when nothing was confirmed; `None`: nothing is under way.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (!self.flying.is_empty()).then_some(self.alive)
    }

    /// How many frames were confirmed.
    pub(super) fn confirmed(&self) -> u64 {
        self.sent - self.flying.len() as u64
    }

    /// The number of the last frame sent, counted from 1.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// A frame with this content was sent.
    pub(super) fn send(&mut self, content: usize, now: Instant) {
        if self.flying.is_empty() {
            self.alive = now;
        }
        self.sent += 1;
        self.flying.push_back(content + HEADER);
        self.bytes += content + HEADER;
        self.sample.get_or_insert((self.sent, now));
        self.limited |= !self.has_room();
    }

    /// The other end has so many frames; false: more than there were.
    pub(super) fn confirm(&mut self, frames: u64, now: Instant) -> bool {
        if frames > self.sent {
            return false;
        }
        while self.confirmed() < frames {
            self.bytes -= self.flying.pop_front().unwrap_or_default();
        }
        self.alive = now;
        if let Some((number, at)) = self.sample
            && frames >= number
        {
            self.sample = None;
            self.adapt(now - at);
        }
        if self.flying.is_empty() {
            self.flying = VecDeque::new();
        }
        true
    }

    fn adapt(&mut self, trip: Duration) {
        let base = self.base.map_or(trip, |base| base.min(trip));
        self.base = Some(base);
        let queued = trip - base;
        let slow = queued > SLOW;
        self.slow = if slow { self.slow + 1 } else { 0 };
        if slow {
            self.careful = self.careful.min(self.window);
        }
        if self.slow >= IN_A_ROW {
            self.slow = 0;
            if self.window == SMALLEST {
                // It cannot be a queue of ours: the way has become longer.
                self.base = Some(base + (trip - base) / 8);
            }
            self.window = (self.window / 4 * 3).max(SMALLEST);
            self.careful = self.window;
        } else if queued < QUICK && self.limited {
            let growth = if self.window < self.careful { self.window / 2 } else { SMALLEST / 4 };
            self.window = (self.window + growth).min(LARGEST);
        }
        self.limited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as much as it may over a link of that rate and delay; the longest queue in the second half of a minute, and
    /// bytes a second.
    fn saturate(rate: f64, delay: Duration) -> (Duration, f64) {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut free) = (start, start);
        let mut acks: VecDeque<(Instant, u64)> = VecDeque::new();
        let (mut worst, mut bytes) = (Duration::ZERO, 0.0);
        while now < start + Duration::from_secs(60) {
            while pace.has_room() {
                let content = pace.chunk();
                pace.send(content, now);
                free = free.max(now) + Duration::from_secs_f64(content as f64 / rate);
                acks.push_back((free + delay, pace.sent()));
                if now > start + Duration::from_secs(30) {
                    worst = worst.max(free - now);
                    bytes += content as f64;
                }
            }
            let Some((at, number)) = acks.pop_front() else { break };
            now = at;
            assert!(pace.confirm(number, now));
        }
        (worst, bytes / 30.0)
    }

    #[test]
    fn the_queue_stays_short_and_the_link_full() {
        for (rate, delay, queue) in
            [(8e3, 500, 1200), (8e3, 20, 1200), (32e3, 100, 1200), (1e6, 50, 800), (100e6, 1, 100)]
        {
            let (worst, speed) = saturate(rate, Duration::from_millis(delay));
            assert!(worst < Duration::from_millis(queue), "{rate} {delay}: {worst:?}");
            assert!(speed > rate * 0.6, "{rate} {delay}: {speed}");
        }
    }

    #[test]
    fn frames_that_were_never_sent_are_not_confirmed() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.send(10, now);
        assert!(pace.confirm(1, now));
        assert!(!pace.confirm(2, now));
        assert_eq!(pace.waiting_since(), None);
    }
}
