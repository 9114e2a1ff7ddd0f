//! A board that is not the server: memory and traffic at rest, how soon a pod runs there, how fast streams are.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use crate::common::fleet::{Agent, Lan};
use crate::common::{self, Cluster, Running, images, leaks, run, run_with_input};
use crate::{idle, pods, table};

const SETTLE: Duration = Duration::from_secs(40);
const STARTS: usize = 20;
/// Bytes of a stream.
const STREAM: usize = 128 << 20;

pub fn measure(window: Duration) {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    starts(&cluster, &agent);
    std::thread::sleep(SETTLE);
    let how = "1 running pod, at rest for 40 s, logging debug lines; smaps_rollup";
    table::at_most("agent idle, PSS", "MB", 8.0, idle::pss(agent.pid()), how);
    let before = [internet(&agent), interface(&agent)];
    std::thread::sleep(window);
    let grown = [internet(&agent) - before[0], interface(&agent) - before[1]];
    let [internet, interface] = grown.map(|bytes| bytes * 3600.0 / window.as_secs_f64() / 1e3);
    let how = |what| format!("{what}, both directions over {:.0} s, keepalive 60 s", window.as_secs_f64());
    table::at_most("traffic of an idle agent", "KB/h", 20.0, internet, &how("IPv4 packets: what a data plan counts"));
    let all = how("Ethernet frames: with ARP, and what the kernel itself says by IPv6");
    table::plain("- on its own segment", "KB/h", interface, &all);
    streams(&cluster);
    agent.finish();
    cluster.finish();
}

/// Bytes a second through `kubectl exec`, with kubectl's own start.
fn streams(cluster: &Cluster) {
    let rate = |began: Instant| STREAM as f64 / 1e6 / began.elapsed().as_secs_f64();
    let how = "128 MB through kubectl exec on loopback, its start included; 2 cores for both ends";
    let began = Instant::now();
    let mut from = Running::start(cluster, &format!("exec r0 -- head -c {STREAM} /dev/zero"));
    let read = std::io::copy(from.0.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    assert_eq!(read, STREAM as u64);
    table::at_least("stream from a pod on another board", "MB/s", 8.0, rate(began), how);
    let began = Instant::now();
    let mut into = Running::start(cluster, "exec -i r0 -- sh -c cat>/dev/null");
    let mut stdin = into.0.stdin.take().unwrap();
    std::io::copy(&mut std::io::repeat(0).take(STREAM as u64), &mut stdin).unwrap();
    drop(stdin);
    assert!(into.0.wait().unwrap().success());
    table::at_least("stream into one", "MB/s", 8.0, rate(began), how);
}

/// Bytes of IPv4 packets that the board sent and received.
fn internet(agent: &Agent) -> f64 {
    let lines = run(agent.netns.command("grep").args(["IpExt:", "/proc/net/netstat"]));
    let (names, values) = lines.split_once('\n').unwrap();
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.filter(|(name, _)| ["InOctets", "OutOctets"].contains(name)).map(|(_, n)| n.parse::<f64>().unwrap()).sum()
}

/// Bytes of all frames that the board sent and received.
fn interface(agent: &Agent) -> f64 {
    let line = run(agent.netns.command("grep").args([leaks::UPLINK, "/proc/net/dev"]));
    let fields: Vec<f64> =
        line.split_once(':').unwrap().1.split_whitespace().map(|field| field.parse().unwrap()).collect();
    fields[0] + fields[8]
}

fn starts(cluster: &Cluster, agent: &Agent) {
    let host = agent.dir.path().join("h");
    fs::create_dir_all(&host).unwrap();
    let mut times = Vec::new();
    for n in 0..STARTS {
        let name = format!("r{n}");
        let manifest = pods::manifest(&name, &host, "").replacen("containers:", "nodeName: pi-1, containers:", 1);
        let began = SystemTime::now();
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &manifest);
        let limit = Instant::now() + common::PATIENCE;
        while !host.join(&name).exists() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        let made = fs::metadata(host.join(&name)).unwrap().modified().unwrap();
        times.push(made.duration_since(began).unwrap_or_default().as_secs_f64() * 1e3);
    }
    let how = "median of 20, kubectl apply to the first act of its process, image present, kubectl's own time included";
    table::at_most("a pod on another board runs", "ms", 300.0, table::median(times), how);
    let all: Vec<String> = (1..STARTS).map(|n| format!("r{n}")).collect();
    cluster.k(&format!("delete pods {} --wait=true", all.join(" ")));
}
