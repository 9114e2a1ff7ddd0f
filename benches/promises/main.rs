//! What Umiak promises, measured: `benches/run.sh` builds the static release binary and prints the table.
//!
//! Run as root on a quiet machine. `IDLE_SECONDS` (default 600) is the length of the idle window.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod load;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Cluster, images, run, run_with_input};
use nix::sys::signal::Signal;

const IDLE_PODS: usize = 10;
const STARTS: usize = 50;
const COST_PODS: usize = 20;

/// One row of the table.
struct Row {
    promise: &'static str,
    goal: String,
    measured: String,
    how: &'static str,
}

fn row(promise: &'static str, goal: impl ToString, measured: impl ToString, how: &'static str) -> Row {
    let row = Row { promise, goal: goal.to_string(), measured: measured.to_string(), how };
    print(&row);
    row
}

fn print(row: &Row) {
    println!("| {:<44} | {:>12} | {:>22} | {}", row.promise, row.goal, row.measured, row.how);
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn main() {
    if std::env::args().any(|arg| arg == "--list" || arg == "--test") {
        return;
    }
    let idle = Duration::from_secs(std::env::var("IDLE_SECONDS").map_or(600, |s| s.parse().unwrap()));
    let mut cluster = Cluster::stopped();
    let binary = common::binary();
    let size = fs::metadata(&binary).unwrap().len() as f64 / 1e6;
    row("binary", "15 MB", format!("{size:.1} MB"), "size of the file");
    cluster.start_daemon();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    throughput(&cluster);
    starts(&cluster);
    pod_cost(&cluster);
    start_to_ready(&mut cluster);
    idle_figures(&cluster, idle);
    container_start();
    cluster.finish();
}

fn throughput(cluster: &Cluster) {
    let (creates, gets) = load::run(&cluster.netns.0, &cluster.data_dir().join("admin.kubeconfig"), 32, 40_000);
    let how = "32 connections over TLS, one ConfigMap each, loopback";
    row("object creates", "14910 /s", format!("{creates:.0} /s"), how);
    row("object gets", "30785 /s", format!("{gets:.0} /s"), how);
}

fn pod(name: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{bench: b}}}}, spec: {{{extra} \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, imagePullPolicy: Never, \
         command: [sh, -c, 'touch /h/'$NAME'; exec sleep 100000'], env: [{{name: NAME, value: {name}}}], \
         volumeMounts: [{{name: h, mountPath: /h}}]}}], volumes: [{{name: h, hostPath: {{path: HOST}}}}]}}}}"
    )
}

/// `kubectl apply` of a pod until its process has run its first system calls: it makes a file on the host.
fn starts(cluster: &Cluster) {
    let host = cluster.dir.path().join("h");
    fs::create_dir_all(&host).unwrap();
    let mut with_kubectl = Vec::new();
    for n in 0..STARTS {
        let manifest = pod(&format!("s{n}"), "").replace("HOST", host.to_str().unwrap());
        let began = SystemTime::now();
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &manifest);
        let file = host.join(format!("s{n}"));
        let limit = Instant::now() + common::PATIENCE;
        while !file.exists() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        let made = fs::metadata(&file).unwrap().modified().unwrap();
        with_kubectl.push(made.duration_since(began).unwrap_or_default().as_secs_f64() * 1e3);
    }
    let how = "median of 50, kubectl's own time included, image present";
    row("kubectl apply -> process runs", "200 ms", format!("{:.0} ms", median(with_kubectl)), how);
    cluster.k("delete pods -l bench=b --wait=true");
}

fn pod_cost(cluster: &Cluster) {
    let host = cluster.dir.path().join("h");
    for n in 0..COST_PODS {
        run_with_input(
            cluster.kubectl().args(["apply", "-f", "-"]),
            &pod(&format!("c{n}"), "").replace("HOST", host.to_str().unwrap()),
        );
    }
    cluster.wait_ready("-l bench=b");
    std::thread::sleep(Duration::from_secs(2));
    let mut total = 0.0;
    let mut pods = 0;
    for root in common::leaks::cgroups(&cluster.data_dir()) {
        for entry in fs::read_dir(&root).unwrap().flatten() {
            let shim = entry.path().join("shim");
            let read = |name| fs::read_to_string(shim.join(name)).ok().and_then(|s| s.trim().parse::<f64>().ok());
            if let Some(bytes) = read("memory.usage_in_bytes").or_else(|| read("memory.current")) {
                total += bytes;
                pods += 1;
            }
        }
    }
    let how = "mean charge of the shim's cgroup over 20 pods, kernel memory included";
    row("a pod's own cost", "1 MB", format!("{:.2} MB", total / f64::from(pods.max(1)) / 1e6), how);
    cluster.k("delete pods -l bench=b --wait=true");
}

fn start_to_ready(cluster: &mut Cluster) {
    let mut samples = Vec::new();
    for _ in 0..10 {
        cluster.stop_daemon(Signal::SIGTERM);
        let began = Instant::now();
        cluster.start_daemon();
        samples.push(began.elapsed().as_secs_f64());
        let ready = "get node board -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        assert_eq!(cluster.k(ready), "True", "the daemon said ready before its node was");
    }
    let how = "median of 10, exec to sd_notify READY with the node Ready, existing data";
    row("start -> API answers, node Ready", "0.5 s", format!("{:.3} s", median(samples)), how);
}

/// User and system time of a process in seconds.
fn cpu(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn number(file: &str, field: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn idle_figures(cluster: &Cluster, window: Duration) {
    let host = cluster.dir.path().join("h");
    for n in 0..IDLE_PODS {
        run_with_input(
            cluster.kubectl().args(["apply", "-f", "-"]),
            &pod(&format!("i{n}"), "").replace("HOST", host.to_str().unwrap()),
        );
    }
    cluster.wait_ready("-l bench=b");
    std::thread::sleep(Duration::from_secs(20));
    let pid = cluster.daemon_pid();
    let io = format!("/proc/{pid}/io");
    let (written, spent) = (number(&io, "write_bytes"), cpu(pid));
    std::thread::sleep(window);
    let (written, spent) = (number(&io, "write_bytes") - written, cpu(pid) - spent);
    let pss = number(&format!("/proc/{pid}/smaps_rollup"), "Pss:") / 1e3;
    let seconds = window.as_secs_f64();
    row("server idle, PSS", "25 MB", format!("{pss:.1} MB"), "smaps_rollup at the end of the idle window, 10 pods");
    row(
        "bytes written while idle",
        "0",
        format!("{written:.0} in {seconds:.0} s"),
        "/proc/PID/io write_bytes, 10 pods",
    );
    row("CPU while idle", "0.1 %", format!("{:.3} %", spent / seconds * 100.0), "/proc/PID/stat over the window");
    cluster.k("delete pods -l bench=b --wait=true");
}

/// The same root file system and program by `crun run`, for comparison.
fn container_start() {
    let present =
        |tool| Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !present("crun") {
        row("crun run", "-", "not measured", "crun is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rootfs/bin");
    fs::create_dir_all(&root).unwrap();
    fs::copy("/bin/busybox", root.join("true")).unwrap();
    run(Command::new("crun").arg("spec").current_dir(dir.path()));
    let config = dir.path().join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["process"]["terminal"] = false.into();
    fs::write(&config, spec.to_string()).unwrap();
    let mut samples = Vec::new();
    for n in 0..STARTS {
        let began = Instant::now();
        let mut command = Command::new("crun");
        command.args(["run", "-b"]).arg(dir.path()).arg(format!("umiak-bench-{}-{n}", std::process::id()));
        if !command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success() {
            row("crun run", "-", "not measured", "crun run fails on this machine");
            return;
        }
        samples.push(began.elapsed().as_secs_f64() * 1e3);
    }
    row("crun run, for comparison", "-", format!("{:.1} ms", median(samples)), "median of 50, start to end of `true`");
    row("docker run, for comparison", "-", "not measured", "no Docker engine is asked for");
}
