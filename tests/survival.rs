//! The daemon dies, the board loses power: what runs goes on, what ran comes back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{Cluster, images, run, text};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

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

#[test]
fn a_pod_outlives_its_shim_and_its_processes() {
    let cluster = cluster_with_busybox();
    cluster.apply(&pod("steady", "Always", "while true; do sleep 1000; done # shimless"));
    cluster.apply(&pod("once", "Never", "sleep 1000 # shimless-once"));
    cluster.wait_ready("steady once");
    let kill = |pid: &str| nix::sys::signal::kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    let restarts = "get pod steady -o jsonpath={.status.containerStatuses[0].restartCount}";
    let last = |field: &str| {
        cluster.value("pod steady", &format!(".status.containerStatuses[0].lastState.terminated.{field}"))
    };

    kill(&processes("# shimless")[0].0);
    cluster.until(restarts, |n| n == "1");
    cluster.wait_ready("steady");
    assert_eq!((last("exitCode").as_str(), last("signal").as_str()), ("137", "9"));

    let uid = cluster.value("pod steady", ".metadata.uid");
    let address = cluster.value("pod steady", ".status.podIP");
    for name in ["steady", "once"] {
        kill(&shim(&cluster.value(&format!("pod {name}"), ".metadata.uid")).to_string());
    }
    cluster.until(restarts, |n| n == "2");
    cluster.wait_ready("steady");
    assert_eq!(last("reason"), "Unknown");
    assert!(last("message").contains("shim"));
    assert_eq!(cluster.value("pod steady", ".metadata.uid"), uid);
    assert_eq!(cluster.value("pod steady", ".status.podIP"), address);
    assert_eq!(processes("# shimless\0").len(), 1, "the old processes are gone");
    cluster.until("get pod once -o jsonpath={.status.phase}", |p| p == "Failed");
    assert_eq!(processes("# shimless-once"), []);
    cluster.k("exec steady -- true");
    cluster.finish();
}

fn shim(uid: &str) -> i32 {
    let mark = format!("umiak\0shim\0{uid}\0");
    let found = processes(&mark);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0.parse().unwrap()
}

#[test]
fn a_new_daemon_does_not_doubt_what_is_ready() {
    let mut cluster = cluster_with_busybox();
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: slow}, spec: {terminationGracePeriodSeconds: 0, containers: [ \
         {name: c, image: busybox, command: [sleep, '1000'], readinessProbe: \
         {exec: {command: [sleep, '2']}, timeoutSeconds: 60, periodSeconds: 3600}}]}}",
    );
    cluster.wait_ready("slow");
    let ready = r#".status.conditions[?(@.type=="Ready")].lastTransitionTime"#;
    let since = cluster.value("pod slow", ready);
    // Status is not synced at once: a killed daemon may forget the last seconds of it.
    std::thread::sleep(Duration::from_secs(7));
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    // Before and after the first look of the new daemon.
    for _ in 0..2 {
        cluster.wait_ready("slow");
        assert_eq!(cluster.value("pod slow", ready), since);
        std::thread::sleep(Duration::from_secs(3));
    }
    cluster.finish();
}

/// A small file system for one test, unmounted and removed in the end.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
        std::fs::remove_dir(&self.0).ok();
    }
}

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    let mut cluster = Cluster::stopped();
    let disk = Disk(cluster.dir.path().to_owned());
    run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=600m", "none"]).arg(&disk.0));
    cluster.start_daemon();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(&pod("steady", "Always", "while true; do echo x; sleep 0.1; done # full"));
    cluster.wait_ready("steady");
    let before = processes("# full");
    let filler = disk.0.join("filler");
    fill(&filler);
    let data = "x".repeat(100_000);
    let refused = (0..100).find_map(|n| {
        // What the database holds in reserve goes first.
        fill(&filler);
        let name = format!("full-{n}");
        let mut command = cluster.kubectl();
        let output =
            command.args(["create", "configmap", &name, &format!("--from-literal=a={data}")]).output().unwrap();
        (!output.status.success()).then(|| text(&output.stderr))
    });
    assert!(refused.as_ref().is_some_and(|e| e.contains("disk full")), "{refused:?}");
    cluster.k("get pods");
    cluster.k("exec steady -- true");
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(processes("# full"), before);
    std::fs::remove_file(&filler).unwrap();
    cluster.until("create configmap again --from-literal=a=1", |_| true);
    cluster.apply(&pod("new", "Always", "sleep 1000"));
    cluster.wait_ready("steady new");
    assert_eq!(cluster.value("pod steady", ".status.containerStatuses[0].restartCount"), "0");
    assert_eq!(processes("# full"), before);
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    cluster.k("get configmap again");
    cluster.finish();
}

#[test]
fn a_file_system_that_turns_read_only_is_named() {
    let mut cluster = Cluster::stopped();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(256 << 20).unwrap();
    run(std::process::Command::new("mkfs.ext4").arg("-q").arg(image.path()));
    let mut mount = std::process::Command::new("mount");
    mount.args(["-o", "loop,errors=remount-ro"]).arg(image.path()).arg(cluster.dir.path());
    run(&mut mount);
    let disk = Disk(cluster.dir.path().to_owned());
    cluster.start_daemon();
    cluster.k("create configmap before --from-literal=a=1");
    // What the kernel does when a card or a disk fails.
    let device = run(std::process::Command::new("findmnt").args(["-nro", "SOURCE"]).arg(&disk.0));
    let name = device.trim().trim_start_matches("/dev/");
    std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "test").unwrap();
    let refused = cluster.k_fails("create configmap after --from-literal=a=1");
    assert!(refused.contains("takes no writes"), "{refused}");
    cluster.k("get configmap before");
    cluster.stop_daemon(Signal::SIGKILL);
    run(std::process::Command::new("umount").arg(&disk.0));
    run(&mut mount);
    cluster.start_daemon();
    cluster.k("get configmap before");
    cluster.finish();
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let mut cluster = Cluster::stopped();
    let disk = Disk(cluster.dir.path().join("logs"));
    std::fs::create_dir(&disk.0).unwrap();
    run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k", "none"]).arg(&disk.0));
    fill(&disk.0.join("filler"));
    let log = disk.0.join("log");
    std::os::unix::fs::symlink(&log, cluster.dir.path().join("umiak.1.log")).unwrap();
    // Worth a line in the log at start.
    let import = cluster.data_dir().join("images/import");
    std::fs::create_dir_all(&import).unwrap();
    std::fs::write(import.join("damaged.tar"), "no archive").unwrap();
    cluster.start_daemon();
    cluster.k("create configmap told --from-literal=a=1");
    drop(disk);
    cluster.finish();
}

/// Takes all the room that is left.
fn fill(filler: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(filler).unwrap();
    for block in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}
