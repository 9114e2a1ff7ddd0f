//! Claims on a segment of pretence, in virtual time.

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const OWNER: Role = Role::Owner { alone: false };
const ALONE: Role = Role::Owner { alone: true };
const FIRST: Role = Role::Standby { rank: 1 };
const STEP: Duration = Duration::from_millis(10);

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

fn ask(from: u8) -> Frame {
    Frame::request(mac(from), Ipv4Addr::new(192, 0, 2, from), None, ADDRESS)
}

/// Hosts on one switch; those that are not plugged in hear and say nothing.
struct Lan {
    now: Instant,
    began: Instant,
    hosts: Vec<(u8, Claim)>,
    unplugged: Vec<u8>,
    news: Vec<(u8, News)>,
    /// Everything that was sent, with its sender.
    wire: Vec<(u8, Frame)>,
}

impl Lan {
    fn new() -> Self {
        let now = Instant::now();
        Self { now, began: now, hosts: Vec::new(), unplugged: Vec::new(), news: Vec::new(), wire: Vec::new() }
    }

    fn join(&mut self, host: u8, role: Role) {
        let own = Ipv4Addr::new(192, 0, 2, host);
        self.hosts.push((host, Claim::new(ADDRESS, mac(host), own, role, self.now)));
    }

    fn leave(&mut self, host: u8) {
        self.hosts.retain(|(name, _)| *name != host);
    }

    fn role(&mut self, host: u8, role: Role) {
        let now = self.now;
        self.hosts.iter_mut().filter(|(name, _)| *name == host).for_each(|(_, claim)| claim.set_role(role, now));
    }

    /// Puts frames on the wire and whatever is said to them.
    fn say(&mut self, from: u8, frames: Vec<Frame>) {
        let mut queue: std::collections::VecDeque<(u8, Frame)> = frames.into_iter().map(|f| (from, f)).collect();
        while let Some((from, frame)) = queue.pop_front() {
            self.wire.push((from, frame));
            if self.unplugged.contains(&from) {
                continue;
            }
            let now = self.now;
            for (name, claim) in &mut self.hosts {
                let meant = frame.to == [0xff; 6] || frame.to == mac(*name);
                if *name != from && meant && !self.unplugged.contains(name) {
                    let output = claim.heard(&frame, now);
                    self.news.extend(output.news.map(|news| (*name, news)));
                    queue.extend(output.frames.into_iter().map(|f| (*name, f)));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            for index in 0..self.hosts.len() {
                let (name, claim) = &mut self.hosts[index];
                let (name, output) = (*name, claim.tick(self.now));
                self.news.extend(output.news.map(|news| (name, news)));
                self.say(name, output.frames);
            }
        }
    }

    fn seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    fn holders(&self) -> Vec<u8> {
        self.hosts.iter().filter(|(_, claim)| claim.is_held()).map(|(name, _)| *name).collect()
    }

    /// How long it takes until only this host has the address.
    fn until_held_by(&mut self, host: u8) -> Duration {
        let began = self.now;
        while self.holders() != [host] {
            assert!(self.now - began < Duration::from_secs(30), "{:?} {:?}", self.hosts, self.news);
            self.run(STEP);
        }
        self.now - began
    }

    fn sent(&mut self) -> usize {
        std::mem::take(&mut self.wire).len()
    }
}

#[test]
fn an_address_is_probed_announced_three_times_and_then_quiet() {
    let mut lan = Lan::new();
    lan.join(1, ALONE);
    lan.seconds(20);
    let probes = lan.wire.iter().filter(|(_, f)| f.sender.is_unspecified()).count();
    let announced = lan.wire.iter().filter(|(_, f)| f.sender == ADDRESS).count();
    assert_eq!((probes, announced, lan.holders()), (3, 6, vec![1]));
    assert_eq!(lan.news, [(1, News::Taken)]);
    assert!(lan.hosts[0].1.due().is_none(), "it sleeps");
    assert!(lan.now > lan.began);
}

#[test]
fn requests_are_answered_to_who_asked() {
    let mut lan = Lan::new();
    lan.join(1, ALONE);
    lan.seconds(10);
    lan.sent();
    lan.say(9, vec![ask(9)]);
    let (_, answer) = lan.wire[1];
    assert_eq!((answer.to, answer.sender, answer.sender_mac, answer.target_mac), (mac(9), ADDRESS, mac(1), mac(9)));
    // Other addresses, answers to others, and itself.
    lan.sent();
    let other = Frame::request(mac(9), Ipv4Addr::new(192, 0, 2, 9), None, Ipv4Addr::new(192, 0, 2, 201));
    let echo = Frame { sender_mac: mac(1), ..ask(9) };
    lan.say(9, vec![other, other.answer(mac(8)), echo]);
    assert_eq!(lan.sent(), 3, "nothing but what was said");
}

#[test]
fn an_address_in_use_is_left_alone_and_looked_at_ever_more_seldom() {
    let mut lan = Lan::new();
    lan.join(9, ALONE);
    lan.seconds(10);
    lan.join(1, ALONE);
    lan.seconds(3600);
    assert_eq!((lan.holders(), &lan.news[1..]), (vec![9], &[(1, News::InUse(mac(9)))][..]));
    lan.sent();
    lan.seconds(600);
    assert!(lan.sent() < 30, "one look a minute");
    lan.leave(9);
    lan.until_held_by(1);
}

#[test]
fn a_conflict_is_answered_once_and_is_no_war() {
    let mut lan = Lan::new();
    lan.join(1, ALONE);
    lan.seconds(10);
    let claim = || Frame::announcement(mac(9), ADDRESS).to_vec();
    lan.sent();
    lan.say(9, claim()[..1].to_vec());
    assert_eq!((lan.sent(), lan.holders()), (3, vec![1]), "one claim, one defence in both forms");
    lan.seconds(11);
    lan.say(9, claim()[..1].to_vec());
    assert_eq!(lan.holders(), [1], "long ago");
    lan.seconds(1);
    lan.say(9, claim()[..1].to_vec());
    assert!(lan.holders().is_empty());
    assert_eq!(
        lan.news[1..],
        [(1, News::Contested(mac(9))), (1, News::Contested(mac(9))), (1, News::GivenUp(mac(9))),]
    );
    lan.sent();
    lan.say(9, claim());
    lan.seconds(59);
    assert_eq!(lan.sent(), 2, "quiet while it rests");
    lan.seconds(2);
    assert_eq!(lan.holders(), [1], "the other is gone");
}

#[test]
fn of_two_that_want_it_at_once_one_gets_it() {
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, OWNER);
    lan.seconds(30);
    assert_eq!(lan.holders(), [1]);
    assert_eq!(lan.news[1..], [(2, News::InUse(mac(1)))]);
}

#[test]
fn the_standby_takes_over_and_gives_back() {
    let mut lan = Lan::new();
    lan.join(2, FIRST);
    lan.join(1, OWNER);
    lan.seconds(30);
    assert_eq!(lan.holders(), [1]);
    // It asks the owner alone, about once a second.
    lan.sent();
    lan.seconds(10);
    assert!(lan.wire.iter().all(|(_, f)| f.to != [0xff; 6]), "{:?}", lan.wire);
    assert!((16..=26).contains(&lan.sent()));

    // The owner dies, at any moment of the watch.
    for moment in 0..10 {
        lan.run(Duration::from_millis(moment * 97));
        lan.leave(1);
        let took = lan.until_held_by(2);
        assert!(took < Duration::from_millis(2000), "{took:?}");
        lan.seconds(7);
        lan.news.clear();
        lan.join(1, OWNER);
        let took = lan.until_held_by(1);
        assert!(took < Duration::from_millis(1000), "{took:?}");
        assert_eq!(lan.news, [(1, News::Taken), (2, News::Yielded(mac(1)))], "no conflict");
        lan.seconds(5);
    }

    // The server learns of it: the standby is the owner now, without a word.
    lan.leave(1);
    lan.until_held_by(2);
    lan.seconds(3);
    lan.news.clear();
    lan.role(2, ALONE);
    lan.seconds(60);
    assert_eq!((lan.holders(), lan.news.len()), (vec![2], 0));
    assert!(lan.hosts[0].1.due().is_none());
}

#[test]
fn ownership_moves_without_a_gap() {
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, FIRST);
    lan.seconds(10);
    lan.news.clear();
    lan.role(1, FIRST);
    lan.role(2, OWNER);
    while lan.holders() != [2] {
        lan.run(STEP);
        assert!(!lan.holders().is_empty());
    }
    assert_eq!(lan.news, [(2, News::Taken), (1, News::Yielded(mac(2)))]);
    lan.seconds(60);
    assert_eq!((lan.holders(), lan.news.len()), (vec![2], 2));
}

#[test]
fn views_that_differ_for_a_while_do_no_harm() {
    // Node 1 lost its server and still thinks that it is the owner, as node 2 was told to be.
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, FIRST);
    lan.seconds(10);
    lan.role(2, OWNER);
    lan.seconds(60);
    assert_eq!(lan.holders(), [1]);
    lan.leave(1);
    assert!(lan.until_held_by(2) < Duration::from_secs(2));
}

#[test]
fn a_segment_that_fell_apart_heals() {
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, FIRST);
    lan.seconds(10);
    lan.unplugged = vec![1];
    lan.seconds(30);
    assert_eq!(lan.holders(), [1, 2]);
    lan.unplugged.clear();
    lan.sent();
    lan.seconds(6);
    assert_eq!(lan.holders(), [1]);
    let last = lan.wire.iter().rev().find(|(_, f)| f.sender == ADDRESS && f.to == [0xff; 6]).map(|(from, _)| *from);
    assert_eq!(last, Some(1), "everyone knows again who has it");
    lan.seconds(60);
    assert_eq!(lan.holders(), [1]);
}

/// An owner, host 1, and three standbys in the order of their numbers; some time has passed.
fn four(moment: u64) -> Lan {
    let mut lan = Lan::new();
    // The last in order has the lowest hardware address, and has been there longest.
    for (host, rank) in [(2, 3), (4, 2), (3, 1)] {
        lan.join(host, Role::Standby { rank });
    }
    lan.join(9, OWNER);
    lan.seconds(20);
    lan.run(Duration::from_millis(moment));
    assert_eq!(lan.holders(), [9]);
    lan
}

/// Runs until somebody has the address; no two ever do.
fn until_held(lan: &mut Lan) -> (u8, Duration) {
    let began = lan.now;
    while lan.holders().is_empty() {
        assert!(lan.now - began < Duration::from_secs(30), "{:?}", lan.hosts);
        lan.run(STEP);
    }
    let took = lan.now - began;
    for _ in 0..1000 {
        lan.run(STEP);
        assert!(lan.holders().len() == 1, "{:?} {:?}", lan.hosts, lan.news);
    }
    (lan.holders()[0], took)
}

#[test]
fn whoever_is_next_in_order_takes_over_whoever_else_has_died() {
    for moment in (0..10_000).step_by(470) {
        for (dead, next, limit) in
            [(&[9][..], 3, 1700), (&[3, 9], 4, 4900), (&[3, 4, 9], 2, 9900), (&[4, 9], 3, 1700), (&[2, 3, 9], 4, 4900)]
        {
            let mut lan = four(moment);
            dead.iter().for_each(|host| lan.leave(*host));
            let (holder, took) = until_held(&mut lan);
            assert_eq!(holder, next, "{dead:?} died after {moment} ms");
            assert!(took < Duration::from_millis(limit), "{dead:?} died after {moment} ms: {took:?}");
        }
    }
}

#[test]
fn one_after_the_other_dies_and_all_come_back() {
    for moment in (0..4000).step_by(310) {
        let mut lan = four(moment);
        for (dies, next) in [(9, 3), (3, 4), (4, 2)] {
            lan.leave(dies);
            assert_eq!(until_held(&mut lan).0, next);
            lan.run(Duration::from_millis(moment));
        }
        // One that comes back does not take it away from a standby; the owner does.
        lan.join(4, Role::Standby { rank: 2 });
        lan.join(3, FIRST);
        lan.seconds(20);
        assert_eq!(lan.holders(), [2]);
        lan.news.clear();
        lan.join(9, OWNER);
        assert!(lan.until_held_by(9) < Duration::from_secs(1));
        lan.seconds(20);
        assert_eq!(
            (lan.holders(), lan.news.as_slice()),
            (vec![9], &[(9, News::Taken), (2, News::Yielded(mac(9)))][..])
        );
    }
}

#[test]
fn many_standbys_ask_little_more_than_one() {
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, FIRST);
    lan.seconds(30);
    lan.sent();
    lan.seconds(60);
    let one = lan.sent();
    (2..6).for_each(|rank| lan.join(10 + rank as u8, Role::Standby { rank }));
    lan.seconds(60);
    lan.sent();
    lan.seconds(60);
    assert!(lan.wire.iter().all(|(_, f)| f.to != [0xff; 6]), "everyone is left in peace");
    assert!(lan.sent() < one * 8 / 5);
    // A host asks: each standby looks once, no more often than it may.
    for _ in 0..10 {
        lan.say(99, vec![ask(99)]);
    }
    lan.run(STEP * 2);
    assert!(lan.sent() <= 10 + 10 + 5 * 2);
    assert_eq!(lan.holders(), [1]);
}

#[test]
fn a_standby_that_moves_up_looks_as_often_as_its_place_asks_for() {
    let mut lan = Lan::new();
    lan.join(1, OWNER);
    lan.join(2, Role::Standby { rank: 8 });
    lan.seconds(70);
    lan.role(2, FIRST);
    lan.leave(1);
    assert!(lan.until_held_by(2) < Duration::from_millis(1700));
}
