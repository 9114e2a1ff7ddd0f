//! A thousand boards at one server: what they cost it, and how soon a Deployment is on all of them.
//!
//! The boards are this process: each has its own key, token, certificate, TLS session and MQTT connection, and answers
//! as a node whose pods run at once. The server is the real one, in a process of its own. `AGENTS` is how many,
//! `IDLE_SECONDS` how long they are watched at rest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use umiak::clock::Clock;
use umiak::link::membership::{Granted, Reply, Request, Token, ask, cluster_id};
use umiak::link::message::{Envelope, NodeReport, PodName, PodReport, Sequence, ToNode, ToServer};
use umiak::link::mqtt::tls::{ClientTls, TlsError};
use umiak::link::mqtt::{self, NodeConfig};
use umiak::pki::node::NodeKey;
use umiak::pki::{pem_certificates, roots};

use crate::common::{Cluster, run_with_input};
use crate::{idle, table};

const SERVER: &str = "127.0.0.1:8883";
/// Boards that are joining at the same time, as the server allows.
const JOINING: usize = 12;
const PATIENCE: Duration = Duration::from_secs(900);
/// From the last activity to rest.
const SETTLE: Duration = Duration::from_secs(40);

/// What the boards do, all of them.
#[derive(Default)]
struct Seen {
    joined: AtomicUsize,
    complete: AtomicUsize,
    running: AtomicUsize,
    gone: AtomicUsize,
    messages: AtomicUsize,
}

pub fn measure(window: Duration) {
    let count: usize = std::env::var("AGENTS").map_or(1000, |n| n.parse().unwrap());
    let mut cluster = Cluster::stopped();
    cluster.log_filter = "warn";
    cluster.server_args.extend(["--no-node", "--cluster-cidr", "10.0.0.0/12"]);
    cluster.start_daemon();
    let pid = cluster.daemon_pid();
    // Before anything has happened: what tokens and joins leave behind is part of the cost.
    std::thread::sleep(SETTLE);
    let pss = idle::pss(pid);
    let tokens: Vec<Token> =
        (0..count).map(|_| cluster.token(&["--ttl", "2h", "--server", SERVER]).parse().unwrap()).collect();
    let cpu = idle::cpu(pid);

    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let (stop, stopped) = watch::channel(());
    let boards = boards(&cluster, tokens, seen.clone(), stopped);
    until(|| seen.complete.load(Ordering::Relaxed) >= count, "every board knows what it should have");
    let how = format!("{count} boards with certificates, TLS in TLS over MQTT, in one process on the same cores");
    table::plain("all boards join", "s", began.elapsed().as_secs_f64(), &how);
    table::plain("- CPU of the server for each", "ms", (idle::cpu(pid) - cpu) * 1e3 / count as f64, "");
    cluster.until_within(PATIENCE, "get nodes", |nodes| nodes.matches(" Ready ").count() == count);

    std::thread::sleep(SETTLE);
    let cost = (idle::pss(pid) - pss) * 1e3 / count as f64;
    table::at_most("server's memory for each idle agent", "KB", 40.0, cost, "growth of PSS, Node and Lease included");
    let (cpu, bytes) = (idle::cpu(pid), traffic(&cluster));
    std::thread::sleep(window);
    let seconds = window.as_secs_f64();
    let how = format!("at rest for {seconds:.0} s");
    table::plain("CPU of the server", "%", (idle::cpu(pid) - cpu) / seconds * 100.0, &how);
    let hourly = (traffic(&cluster) - bytes) * 3600.0 / seconds / 1e3 / count as f64;
    table::at_most("traffic of an idle agent", "KB/h", 20.0, hourly, &how);

    for (version, what) in [(1, "a Deployment of one pod a board runs everywhere"), (2, "it is rolled to all of them")]
    {
        let before = seen.running.load(Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), idle::cpu(pid));
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &deployment(count, version));
        let all = || seen.running.load(Ordering::Relaxed) >= before + count;
        until(all, "a pod runs on every board");
        let all_told = "get deployment web -o \
             jsonpath={.status.updatedReplicas}-{.status.readyReplicas}-{.status.replicas}-{.status.observedGeneration}";
        cluster.until_within(PATIENCE, all_told, |s| s == format!("{count}-{count}-{count}-{version}"));
        table::plain(what, "s", began.elapsed().as_secs_f64(), "kubectl apply to all replicas ready in its status");
        table::plain("- CPU of the server", "s", idle::cpu(pid) - cpu, "");
    }
    table::plain("server with its fleet, PSS", "MB", idle::pss(pid), "right after");
    drop(stop);
    boards.join().unwrap();
    cluster.finish();
}

fn until(done: impl Fn() -> bool, what: &str) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that passed the server's loopback, with headers.
fn traffic(cluster: &Cluster) -> f64 {
    let text = crate::common::run(cluster.netns.command("cat").arg("/proc/net/dev"));
    let line = text.lines().find_map(|l| l.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn deployment(count: usize, version: u32) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {{replicas: {count}, \
         selector: {{matchLabels: {{app: web}}}}, strategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 100%}}}}, \
         template: {{metadata: {{labels: {{app: web}}, annotations: {{version: '{version}'}}}}, spec: {{ \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, \
         resources: {{requests: {{cpu: 600m}}}}}}]}}}}}}}}"
    )
}

/// Starts the boards in the server's network namespace.
fn boards(
    cluster: &Cluster,
    tokens: Vec<Token>,
    seen: Arc<Seen>,
    stopped: watch::Receiver<()>,
) -> std::thread::JoinHandle<()> {
    let netns = PathBuf::from(format!("/run/netns/{}", cluster.netns.0));
    let directory = cluster.dir.path().join("boards");
    std::fs::create_dir(&directory).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    std::thread::spawn(move || {
        setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let turn = Arc::new(Semaphore::new(JOINING));
            let mut all = JoinSet::new();
            for (number, token) in tokens.into_iter().enumerate() {
                all.spawn(board(number, token, directory.clone(), turn.clone(), seen.clone(), stopped.clone()));
            }
            while all.join_next().await.transpose().unwrap().is_some() {}
        });
    })
}

async fn board(
    number: usize,
    token: Token,
    directory: PathBuf,
    turn: Arc<Semaphore>,
    seen: Arc<Seen>,
    mut stopped: watch::Receiver<()>,
) {
    let (key, clock) = (NodeKey::open(&directory.join(number.to_string())).unwrap(), clock(&directory));
    let granted = {
        let _turn = turn.acquire().await.unwrap();
        join(number, &token, &key, &clock).await
    };
    seen.joined.fetch_add(1, Ordering::Relaxed);
    let (chain, ca, key) = (pem_certificates(&granted.certificate).unwrap(), roots(&granted.ca).unwrap(), key.pem());
    let tls = move || {
        let key = rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).map_err(TlsError::of)?;
        ClientTls::new(ca.clone(), chain.clone(), key, clock.clone())
    };
    let (_addresses, addresses) = watch::channel(vec![SERVER.to_owned()]);
    let config = NodeConfig {
        cluster: cluster_id(&token.ca),
        node: granted.name.clone(),
        addresses,
        network: watch::channel(0).1,
        keepalive: NodeConfig::KEEPALIVE,
    };
    let (mut end, _state, link) = mqtt::node(config, Arc::new(tls));
    let mut sequence = Sequence::start();
    end.tx.send(sequence.wrap(ToServer::Node(report(number)))).await.unwrap();
    let serve = async {
        while let Some(Envelope { body, .. }) = end.rx.recv().await {
            seen.messages.fetch_add(1, Ordering::Relaxed);
            let answer = match body {
                ToNode::Pod(desired) => answer(&desired.pod, &granted.pod_cidr.host(2).to_string(), &seen),
                ToNode::Complete { .. } => {
                    seen.complete.fetch_add(1, Ordering::Relaxed);
                    None
                }
                _ => None,
            };
            if let Some(answer) = answer {
                end.tx.send(sequence.wrap(answer)).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = link => {}
        () = serve => {}
        _ = stopped.changed() => {}
    }
}

fn clock(directory: &Path) -> Arc<Clock> {
    Clock::open(&directory.join("clock"))
}

/// Joins, when the server has time for it.
async fn join(number: usize, token: &Token, key: &NodeKey, clock: &Arc<Clock>) -> Granted {
    let request = Request {
        name: format!("pi-{number}"),
        name_is_wanted: true,
        csr: base64::engine::general_purpose::STANDARD.encode(key.request().unwrap()),
        token: Some((token.id.clone(), token.secret.clone())),
        pod_cidr: None,
    };
    let (server, cluster) = ([SERVER.to_owned()], cluster_id(&token.ca));
    loop {
        if let Ok(mut stream) = mqtt::join(&server, *token.ca.bytes(), &cluster, clock.clone()).await {
            match ask(&mut stream, &request).await {
                Ok(Reply::Granted(granted)) => return *granted,
                Ok(Reply::Refused(refused)) => panic!("{refused}"),
                Err(_) => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn report(number: usize) -> NodeReport {
    let name = format!("pi-{number}");
    let resources = json!({"cpu": "1", "memory": "1Gi", "pods": "110", "ephemeral-storage": "10Gi"});
    let condition =
        |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Fine", "message": "fine"});
    let status = json!({
        "capacity": resources, "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": format!("192.168.{}.{}", number / 250, number % 250 + 1)},
            {"type": "Hostname", "address": name},
        ],
        "conditions": [
            condition("Ready", "True"), condition("MemoryPressure", "False"),
            condition("DiskPressure", "False"), condition("PIDPressure", "False"),
        ],
        "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux", "kubeletVersion": "v1.35.0",
            "osImage": "Debian GNU/Linux 13 (trixie)", "kernelVersion": "6.12.47+rpt-rpi-v8",
            "containerRuntimeVersion": "umiak://0.1.0", "machineID": format!("{number:032x}"), "bootID": "b",
            "systemUUID": "s", "kubeProxyVersion": "v1.35.0"},
    });
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"});
    NodeReport { labels: labels.as_object().unwrap().clone(), status }
}

/// What a node that runs its pods at once, and ends them at once, says of one.
fn answer(pod: &umiak::kinds::Object, address: &str, seen: &Seen) -> Option<ToServer> {
    let metadata = &pod["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    let name = PodName { uid: text("uid"), namespace: text("namespace"), name: text("name") };
    if metadata.get("deletionTimestamp").is_some() {
        seen.gone.fetch_add(1, Ordering::Relaxed);
        return Some(ToServer::PodGone(name));
    }
    if pod.get("status").is_some_and(|status| status["phase"] == "Running") {
        return None;
    }
    seen.running.fetch_add(1, Ordering::Relaxed);
    let now = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let status = json!({
        "phase": "Running", "hostIP": "192.168.0.1", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
        "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady")],
        "containerStatuses": [{"name": "c", "ready": true, "started": true, "restartCount": 0, "image": "busybox",
            "imageID": "busybox@sha256:0", "containerID": format!("umiak://{}", name.uid),
            "state": {"running": {"startedAt": now}}}],
    });
    Some(ToServer::PodStatus(PodReport { pod: name, status }))
}
