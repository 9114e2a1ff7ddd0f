//! One address and what this node does about it: asks whether somebody has it, announces it, defends or gives it up.
//!
//! A pure state machine after RFC 5227, with shorter times: an address has to move to another node in less than three
//! seconds. What keeps two nodes from having the same address is the protocol itself, not agreement on who should: the
//! [`Role`] only says who asks first, and who gives way.
//!
//! ```text
//!            owner ┌─────────┐ nobody answers ┌──────┐
//!         ────────►│ Probing ├───────────────►│      │
//!                  └────┬────┘                │ Held │
//!          somebody has │   three unanswered  │      │
//!                  ┌────▼────┐───────────────►│      │
//!         ────────►│Watching │◄───────────────┤      │
//!          standby └────▲────┘ standby: other └──┬───┘
//!                       │      has it            │ owner: two conflicts in 10 s
//!                       └────────── Resting ◄────┘
//! ```

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::frame::{Frame, Mac, Operation};

/// Probes of an address before it is taken (RFC 5227: PROBE_NUM) …
const PROBES: u8 = 3;
/// … and the time between them and after the last. RFC 5227 takes 1 to 2 s.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks of the first standby at whoever has the address; further ones look by the square of their rank more
/// seldom, so that all of them together ask little more than the first alone.
const WATCH: Duration = Duration::from_millis(900);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(250);
/// Unanswered requests after which nobody has it …
const MISSES: u32 = 3;
/// … and more for each who is before a standby. All hear the second request of the first who asks, and ask too: whoever is
/// one place ahead is done 250 ms sooner, even if it began to ask only then.
const MORE_MISSES: u32 = 2;
/// Places that count: a later standby waits no longer.
const MOST_RANKS: u32 = 8;
/// An owner that is just starting is given this long before the standby looks after it.
const GRACE: Duration = Duration::from_secs(2);
/// Pauses after the first and the second announcement (ANNOUNCE_NUM is 2 there).
const ANNOUNCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// A standby that holds the address repeats itself, so that an owner that comes back through a healed switch says so.
const REPEAT: Duration = Duration::from_secs(5);
/// Only one defence in this time (DEFEND_INTERVAL).
const DEFEND: Duration = Duration::from_secs(10);
/// What arrives this soon after a defence was sent before it was heard: an announcement in two forms is one conflict.
const CROSSING: Duration = Duration::from_millis(500);
/// How long the address is left alone after giving up.
const REST: Duration = Duration::from_secs(60);
/// Longest pause between looks at a stranger that has our address while no other node could take it.
const LONGEST_WATCH: Duration = Duration::from_secs(60);
/// Another node may still have the address for a moment: who has it for longer is told about.
const NEWS_AFTER: Duration = Duration::from_secs(10);

/// What this node is to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// First in order: takes it if nobody has it.
    Owner {
        /// No other node could.
        alone: bool,
    },
    /// Behind the first: takes it when whoever has it falls silent and none before it in the order does, gives it back as
    /// soon as somebody announces it.
    Standby {
        /// How many are before it, at least 1.
        rank: u32,
    },
}

/// Something that happened to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// This node has it now.
    Taken,
    /// Another host has it; this node waits.
    InUse(Mac),
    /// Another host claimed it while this node had it, and was contradicted.
    Contested(Mac),
    /// Another host insists on it: this node stops using it for a while.
    GivenUp(Mac),
    /// This node has given it to another.
    Yielded(Mac),
}

/// What is to be done after an input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) frames: Vec<Frame>,
    pub(super) news: Option<News>,
}

impl Output {
    fn send(frames: impl IntoIterator<Item = Frame>) -> Self {
        Self { frames: frames.into_iter().collect(), news: None }
    }

    fn tell(news: News) -> Self {
        Self { frames: Vec::new(), news: Some(news) }
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Probing { sent: u8 },
    Watching { holder: Option<Mac>, unanswered: u32, since: Instant, rounds: u32 },
    Held { announced: usize, defended: Option<Instant> },
    Resting,
}

/// One address on one interface.
#[derive(Debug)]
pub(super) struct Claim {
    address: Ipv4Addr,
    /// Of the interface.
    mac: Mac,
    /// The interface's own address, or 0.0.0.0.
    own: Ipv4Addr,
    role: Role,
    state: State,
    due: Option<Instant>,
    /// When it last asked who has the address.
    asked: Option<Instant>,
    told: bool,
}

impl Claim {
    pub(super) fn new(address: Ipv4Addr, mac: Mac, own: Ipv4Addr, role: Role, now: Instant) -> Self {
        let mut claim = Self { address, mac, own, role, state: State::Resting, due: None, asked: None, told: false };
        claim.begin(now);
        claim
    }

    /// When [`Claim::tick`] is to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    #[cfg(test)]
    fn is_held(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    fn begin(&mut self, now: Instant) {
        match self.role {
            Role::Owner { .. } => self.go(State::Probing { sent: 0 }, Some(now)),
            Role::Standby { .. } => self.watch(None, now, GRACE),
        }
    }

    fn go(&mut self, state: State, due: Option<Instant>) {
        (self.state, self.due) = (state, due);
    }

    fn watch(&mut self, holder: Option<Mac>, now: Instant, pause: Duration) {
        let state = State::Watching { holder, unanswered: 0, since: now, rounds: 0 };
        self.go(state, Some(now + pause));
    }

    fn is_standby(&self) -> bool {
        matches!(self.role, Role::Standby { .. })
    }

    /// Places before it, as far as they count.
    fn rank(&self) -> u32 {
        match self.role {
            Role::Owner { .. } => 0,
            Role::Standby { rank } => rank.clamp(1, MOST_RANKS),
        }
    }

    /// Unanswered requests after which it takes the address.
    fn misses(&self) -> u32 {
        MISSES + MORE_MISSES * self.rank().saturating_sub(1)
    }

    /// Another role. An owner that becomes the standby keeps the address until the new owner announces it.
    pub(super) fn set_role(&mut self, role: Role, now: Instant) {
        if self.role == role {
            return;
        }
        let was_standby = self.is_standby();
        self.role = role;
        match self.state {
            State::Watching { .. } if was_standby && !self.is_standby() => self.begin(now),
            State::Probing { .. } if self.is_standby() => self.begin(now),
            // Those before it may have gone.
            State::Watching { rounds, .. } => self.due = self.due.map(|due| due.min(now + self.pause(rounds))),
            State::Held { announced, .. } if self.is_standby() && announced > ANNOUNCE.len() => {
                self.due = Some(now + REPEAT);
            }
            _ => {}
        }
    }

    /// Time has come.
    pub(super) fn tick(&mut self, now: Instant) -> Output {
        if self.due.is_none_or(|due| due > now) {
            return Output::default();
        }
        match self.state {
            State::Probing { sent } if sent < PROBES => {
                self.go(State::Probing { sent: sent + 1 }, Some(now + PROBE_INTERVAL));
                Output::send([self.probe(None)])
            }
            State::Probing { .. } => self.take(now),
            State::Watching { unanswered, .. } if unanswered >= self.misses() => self.take(now),
            State::Watching { holder, unanswered, since, rounds } => {
                self.go(State::Watching { holder, unanswered: unanswered + 1, since, rounds }, Some(now + ANSWER));
                self.asked = Some(now);
                // Whoever has it is asked alone; only when it is silent, everyone.
                Output::send([self.probe(holder.filter(|_| unanswered == 0))])
            }
            State::Held { announced, defended } => {
                let next = match ANNOUNCE.get(announced) {
                    Some(pause) => Some(*pause),
                    None => self.is_standby().then_some(REPEAT),
                };
                self.go(State::Held { announced: announced + 1, defended }, next.map(|pause| now + pause));
                Output::send(Frame::announcement(self.mac, self.address))
            }
            State::Resting => {
                self.begin(now);
                Output::default()
            }
        }
    }

    fn take(&mut self, now: Instant) -> Output {
        self.told = false;
        self.go(State::Held { announced: 0, defended: None }, Some(now));
        Output { news: Some(News::Taken), ..self.tick(now) }
    }

    /// An owner asks without a sender's address: a standby that has taken its place keeps still at that, and gives the
    /// address back at the announcement that follows. A standby asks as any host does.
    fn probe(&self, to: Option<Mac>) -> Frame {
        let from = if self.is_standby() { self.own } else { Ipv4Addr::UNSPECIFIED };
        Frame::request(self.mac, from, to, self.address)
    }

    /// A frame that names the address.
    pub(super) fn heard(&mut self, frame: &Frame, now: Instant) -> Output {
        if frame.sender_mac == self.mac {
            return Output::default();
        }
        if frame.sender == self.address {
            return self.claimed_by(frame.sender_mac, now);
        }
        if frame.operation != Operation::Request || frame.target != self.address {
            return Output::default();
        }
        let is_probe = frame.sender.is_unspecified();
        match self.state {
            State::Held { .. } if is_probe && self.is_standby() => Output::default(),
            State::Held { .. } => Output::send([frame.answer(self.mac)]),
            // Somebody asks everyone: a standby behind this one, perhaps, that gets no answer any more.
            State::Watching { holder: Some(_), unanswered: 0, .. }
                if !is_probe && self.is_standby() && self.asked.is_none_or(|asked| now >= asked + ANSWER) =>
            {
                self.due = self.due.map(|due| due.min(now));
                Output::default()
            }
            // Two want to have it at once: one of them waits and sees.
            State::Probing { .. } if is_probe && frame.sender_mac < self.mac => {
                self.watch(Some(frame.sender_mac), now, WATCH);
                Output::default()
            }
            _ => Output::default(),
        }
    }

    fn claimed_by(&mut self, other: Mac, now: Instant) -> Output {
        match self.state {
            State::Probing { .. } => {
                self.watch(Some(other), now, WATCH);
                self.in_use(other, now)
            }
            State::Watching { since, rounds, .. } => {
                let pause = self.pause(rounds);
                let state = State::Watching { holder: Some(other), unanswered: 0, since, rounds: rounds + 1 };
                self.go(state, Some(now + pause));
                self.in_use(other, now)
            }
            State::Held { .. } if self.is_standby() => {
                self.watch(Some(other), now, WATCH);
                Output::tell(News::Yielded(other))
            }
            State::Held { defended: Some(last), .. } if now < last + CROSSING => Output::default(),
            State::Held { defended: Some(last), .. } if now < last + DEFEND => {
                self.go(State::Resting, Some(now + REST));
                Output::tell(News::GivenUp(other))
            }
            State::Held { announced, .. } => {
                self.state = State::Held { announced, defended: Some(now) };
                let news = Some(News::Contested(other));
                Output { news, ..Output::send(Frame::announcement(self.mac, self.address)) }
            }
            State::Resting => Output::default(),
        }
    }

    /// Until the next look at who has the address.
    fn pause(&self, rounds: u32) -> Duration {
        match self.role {
            Role::Owner { alone: true } => LONGEST_WATCH.min(WATCH * (1 << rounds.min(6))),
            Role::Owner { alone: false } => WATCH,
            Role::Standby { .. } => WATCH * self.rank().pow(2),
        }
    }

    /// Told once, and not of another node that only has it for a moment longer.
    fn in_use(&mut self, other: Mac, now: Instant) -> Output {
        let lasting = match (self.role, self.state) {
            (Role::Standby { .. }, _) => false,
            (Role::Owner { alone: true }, _) => true,
            (_, State::Watching { since, .. }) => now >= since + NEWS_AFTER,
            _ => false,
        };
        if !lasting || std::mem::replace(&mut self.told, true) {
            return Output::default();
        }
        Output::tell(News::InUse(other))
    }
}

#[cfg(test)]
mod tests;
