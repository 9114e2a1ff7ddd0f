//! How fast streams to a pod on a board are, and how little they are in the way of everything else.
//!
//! The figures of a binary as it is delivered: `UMIAK_BIN=... cargo test --test boards streams -- --nocapture`. Any other is
//! not optimised, so that what is asserted here is loose.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, Running, fetch, images};

/// Bytes of each transfer.
const SIZE: usize = 16 << 20;
/// MB/s that even an unoptimised binary has on a busy machine.
const LOOSE: f64 = 0.5;

fn pod(name: &str, script: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: pi-1, \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, \
         command: [sh, -c, {script:?}]}}]}}}}"
    )
}

/// Reads to the end; gives the bytes and the time from the first of them.
fn drain(mut from: ChildStdout) -> (usize, Duration) {
    let mut buffer = vec![0; 1 << 16];
    let mut count = from.read(&mut buffer).unwrap();
    let began = Instant::now();
    loop {
        match from.read(&mut buffer).unwrap() {
            0 => return (count, began.elapsed()),
            n => count += n,
        }
    }
}

fn fill(mut to: ChildStdin) {
    let block = vec![b'x'; 1 << 16];
    for _ in 0..SIZE / block.len() {
        to.write_all(&block).unwrap();
    }
}

fn judge(what: &str, bytes: usize, took: Duration) {
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    eprintln!("{what}: {rate:.1} MB/s ({} MB in {took:.2?})", bytes / 1_000_000);
    assert!(rate > LOOSE, "{what}");
}

fn exec(cluster: &Cluster) {
    let mut out = Running::start(cluster, &format!("exec source -- head -c {SIZE} /dev/zero"));
    let (bytes, took) = drain(out.0.stdout.take().unwrap());
    assert_eq!(bytes, SIZE);
    judge("exec, from the pod", bytes, took);
    let began = Instant::now();
    let mut into = Running::start(cluster, "exec -i source -- sh -c cat>/tmp/in;stat${IFS}-c%s${IFS}/tmp/in");
    fill(into.0.stdin.take().unwrap());
    assert_eq!(into.lines().next().unwrap(), SIZE.to_string());
    judge("exec, into the pod", SIZE, began.elapsed());
}

fn copy(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file").display().to_string();
    std::fs::write(&file, vec![7; SIZE]).unwrap();
    for (what, from, to) in [("into", file.as_str(), "source:/tmp/file"), ("from", "source:/tmp/file", &file)] {
        let began = Instant::now();
        cluster.k(&format!("cp {from} {to}"));
        judge(&format!("cp, {what} the pod"), SIZE, began.elapsed());
    }
    assert!(std::fs::read(&file).unwrap() == vec![7; SIZE], "the file came back changed");
}

fn forward(cluster: &Cluster) {
    cluster.k("exec source -- mkdir -p /tmp/www");
    cluster.k("exec source -- busybox cp /tmp/file /tmp/www/index.html");
    let mut forward = Running::start(cluster, "port-forward pod/source :8080");
    let mut lines = forward.lines();
    let said = lines.next().unwrap();
    let port: u16 = said.split("127.0.0.1:").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect(&said);
    let began = Instant::now();
    let page = cluster.netns.within(move || fetch(([127, 0, 0, 1], port).into(), Duration::from_secs(60)));
    assert!(page.join().unwrap().is_some_and(|page| page.len() > SIZE));
    judge("port-forward", SIZE, began.elapsed());
}

fn logs(cluster: &Cluster) {
    // 21 MB on the board's disk, in three files.
    const LINES: usize = 300_000;
    cluster.apply(&pod("chatty", &format!("yes so it goes on and on and on | head -n {LINES}; echo over; sleep 1000")));
    cluster.until("logs chatty --tail=1", |text| text == "over\n");
    let mut kubectl = Running::start(cluster, "logs chatty");
    let (bytes, took) = drain(kubectl.0.stdout.take().unwrap());
    assert_eq!(bytes, LINES * 28 + 5);
    judge("logs", bytes, took);
}

/// How long other things on the same board take: a command in a pod, and a new pod.
fn others(cluster: &Cluster, round: &str) -> [Duration; 2] {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            cluster.k("exec other -- true");
            began.elapsed()
        })
        .collect();
    times.sort();
    let began = Instant::now();
    cluster.apply(&pod(round, "sleep 1000"));
    cluster.wait_ready(round);
    [times[2], began.elapsed()]
}

#[test]
fn streams_are_fast_and_in_nobodys_way() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(&pod("source", "mkdir /tmp/www; httpd -f -p 8080 -h /tmp/www"));
    cluster.apply(&pod("other", "sleep 1000"));
    cluster.wait_ready("source other");
    for transfer in [exec, copy, forward, logs] {
        transfer(&cluster);
    }

    let [command, start] = others(&cluster, "quiet");
    eprintln!("beside nothing: exec {command:.2?}, a pod {start:.2?}");
    let began = Instant::now();
    let mut flood = Running::start(&cluster, "exec source -- cat /dev/zero");
    let mut stdout = flood.0.stdout.take().unwrap();
    let counted = std::thread::spawn(move || {
        let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
        while let Ok(n @ 1..) = stdout.read(&mut buffer) {
            count += n;
        }
        count
    });
    std::thread::sleep(Duration::from_secs(2));
    let [busy_command, busy_start] = others(&cluster, "busy");
    drop(flood);
    judge("a flood meanwhile", counted.join().unwrap(), began.elapsed());
    eprintln!("beside the flood: exec {busy_command:.2?}, a pod {busy_start:.2?}");
    // Both share the processor with the flood; a second is what a full queue in front of the link would cost.
    assert!(busy_command < command * 3 + Duration::from_secs(1), "{busy_command:?}");
    assert!(busy_start < start * 3 + Duration::from_secs(1), "{busy_start:?}");
    agent.finish();
    cluster.finish();
}
