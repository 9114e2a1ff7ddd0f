//! A server at rest with ten pods, three of them with probes; and how soon it is there again.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Cluster, run_with_input};
use crate::{pods, table};

const PODS: usize = 10;
/// Activity ends, memory is given back.
const SETTLE: Duration = Duration::from_secs(25);
const STARTS: usize = 20;

const HTTP: &str = "livenessProbe: {httpGet: {path: /etc/group, port: 80}}, readinessProbe: {tcpSocket: {port: 80}},";
const EXEC: &str = "livenessProbe: {exec: {command: ['true']}},";

pub fn start_pods(cluster: &Cluster) {
    let host = pods::host_dir(cluster);
    for n in 0..PODS {
        let probes = match n {
            0 | 1 => HTTP,
            2 => EXEC,
            _ => "",
        };
        let manifest = pods::manifest(&format!("i{n}"), &host, probes);
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &manifest);
    }
    cluster.wait_ready("-l bench=b");
}

/// What a process has used up so far.
struct Usage {
    written: f64,
    cpu: f64,
    wakeups: f64,
}

impl Usage {
    fn of(pid: i32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<f64> =
            stat.rsplit(')').next().unwrap().split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let switches = |path: String| field(&path, "voluntary_ctxt_switches:");
        Self {
            written: field(&format!("/proc/{pid}/io"), "write_bytes:"),
            cpu: (fields[11] + fields[12]) / 100.0,
            wakeups: threads.map(|t| switches(format!("{}/status", t.path().display()))).sum(),
        }
    }
}

fn field(file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Seconds of CPU a process has used.
pub fn cpu(pid: i32) -> f64 {
    Usage::of(pid).cpu
}

/// Proportional memory of a process in MB.
pub fn pss(pid: i32) -> f64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:") * 1024.0 / 1e6
}

pub fn measure(cluster: &Cluster, window: Duration) {
    std::thread::sleep(SETTLE);
    let pid = cluster.daemon_pid();
    let before = Usage::of(pid);
    std::thread::sleep(window);
    let after = Usage::of(pid);
    let seconds = window.as_secs_f64();
    let how = format!("{PODS} pods, 3 with probes every 10 s, over {seconds:.0} s");
    table::at_most("server idle, PSS", "MB", 25.0, pss(pid), &format!("smaps_rollup at the end of the window; {how}"));
    table::at_most("written while idle", "bytes", 0.0, after.written - before.written, &format!("/proc/PID/io; {how}"));
    let cpu = (after.cpu - before.cpu) / seconds * 100.0;
    table::at_most("CPU while idle", "%", 0.1, cpu, &format!("/proc/PID/stat; {how}"));
    let wakeups = (after.wakeups - before.wakeups) / seconds;
    table::plain("wake-ups while idle", "/s", wakeups, &format!("voluntary context switches of all threads; {how}"));
}

pub fn restart(cluster: &mut Cluster) {
    let mut samples = Vec::new();
    for _ in 0..STARTS {
        cluster.stop_daemon(Signal::SIGTERM);
        let began = Instant::now();
        cluster.start_daemon();
        samples.push(began.elapsed().as_secs_f64());
        let ready = "get node board -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        assert_eq!(cluster.k(ready), "True", "the daemon said ready before its node was");
    }
    let how = "median of 20, exec to sd_notify READY with the node Ready; existing data, 10 running pods";
    table::at_most("start → API answers, node Ready", "s", 0.5, table::median(samples), how);
    cluster.k("delete pods -l bench=b --wait=true");
}
