//! What was heard from upstream, for as long as it may be kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::wire;

/// Bytes of all answers with what it takes to keep them.
const CAPACITY: usize = 256 << 10;
/// Of one answer beside its own bytes and twice its question.
const OVERHEAD: usize = 128;
/// Largest answer that is kept.
const MAX_ENTRY: usize = 8 << 10;
/// Longest time a name's records are kept.
const MAX_POSITIVE: Duration = Duration::from_secs(300);
/// Longest time it is remembered that a name has none: somebody may be waiting for it.
const MAX_NEGATIVE: Duration = Duration::from_secs(30);
/// How long nobody is asked again after no server answered.
const FAILURE: Duration = Duration::from_secs(2);

/// An answer that was heard: a message without ID and OPT.
#[derive(Debug)]
pub(super) struct Heard {
    message: Box<[u8]>,
    at: Instant,
}

impl Heard {
    pub(super) fn new(message: Vec<u8>, at: Instant) -> Self {
        Self { message: message.into(), at }
    }

    /// The message as it is to be passed on.
    pub(super) fn message(&self, now: Instant) -> Vec<u8> {
        let mut message = self.message.to_vec();
        let age = now.saturating_duration_since(self.at).as_secs();
        if age > 0 {
            wire::age(&mut message, u32::try_from(age).unwrap_or(u32::MAX));
        }
        message
    }

    pub(super) fn code(&self) -> ResponseCode {
        wire::code(&self.message)
    }

    fn lifetime(&self) -> Option<Duration> {
        if wire::is_truncated(&self.message) {
            return None;
        }
        let seconds = || wire::lifetime(&self.message).map(|seconds| Duration::from_secs(seconds.into()));
        match wire::code(&self.message) {
            ResponseCode::NoError if wire::count(&self.message, 1) > 0 => Some(seconds()?.min(MAX_POSITIVE)),
            ResponseCode::NoError | ResponseCode::NXDomain => Some(seconds()?.min(MAX_NEGATIVE)),
            _ => Some(FAILURE),
        }
    }
}

/// Answers by question. Where they become too many, those heard first go first.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Arc<[u8]>, (Arc<Heard>, Instant)>,
    /// Every key of `answers` once.
    order: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

impl Cache {
    pub(super) fn get(&self, key: &[u8], now: Instant) -> Option<Arc<Heard>> {
        self.answers.get(key).filter(|(_, until)| now < *until).map(|(heard, _)| heard.clone())
    }

    pub(super) fn put(&mut self, key: &[u8], heard: &Arc<Heard>) {
        let Some(lifetime) = heard.lifetime().filter(|l| !l.is_zero() && heard.message.len() <= MAX_ENTRY) else {
            return;
        };
        let key: Arc<[u8]> = key.into();
        match self.answers.insert(key.clone(), (heard.clone(), heard.at + lifetime)) {
            Some((old, _)) => self.bytes -= cost(&key, &old),
            None => self.order.push_back(key.clone()),
        }
        self.bytes += cost(&key, heard);
        while self.bytes > CAPACITY {
            let Some(first) = self.order.pop_front() else { break };
            if let Some((old, _)) = self.answers.remove(&first) {
                self.bytes -= cost(&first, &old);
            }
        }
    }
}

fn cost(key: &[u8], heard: &Heard) -> usize {
    OVERHEAD + key.len() + heard.message.len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use hickory_proto::rr::{Name, RecordType};

    use super::*;
    use crate::network::dns::wire::{Answer, Data, Question, Record};

    fn question(name: &str) -> Question {
        Question::new(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn answer(question: &Question, ttl: u32) -> Answer {
        let data = Data::Address(IpAddr::from([192, 0, 2, 1]));
        Answer { answers: vec![Record { owner: question.name.clone(), ttl, data }], ..Answer::default() }
    }

    fn put(cache: &mut Cache, question: &Question, answer: &Answer, at: Instant) {
        cache.put(&question.key(), &Arc::new(Heard::new(answer.encode(question), at)));
    }

    #[test]
    fn answers_are_kept_as_long_as_they_may() {
        let start = Instant::now();
        let q = question("a.example.");
        let soa = |ttl, negative_ttl| Record {
            owner: Name::from_ascii("example.").unwrap(),
            ttl,
            data: Data::Authority { server: Name::root(), mailbox: Name::root(), negative_ttl },
        };
        let none =
            |code, soa: Option<Record>| Answer { code, authorities: soa.into_iter().collect(), ..Answer::default() };
        for (answer, seconds) in [
            (answer(&q, 60), 60),
            (answer(&q, 100_000), 300),
            (answer(&q, 0), 0),
            (none(ResponseCode::NXDomain, Some(soa(100, 7))), 7),
            (none(ResponseCode::NoError, Some(soa(5, 100))), 5),
            (none(ResponseCode::NXDomain, Some(soa(9000, 9000))), 30),
            (none(ResponseCode::NXDomain, None), 0),
            (none(ResponseCode::ServFail, None), 2),
        ] {
            let mut cache = Cache::default();
            put(&mut cache, &q, &answer, start);
            let after = |seconds| cache.get(&q.key(), start + Duration::from_secs(seconds)).is_some();
            assert!(!after(seconds), "{answer:?}");
            assert!(seconds == 0 || after(seconds - 1), "{answer:?}");
        }
    }

    #[test]
    fn case_does_not_count_but_flags_do() {
        let mut cache = Cache::default();
        let start = Instant::now();
        let q = question("a.example.");
        put(&mut cache, &q, &answer(&q, 60), start);
        assert!(cache.get(&question("A.eXample.").key(), start).is_some());
        assert!(cache.get(&Question { dnssec: true, ..q.clone() }.key(), start).is_none());
        assert!(cache.get(&Question { unchecked: true, ..q.clone() }.key(), start).is_none());
        assert!(cache.get(&Question { kind: RecordType::AAAA, ..q }.key(), start).is_none());
    }

    #[test]
    fn times_to_live_run_down() {
        let start = Instant::now();
        let q = question("a.example.");
        let heard = Heard::new(answer(&q, 60).encode(&q), start);
        let message = heard.message(start + Duration::from_millis(20_900));
        assert_eq!(wire::records(&message).unwrap()[0].ttl, 40);
    }

    #[test]
    fn memory_is_bounded() {
        let mut cache = Cache::default();
        let start = Instant::now();
        for n in 0..10_000 {
            let q = question(&format!("name-{n}.example."));
            put(&mut cache, &q, &answer(&q, 60), start);
            put(&mut cache, &q, &answer(&q, 90), start);
        }
        assert!(cache.bytes <= CAPACITY);
        assert_eq!(cache.order.len(), cache.answers.len());
        assert_eq!(cache.bytes, cache.answers.iter().map(|(k, (h, _))| cost(k, h)).sum::<usize>());
        assert!(cache.answers.len() > 500);
        assert!(cache.get(&question("name-0.example.").key(), start).is_none());
        assert!(cache.get(&question("name-9999.example.").key(), start).is_some());
    }
}
