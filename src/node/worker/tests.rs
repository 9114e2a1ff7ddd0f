//! Workers on a runtime of pretence and with a clock that jumps.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::disk::Pods;
use super::super::engine::{Engine, Sandbox};
use super::super::error::Result;
use super::super::pod::tests::desired_message;
use super::*;
use crate::image::{Error as ImageError, Image, ImageConfig, Reference};
use crate::link::message::{DesiredPod, ToServer};
use crate::network::services::Services;
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
    /// It cannot be made.
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
            Script::NotMade => return Err(runtime::Error::Create { id, reason: "no".into() }),
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

#[tokio::test(start_paused = true)]
async fn a_pod_runs() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    assert_eq!(bench.fake.calls(), ["0 create", "0 run a-0"]);
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Running", "running 0 ready"));
    assert!(bench.condition("Ready"));
    assert_eq!(bench.status["podIP"], "10.42.0.7");
    let expected = [
        "Pulled: Container image \"img:1\" already present on machine",
        "Created: Created container: a",
        "Started: Started container a",
    ];
    assert_eq!(bench.events, expected);
    bench.after(3600).await;
    assert!(bench.fake.calls().is_empty(), "idle is idle");
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::Ends(1, 3))]).await;
    bench.after(5).await;
    assert_eq!(bench.state("a"), "CrashLoopBackOff 1");
    assert!(bench.saw("BackOff: Back-off restarting failed container a in pod pod_ns(u-1)"));
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(3), json!("Error")));
    bench.after(100).await;
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("run")).collect();
    // At once, then 10, 20 and 40 s after each end.
    assert_eq!(runs, ["0 run a-0", "1 run a-1", "12 run a-2", "33 run a-3", "74 run a-4"]);
}

#[tokio::test(start_paused = true)]
async fn policies_decide_the_end() {
    for (policy, code, phase, runs) in [
        ("Never", 0, "Succeeded", 1),
        ("Never", 5, "Failed", 1),
        ("OnFailure", 0, "Succeeded", 1),
        ("OnFailure", 1, "Running", 2),
        ("Always", 0, "Running", 2),
    ] {
        let mut spec = app(json!({}));
        spec["restartPolicy"] = json!(policy);
        let mut bench = Bench::start(spec, &[("a", Script::Ends(2, code))]).await;
        bench.after(5).await;
        assert_eq!(bench.phase(), phase, "{policy} {code}");
        let calls = bench.fake.calls();
        assert_eq!(calls.iter().filter(|c| c.contains("run")).count(), runs, "{policy} {code}");
        let over = phase != "Running";
        assert_eq!(calls.iter().any(|c| c.contains("destroy")), over, "{policy} {code}");
        if over {
            // A finished pod stays finished over restarts of the node.
            let mut bench = bench.begin(Left::Nothing).await;
            bench.after(5).await;
            assert_eq!(bench.phase(), phase);
            assert!(!bench.fake.calls().iter().any(|c| c.contains("run")));
        }
    }
}

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

#[tokio::test(start_paused = true)]
async fn init_containers_come_first_and_sidecars_go_last() {
    let scripts = [("i1", Script::Ends(2, 0)), ("i2", Script::Ends(3, 0))];
    let mut bench = Bench::start(staged("Always"), &scripts).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "PodInitializing 0"));
    bench.after(6).await;
    assert_eq!(bench.fake.calls(), ["0 create", "0 run i1-0", "2 run side-0", "2 run i2-0", "5 run a-0", "5 run b-0"]);
    assert_eq!((bench.phase(), bench.state("i1").as_str()), ("Running", "Completed 0 ready"));
    bench.delete(30);
    bench.after(1).await;
    let calls: Vec<_> = bench.fake.calls().into_iter().map(|c| c.split_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(calls, ["signal a-0 15", "signal b-0 15", "signal side-0 15", "destroy", "detach"]);
    assert!(bench.gone);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_the_pod_or_comes_again() {
    let mut bench = Bench::start(staged("Never"), &[("i1", Script::Ends(1, 4))]).await;
    bench.after(3).await;
    assert_eq!(bench.phase(), "Failed");
    let mut bench = Bench::start(staged("Always"), &[("i1", Script::Ends(1, 4))]).await;
    bench.after(15).await;
    assert_eq!((bench.phase(), bench.state("i1").as_str()), ("Pending", "CrashLoopBackOff 2"));
    assert!(!bench.fake.calls().iter().any(|c| c.contains("run a")));
}

#[tokio::test(start_paused = true)]
async fn a_job_with_a_sidecar_ends() {
    let scripts =
        [("i1", Script::Ends(0, 0)), ("i2", Script::Ends(0, 0)), ("a", Script::Ends(3, 0)), ("b", Script::Ends(5, 0))];
    let mut bench = Bench::start(staged("OnFailure"), &scripts).await;
    bench.after(8).await;
    assert_eq!(bench.phase(), "Succeeded");
    assert!(bench.fake.calls().iter().any(|c| c.contains("signal side-0 15")));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_missing_is_waited_for() {
    let mut bench = Bench::start(app(json!({"image": "later:1"})), &[]).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "ErrImagePull 0"));
    assert!(bench.status.to_string().contains("umiak image import"));
    bench.after(11).await;
    assert_eq!(bench.state("a"), "ImagePullBackOff 0");
    bench.fake.images.lock().unwrap().insert("docker.io/library/later:1".into());
    bench.images.send_modify(|n| *n += 1);
    bench.after(0).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    let never = Bench::start(app(json!({"image": "x:1", "imagePullPolicy": "Never"})), &[]).await;
    assert_eq!(never.state("a"), "ErrImageNeverPull 0");
    let bad = Bench::start(app(json!({"image": "Bad Name"})), &[]).await;
    assert_eq!(bad.state("a"), "InvalidImageName 0");
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_waited_for() {
    let reference = json!([{"configMapRef": {"name": "late"}}]);
    let mut bench = Bench::start(app(json!({"envFrom": reference})), &[]).await;
    assert_eq!(bench.state("a"), "CreateContainerConfigError 0");
    assert!(bench.saw("Failed: Error: configmap \"late\" not found"));
    let late = desired_message(json!({}), &[("configmaps/late", json!({"data": {"k": "v"}}))]);
    bench.order(|message| message.objects = late.objects, false);
    bench.after(0).await;
    assert_eq!(bench.state("a"), "running 0 ready");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::NoCommand)]).await;
    bench.after(0).await;
    assert_eq!(bench.state("a"), "RunContainerError 0");
    bench.after(5).await;
    assert_eq!(bench.state("a"), "CrashLoopBackOff 1");
    assert!(bench.saw("BackOff: Back-off restarting failed container a in pod pod_ns(u-1)"));
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(127), json!("StartError")));
    bench.after(30).await;
    assert_eq!(bench.phase(), "Running");
    let mut bench = Bench::start(app(json!({})), &[("a", Script::NotMade)]).await;
    bench.after(11).await;
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Pending", "CreateContainerError 0"));
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("run")).collect();
    assert_eq!(runs, ["0 run a-0", "10 run a-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_not_supported_is_named() {
    let mut spec = app(json!({}));
    spec["runtimeClassName"] = json!("gvisor");
    let bench = Bench::start(spec, &[]).await;
    assert_eq!(bench.state("a"), "CreateContainerConfigError 0");
    assert!(bench.status.to_string().contains("spec.runtimeClassName is not supported"));
}

#[tokio::test(start_paused = true)]
async fn deletion_asks_waits_and_kills() {
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["hook"]}}}});
    let mut bench = Bench::start(app(hook), &[("a", Script::Stubborn)]).await;
    bench.fake.calls();
    bench.delete(10);
    bench.after(1).await;
    assert_eq!((bench.state("a").as_str(), bench.gone), ("running 0 ready", false));
    bench.after(12).await;
    assert_eq!(bench.fake.calls(), ["0 hook a-0", "3 signal a-0 15", "10 signal a-0 9", "10 destroy", "10 detach"]);
    assert!(bench.gone && bench.saw("Killing: Stopping container a"));
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Failed", "Error 0"));
    bench.order(|_| {}, true);
    bench.after(1).await;
    assert!(bench.worker.take().unwrap().is_finished());
    assert!(!bench.dir.path().join("pods/u-1").exists());
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_hastens() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::Stubborn)]).await;
    // Longer than any clock counts.
    bench.delete(i64::MAX.unsigned_abs());
    bench.after(5).await;
    bench.fake.calls();
    bench.delete(0);
    bench.after(3).await;
    assert_eq!(bench.fake.calls()[..2], ["5 signal a-0 15", "7 signal a-0 9"]);
    assert!(bench.gone);
}

#[tokio::test(start_paused = true)]
async fn a_removed_pod_goes_at_once() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    bench.order(|_| {}, true);
    bench.after(1).await;
    assert!(bench.worker.take().unwrap().is_finished() && !bench.gone);
    assert!(!bench.dir.path().join("pods/u-1").exists());
}

#[tokio::test(start_paused = true)]
async fn probes_decide_about_restart_and_readiness() {
    let probe = json!({"exec": {"command": ["look"]}, "periodSeconds": 5, "failureThreshold": 2});
    let mut bench = Bench::start(app(json!({"livenessProbe": probe, "readinessProbe": probe})), &[]).await;
    bench.after(1).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    *bench.fake.exec_code.lock().unwrap() = 1;
    bench.after(5).await;
    assert_eq!(bench.state("a"), "running 0 ready");
    assert!(bench.saw("Unhealthy: Liveness probe failed: said"));
    bench.after(5).await;
    assert!(bench.saw("Killing: Container a failed liveness probe, will be restarted"));
    assert!(bench.state("a").starts_with("running 1"), "{}", bench.state("a"));
    assert!(!bench.condition("Ready"));
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_holds_the_others_back() {
    let container = json!({
        "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 100},
        "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1},
    });
    let bench = Bench::prepare(app(container), &[], &[]);
    *bench.fake.exec_code.lock().unwrap() = 1;
    let mut bench = bench.begin(Left::Nothing).await;
    bench.after(20).await;
    assert_eq!(bench.state("a"), "running 0");
    *bench.fake.exec_code.lock().unwrap() = 0;
    bench.after(2).await;
    assert_eq!(bench.state("a"), "running 0 ready");
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_takes_over_what_runs() {
    let bench = Bench::prepare(app(json!({})), &[("a", Script::Ends(1, 1))], &[]);
    let engine = FakeEngine(bench.fake.clone());
    let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
    // The run is known to the sandbox alone: the daemon died before its record reached the disk.
    let running = ContainerState::Running { pid: 1, started_at: 5_000_000_000 };
    let id = ContainerId { name: "a".into(), attempt: 4 };
    sandbox.state.send_modify(|s| drop(s.containers.insert(id, running)));
    bench.fake.calls();
    let mut bench = bench.begin(Left::Live(sandbox)).await;
    assert!(bench.fake.calls().is_empty());
    assert_eq!((bench.phase(), bench.state("a").as_str()), ("Running", "running 4 ready"));
    assert_eq!(bench.status["containerStatuses"][0]["imageID"], "sha256:1");
    bench.order(|_| {}, false);
    bench.after(5).await;
    assert_eq!(bench.state("a"), "running 4 ready");
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_keeps_the_verdicts_of_probes() {
    let probe = json!({"readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1}});
    for (code, state) in [(0, "running 0 ready"), (1, "running 0")] {
        let bench = Bench::prepare(app(probe.clone()), &[], &[]);
        let engine = FakeEngine(bench.fake.clone());
        let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
        *bench.fake.exec_code.lock().unwrap() = code;
        let mut bench = bench.begin(Left::Live(sandbox.clone())).await;
        bench.after(3).await;
        assert_eq!(bench.state("a"), state);
        // The first look of the new daemon lies in the future.
        bench.order(|m| m.pod["spec"]["containers"][0]["readinessProbe"]["initialDelaySeconds"] = json!(60), false);
        let bench = bench.begin(Left::Live(sandbox)).await;
        assert_eq!(bench.state("a"), state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_starts_pods_again_and_counts() {
    let bench = Bench::start(app(json!({})), &[]).await;
    bench.fake.calls();
    let mut bench = bench.begin(Left::Dead(Vec::new())).await;
    assert_eq!(bench.state("a"), "running 1 ready");
    let last = &bench.status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].clone(), last["reason"].clone()), (json!(255), json!("Unknown")));
    bench.after(1).await;
    assert!(bench.fake.calls().contains(&"0 run a-1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_shim_is_replaced() {
    let bench = Bench::prepare(app(json!({})), &[], &[]);
    let engine = FakeEngine(bench.fake.clone());
    let sandbox = engine.create(&SandboxConfig { uid: "u-1".into(), ..SandboxConfig::default() }).await.unwrap();
    let mut bench = bench.begin(Left::Live(sandbox.clone())).await;
    bench.fake.calls();
    sandbox.die();
    bench.after(1).await;
    assert_eq!(bench.fake.calls(), ["0 cleanup", "0 create", "0 run a-1"]);
    assert_eq!(*bench.fake.attached.lock().unwrap(), 2, "taken over, then made anew");
    assert_eq!(bench.state("a"), "running 1 ready");
}

#[tokio::test(start_paused = true)]
async fn shims_that_are_lost_again_and_again_back_off() {
    let mut bench = Bench::start(app(json!({})), &[("a", Script::KillsShim(1))]).await;
    bench.after(20).await;
    let runs: Vec<_> = bench.fake.calls().into_iter().filter(|c| c.contains("create")).collect();
    assert_eq!(runs, ["0 create", "1 create", "3 create", "6 create", "11 create", "20 create"]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_image_restarts_its_container() {
    let mut bench = Bench::start(app(json!({})), &[]).await;
    bench.fake.images.lock().unwrap().insert("docker.io/library/img:2".into());
    bench.order(|message| message.pod["spec"]["containers"][0]["image"] = json!("img:2"), false);
    bench.after(1).await;
    assert!(bench.saw("Killing: Container a definition changed, will be restarted"));
    assert_eq!(bench.state("a"), "running 1 ready");
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_sysctl_is_refused() {
    for (name, phase, reason) in [
        ("kernel.msgmax", "Failed", Some("SysctlForbidden")),
        ("net.ipv4.ip_forward", "Failed", Some("SysctlForbidden")),
        ("kernel.shm_rmid_forced", "Running", None),
        ("net/ipv4/tcp_syncookies", "Running", None),
    ] {
        let mut spec = app(json!({}));
        spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
        let mut bench = Bench::start(spec, &[]).await;
        bench.after(1).await;
        assert_eq!((bench.phase(), bench.status["reason"].as_str()), (phase, reason), "{name}");
        assert_eq!(bench.status["containerStatuses"].is_null(), reason.is_some(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let mut spec = app(json!({}));
    spec["activeDeadlineSeconds"] = json!(5);
    let mut bench = Bench::start(spec, &[]).await;
    bench.after(4).await;
    assert_eq!(bench.phase(), "Running");
    bench.after(1).await;
    assert_eq!((bench.phase(), bench.status["reason"].as_str()), ("Failed", Some("DeadlineExceeded")));
}
