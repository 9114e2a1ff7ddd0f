//! What happened since the last look.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;

use super::super::container;
use super::super::disk::{ContainerHistory, Ended};
use super::super::engine::{Engine, Sandbox, blocking};
use super::{Worker, now, seconds};
use crate::image::Reference;
use crate::node::disk::PodDir;
use crate::runtime::{ContainerId, ContainerState, Exit};

/// Bytes of a termination message.
const MAX_MESSAGE: usize = 4096;
/// Bytes and lines of a log that stand in for one.
const MAX_LOG: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// Notes left with the shim.
const READY: &str = "ready";
const STARTED: &str = "started";

impl<E: Engine> Worker<E> {
    /// Takes over a living sandbox of an earlier daemon.
    pub(super) fn adopt(&mut self, sandbox: E::Sandbox) {
        self.enter(Some(sandbox));
        let state = self.state.borrow().clone();
        for id in state.containers.keys() {
            let known = self.history.containers.get(&id.name);
            if known.is_some_and(|h| h.attempt >= id.attempt) {
                continue;
            }
            // The daemon died before the record of this run reached the disk.
            let history = ContainerHistory {
                attempt: id.attempt,
                sandbox: self.history.sandbox,
                image: self.pod.container(&id.name).and_then(|c| c.spec.image.clone()).unwrap_or_default(),
                previous: known.and_then(|h| h.ended.clone().or(h.previous.clone())),
                ..ContainerHistory::default()
            };
            self.history.containers.insert(id.name.clone(), history);
        }
        let generation = self.history.sandbox;
        let pod = self.pod.clone();
        let begun = |name: &str| self.history.containers.get(name).is_some_and(|h| h.sandbox == generation);
        self.initialized = pod.containers.iter().any(|c| !c.role.starts_before() && begun(&c.spec.name));
        for (id, note) in &state.notes {
            if self.history.containers.get(&id.name).is_some_and(|h| h.attempt == id.attempt) {
                let unit = self.unit(&id.name);
                (unit.now.ready, unit.now.started) = (note == READY, note == READY || note == STARTED);
            }
        }
    }

    /// Leaves the verdicts of probes with the shim, so that the next daemon need not wait for its own.
    pub(super) async fn note_readiness(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let pod = self.pod.clone();
        for container in &pod.containers {
            let spec = &container.spec;
            let (Some(unit), Some(history)) = (self.units.get_mut(&spec.name), self.history.containers.get(&spec.name))
            else {
                continue;
            };
            let probed = spec.startup_probe.is_some() || spec.readiness_probe.is_some();
            let word = match (unit.now.ready, unit.now.started) {
                (true, _) => READY,
                (false, true) => STARTED,
                (false, false) => "",
            };
            if !probed || unit.now.running.is_none() || unit.noted == word {
                continue;
            }
            unit.noted = word;
            let id = ContainerId { name: spec.name.clone(), attempt: history.attempt };
            if let Err(error) = sandbox.note(&id, word).await {
                tracing::debug!(pod = pod.uid(), container = %id, %error, "the shim keeps no note");
            }
        }
    }

    /// Notes the ends of containers whose sandbox is gone.
    pub(super) fn bury(&mut self, exits: Vec<(ContainerId, Exit)>) {
        for (id, exit) in exits {
            if let Some(history) = self.history.containers.get_mut(&id.name)
                && history.attempt == id.attempt
                && history.ended.is_none()
            {
                history.ended = Some(ended(&id, &exit, String::new()));
            }
        }
        for history in self.history.containers.values_mut().filter(|h| h.ended.is_none()) {
            history.ended = Some(lost(history));
        }
    }

    pub(super) async fn observe(&mut self) {
        let state = self.state.borrow_and_update().clone();
        if self.sandbox.is_none() {
            return;
        }
        // A sandbox that was taken over: its probes need the pod's address.
        if state.alive
            && self.facts.pod_ips.is_empty()
            && let Err(error) = self.connect().await
        {
            tracing::error!(pod = self.pod.uid(), %error, "cannot connect the pod to the network again");
        }
        let pod = self.pod.clone();
        let mut changed = false;
        for container in &pod.containers {
            let name = &container.spec.name;
            let Some(history) = self.history.containers.get(name).filter(|h| h.ended.is_none()) else { continue };
            let id = ContainerId { name: name.clone(), attempt: history.attempt };
            match state.containers.get(&id) {
                Some(ContainerState::Running { started_at, .. }) if !self.running(name) => {
                    if history.image_id.is_empty() {
                        self.identify(&container.spec).await;
                        changed = true;
                    }
                    let started = seconds(*started_at);
                    self.unit(name).now.running = Some(started);
                    let age = u64::try_from(now().saturating_sub(started)).unwrap_or(0);
                    self.watch_over(&id, &container.spec, Duration::from_secs(age));
                }
                Some(ContainerState::Exited(exit)) => {
                    self.note_end(&id, &container.spec, exit).await;
                    changed = true;
                }
                _ => {}
            }
        }
        if !state.alive {
            self.lose_sandbox().await;
            changed = true;
        }
        if changed {
            self.save().await;
        }
    }

    /// Finds out what a run was made from of which only the shim knew.
    async fn identify(&mut self, spec: &Container) {
        let Ok(reference) = spec.image.as_deref().unwrap_or_default().parse::<Reference>() else { return };
        let found = self.node.engine.image(&reference).await;
        if let (Ok(image), Some(history)) = (found, self.history.containers.get_mut(&spec.name)) {
            history.image_id = image.image_id().to_owned();
            history.stop_signal = container::stop_signal(image.config.stop_signal.as_deref());
        }
    }

    /// Records that a run ended and stops everything that looked after it.
    pub(super) async fn note_end(&mut self, id: &ContainerId, container: &Container, exit: &Exit) {
        let message = termination_message(&self.dir, id, container, exit.code != 0).await;
        let ended = match &exit.start_error {
            Some(why) => {
                Ended { reason: "StartError".to_owned(), message: why.clone(), ..ended(id, exit, String::new()) }
            }
            None => ended(id, exit, message),
        };
        if let Some(history) = self.history.containers.get_mut(&id.name) {
            history.ended = Some(ended);
        }
        self.rest(&id.name);
    }

    fn rest(&mut self, name: &str) {
        let unit = self.unit(name);
        (unit.watcher, unit.stop) = (None, None);
        unit.now = super::Now::default();
        (unit.retry_at, unit.noted) = (None, "");
    }

    async fn lose_sandbox(&mut self) {
        let uid = self.pod.uid().to_owned();
        self.events.normal(&self.pod, None, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        if let Err(error) = self.node.engine.cleanup(&uid).await {
            tracing::error!(pod = uid, %error, "cannot clean up after the pod's shim");
            self.wake_in(Duration::from_secs(10));
            return;
        }
        self.enter(None);
        self.facts.pod_ips.clear();
        self.initialized = false;
        self.bury(Vec::new());
        let names: Vec<String> = self.units.keys().cloned().collect();
        for name in names {
            self.rest(&name);
        }
        let now = Instant::now();
        self.setup_retry = Some(now + self.lost.next(now));
    }
}

fn ended(id: &ContainerId, exit: &Exit, message: String) -> Ended {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (_, 0) => "Completed",
        _ => "Error",
    };
    Ended {
        attempt: id.attempt,
        code: exit.code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started: seconds(exit.started_at),
        finished: seconds(exit.finished_at),
    }
}

/// A run of which nothing is known but that it is over: the machine was reset or its shim killed.
fn lost(history: &ContainerHistory) -> Ended {
    let message = "its end was not seen: the machine was reset or the pod's shim killed".to_owned();
    let reason = "Unknown".to_owned();
    Ended { attempt: history.attempt, code: 255, reason, message, finished: now(), ..Ended::default() }
}

async fn termination_message(dir: &PodDir, id: &ContainerId, container: &Container, failed: bool) -> String {
    let (message, log) = (dir.message(&id.name, id.attempt), dir.log(&id.name, id.attempt));
    let from_log = failed && container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    let read = blocking("reading a termination message", move || {
        let text = read_message(&message).unwrap_or_default();
        Ok(if text.is_empty() && from_log { log_tail(&log).unwrap_or_default() } else { text })
    });
    read.await.unwrap_or_default()
}

fn read_message(path: &Path) -> std::io::Result<String> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_MESSAGE as u64).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The end of a CRI log without its times.
fn log_tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    // The prefix of a line (time, stream, flag) is about 40 bytes: twice the size holds enough.
    let from = file.metadata()?.len().saturating_sub(MAX_LOG * 3);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(MAX_LOG * 3).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().skip(usize::from(from > 0)).filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
    let lines = &lines[lines.len().saturating_sub(MAX_LOG_LINES)..];
    let mut tail = lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    let limit = usize::try_from(MAX_LOG).unwrap_or(usize::MAX);
    if tail.len() > limit {
        let mut cut = tail.len() - limit;
        while !tail.is_char_boundary(cut) {
            cut += 1;
        }
        tail = tail.split_off(cut);
    }
    Ok(tail)
}
