//! What a board holds is not sent to it again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::fleet::{Agent, Lan};
use common::{Cluster, images, leaks, run};
use nix::sys::signal::Signal;

/// Text that cannot be made much shorter.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state >> 32) as u8 % 26)
    };
    (0..length).map(|_| next()).collect()
}

fn apply(cluster: &Cluster, word: &str) {
    let data = format!("{word}-{}", noise(word.len() as u64, 200_000));
    cluster.apply(&format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: large}}, data: {{k: {data}}}}}"));
}

/// Bytes the board has received.
fn received(agent: &Agent) -> u64 {
    let table = run(agent.netns.command("cat").arg("/proc/net/dev"));
    let lines = table.lines().skip(2).map(|line| line.trim().split_once(':').unwrap());
    let outside = lines.filter(|(name, _)| *name == leaks::UPLINK);
    outside.map(|(_, fields)| fields.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_board_that_comes_again_gets_what_is_new() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    apply(&cluster, "one");
    let before = received(&agent);
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: reader}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 0, \
         volumes: [{name: v, configMap: {name: large}}], containers: [{name: c, image: busybox, \
         imagePullPolicy: IfNotPresent, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}]}}",
    );
    cluster.wait_ready("reader");
    let first = received(&agent) - before;
    assert!(first > 100_000, "{first} bytes can hardly be all of it");

    let again = |agent: &mut Agent, meanwhile: &dyn Fn()| {
        agent.stop(Signal::SIGKILL);
        cluster.until_node("pi-1", "Unknown");
        meanwhile();
        let before = received(agent);
        agent.start(&[]);
        cluster.until_node("pi-1", "True");
        cluster.until("exec reader -- head -c 3 /v/k", |word| word == "one" || word == "thr");
        std::thread::sleep(Duration::from_secs(2));
        received(agent) - before
    };
    let bytes = again(&mut agent, &|| {});
    eprintln!("{first} bytes at first, {bytes} again");
    assert!(bytes < 50_000, "{bytes} bytes to be told what it holds");

    again(&mut agent, &|| apply(&cluster, "three"));
    cluster.until("exec reader -- head -c 5 /v/k", |word| word == "three");
    agent.finish();
    cluster.finish();
}
