//! The daemon is killed at random moments during creates, deletes and rollouts, its own start included. In the end
//! exactly what is declared runs, nothing ran twice and nothing is left over.
//!
//! `UMIAK_CHAOS_ROUNDS` says how often (default 10), `UMIAK_CHAOS_SEED` repeats a run as far as timing allows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Cluster, images, leaks, run_with_input};
use nix::sys::signal::Signal;

/// Rounds between two looks at everything.
const LEG: u64 = 10;

/// xorshift: the rounds of a run can be repeated from its printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn nap(&mut self, milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(self.below(milliseconds)));
    }
}

/// What is declared, and the directory where every start of a container leaves a line.
struct Declared {
    replicas: u64,
    version: u64,
    tasks: u64,
    starts: PathBuf,
}

impl Declared {
    /// Init container, ConfigMap, memory: as many kinds of traces as a pod can leave.
    fn deployment(&self) -> String {
        let Declared { replicas, version, starts, .. } = self;
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
             selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
             terminationGracePeriodSeconds: 1\n      initContainers:\n      - name: i\n        image: busybox\n        \
             command: [sh, -c, 'echo >> /starts/$HOSTNAME.init']\n        \
             volumeMounts: [{{name: starts, mountPath: /starts}}]\n      containers:\n      - name: c\n        \
             image: busybox\n        \
             command: [sh, -c, 'trap exit TERM; echo >> /starts/$HOSTNAME; while true; do sleep 1; done']\n        \
             env: [{{name: VERSION, value: '{version}'}}]\n        \
             volumeMounts: [{{name: s, mountPath: /s}}, {{name: c, mountPath: /c}}, {{name: starts, mountPath: /starts}}]\n      \
             volumes:\n      - {{name: s, emptyDir: {{medium: Memory}}}}\n      - {{name: c, configMap: {{name: c}}}}\n      \
             - {{name: starts, hostPath: {{path: {}}}}}\n",
            starts.display()
        )
    }

    /// A pod that runs once for a moment.
    fn task(&self, number: u64) -> String {
        let starts = self.starts.display();
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: task-{number}, labels: {{app: task}}}}, spec: {{restartPolicy: Never, \
             containers: [{{name: c, image: busybox, command: [sh, -c, 'echo >> /starts/$HOSTNAME; sleep 0.2; exit 7'], \
             volumeMounts: [{{name: starts, mountPath: /starts}}]}}], \
             volumes: [{{name: starts, hostPath: {{path: {starts}}}}}]}}}}"
        )
    }
}

/// Lives through all of it.
const WITNESS: &str = "{apiVersion: v1, kind: Pod, metadata: {name: witness}, spec: {terminationGracePeriodSeconds: 0, \
    containers: [{name: c, image: busybox, \
    command: [sh, -c, 'n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done']}]}}";

/// Rounds and seed of this run.
fn plan() -> (u64, Random) {
    let rounds = std::env::var("UMIAK_CHAOS_ROUNDS").map_or(10, |n| n.parse().unwrap());
    let seed = std::env::var("UMIAK_CHAOS_SEED").map_or(0x9E37_79B9_7F4A_7C15, |n| n.parse().unwrap());
    eprintln!("{rounds} rounds from seed {seed}");
    (rounds, Random(seed))
}

fn start() -> (Cluster, Declared) {
    let cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.k("create configmap c --from-literal=a=1");
    cluster.apply(WITNESS);
    cluster.wait_ready("witness");
    let starts = cluster.dir.path().join("starts");
    (cluster, Declared { replicas: 3, version: 0, tasks: 0, starts })
}

/// Takes everything declared away, which must leave nothing.
fn finish(cluster: Cluster, mut declared: Declared) {
    cluster.k("delete deployment web");
    cluster.k("delete pod -l app --wait=false");
    (declared.replicas, declared.tasks) = (0, 0);
    settled(&cluster, &declared);
    cluster.k("delete pod witness");
    cluster.finish();
}

#[test]
fn kill_and_restart() {
    let (rounds, mut random) = plan();
    let (mut cluster, mut declared) = start();
    let witness = cluster.value("pod witness", ".status.containerStatuses[0].containerID");
    let files = shim_files(&cluster);
    for round in 1..=rounds {
        act(&cluster, &mut random, &mut declared, round);
        random.nap(700);
        cluster.stop_daemon(if random.below(8) == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        while random.below(3) == 0 {
            cluster.launch_daemon();
            random.nap(400);
            cluster.stop_daemon(Signal::SIGKILL);
        }
        cluster.start_daemon();
        if round % LEG == 0 || round == rounds {
            eprintln!("round {round}, {} starts of the daemon", cluster.starts());
            run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &declared.deployment());
            settled(&cluster, &declared);
            nothing_ran_twice(&cluster, &declared);
        }
    }
    assert_eq!(cluster.value("pod witness", ".status.containerStatuses[0].containerID"), witness);
    assert_eq!(cluster.value("pod witness", ".status.containerStatuses[0].restartCount"), "0");
    let log = cluster.k("logs witness");
    let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a line is lost or doubled");
    assert_eq!(shim_files(&cluster), files, "the witness' shim opened files, or closed some");
    finish(cluster, declared);
}

/// The same where everything dies with the daemon: what was declared starts again.
#[test]
fn cut_the_power_and_restart() {
    let (rounds, mut random) = plan();
    let (mut cluster, mut declared) = start();
    for round in 1..=rounds.div_ceil(2) {
        act(&cluster, &mut random, &mut declared, round);
        random.nap(700);
        cluster.power_cut();
        cluster.start_daemon();
    }
    run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &declared.deployment());
    settled(&cluster, &declared);
    finish(cluster, declared);
}

fn act(cluster: &Cluster, random: &mut Random, declared: &mut Declared, round: u64) {
    let apply = |manifest: &str| run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), manifest);
    match random.below(6) {
        0 => drop(cluster.k("delete pod -l app=web --wait=false --ignore-not-found")),
        1 => drop(cluster.k("delete pod -l app=web --wait=false --ignore-not-found --grace-period=0 --force")),
        2 => {
            declared.tasks += 1;
            apply(&declared.task(declared.tasks));
        }
        3 => drop(cluster.k("delete deployment web --ignore-not-found --wait=false")),
        _ => {
            (declared.replicas, declared.version) = (random.below(4) + 1, round);
            apply(&declared.deployment());
        }
    }
}

/// Waits until there is exactly what is declared wherever a pod leaves a trace.
fn settled(cluster: &Cluster, declared: &Declared) {
    let began = Instant::now();
    let (running, tasks) = (1 + declared.replicas as usize, declared.tasks as usize);
    loop {
        let found = traces(cluster);
        let wanted = found.iter().all(|(place, n)| match *place {
            "objects" | "directories" => *n == running + tasks,
            "left over" => *n == 0,
            _ => *n == running,
        });
        if wanted {
            break;
        }
        if began.elapsed() > common::PATIENCE {
            let pods = cluster.k("get pods -o wide");
            panic!("{running} pods and {tasks} ended ones declared, found {found:?}\n{pods}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// No container of the deployment started again, and each task gave its exit code.
fn nothing_ran_twice(cluster: &Cluster, declared: &Declared) {
    let path = "{range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount} \
                {.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}{end}";
    let pods = common::run(cluster.kubectl().args(["get", "pods", "-l", "app", "-o", &format!("jsonpath={path}")]));
    for line in pods.lines() {
        let (name, state) = line.split_once(' ').unwrap();
        assert_eq!(state.trim(), if name.starts_with("task") { "0 7" } else { "0" }, "{name}");
    }
    for (name, starts) in starts(&declared.starts) {
        assert_eq!(starts, 1, "starts of {name}");
    }
}

/// How often each container started.
fn starts(dir: &Path) -> BTreeMap<String, usize> {
    let lines = |path: PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), lines(e.path()))).collect()
}

fn traces(cluster: &Cluster) -> Vec<(&'static str, usize)> {
    let data = cluster.data_dir();
    let entries = |path: PathBuf| fs::read_dir(path).map_or(0, |dir| dir.flatten().count());
    let pod_cgroups = leaks::cgroups(&data).into_iter().map(|root| {
        let is_pod = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("pod");
        fs::read_dir(root).map_or(0, |dir| dir.flatten().filter(is_pod).count())
    });
    let interfaces = leaks::interfaces(&cluster.netns.0);
    let ready = "get pods --field-selector=status.phase=Running -o \
                 jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    vec![
        ("objects", cluster.k("get pods -o name").lines().count()),
        ("ready", cluster.k(ready).split_whitespace().filter(|s| *s == "True").count()),
        ("directories", entries(data.join("node/pods"))),
        ("sandboxes", entries(data.join("node/runtime"))),
        ("cgroups", pod_cgroups.max().unwrap_or(0)),
        ("interfaces", interfaces.iter().filter(|name| name.starts_with("um") && *name != "umiak0").count()),
        ("shims", shims(cluster).len()),
        ("left over", leaks::zombies(&data, &cluster.netns.0).len() + strangers(cluster).len()),
    ]
}

/// The daemon's children that are in no pod's cgroup, and files of interrupted writes.
fn strangers(cluster: &Cluster) -> Vec<String> {
    let data = cluster.data_dir();
    let daemon = cluster.daemon_pid();
    let outside = |pid: &i32| !leaks::in_cgroup(*pid, &data) && *pid != daemon;
    let processes = leaks::processes(&data, &cluster.netns.0).into_iter().filter(outside);
    let files = leaks::files(&data).into_iter().filter(|path| path.extension().is_some_and(|e| e == "tmp"));
    processes.map(|pid| pid.to_string()).chain(files.map(|path| path.display().to_string())).collect()
}

fn shims(cluster: &Cluster) -> Vec<i32> {
    let is_shim = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"umiak\0shim\0"));
    leaks::processes(&cluster.data_dir(), &cluster.netns.0).into_iter().filter(is_shim).collect()
}

/// Open files of the shim of the witness.
fn shim_files(cluster: &Cluster) -> usize {
    let uid = cluster.value("pod witness", ".metadata.uid");
    let of_witness = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains(&uid));
    let shim = shims(cluster).into_iter().find(of_witness).unwrap();
    fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count()
}
