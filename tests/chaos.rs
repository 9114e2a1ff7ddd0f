//! The daemon is killed at random moments during creates, deletes and rollouts. In the end exactly what is declared
//! runs and nothing is left over. `UMIAK_CHAOS_ROUNDS` says how often (default 10).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, images, leaks, run_with_input};
use nix::sys::signal::Signal;

/// xorshift: the rounds of a run can be repeated from its printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn deployment(replicas: u64, version: u64) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: c\n        image: busybox\n        \
         command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']\n        \
         env: [{{name: VERSION, value: '{version}'}}]\n        \
         volumeMounts: [{{name: s, mountPath: /s}}]\n      \
         volumes: [{{name: s, emptyDir: {{medium: Memory}}}}]\n"
    )
}

#[test]
fn kill_and_restart() {
    let rounds: u64 = std::env::var("UMIAK_CHAOS_ROUNDS").map_or(10, |n| n.parse().unwrap());
    let seed = std::env::var("UMIAK_CHAOS_SEED").map_or(0x9E37_79B9_7F4A_7C15, |n| n.parse().unwrap());
    eprintln!("{rounds} rounds from seed {seed}");
    let mut random = Random(seed);
    let mut cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    let mut replicas = 3;
    let mut declared = String::new();
    for round in 1..=rounds {
        replicas = random.below(5) + 1;
        declared = deployment(replicas, round);
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &declared);
        if random.below(3) == 0 {
            cluster.k("delete pod -l app=web --wait=false --ignore-not-found");
        }
        std::thread::sleep(Duration::from_millis(random.below(700)));
        cluster.stop_daemon(Signal::SIGKILL);
        cluster.start_daemon();
    }
    run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &declared);
    cluster.k("rollout status deployment web --timeout=90s");
    settled(&cluster, replicas as usize);
    cluster.k("delete deployment web");
    settled(&cluster, 0);
    cluster.finish();
}

/// Waits until exactly `pods` pods exist in every place where a pod leaves a trace.
fn settled(cluster: &Cluster, pods: usize) {
    let began = Instant::now();
    loop {
        let traces = traces(cluster);
        if traces.iter().all(|(_, n)| *n == pods) {
            return;
        }
        assert!(began.elapsed() < common::PATIENCE, "{pods} pods declared, found {traces:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn traces(cluster: &Cluster) -> Vec<(&'static str, usize)> {
    let data = cluster.data_dir();
    let entries = |path: std::path::PathBuf| std::fs::read_dir(path).map_or(0, |dir| dir.flatten().count());
    let cgroups = leaks::cgroups(&data);
    let pod_cgroups = cgroups.iter().map(|root| {
        let is_pod = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with("pod");
        std::fs::read_dir(root).map_or(0, |dir| dir.flatten().filter(is_pod).count())
    });
    let veths =
        leaks::interfaces(&cluster.netns.0).iter().filter(|name| name.starts_with("um") && *name != "umiak0").count();
    let daemon = cluster.daemon_pid();
    let shims = leaks::processes(cluster.dir.path())
        .into_iter()
        .filter(|pid| *pid != daemon)
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(6).any(|w| w == b"\0shim\0"))
        })
        .count();
    vec![
        ("objects", cluster.k("get pods -o name").lines().count()),
        ("directories", entries(data.join("node/pods"))),
        ("cgroups", pod_cgroups.max().unwrap_or(0)),
        ("interfaces", veths),
        ("shims", shims),
    ]
}
