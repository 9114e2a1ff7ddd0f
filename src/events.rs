//! Recording Events (`core/v1`) about objects, counted, combined and limited as client-go does (`tools/record`).
//!
//! Recording never waits and never fails: events are news, not state. They go through a bounded channel to one writer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};
use crate::registry::{Registry, WriteOptions};

/// Events on their way to the writer; more are dropped.
const WAITING: usize = 1000;
/// Objects whose recent events are remembered.
const OBJECTS: usize = 1024;
/// Different events remembered of one object.
const SERIES: usize = 32;
/// From this many different messages with one reason on they are combined …
const COMBINE_FROM: usize = 10;
/// … if they are not further apart than this many seconds.
const COMBINE_WITHIN: i64 = 600;
/// Events one component may record about one object at once …
const BURST: f64 = 25.0;
/// … and the seconds after which it may record one more.
const REFILL: f64 = 300.0;

/// Whether an event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `Normal`
    Normal,
    /// `Warning`
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `v1`, `apps/v1`, …
    pub api_version: String,
    /// `Pod`, …
    pub kind: String,
    /// Namespace, empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// A part of the object, such as `spec.containers{web}`; empty for all of it.
    pub field_path: String,
}

impl Reference {
    /// A reference to a stored object.
    pub fn to(object: &Object) -> Self {
        Self {
            api_version: meta::api_version(object).to_owned(),
            kind: meta::kind(object).to_owned(),
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            field_path: String::new(),
        }
    }
}

/// One event as it is written: whole, so that it can be created again if it was removed meanwhile.
#[derive(Debug)]
struct Entry {
    event: Object,
    again: bool,
}

/// Records the events of one component. Cheap to clone; clones and [`EventRecorder::of`] share one memory and writer.
#[derive(Clone)]
pub struct EventRecorder {
    component: Arc<str>,
    host: Arc<str>,
    memory: Arc<Mutex<Memory>>,
    writer: mpsc::Sender<Entry>,
}

/// The writing end: run it for as long as events are to be recorded.
pub struct EventWriter {
    entries: mpsc::Receiver<Entry>,
}

/// A recorder and its writer.
pub fn recorder() -> (EventRecorder, EventWriter) {
    let (writer, entries) = mpsc::channel(WAITING);
    let recorder = EventRecorder { component: "umiak".into(), host: "".into(), memory: Arc::default(), writer };
    (recorder, EventWriter { entries })
}

impl EventRecorder {
    /// The recorder of another component, such as `kubelet` on the host `pi-1` (empty for the control plane).
    pub fn of(&self, component: &str, host: &str) -> Self {
        Self { component: component.into(), host: host.into(), ..self.clone() }
    }

    /// Records that something happened to an object.
    pub fn record(&self, about: &Reference, kind: EventKind, reason: &str, message: impl Into<String>) {
        let now = Timestamp::now();
        let source = (self.component.clone(), self.host.clone());
        let news = News { kind, reason, message: message.into() };
        let noted = self.memory.lock().unwrap_or_else(PoisonError::into_inner).note(&source, about, news, now);
        let Some(series) = noted else { return };
        let again = series.count > 1;
        let event = self.event(about, kind, reason, &series);
        if self.writer.try_send(Entry { event, again }).is_err() {
            debug!(reason, object = about.name, "too many events are waiting; one is dropped");
        }
    }

    fn event(&self, about: &Reference, kind: EventKind, reason: &str, series: &Series) -> Object {
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let mut involved = json!({
            "apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace, "name": about.name,
            "uid": about.uid, "fieldPath": about.field_path,
        });
        let mut source = json!({"component": &*self.component, "host": &*self.host});
        for part in [&mut involved, &mut source] {
            if let Value::Object(map) = part {
                map.retain(|_, v| v.as_str() != Some(""));
            }
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "involvedObject": involved, "reason": reason, "message": series.text, "source": source,
            "firstTimestamp": meta::format_time(series.first), "lastTimestamp": meta::format_time(series.last),
            "count": series.count, "type": kind.as_str(), "eventTime": null,
            "reportingComponent": &*self.component, "reportingInstance": &*self.host,
        });
        match event {
            Value::Object(event) => event,
            _ => unreachable!("made an object above"),
        }
    }
}

impl EventWriter {
    /// Writes events until every recorder is gone.
    pub async fn run(mut self, registry: &Registry) {
        let Some(kind) = registry.kinds().by_kind("", "v1", "Event") else {
            return warn!("Events are not served; none will be recorded");
        };
        while let Some(entry) = self.entries.recv().await {
            let name = meta::name(&entry.event).to_owned();
            if let Err(status) = write(registry, &kind, entry).await {
                debug!(event = name, %status, "event not recorded");
            }
        }
    }
}

async fn write(registry: &Registry, kind: &Kind, entry: Entry) -> Result<(), Status> {
    let options = WriteOptions::by("events");
    let namespace = meta::namespace(&entry.event).to_owned();
    if entry.again {
        let name = meta::name(&entry.event).to_owned();
        let known = registry.modify(kind, &namespace, &name, None, &options, |stored| {
            for field in ["count", "lastTimestamp", "message"] {
                if let Some(value) = entry.event.get(field) {
                    stored.insert(field.to_owned(), value.clone());
                }
            }
            Ok(())
        });
        match known.await {
            Err(status) if status.code == 404 => {}
            result => return result.map(drop),
        }
    }
    registry.create(kind, &namespace, entry.event, &options).await.map(drop)
}

/// What happened, as the recorder is told.
struct News<'a> {
    kind: EventKind,
    reason: &'a str,
    message: String,
}

/// The same event seen once or more often.
#[derive(Clone, Debug)]
struct Series {
    kind: EventKind,
    reason: Box<str>,
    /// Whether it stands for many messages.
    combined: bool,
    text: String,
    name: String,
    first: Timestamp,
    last: Timestamp,
    count: u32,
}

/// What one component recorded about one object.
#[derive(Debug)]
struct Recent {
    series: Vec<Series>,
    tokens: f64,
    at: Timestamp,
}

type Source = (Arc<str>, Arc<str>);

/// The recent events by object and source.
#[derive(Debug, Default)]
struct Memory {
    objects: HashMap<(Source, Reference), Recent>,
}

impl Memory {
    /// Notes an event; returns it with its count unless there were too many about this object.
    fn note(&mut self, source: &Source, about: &Reference, news: News<'_>, now: Timestamp) -> Option<Series> {
        // The limit counts the whole object; only what is shown tells its parts apart.
        let key = (source.clone(), about.clone());
        if !self.objects.contains_key(&key) && self.objects.len() >= OBJECTS {
            self.forget_oldest();
        }
        let recent = self.objects.entry(key).or_insert(Recent { series: Vec::new(), tokens: BURST, at: now });
        let noted = recent.note(&about.name, news, now);
        recent.allowed(now).then_some(noted)
    }

    /// Forgets a quarter of the objects, those longest silent.
    fn forget_oldest(&mut self) {
        let mut times: Vec<Timestamp> = self.objects.values().map(|recent| recent.at).collect();
        times.sort_unstable();
        let limit = times[times.len() / 4];
        self.objects.retain(|_, recent| recent.at > limit);
    }
}

impl Recent {
    fn note(&mut self, object: &str, news: News<'_>, now: Timestamp) -> Series {
        let similar = |s: &Series| s.kind == news.kind && *s.reason == *news.reason;
        let exact = |s: &Series| similar(s) && !s.combined && s.text == news.message;
        let fresh = |s: &&Series| seconds_between(s.last, now) <= COMBINE_WITHIN;
        let others = self.series.iter().filter(fresh).filter(|s| similar(s) && !s.combined && s.text != news.message);
        let combined = others.count() + 1 >= COMBINE_FROM;
        let known = self.series.iter_mut().find(|s| if combined { s.combined && similar(s) } else { exact(s) });
        let text = if combined { format!("(combined from similar events): {}", news.message) } else { news.message };
        if let Some(series) = known {
            series.text = text;
            series.last = now;
            series.count += 1;
            return series.clone();
        }
        let name = format!("{object}.{:x}", now.as_nanosecond());
        let reason = news.reason.into();
        let series = Series { kind: news.kind, reason, combined, text, name, first: now, last: now, count: 1 };
        if self.series.len() >= SERIES
            && let Some(oldest) = (0..self.series.len()).min_by_key(|&i| self.series[i].last)
        {
            self.series.swap_remove(oldest);
        }
        self.series.push(series.clone());
        series
    }

    /// Takes a token, if there is one.
    fn allowed(&mut self, now: Timestamp) -> bool {
        let elapsed = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.at = now;
        self.tokens = (self.tokens + elapsed / REFILL).min(BURST);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

fn seconds_between(a: Timestamp, b: Timestamp) -> i64 {
    b.as_second().saturating_sub(a.as_second())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn source() -> Source {
        ("test".into(), "".into())
    }

    fn pod(name: &str) -> Reference {
        Reference { kind: "Pod".to_owned(), name: name.to_owned(), ..Reference::default() }
    }

    fn news(message: impl Into<String>) -> News<'static> {
        News { kind: EventKind::Normal, reason: "Pulled", message: message.into() }
    }

    #[test]
    fn the_same_event_is_counted() {
        let mut memory = Memory::default();
        let first = memory.note(&source(), &pod("a"), news("x"), at(0)).unwrap();
        let second = memory.note(&source(), &pod("a"), news("x"), at(7)).unwrap();
        assert_eq!((second.count, &second.name, second.first, second.last), (2, &first.name, at(0), at(7)));
        let other = memory.note(&source(), &pod("b"), news("x"), at(8)).unwrap();
        assert_eq!(other.count, 1);
    }

    #[test]
    fn the_tenth_different_message_is_combined_with_the_later_ones() {
        let mut memory = Memory::default();
        let mut noted = |i: i64, second| memory.note(&source(), &pod("a"), news(format!("m{i}")), at(second)).unwrap();
        for i in 0..9 {
            assert_eq!(noted(i, i).text, format!("m{i}"));
        }
        let tenth = noted(9, 9);
        assert_eq!((tenth.text.as_str(), tenth.count), ("(combined from similar events): m9", 1));
        let eleventh = noted(10, 10);
        assert_eq!((eleventh.text.as_str(), eleventh.count), ("(combined from similar events): m10", 2));
        assert_eq!(eleventh.name, tenth.name);
        assert_eq!(noted(11, 2000).text, "m11", "the others are long past");
    }

    #[test]
    fn one_object_cannot_flood() {
        let mut memory = Memory::default();
        let mut allowed = |second| memory.note(&source(), &pod("a"), news("x"), at(second)).is_some();
        assert_eq!((0..40).filter(|_| allowed(0)).count(), 25);
        assert!(!allowed(299));
        assert!(allowed(301));
        assert!(!allowed(302));
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        for i in 0..5000 {
            memory.note(&source(), &pod(&format!("p{i}")), news("x"), at(i));
            memory.note(&source(), &pod("one"), news(format!("m{i}")), at(i * 700));
        }
        assert!(memory.objects.len() <= OBJECTS);
        assert!(memory.objects.values().all(|recent| recent.series.len() <= SERIES));
    }

    #[test]
    fn events_look_as_kubernetes_writes_them() {
        let (recorder, mut writer) = recorder();
        let about = Reference { api_version: "v1".into(), namespace: "shop".into(), uid: "u".into(), ..pod("web") };
        recorder.of("default-scheduler", "").record(&about, EventKind::Warning, "FailedScheduling", "no room");
        let mut event = writer.entries.try_recv().unwrap().event;
        assert!(meta::name(&event).starts_with("web."));
        assert_eq!(meta::namespace(&event), "shop");
        for field in ["metadata", "firstTimestamp", "lastTimestamp"] {
            assert!(event.remove(field).is_some());
        }
        assert_eq!(
            Value::Object(event),
            json!({
                "apiVersion": "v1", "kind": "Event", "eventTime": null, "type": "Warning", "count": 1,
                "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "u"},
                "reason": "FailedScheduling", "message": "no room", "source": {"component": "default-scheduler"},
                "reportingComponent": "default-scheduler", "reportingInstance": "",
            })
        );
    }
}
