//! What Umiak promises, measured: `benches/run.sh` builds the static release binary and prints the table.
//!
//! Run as root on a quiet machine. `IDLE_SECONDS` (default 600) is the length of the idle window. Words on the command
//! line choose parts: `api`, `watches`, `pods`, `idle`, `restart`, `services`, `thousand`, `dns`, `agent`, `fleet`,
//! `containers`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod agent;
mod containers;
mod dns;
mod docker;
mod fleet;
mod idle;
mod load;
mod pods;
mod services;
mod table;
mod watches;

use std::time::Duration;

use common::{Cluster, images};

/// A fleet at rest repeats itself every minute, its keepalive.
const FLEET_WINDOW: Duration = Duration::from_secs(300);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list" || word == "--test") {
        return;
    }
    let parts: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| *p == part);
    table::head();
    binary();
    if wanted("api") {
        with_cluster(|cluster| load::measure(cluster));
    }
    if wanted("watches") {
        with_cluster(|cluster| watches::measure(cluster));
    }
    if wanted("pods") {
        with_cluster(|cluster| pods::measure(cluster));
    }
    if wanted("idle") || wanted("restart") {
        with_cluster(|cluster| {
            idle::start_pods(cluster);
            if wanted("idle") {
                idle::measure(cluster, window());
            }
            if wanted("restart") {
                idle::restart(cluster);
            }
        });
    }
    if wanted("services") {
        with_cluster(services::measure);
    }
    if wanted("thousand") {
        with_cluster(services::thousand);
    }
    if wanted("dns") {
        with_cluster(|cluster| dns::measure(cluster));
    }
    if wanted("agent") {
        agent::measure(window().min(FLEET_WINDOW));
    }
    if wanted("fleet") {
        fleet::measure(window().min(FLEET_WINDOW));
    }
    if wanted("containers") {
        containers::measure();
    }
    if parts.is_empty() {
        unmeasured();
    }
}

/// How long an idle window is.
fn window() -> Duration {
    Duration::from_secs(std::env::var("IDLE_SECONDS").map_or(600, |seconds| seconds.parse().unwrap()))
}

/// A fresh server that logs as it does by default, with busybox in its store.
fn with_cluster(part: impl FnOnce(&mut Cluster)) {
    let mut cluster = Cluster::stopped();
    cluster.log_filter = "info";
    cluster.start_daemon();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    part(&mut cluster);
    cluster.finish();
}

fn binary() {
    let size = std::fs::metadata(common::binary()).unwrap().len() as f64 / 1e6;
    table::at_most("binary", "MB", 15.0, size, "size of the file");
}

fn unmeasured() {
    table::missing("one server, 2 cores", "30,000 pods", "no bench yet");
    table::missing(
        "acknowledged writes lost by a power cut",
        "0",
        "virtual machines that are reset, outside this bench",
    );
}
