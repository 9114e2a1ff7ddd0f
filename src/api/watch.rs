//! Watches: one JSON line a change.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch as signal;
use tokio::time::{Instant, Sleep, sleep_until};
use uuid::Uuid;

use crate::kinds::Kind;
use crate::kinds::status::{FieldError, Status};
use crate::registry::{Event, EventType, Filter, ListOptions, Raw, Registry, Watch};

use super::listen::stopped;
use super::query::Query;
use super::reply::{Body, Form, Style, typed};
use super::request::Call;
use super::{table, verbs};

/// Bytes written before the connection gets a turn.
const PIECE: usize = 32 << 10;
/// A client that asks for bookmarks gets one this long after something changed at the latest.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Least time a watch lasts that names none; up to as much again is added so that clients do not return together.
const LEAST: u64 = 1800;
/// Longest time a client may ask for.
const MOST: u64 = 24 * 3600;

/// How a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The objects there are, then what changes.
    State,
    /// The objects there are, a bookmark that says so, then what changes.
    StateAndMark,
    /// What changes from now on.
    Now,
    /// What changed after a revision.
    After(u64),
}

/// The answer to a watch request. What is wrong from the start is an error; a revision that is gone is the first event,
/// as clients expect it.
pub(super) async fn answer(call: &Call) -> Result<Response<Body>, Status> {
    let (registry, kind, query) = (&call.api.registry, call.target.kind.clone(), &call.query);
    let bookmarks = query.flag("allowWatchBookmarks");
    let start = start(query, registry.revision())?;
    let options = ListOptions { limit: 0, next: String::new(), exact: None, ..call.list_options()? };
    let filter = Filter::new(&kind, &options.labels, &options.fields)?;
    let namespace = options.namespace.clone();
    let opened = open(registry, &kind, start, &options, namespace.as_deref()).await;
    let (initial, watch) = match opened {
        Ok(opened) => opened,
        Err(status) if status.code == 410 => return Ok(typed(200, "application/json", error_event(&status).into())),
        Err(status) => return Err(status),
    };
    let state = State {
        style: call.style,
        kind,
        filter,
        initial,
        mark: start == Start::StateAndMark,
        watch,
        columns_sent: false,
        ends: Instant::now() + lasting(query)?,
        sleep: Box::pin(sleep_until(Instant::now() + BOOKMARK)),
        latest: bookmarks.then(|| registry.latest()),
        bookmark_due: None,
        bookmarked: 0,
        stopping: call.api.stopping.subscribe(),
        over: false,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let piece = state.next().await?;
        Some((Ok::<_, Status>(Frame::data(piece)), state))
    });
    let body: Body = StreamBody::new(frames).boxed_unsync();
    Ok(typed(200, "application/json", Bytes::new()).map(|_| body))
}

/// The objects to begin with and the changes after them.
async fn open(
    registry: &Registry,
    kind: &Arc<Kind>,
    start: Start,
    options: &ListOptions,
    ns: Option<&str>,
) -> Result<(VecDeque<Raw>, Watch), Status> {
    match start {
        Start::State | Start::StateAndMark => {
            let list = registry.list_slowly(kind, options).await?;
            let watch = registry.watch(kind, ns, Some(list.revision))?;
            Ok((list.items.into(), watch))
        }
        Start::Now => Ok((VecDeque::new(), registry.watch(kind, ns, None)?)),
        Start::After(revision) => Ok((VecDeque::new(), registry.watch(kind, ns, Some(revision))?)),
    }
}

/// Reads `resourceVersion`, `resourceVersionMatch` and `sendInitialEvents`.
fn start(query: &Query, current: u64) -> Result<Start, Status> {
    let wanted = verbs::revision(query.get("resourceVersion"))?;
    let matching = query.get("resourceVersionMatch");
    let invalid = |error| Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    if !query.has("sendInitialEvents") {
        if !matching.is_empty() {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return invalid(FieldError::forbidden("resourceVersionMatch", detail));
        }
        return Ok(if wanted == 0 { Start::State } else { Start::After(wanted) });
    }
    if matching != "NotOlderThan" {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return invalid(FieldError::forbidden("resourceVersionMatch", detail));
    }
    if wanted > current {
        return Err(crate::registry::future_revision(wanted, current));
    }
    let all = query.flag("sendInitialEvents");
    Ok(match (all, query.flag("allowWatchBookmarks"), wanted) {
        (true, true, _) => Start::StateAndMark,
        (true, false, _) => {
            let detail = "sendInitialEvents requires setting allowWatchBookmarks to true";
            return invalid(FieldError::forbidden("allowWatchBookmarks", detail));
        }
        (false, _, 0) => Start::Now,
        (false, _, revision) => Start::After(revision),
    })
}

/// How long a watch lasts.
fn lasting(query: &Query) -> Result<Duration, Status> {
    let spread = Uuid::new_v4().as_u64_pair().1 % LEAST;
    let asked = query.number::<u64>("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    Ok(Duration::from_secs(asked.map_or(LEAST + spread, |seconds| seconds.min(MOST))))
}

/// A watch under way.
struct State {
    style: Style,
    kind: Arc<Kind>,
    filter: Filter,
    initial: VecDeque<Raw>,
    /// Whether the end of the initial objects is still to be told.
    mark: bool,
    watch: Watch,
    columns_sent: bool,
    ends: Instant,
    sleep: Pin<Box<Sleep>>,
    /// Tells that something changed; only for clients that take bookmarks.
    latest: Option<signal::Receiver<u64>>,
    bookmark_due: Option<Instant>,
    bookmarked: u64,
    stopping: signal::Receiver<bool>,
    over: bool,
}

/// What a watch waits for.
enum Woken {
    Event(Result<Box<Event>, Status>),
    Changed,
    Time,
    Stopping,
}

impl State {
    /// The next lines; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = Vec::new();
        if let Err(status) = self.begin(&mut out) {
            return Some(self.end(out, &status));
        }
        while out.is_empty() {
            match self.wait().await {
                Woken::Event(event) => {
                    if let Err(status) = event.and_then(|event| self.events(*event, &mut out)) {
                        return Some(self.end(out, &status));
                    }
                }
                Woken::Changed => self.bookmark_due = Some(Instant::now() + BOOKMARK),
                Woken::Time if Instant::now() >= self.ends => return None,
                Woken::Time => {
                    self.bookmark_due = None;
                    self.bookmark(&mut out);
                }
                Woken::Stopping => return None,
            }
        }
        Some(out.into())
    }

    async fn wait(&mut self) -> Woken {
        let wake = self.bookmark_due.map_or(self.ends, |due| due.min(self.ends));
        if self.sleep.deadline() != wake {
            self.sleep.as_mut().reset(wake);
        }
        let armed = self.bookmark_due.is_some();
        let changed = async {
            match &mut self.latest {
                Some(latest) if !armed => drop(latest.changed().await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = self.watch.next() => Woken::Event(event.map(Box::new)),
            () = self.sleep.as_mut() => Woken::Time,
            () = changed => Woken::Changed,
            () = stopped(&mut self.stopping) => Woken::Stopping,
        }
    }

    /// The objects there are, as much of them as fits one piece, and the mark at their end.
    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Status> {
        while out.len() < PIECE {
            match self.initial.pop_front() {
                Some(raw) => self.line(EventType::Added, &raw, out)?,
                None if std::mem::take(&mut self.mark) => {
                    let revision = self.watch.revision();
                    self.bookmark_line(revision, json!({ "k8s.io/initial-events-end": "true" }), out);
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
        // Nothing is kept of a long beginning.
        if self.initial.is_empty() {
            self.initial = VecDeque::new();
        }
        Ok(())
    }

    /// One event and those that are waiting behind it.
    fn events(&mut self, first: Event, out: &mut Vec<u8>) -> Result<(), Status> {
        let mut next = Some(first);
        while let Some(event) = next {
            self.event(&event, out)?;
            next = if out.len() < PIECE { self.watch.try_next()? } else { None };
        }
        Ok(())
    }

    /// An event as the selectors show it: an object that leaves them is deleted, one that enters is added.
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) -> Result<(), Status> {
        let (kind, object) = if self.filter.is_empty() {
            (event.kind, &event.object)
        } else {
            let now = event.kind != EventType::Deleted && self.filter.matches(&event.object)?;
            let before = event.previous.as_ref().map(|raw| self.filter.matches(raw)).transpose()?.unwrap_or(false);
            match (before, now, &event.previous) {
                (true, true, _) => (EventType::Modified, &event.object),
                (false, true, _) => (EventType::Added, &event.object),
                (true, false, Some(previous)) => (EventType::Deleted, previous),
                _ => return Ok(()),
            }
        };
        self.line(kind, object, out)
    }

    fn line(&mut self, kind: EventType, raw: &Raw, out: &mut Vec<u8>) -> Result<(), Status> {
        out.extend_from_slice(match kind {
            EventType::Added => br#"{"type":"ADDED","object":"#,
            EventType::Modified => br#"{"type":"MODIFIED","object":"#,
            EventType::Deleted => br#"{"type":"DELETED","object":"#,
        });
        match self.style.form {
            Form::Table => {
                let metadata = json!({ "resourceVersion": raw.revision.to_string() });
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                out.extend(self.style.table_head(&self.kind, &metadata, columns));
                table::row(&self.kind, raw, self.style.include, Timestamp::now(), out)?;
                out.extend_from_slice(b"]}");
            }
            Form::Metadata => raw.write_metadata_to(out)?,
            Form::Json | Form::Yaml => raw.write_to(out),
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn bookmark(&mut self, out: &mut Vec<u8>) {
        let revision = self.watch.revision();
        if revision > self.bookmarked {
            self.bookmark_line(revision, json!({}), out);
        }
    }

    fn bookmark_line(&mut self, revision: u64, annotations: serde_json::Value, out: &mut Vec<u8>) {
        self.bookmarked = revision;
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if annotations.as_object().is_some_and(|a| !a.is_empty()) {
            metadata["annotations"] = annotations;
        }
        let object = match self.style.form {
            Form::Table => {
                let row = json!({ "cells": [], "object": partial(&metadata) });
                let metadata = json!({ "resourceVersion": revision.to_string() });
                let (kind, version) = ("Table", "meta.k8s.io/v1");
                json!({ "kind": kind, "apiVersion": version, "metadata": metadata, "columnDefinitions": null, "rows": [row] })
            }
            Form::Metadata => partial(&metadata),
            Form::Json | Form::Yaml => {
                json!({ "kind": &*self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata })
            }
        };
        out.extend_from_slice(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").as_bytes());
    }

    /// The last lines of a watch that cannot go on.
    fn end(&mut self, mut out: Vec<u8>, status: &Status) -> Bytes {
        self.over = true;
        out.extend_from_slice(error_event(status).as_bytes());
        out.into()
    }
}

fn partial(metadata: &serde_json::Value) -> serde_json::Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
}

fn error_event(status: &Status) -> String {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status.to_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_begin_as_asked() {
        let all = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        for (query, expected) in [
            ("", Ok(Start::State)),
            ("resourceVersion=0", Ok(Start::State)),
            ("resourceVersion=7", Ok(Start::After(7))),
            ("resourceVersion=99", Ok(Start::After(99))),
            (all, Ok(Start::StateAndMark)),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", Err(422)),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Ok(Start::Now)),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=5", Ok(Start::After(5))),
            ("sendInitialEvents=true", Err(422)),
            ("resourceVersionMatch=NotOlderThan", Err(422)),
            ("resourceVersion=x", Err(400)),
        ] {
            assert_eq!(start(&Query::parse(query), 10).map_err(|s| s.code), expected, "{query}");
        }
        assert_eq!(start(&Query::parse(&format!("{all}&resourceVersion=11")), 10).map_err(|s| s.code), Err(504));
    }

    #[test]
    fn watches_end() {
        let seconds = |query: &str| lasting(&Query::parse(query)).map(|d| d.as_secs()).unwrap_or_default();
        assert_eq!(seconds("timeoutSeconds=7"), 7);
        assert_eq!(seconds("timeoutSeconds=99999999"), MOST);
        assert!((LEAST..2 * LEAST).contains(&seconds("")));
    }
}
