//! The node half on the real kernel, told what to do through the in-process link, without the API. Needs root.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

#[path = "common/images.rs"]
mod images;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use umiak::image::{ImageStore, ImportOptions, Source};
use umiak::link::message::{Dependency, DesiredPod, Reference, Sequence, ToNode, ToServer};
use umiak::link::stream::{Channel, Frame, LogOptions, Stream, StreamRequest, Streams};
use umiak::link::{Open, ServerEnd, local};
use umiak::network::{Network, NetworkConfig};
use umiak::node::{self, DnsConfig, NodeConfig};
use umiak::runtime::{Runtime, RuntimeConfig};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node in a network namespace of its own.
struct Bench {
    dir: Arc<tempfile::TempDir>,
    cgroup: String,
    link: ServerEnd,
    sequence: Sequence,
    node: JoinHandle<()>,
    network: Arc<Network>,
    statuses: Vec<(Instant, Value)>,
    events: Vec<String>,
    gone: Vec<String>,
}

/// Runs a test on its own thread's network namespace with the daemon's kind of runtime.
fn test<F: Future<Output = ()>>(name: &str, body: impl FnOnce(Arc<tempfile::TempDir>, String) -> F) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let cgroup = format!("/umiak-node-{}-{name}", std::process::id());
    let left = Left { dir: dir.clone(), cgroup: cgroup.clone() };
    in_runtime(body(dir.clone(), cgroup.clone()));
    drop(left);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "mounts left: {mounts}");
    assert!(!dir.path().join("node").exists());
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let left = hierarchy.path().join(&cgroup[1..]);
        assert!(!left.exists(), "cgroup left: {}", left.display());
    }
}

/// What a test leaves is removed by a reset, also when it fails.
struct Left {
    dir: Arc<tempfile::TempDir>,
    cgroup: String,
}

impl Drop for Left {
    fn drop(&mut self) {
        let runtime = real_runtime(&self.dir, &self.cgroup);
        let done = in_runtime(async { node::reset(&self.dir.path().join("node"), &runtime).await });
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn real_runtime(dir: &tempfile::TempDir, cgroup: &str) -> Runtime {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_umiak"));
    let state_dir = dir.path().join("run");
    Runtime::new(RuntimeConfig { state_dir, cgroup_root: cgroup.to_owned(), exe }).unwrap()
}

impl Bench {
    async fn start(dir: Arc<tempfile::TempDir>, cgroup: String) -> Self {
        let runtime = real_runtime(&dir, &cgroup);
        let images = Arc::new(ImageStore::open(&dir.path().join("images")).unwrap());
        if images.list().unwrap().is_empty() {
            let archive = images::archive(dir.path(), "busybox.tar", &images::BUSYBOX);
            images.import(Source::Path(&archive), &ImportOptions::default(), &mut |_| {}).unwrap();
        }
        let config = NetworkConfig {
            bridge: "um-test0".into(),
            pod_cidr: "10.99.7.0/24".parse().unwrap(),
            cluster_cidr: "10.99.0.0/16".parse().unwrap(),
            state_dir: dir.path().join("net"),
            mtu: 1500,
        };
        let network = Arc::new(Network::open(config).await.unwrap());
        let (link, end) = local::pair();
        let mut sequence = Sequence::start();
        if !dir.path().join("node").exists() {
            // A new node starts nothing before it knows the Services.
            let body = ToNode::Complete { pods: Vec::new(), services: Vec::new() };
            link.tx.send(sequence.wrap(body)).await.unwrap();
        }
        let config = NodeConfig {
            name: "bench".into(),
            data_dir: dir.path().join("node"),
            images_dir: dir.path().join("images"),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            follow_address: false,
            labels: [("node-role.kubernetes.io/control-plane".to_owned(), String::new())].into(),
            dns: DnsConfig { servers: vec!["10.43.0.10".parse().unwrap()], domain: "cluster.local".into() },
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_cidr: "10.99.0.0/16".parse().unwrap(),
            proxy_balance: Default::default(),
            vxlan: Default::default(),
            view: node::View::default(),
        };
        let running = node::run(config, runtime, images, network.clone(), end);
        let node = tokio::spawn(async move { running.await.unwrap() });
        Self { dir, cgroup, link, sequence, node, network, statuses: Vec::new(), events: Vec::new(), gone: Vec::new() }
    }

    /// The daemon dies, another takes its place.
    async fn restart(self) -> Self {
        self.node.abort();
        let _ = self.node.await;
        Self::start(self.dir, self.cgroup).await
    }

    async fn send(&mut self, message: ToNode) {
        let envelope = self.sequence.wrap(message);
        self.link.tx.send(envelope).await.unwrap();
    }

    async fn want(&mut self, pod: &Value, objects: &[(&str, Value)]) {
        let objects = objects
            .iter()
            .map(|(name, object)| {
                let (resource, name) = name.split_once('/').unwrap();
                let reference = Reference { resource: resource.into(), namespace: "ns".into(), name: name.into() };
                Dependency { reference, object: object.as_object().cloned() }
            })
            .collect();
        let pod = pod.as_object().unwrap().clone();
        self.send(ToNode::Pod(DesiredPod { pod, objects })).await;
    }

    /// Takes in reports until one satisfies; the status that did.
    async fn until(&mut self, what: &str, good: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !good(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = tokio::time::timeout(left, self.link.rx.recv()).await;
            let message = message.unwrap_or_else(|_| panic!("{what}: {:#?} {:#?}", self.statuses.last(), self.events));
            match message.expect("the node runs").body {
                ToServer::PodStatus(report) => self.statuses.push((Instant::now(), report.status)),
                ToServer::PodGone(pod) => self.gone.push(pod.uid),
                ToServer::Event(event) => self.events.push(format!("{}: {}", event.reason, event.message)),
                ToServer::Hello | ToServer::Lacks { .. } | ToServer::Node(_) | ToServer::Address(_) => {}
            }
        }
    }

    async fn open(&self, request: StreamRequest) -> Stream {
        let (ours, theirs) = Stream::pair();
        self.link.streams.send(Open { request, stream: theirs }).await.unwrap();
        ours
    }

    fn status(&self) -> &Value {
        self.statuses.last().map_or(&Value::Null, |(_, s)| s)
    }

    fn state(&self, n: usize) -> &Value {
        &self.status()["containerStatuses"][n]
    }

    /// The log of a pod's first container, as soon as it ends with something.
    async fn log(&self, uid: &str, end: &str) -> String {
        let path = self.dir.path().join(format!("node/pods/{uid}/logs/c/0.log"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let log: String = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).map(|l| format!("{l}\n")).collect();
            if log.ends_with(end) {
                return log;
            }
            assert!(Instant::now() < deadline, "the log does not end with {end:?}: {log:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn pod(uid: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "p", "namespace": "ns", "uid": uid, "labels": {"app": "web"}},
    })
}

fn shell(script: &str) -> Value {
    json!({"name": "c", "image": "busybox", "command": ["sh", "-c", script]})
}

fn ready(bench: &Bench) -> bool {
    bench.state(0)["ready"] == true
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_pod_lives_and_dies() {
    test("lives", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let script = "echo ${GREETING} from $(hostname) at $IP; cat /cfg/a /sec/k /etc/resolv.conf; \
                      stat -c %a /sec/..data/k; echo kept > /work/file; echo last words > /dev/termination-log; \
                      trap 'exit 3' TERM; sleep 1000 & wait";
        let mut container = shell(script);
        container["env"] = json!([
            {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ]);
        container["volumeMounts"] = json!([
            {"name": "cfg", "mountPath": "/cfg"}, {"name": "sec", "mountPath": "/sec"},
            {"name": "work", "mountPath": "/work"},
        ]);
        let spec = json!({"containers": [container], "volumes": [
            {"name": "cfg", "configMap": {"name": "c"}},
            {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}},
            {"name": "work", "emptyDir": {}},
        ]});
        let objects = [
            ("configmaps/c", json!({"data": {"a": "hello\n"}})),
            ("secrets/s", json!({"data": {"k": "c2VjcmV0Cg=="}})),
        ];
        let pod = pod("u-1", spec);
        bench.want(&pod, &objects).await;
        bench.until("ready", ready).await;
        bench.until("started", |b| b.events.iter().any(|e| e.starts_with("Started"))).await;
        wait_for(&bench.dir.path().join("node/pods/u-1/volumes/work/file"));
        let ip = bench.status()["podIP"].as_str().unwrap().to_owned();
        let log = bench.log("u-1", "\n400\n").await;
        assert!(log.starts_with(&format!("hello from p at {ip}\nhello\nsecret\nsearch ns.svc.cluster.local")), "{log}");

        // An update of the ConfigMap reaches the volume.
        let reference = Reference { resource: "configmaps".into(), namespace: "ns".into(), name: "c".into() };
        let object = json!({"data": {"a": "bye"}}).as_object().cloned();
        bench.send(ToNode::Object(Dependency { reference, object })).await;
        let path = bench.dir.path().join("node/pods/u-1/volumes/cfg/a");
        let deadline = Instant::now() + PATIENCE;
        while fs::read_to_string(&path).unwrap() != "bye" {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let mut deleted = pod.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        deleted["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        bench.want(&deleted, &objects).await;
        bench.until("gone", |b| b.gone == ["u-1"]).await;
        let ended = &bench.state(0)["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["message"]), (&json!(3), &json!("last words\n")));
        bench.send(ToNode::Remove { uid: "u-1".into() }).await;
        let left = bench.dir.path().join("node/pods/u-1");
        while left.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.node.abort();
    });
}

#[test]
fn a_new_daemon_leaves_containers_alone() {
    test("adopts", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let pod = pod("u-2", json!({"containers": [shell("echo one; sleep 1000")]}));
        bench.want(&pod, &[]).await;
        bench.until("ready", ready).await;
        let first = bench.state(0).clone();
        let mut bench = bench.restart().await;
        bench.until("ready again, without a server's word", ready).await;
        assert_eq!(*bench.state(0), first);
        assert_eq!(bench.log("u-2", "one\n").await, "one\n");
        // A pod the server does not know is removed.
        bench.send(ToNode::Complete { pods: Vec::new(), services: Vec::new() }).await;
        while bench.dir.path().join("node/pods/u-2").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.node.abort();
    });
}

#[test]
fn init_containers_probes_and_restarts() {
    test("probes", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let mut web = shell("echo start; httpd -f -p 8080 -h /www");
        web["volumeMounts"] = json!([{"name": "www", "mountPath": "/www"}]);
        web["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        web["readinessProbe"] = json!({"httpGet": {"path": "/index.html", "port": "web"}, "periodSeconds": 1});
        web["livenessProbe"] =
            json!({"exec": {"command": ["test", "-e", "/www/index.html"]}, "periodSeconds": 1, "failureThreshold": 1});
        let mut init = shell("echo page > /www/index.html");
        init["name"] = json!("i");
        init["volumeMounts"] = web["volumeMounts"].clone();
        let spec = json!({
            "initContainers": [init], "containers": [web], "volumes": [{"name": "www", "emptyDir": {}}],
        });
        bench.want(&pod("u-3", spec), &[]).await;
        bench.until("ready", ready).await;
        fs::remove_file(bench.dir.path().join("node/pods/u-3/volumes/www/index.html")).unwrap();
        bench.until("restarted", |b| b.state(0)["restartCount"] == 1).await;
        bench.until("event", |b| b.events.iter().any(|e| e.contains("failed liveness probe, will be restarted"))).await;
        // The shell is the first process and takes no SIGTERM.
        assert_eq!(bench.state(0)["lastState"]["terminated"]["exitCode"], 137);
        bench.node.abort();
    });
}

#[test]
fn what_cannot_run_says_so() {
    test("fails", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let mut container = shell("");
        container["command"] = json!(["/no/such/program"]);
        bench.want(&pod("u-4", json!({"containers": [container]})), &[]).await;
        bench.until("error", |b| b.state(0)["state"]["waiting"]["reason"] == "RunContainerError").await;
        let text = bench.state(0)["state"]["waiting"]["message"].to_string();
        assert!(text.contains("no such file or directory"), "{text}");
        bench.node.abort();
    });
}

async fn write(stream: &Stream, data: &'static [u8]) {
    stream.tx.send(Frame { channel: Channel::Stdin, data: data.into() }).await.unwrap();
}

/// Reads a stream to its end: standard output, standard error, final status.
async fn finish(mut stream: Stream) -> (String, String, Value) {
    let (mut out, mut err) = (String::new(), String::new());
    loop {
        let frame = tokio::time::timeout(PATIENCE, stream.rx.recv()).await.unwrap().expect("a last word");
        let text = String::from_utf8_lossy(&frame.data);
        match frame.channel {
            Channel::Stdout => out.push_str(&text),
            Channel::Stderr => err.push_str(&text),
            Channel::Error => return (out, err, serde_json::from_slice(&frame.data).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn streams_reach_into_pods() {
    test("streams", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let mut container = shell("echo hello; nc -ll -p 7000 -e cat & while read x; do echo got $x; done; sleep 1000");
        container["stdin"] = json!(true);
        bench.want(&pod("u-5", json!({"containers": [container]})), &[]).await;
        bench.until("ready", ready).await;
        let (pod, container) = ("u-5".to_owned(), "c".to_owned());
        let exec = |command: &[&str], streams: Streams| StreamRequest::Exec {
            pod: pod.clone(),
            container: container.clone(),
            command: command.iter().map(ToString::to_string).collect(),
            streams,
        };
        let all = Streams { stdin: true, stdout: true, stderr: true, tty: false };

        let stream = bench.open(exec(&["sh", "-c", "cat; echo bad >&2; exit 3"], all)).await;
        write(&stream, b"said\n").await;
        write(&stream, b"").await;
        let (out, err, status) = finish(stream).await;
        assert_eq!((out.as_str(), err.as_str()), ("said\n", "bad\n"));
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        // Much output, all of it.
        let only_out = Streams { stdout: true, ..Streams::default() };
        let (out, _, status) = finish(bench.open(exec(&["seq", "100000"], only_out)).await).await;
        assert_eq!((out.len(), &status["status"]), (588_895, &json!("Success")));
        // What it leaves behind does not hold it up.
        let begun = Instant::now();
        finish(bench.open(exec(&["sh", "-c", "sleep 100 & echo x"], only_out)).await).await;
        assert!(begun.elapsed() < Duration::from_secs(20));
        let terminal = Streams { stdin: true, stdout: true, stderr: false, tty: true };
        let stream = bench.open(exec(&["sh", "-c", "sleep 0.3; stty size; cat"], terminal)).await;
        let data = r#"{"Width":91,"Height":17}"#.into();
        stream.tx.send(Frame { channel: Channel::Resize, data }).await.unwrap();
        write(&stream, b"line\n").await;
        write(&stream, b"").await;
        let (out, _, _) = finish(stream).await;
        assert!(out.contains("line\r\n"), "{out:?}");
        let (_, _, status) = finish(bench.open(exec(&["/none"], only_out)).await).await;
        assert_eq!(status["status"], "Failure");

        let mut stream = bench.open(StreamRequest::PortForward { pod: pod.clone(), port: 7000 }).await;
        write(&stream, b"ping").await;
        assert_eq!(stream.rx.recv().await.unwrap().data, "ping");
        drop(stream);
        let (_, _, status) =
            finish(bench.open(StreamRequest::PortForward { pod: pod.clone(), port: 7001 }).await).await;
        assert!(status["message"].to_string().contains("failed to connect to localhost:7001"), "{status}");

        let follow = LogOptions { follow: true, ..LogOptions::default() };
        let logs = |options| StreamRequest::Logs { pod: pod.clone(), container: container.clone(), options };
        let mut followed = bench.open(logs(follow)).await;
        let mut text = String::from_utf8_lossy(&followed.rx.recv().await.unwrap().data).into_owned();
        let attach = StreamRequest::Attach { pod: pod.clone(), container: container.clone(), streams: all };
        let mut attached = bench.open(attach).await;
        write(&attached, b"you\n").await;
        assert_eq!(attached.rx.recv().await.unwrap().data, "got you\n");
        while !text.ends_with("got you\n") {
            text.push_str(&String::from_utf8_lossy(&followed.rx.recv().await.unwrap().data));
        }
        assert_eq!(text, "hello\ngot you\n");
        let (_, _, status) = finish(bench.open(StreamRequest::PortForward { pod: "x".into(), port: 1 }).await).await;
        assert_eq!(status["code"], 404);
        bench.send(ToNode::Remove { uid: pod.clone() }).await;
        assert_eq!(finish(followed).await.0, "");
        bench.node.abort();
    });
}

#[test]
fn a_pod_starts_quickly() {
    test("quick", |dir, cgroup| async {
        let mut bench = Bench::start(dir, cgroup).await;
        let mut times = Vec::new();
        for n in 0..15 {
            let uid = format!("q-{n}");
            let spec = json!({
                "containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", "touch /work/up; sleep 1000"],
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
                "volumes": [{"name": "work", "emptyDir": {}}],
            });
            let up = bench.dir.path().join(format!("node/pods/{uid}/volumes/work/up"));
            let begun = Instant::now();
            bench.want(&pod(&uid, spec), &[]).await;
            while !up.exists() {
                assert!(begun.elapsed() < PATIENCE);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            times.push(begun.elapsed());
            bench.until("reported", |b| b.status()["phase"] == "Running" || !b.statuses.is_empty()).await;
        }
        times.sort();
        println!("desired to running: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
        bench.node.abort();
    });
}
