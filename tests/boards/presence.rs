//! How soon the cluster knows that a board is gone, and that it is back.

use std::sync::mpsc::{Receiver, channel};
use std::time::SystemTime;

use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, PATIENCE, Running, images};
use nix::sys::signal::Signal;

/// Sees the node's condition Ready change.
struct Readiness {
    _kubectl: Running,
    changes: Receiver<(SystemTime, String)>,
}

impl Readiness {
    fn of(cluster: &Cluster, node: &str) -> Self {
        let words = r#"{.status.conditions[?(@.type=="Ready")].status}{"\n"}"#;
        let mut kubectl = Running::start(cluster, &format!("get node {node} -w -o jsonpath={words}"));
        let (tell, changes) = channel();
        let lines = kubectl.lines();
        std::thread::spawn(move || lines.for_each(|line| drop(tell.send((SystemTime::now(), line)))));
        Self { _kubectl: kubectl, changes }
    }

    /// When it had this status.
    fn until(&self, status: &str) -> SystemTime {
        loop {
            let (at, line) = self.changes.recv_timeout(PATIENCE).expect(status);
            if line == status {
                return at;
            }
        }
    }
}

/// When the agent's log says that it is connected, the last time.
fn connected(agent: &Agent) -> SystemTime {
    let log = agent.log();
    let line = log.lines().rfind(|line| line.contains("connected to the server")).expect("it is connected");
    let at: jiff::Timestamp = line.split_whitespace().next().unwrap().parse().unwrap();
    at.into()
}

fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

#[test]
fn a_broken_connection_is_seen_and_mended_at_once() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: steady}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 0, \
         containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]}}",
    );
    cluster.wait_ready("steady");
    let readiness = Readiness::of(&cluster, "pi-1");
    readiness.until("True");
    for _ in 0..3 {
        let killed = SystemTime::now();
        agent.stop(Signal::SIGKILL);
        let unknown = seconds(killed, readiness.until("Unknown"));
        let started = SystemTime::now();
        agent.start(&[]);
        let ready = readiness.until("True");
        let (since_start, since_link) = (seconds(started, ready), seconds(connected(&agent), ready));
        eprintln!(
            "Unknown after {unknown:.2} s; Ready {since_start:.2} s after the start, {since_link:.2} s after the link"
        );
        assert!(unknown < 3.0 && since_link < 1.0);
    }
    agent.finish();
    cluster.finish();
}

#[test]
fn a_board_that_vanishes_is_missed_after_its_keepalive() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    let config = agent.dir.path().join("agent.yaml");
    std::fs::write(&config, "keepalive: 1\n").unwrap();
    agent.start(&["--token", &cluster.token(&[]), "--config", &config.to_string_lossy()]);
    let readiness = Readiness::of(&cluster, "pi-1");
    readiness.until("True");
    for _ in 0..3 {
        let cut = SystemTime::now();
        lan.set_link(agent.plug(), false);
        let unknown = seconds(cut, readiness.until("Unknown"));
        let back = SystemTime::now();
        lan.set_link(agent.plug(), true);
        let ready = readiness.until("True");
        let (since_plug, since_link) = (seconds(back, ready), seconds(connected(&agent), ready));
        eprintln!(
            "Unknown after {unknown:.2} s; Ready {since_plug:.2} s after the plug, {since_link:.2} s after the link"
        );
        assert!(unknown < 3.0 && since_plug < 5.0 && since_link < 1.0);
    }
    agent.finish();
    cluster.finish();
}
