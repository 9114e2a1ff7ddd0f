//! The Service proxy beside HAProxy and a direct connection: `cargo bench --bench proxy`, as root, with Debian's
//! haproxy installed.
//!
//! Three network namespaces on one bridge: load generator, proxies, backend. Figures come from short rounds that take
//! turns (direct, HAProxy, Umiak), so that what else the machine does falls on all three alike; each figure is the
//! median of its rounds, each ratio the median of the rounds' ratios. `ROUNDS` (7) and `SECONDS` (2) of a round can be
//! set in the environment. Words on the command line choose parts: `bulk`, `requests`, `connections`, `latency`, `udp`,
//! `idle`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

mod backend;
mod lab;
mod load;
mod subject;
mod table;

use std::net::SocketAddrV4;

use lab::Lab;
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
        Some("role-engine") => subject::run_engine(),
        Some("role-load") => load::run(&words[1..]),
        _ => measure(&words),
    }
}

fn measure(words: &[String]) {
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let lab = Lab::new();
    let _backend = lab.spawn(&lab.backend, &["role-backend"]);
    let subjects = [Subject::direct(), Subject::haproxy(&lab), Subject::engine(&lab)];
    subjects.iter().for_each(|subject| lab.wait_for(subject.address(Port::Requests)));
    let mut table = Table::new();
    if wanted("bulk") {
        let (rates, costs) = bulk(&lab, &subjects);
        table.row("bulk, Gbit/s", &rates, Goal::TenthMore);
        table.row("bulk, CPU s per GB", &costs, Goal::NoMore);
    }
    if wanted("requests") {
        let rates = rounds(&subjects, |subject| load(&lab, "requests", subject.address(Port::Requests), CONNECTIONS));
        table.row("requests/s, 64 connections, 1 KB", &rates, Goal::TenthMore);
    }
    if wanted("connections") {
        let rates = rounds(&subjects, |subject| load(&lab, "connections", subject.address(Port::Once), CONNECTIONS));
        table.row("new connections/s, 1 KB each", &rates, Goal::TenthMore);
    }
    if wanted("latency") {
        let medians = rounds(&subjects, |subject| load(&lab, "latency", subject.address(Port::Requests), 1));
        let added: Vec<Round> = medians.iter().map(|[direct, others @ ..]| [*direct, others[0] - direct, others[1] - direct]).collect();
        table.row("median latency, µs (direct), µs added", &added, Goal::TenthLess);
    }
    if wanted("udp") {
        let rates = rounds(&subjects, |subject| match subject.address(Port::Udp) {
            address if subject.has_udp() => load(&lab, "udp", address, CONNECTIONS),
            _ => f64::NAN,
        });
        table.row("UDP requests/s, 64 flows, 1 KB", &rates, Goal::None);
    }
    if wanted("idle") {
        table.row("PSS of 10,000 idle connections, KiB", &[idle(&lab, &subjects)], Goal::NoMore);
    }
    table.verdict();
}

/// Each subject in turn, as often as wished.
fn rounds(subjects: &[Subject; 3], mut one: impl FnMut(&Subject) -> f64) -> Vec<Round> {
    (0..number("ROUNDS", 7)).map(|_| subjects.each_ref().map(&mut one)).collect()
}

fn load(lab: &Lab, what: &str, address: SocketAddrV4, connections: usize) -> f64 {
    lab.load(&[what, &address.to_string(), &connections.to_string(), &number("SECONDS", 2).to_string()])
}

/// Gbit/s, and seconds of the proxy's processor time per GB (of which direct needs none).
fn bulk(lab: &Lab, subjects: &[Subject; 3]) -> (Vec<Round>, Vec<Round>) {
    let mut costs = Vec::new();
    let rates = rounds(subjects, |subject| {
        let before = subject.cpu_seconds();
        let gigabits = load(lab, "bulk", subject.address(Port::Source), STREAMS);
        costs.push((subject.cpu_seconds() - before) / (gigabits / 8.0 * number("SECONDS", 2) as f64));
        gigabits
    });
    (rates, costs.chunks_exact(3).map(|round| [round[0], round[1], round[2]]).collect())
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
