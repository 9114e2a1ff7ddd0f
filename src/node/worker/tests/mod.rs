//! Workers on a runtime of pretence and with a clock that jumps.
#![allow(clippy::unwrap_used)]

mod adopt;
mod end;
mod probes;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::image::{Error as ImageError, Image, ImageConfig, Reference};
use crate::link::message::{DesiredPod, ToServer};
use crate::network::services::Services;
use crate::node::disk::Pods;
use crate::node::engine::{Engine, Sandbox};
use crate::node::error::Result;
use crate::node::pod::tests::desired_message;
use crate::runtime::{self, Capture, ContainerConfig, ContainerState, ExecOutput, SandboxConfig};

/// How a container behaves.
#[derive(Clone, Copy)]
enum Script {
    /// Runs until it is asked to end.
    Runs,
    /// Ends by itself after some seconds with a code.
    Ends(u64, i32),
    /// Hears no signal but SIGKILL.
    Stubborn,
    /// Its command does not exist.
    NoCommand,
    /// It cannot be made: this kernel lacks a controller that its limits need.
    NotMade,
    /// Takes its shim with it after some seconds.
    KillsShim(u64),
}

struct Fake {
    begun: Instant,
    calls: Mutex<Vec<String>>,
    images: Mutex<BTreeSet<String>>,
    scripts: Mutex<BTreeMap<String, Script>>,
    /// What commands run inside answer.
    exec_code: Mutex<i32>,
    attached: Mutex<u32>,
}

#[derive(Clone)]
struct FakeEngine(Arc<Fake>);

#[derive(Clone)]
struct FakeSandbox {
    uid: String,
    fake: Arc<Fake>,
    state: Arc<watch::Sender<SandboxState>>,
}

impl Fake {
    fn call(&self, text: String) {
        self.calls.lock().unwrap().push(format!("{} {text}", self.begun.elapsed().as_secs()));
    }

    /// Calls with the seconds they happened at, since the last look.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl FakeSandbox {
    fn end(&self, id: &ContainerId, code: i32, start_error: Option<String>) {
        self.state.send_modify(|state| {
            let ended = matches!(state.containers.get(id), Some(ContainerState::Exited(_)));
            if !ended {
                let exit = Exit { code, signal: None, oom_killed: false, started_at: 0, finished_at: 0, start_error };
                state.containers.insert(id.clone(), ContainerState::Exited(exit));
            }
        });
    }

    fn die(&self) {
        self.state.send_modify(|state| state.alive = false);
    }
}

impl Engine for FakeEngine {
    type Sandbox = FakeSandbox;

    async fn create(&self, config: &SandboxConfig) -> Result<FakeSandbox> {
        self.0.call("create".into());
        let state = SandboxState { alive: true, ..SandboxState::default() };
        let state = Arc::new(watch::Sender::new(state));
        Ok(FakeSandbox { uid: config.uid.clone(), fake: self.0.clone(), state })
    }

    async fn cleanup(&self, _uid: &str) -> Result<()> {
        self.0.call("cleanup".into());
        Ok(())
    }

    async fn attach(&self, _sandbox: &FakeSandbox) -> Result<Vec<IpAddr>> {
        *self.0.attached.lock().unwrap() += 1;
        Ok(vec!["10.42.0.7".parse().unwrap()])
    }

    async fn detach(&self, _uid: &str) -> Result<()> {
        self.0.call("detach".into());
        Ok(())
    }

    async fn image(&self, reference: &Reference) -> Result<Image, ImageError> {
        if !self.0.images.lock().unwrap().contains(&reference.to_string()) {
            return Err(ImageError::NotPresent(reference.clone()));
        }
        let config = ImageConfig { cmd: vec!["run".into()], ..ImageConfig::default() };
        let (repo_tags, repo_digests) = (Vec::new(), Vec::new());
        let layers = vec!["/layer".into()];
        Ok(Image { id: "sha256:1".into(), config, layers, size: 1, repo_tags, repo_digests, pinned: false })
    }
}

impl Sandbox for FakeSandbox {
    fn uid(&self) -> &str {
        &self.uid
    }

    fn state(&self) -> watch::Receiver<SandboxState> {
        self.state.subscribe()
    }

    async fn run(&self, config: &ContainerConfig) -> runtime::Result<()> {
        let id = config.id();
        self.fake.call(format!("run {id}"));
        let script = self.fake.scripts.lock().unwrap().get(&id.name).copied().unwrap_or(Script::Runs);
        match script {
            Script::NotMade => {
                return Err(runtime::Error::MissingController { controller: "memory".into(), limit: "limit".into() });
            }
            Script::NoCommand => {
                let reason = "exec: \"x\": executable file not found in $PATH".to_owned();
                self.end(&id, 127, Some(reason.clone()));
                return Err(runtime::Error::Start { id, exit_code: 127, reason });
            }
            _ => {}
        }
        self.state.send_modify(|state| {
            state.containers.insert(id.clone(), ContainerState::Running { pid: 1, started_at: 1_000_000_000 });
        });
        if let Script::KillsShim(after) = script {
            let sandbox = self.clone();
            tokio::spawn(async move {
                sleep(Duration::from_secs(after)).await;
                sandbox.die();
            });
        }
        if let Script::Ends(after, code) = script {
            let sandbox = self.clone();
            tokio::spawn(async move {
                sleep(Duration::from_secs(after)).await;
                sandbox.end(&id, code, None);
            });
        }
        Ok(())
    }

    async fn signal(&self, id: &ContainerId, signal: i32) -> runtime::Result<()> {
        self.fake.call(format!("signal {id} {signal}"));
        let stubborn = matches!(self.fake.scripts.lock().unwrap().get(&id.name), Some(Script::Stubborn));
        if signal == libc::SIGKILL || !stubborn {
            self.end(id, 128 + signal, None);
        }
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, args: &[String], _: Capture) -> runtime::Result<ExecOutput> {
        if args.first().is_some_and(|a| a == "hook") {
            self.fake.call(format!("hook {id}"));
            sleep(Duration::from_secs(3)).await;
            return Ok(ExecOutput { code: Some(0), output: Vec::new() });
        }
        Ok(ExecOutput { code: Some(*self.fake.exec_code.lock().unwrap()), output: b"said".to_vec() })
    }

    async fn note(&self, id: &ContainerId, text: &str) -> runtime::Result<()> {
        self.state.send_modify(|state| drop(state.notes.insert(id.clone(), text.to_owned())));
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> runtime::Result<()> {
        self.state.send_modify(|state| {
            state.containers.remove(id);
        });
        Ok(())
    }

    async fn destroy(&self) -> runtime::Result<()> {
        self.fake.call("destroy".into());
        Ok(())
    }
}

/// A node with one pod.
struct Bench {
    fake: Arc<Fake>,
    outbox: Outbox,
    images: watch::Sender<u64>,
    orders: watch::Sender<Order>,
    message: DesiredPod,
    dir: tempfile::TempDir,
    worker: Option<JoinHandle<()>>,
    status: Value,
    events: Vec<String>,
    gone: bool,
}

impl Bench {
    async fn start(spec: Value, scripts: &[(&str, Script)]) -> Self {
        let bench = Self::prepare(spec, scripts, &[]);
        bench.begin(Left::Nothing).await
    }

    fn prepare(spec: Value, scripts: &[(&str, Script)], objects: &[(&str, Value)]) -> Self {
        let fake = Fake {
            begun: Instant::now(),
            calls: Mutex::default(),
            images: Mutex::new(["docker.io/library/img:1".to_owned()].into()),
            scripts: Mutex::new(scripts.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect()),
            exec_code: Mutex::new(0),
            attached: Mutex::new(0),
        };
        let message = desired_message(spec, objects);
        let pod = Arc::new(Desired::parse(&message).unwrap());
        Bench {
            fake: Arc::new(fake),
            outbox: Outbox::default(),
            images: watch::Sender::new(0),
            orders: watch::Sender::new(Order { pod, removed: false, resync: 0 }),
            message,
            dir: tempfile::tempdir().unwrap(),
            worker: None,
            status: Value::Null,
            events: Vec::new(),
            gone: false,
        }
    }

    /// Starts a (new) worker on what is there.
    async fn begin(mut self, left: Left<FakeSandbox>) -> Self {
        let dir = Pods::open(self.dir.path()).unwrap().pod("u-1").unwrap();
        dir.store(&self.message).unwrap();
        let shared = Shared {
            engine: FakeEngine(self.fake.clone()),
            outbox: self.outbox.clone(),
            images: self.images.subscribe(),
            dns: DnsConfig::default(),
            seccomp: PathBuf::from("/seccomp"),
            sandboxes: Sandboxes::default(),
            services: ServiceView::of(Services::default()),
            facts: Facts { host_ips: vec!["192.0.2.1".parse().unwrap()], ..Facts::default() },
        };
        let worker = Worker::new(Arc::new(shared), self.orders.subscribe(), dir, left);
        if let Some(old) = self.worker.replace(tokio::spawn(worker.run())) {
            old.abort();
        }
        self.after(0).await;
        self
    }

    /// Lets time pass and takes in what was reported.
    async fn after(&mut self, seconds: u64) {
        sleep(Duration::from_secs(seconds) + Duration::from_millis(100)).await;
        for message in self.outbox.drain() {
            match message {
                ToServer::PodStatus(report) => self.status = report.status,
                ToServer::PodGone(_) => self.gone = true,
                ToServer::Event(event) => self.events.push(format!("{}: {}", event.reason, event.message)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn order(&mut self, change: impl FnOnce(&mut DesiredPod), removed: bool) {
        change(&mut self.message);
        let pod = Arc::new(Desired::parse(&self.message).unwrap());
        self.orders.send_modify(|order| (order.pod, order.removed) = (pod, removed));
    }

    fn delete(&mut self, grace: u64) {
        self.order(
            |message| {
                let metadata = message.pod["metadata"].as_object_mut().unwrap();
                metadata.insert("deletionTimestamp".into(), json!("2026-01-01T00:00:00Z"));
                metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
            },
            false,
        );
    }

    fn phase(&self) -> &str {
        self.status["phase"].as_str().unwrap()
    }

    /// `reason` of the state, or `Running`, and the restart count.
    fn state(&self, name: &str) -> String {
        let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
        let all = lists.iter().filter_map(|l| self.status[l].as_array()).flatten();
        let status = all.into_iter().find(|s| s["name"] == name).unwrap();
        let state = status["state"].as_object().unwrap();
        let (kind, detail) = state.iter().next().unwrap();
        let word = detail["reason"].as_str().unwrap_or(kind);
        format!("{word} {}{}", status["restartCount"], if status["ready"] == true { " ready" } else { "" })
    }

    fn condition(&self, kind: &str) -> bool {
        self.status["conditions"].as_array().unwrap().iter().any(|c| c["type"] == kind && c["status"] == "True")
    }

    fn saw(&self, event: &str) -> bool {
        self.events.iter().any(|e| e.contains(event))
    }
}

fn app(extra: Value) -> Value {
    let mut container = json!({"name": "a", "image": "img:1"});
    for (key, value) in extra.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({"containers": [container]})
}

/// A pod with two stages before its containers and a sidecar.
fn staged(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [
            {"name": "i1", "image": "img:1"},
            {"name": "side", "image": "img:1", "restartPolicy": "Always"},
            {"name": "i2", "image": "img:1"},
        ],
        "containers": [{"name": "a", "image": "img:1"}, {"name": "b", "image": "img:1"}],
    })
}
