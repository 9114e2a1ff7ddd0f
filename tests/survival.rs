//! The daemon dies, the board loses power: what runs goes on, what ran comes back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Cluster, images};
use nix::sys::signal::Signal;

fn cluster_with_busybox() -> Cluster {
    let cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster
}

fn pod(name: &str, restart: &str, script: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: {restart}, \
         terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, \
         command: [sh, -c, {script:?}]}}]}}}}"
    )
}

/// The start time and id of every process that a script marked.
fn processes(mark: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(mark) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let start = stat.rsplit(' ').nth(30).and_then(|s| s.parse().ok()).unwrap_or(0);
            found.push((entry.file_name().to_string_lossy().into_owned(), start));
        }
    }
    found.sort();
    found
}

#[test]
fn a_killed_daemon_finds_its_pods_as_they_are() {
    let mut cluster = cluster_with_busybox();
    let count = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.01; done # steady";
    cluster.apply(&pod("counter", "Always", count));
    cluster.apply(&pod("leaver", "Never", "while ! test -e /tmp/go; do sleep 0.05; done; exit 3"));
    cluster.wait_ready("counter leaver");
    let before = processes("# steady");
    assert_eq!(before.len(), 1);
    cluster.k("exec leaver -- sh -c touch${IFS}/tmp/soon");
    // Ends by itself while no daemon runs.
    let go = "exec leaver -- sh -c (sleep${IFS}1;touch${IFS}/tmp/go)>/dev/null${IFS}2>&1&";
    cluster.k(go);
    cluster.stop_daemon(Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(processes("# steady"), before);
    cluster.start_daemon();
    cluster.until("get pod leaver -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}", |c| c == "3");
    assert_eq!(processes("# steady"), before);
    cluster.wait_ready("counter");
    assert_eq!(cluster.value("pod counter", ".status.containerStatuses[0].restartCount"), "0");
    let log = cluster.k("logs counter");
    let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.len() > 200, "{}", numbers.len());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a line is lost or doubled");
    assert_eq!(numbers[0], 1);
    cluster.k("exec counter -- true");
    cluster.finish();
}

#[test]
fn after_a_power_cut_the_pods_come_back() {
    let mut cluster = cluster_with_busybox();
    cluster.apply(&pod("steady", "Always", "sleep 1000"));
    cluster.apply(&pod("done", "Never", "exit 0"));
    cluster.wait_ready("steady");
    cluster.until("get pod done -o jsonpath={.status.phase}", |p| p == "Succeeded");
    let uid = cluster.value("pod steady", ".metadata.uid");
    std::thread::sleep(Duration::from_secs(1));
    cluster.power_cut();
    cluster.start_daemon();
    cluster.until("get pod steady -o jsonpath={.status.containerStatuses[0].restartCount}", |n| n == "1");
    cluster.wait_ready("steady");
    assert_eq!(cluster.value("pod steady", ".metadata.uid"), uid);
    assert_eq!(cluster.value("pod done", ".status.phase"), "Succeeded");
    assert_eq!(cluster.value("pod done", ".status.containerStatuses[0].restartCount"), "0");
    cluster.finish();
}

#[test]
fn a_pod_deleted_as_the_daemon_died_is_removed() {
    let mut cluster = cluster_with_busybox();
    cluster.apply(&pod("goner", "Always", "sleep 1000 # goner"));
    cluster.wait_ready("goner");
    cluster.k("delete pod goner --wait=false");
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    cluster.until("get pods -o name", str::is_empty);
    assert_eq!(processes("# goner"), []);
    cluster.finish();
}

#[test]
fn every_acknowledged_object_survives_a_kill() {
    let mut cluster = Cluster::start();
    for n in 0..5 {
        cluster.k(&format!("create configmap kept-{n} --from-literal=a={n}"));
    }
    cluster.k("delete configmap kept-0");
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    let names = cluster.k("get configmaps -o name");
    assert!(!names.contains("kept-0"), "{names}");
    for n in 1..5 {
        assert!(names.contains(&format!("kept-{n}")), "{names}");
    }
    cluster.finish();
}
