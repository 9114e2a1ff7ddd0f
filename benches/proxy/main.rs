//! The Service proxy beside HAProxy and a direct connection: `cargo bench --bench proxy`, as root, with Debian's
//! haproxy installed.
//!
//! Three network namespaces on one bridge: load generator, node, backend. The node has both: HAProxy, and a server
//! (`UMIAK_BIN`, or else the program as the bench profile builds it) with a Service of the backend. Figures come from short rounds that take
//! turns (direct, HAProxy, Umiak), so that what else the machine does falls on all three alike; each figure is the
//! median of its rounds, each ratio the median of the rounds' ratios. `ROUNDS` (7) and `SECONDS` (2) of a round can be
//! set in the environment, and so can the kernel's `CONGESTION` control (cubic). On a busy machine it measures more if the scheduler gives it precedence:
//! `setsid -w sh -c 'echo -20 >/proc/self/autogroup; exec cargo bench --bench proxy'`. Words on the command line choose parts: `bulk`, `requests`, `connections`, `latency`, `udp`,
//! `idle`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

mod backend;
#[path = "../../tests/common/mod.rs"]
mod common;
mod lab;
mod load;
mod subject;
mod table;

use std::time::Instant;

use common::Cluster;
use lab::{Lab, Running};
use subject::{Port, Subject};
use table::{Goal, Round, Table};

/// Connections of the throughput measurements.
const CONNECTIONS: usize = 64;
/// Streams of the bulk measurement.
const STREAMS: usize = 4;
/// Connections whose memory is measured: HAProxy wants more than three descriptors for each that it is to allow, and a
/// container often may have no more than 20,000.
const IDLE: usize = 5_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("--list" | "--test") => {}
        Some("role-backend") => backend::serve(),
        Some("role-load") => load::run(&words[1..]),
        _ => measure(&words),
    }
}

fn measure(words: &[String]) {
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let lab = Lab::new();
    let backend = lab.spawn(&lab.backend, &["role-backend"]);
    let mut cluster = Cluster::stopped();
    cluster.log_filter = "info";
    lab.plug_node(&cluster.netns.0);
    cluster.start_daemon();
    let subjects = [Subject::direct(), Subject::haproxy(&lab, &cluster), Subject::cluster_ip(&lab, &cluster)];
    subjects.iter().for_each(|subject| lab.wait_for(subject.address(Port::Requests)));
    let mut table = Table::new();
    for (part, what, port, connections, goal) in [
        ("bulk", "bulk, Gbit/s", Port::Source, STREAMS, Goal::TenthMore),
        ("requests", "requests/s, 64 connections, 1 KB", Port::Requests, CONNECTIONS, Goal::TenthMore),
        ("connections", "new connections/s, 1 KB each", Port::Once, CONNECTIONS, Goal::TenthMore),
        ("latency", "median latency, µs (direct), µs added", Port::Requests, 1, Goal::TenthLess),
        ("udp", "UDP requests/s, 64 flows, 1 KB", Port::Udp, CONNECTIONS, Goal::None),
    ] {
        if !wanted(part) {
            continue;
        }
        let [mut figures, proxy, all] = rounds(&lab, &backend, &subjects, part, port, connections);
        if part == "latency" {
            figures.iter_mut().for_each(|[direct, others @ ..]| others.iter_mut().for_each(|other| *other -= *direct));
            table.row(what, &figures, goal);
            continue;
        }
        table.row(what, &figures, goal);
        // A Gbit/s is an eighth of a GB.
        let (unit, factor, goal) =
            if part == "bulk" { ("s per GB", 8.0, Goal::NoMore) } else { ("µs for each", 1e6, Goal::None) };
        let scaled = |costs: Vec<Round>| -> Vec<Round> {
            costs.into_iter().map(|cost| cost.map(|cost| cost * factor)).collect()
        };
        table.row(&format!("- CPU of the proxy, {unit}"), &scaled(proxy), goal);
        table.row(&format!("- CPU of client, proxy and backend, {unit}"), &scaled(all), Goal::None);
    }
    if wanted("idle") {
        table.row("PSS of 10,000 idle connections, KiB", &[idle(&lab, &subjects)], Goal::NoMore);
    }
    table.verdict();
}

/// Each subject in turn, as often as wished: what the load generator measured, and the processor seconds for one of what
/// it counted, the proxy's and everybody's.
fn rounds(
    lab: &Lab,
    backend: &Running,
    subjects: &[Subject; 3],
    what: &str,
    port: Port,
    connections: usize,
) -> [Vec<Round>; 3] {
    let seconds = number("SECONDS", 2);
    let one = |subject: &Subject| {
        if !subject.has(port) {
            return [f64::NAN; 3];
        }
        let spent = || {
            [subject.cpu_seconds(), subject.cpu_seconds() + lab::cpu_seconds(backend.0.id()) + lab::loads_cpu_seconds()]
        };
        let (before, began) = (spent(), Instant::now());
        let address = subject.address(port).to_string();
        let figure = lab.load(&[what, &address, &connections.to_string(), &seconds.to_string()]);
        let (after, counted) = (spent(), figure * began.elapsed().as_secs_f64());
        [figure, (after[0] - before[0]) / counted, (after[1] - before[1]) / counted]
    };
    let rounds: Vec<[[f64; 3]; 3]> = (0..number("ROUNDS", 7)).map(|_| subjects.each_ref().map(one)).collect();
    [0, 1, 2].map(|index| rounds.iter().map(|round| round.map(|subject| subject[index])).collect())
}

/// What the proxies' memory grows by per 10,000 connections (the kernel's own is the same for both: two sockets a connection).
fn idle(lab: &Lab, subjects: &[Subject; 3]) -> Round {
    subjects.each_ref().map(|subject| {
        let Some(before) = subject.pss_kib() else { return f64::NAN };
        let holder = lab.hold(subject.address(Port::Requests), IDLE);
        let grown = (subject.pss_kib().unwrap() - before) * 10_000.0 / IDLE as f64;
        drop(holder);
        grown
    })
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}
