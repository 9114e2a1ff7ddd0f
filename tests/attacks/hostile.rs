//! From inside the broker, where it is not the server's own; and from whoever sits at the server's address.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::attacker::Papers;
use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, PATIENCE, images, run};
use crate::hostile_broker::{Harm, HostileBroker};

const SECRET: &str = "c4Nf9sLq2YbW8eHd";

/// Lines of a log from a place on, of the link.
fn of_the_link(log: &str, from: usize) -> Vec<String> {
    let lines = log[from..].lines().filter(|line| line.contains("umiak::link::mqtt"));
    lines.map(|line| line.split_once("Z ").unwrap().1.trim().to_owned()).collect()
}

fn until(what: &str, test: impl Fn() -> bool) {
    let began = Instant::now();
    while !test() {
        assert!(began.elapsed() < PATIENCE, "not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Stage {
    cluster: Cluster,
    agent: Agent,
    broker: HostileBroker,
    notes: u32,
}

impl Stage {
    /// Has the server tell the board something, which the board confirms.
    fn talk(&mut self) {
        self.notes += 1;
        self.cluster.k(&format!("annotate --overwrite pod a note={}", self.notes));
    }

    fn sessions(&self) -> usize {
        self.cluster.log().matches("mqtt::server: the node is connected").count()
    }

    /// The board begins anew: one that is refused again and again waits ever longer.
    fn restart(&mut self) {
        self.agent.stop(Signal::SIGTERM);
        let before = self.agent.log().len();
        self.agent.start(&[]);
        until("connected", || self.agent.log()[before..].contains("connected to the server version"));
        self.assert_well();
    }

    /// The board is a node, and its pod the one it was.
    fn assert_well(&self) {
        self.cluster.until_node("pi-1", "True");
        assert!(self.cluster.k("exec a -- env").contains(&format!("word={SECRET}\n")));
    }

    /// Harms a message; gives what the log of its receiver says.
    fn harm(&mut self, topic: &'static str, harm: Harm) -> Vec<String> {
        let receiver = |stage: &Self| if topic == "/u/s" { stage.cluster.log() } else { stage.agent.log() };
        let before = receiver(self).len();
        self.broker.harm(topic, harm);
        self.talk();
        let began = Instant::now();
        while !self.broker.has_harmed() {
            assert!(began.elapsed() < PATIENCE, "nothing came by");
            std::thread::sleep(Duration::from_millis(300));
            self.talk();
        }
        // What is swallowed is missed when the next message comes.
        std::thread::sleep(Duration::from_millis(300));
        self.talk();
        until("logged", || !of_the_link(&receiver(self), before).is_empty());
        of_the_link(&receiver(self), before)
    }
}

#[test]
fn a_broker_that_means_harm_reads_nothing_and_changes_nothing() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::stopped();
    lan.plug(&cluster.netns);
    // The CA that signs the broker's certificate is the server's.
    cluster.start_daemon();
    cluster.stop_daemon(Signal::SIGTERM);
    let certificates = cluster.dir.path().join("certificates");
    let issue = ["broker", "certificate", "--host", "192.168.77.1", "--out"];
    run(cluster.umiak().args(issue).arg(&certificates).arg("--data-dir").arg(cluster.data_dir()));
    let broker = ["--broker-url", "mqtts://192.168.77.1:8883", "--join-address", "192.168.77.1:8883"];
    cluster.server_args.extend(broker);
    let broker = HostileBroker::start(&cluster.netns, "192.168.77.1:8883", &certificates);
    cluster.start_daemon();
    cluster.until_logged("connected to the broker");
    let mut agent = Agent::new(&mut lan, "pi-1");
    let token = cluster.token(&[]);
    agent.start(&["--token", &token]);
    cluster.until_node("pi-1", "True");
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.k(&format!("create secret generic s --from-literal=word={SECRET}"));
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 0, \
         containers: [{name: c, image: busybox, command: [sh, -c, 'sleep 1000 # attacked'], envFrom: [{secretRef: {name: s}}]}]}}",
    );
    cluster.wait_ready("a");
    let processes = agent.processes("# attacked");
    let mut stage = Stage { cluster, agent, broker, notes: 0 };
    let first = stage.broker.copies();

    // What is changed, cut, left out or put in another order ends the session, and the next one makes good for it.
    for (topic, harm, says) in [
        ("/u/s", Harm::Flip, "WARN umiak::link::mqtt::server: the session ended: the session was disturbed"),
        ("/d/s", Harm::Flip, "WARN umiak::link::mqtt::node: no link to the server error=\"the session was disturbed"),
        ("/u/s", Harm::Truncate, "WARN umiak::link::mqtt::server: the session ended: the session was disturbed"),
        (
            "/d/s",
            Harm::Truncate,
            "WARN umiak::link::mqtt::node: no link to the server error=\"the session was disturbed",
        ),
        (
            "/u/s",
            Harm::Behead,
            "WARN umiak::link::mqtt::server: refused a message that belongs to no session node=\"pi-1\" bytes=7",
        ),
        ("/d/s", Harm::Behead, "WARN umiak::link::mqtt::node: refused a message that belongs to no session bytes=7"),
        (
            "/u/s",
            Harm::Swallow,
            "WARN umiak::link::mqtt::server: the session ended: the session was disturbed: message",
        ),
        (
            "/d/s",
            Harm::Swallow,
            "WARN umiak::link::mqtt::node: no link to the server error=\"the session was disturbed: message",
        ),
        ("/u/s", Harm::Swap, "WARN umiak::link::mqtt::server: the session ended: the session was disturbed: message"),
        (
            "/d/s",
            Harm::Swap,
            "WARN umiak::link::mqtt::node: no link to the server error=\"the session was disturbed: message",
        ),
    ] {
        let lines = stage.harm(topic, harm);
        eprintln!("{harm:?} {topic}\n    {}", lines.join("\n    "));
        assert!(lines[0].contains(says), "{harm:?} {topic}: {lines:?}");
        let warnings = lines.iter().filter(|line| line.starts_with("WARN")).count();
        assert!(warnings <= if harm == Harm::Behead { 2 } else { 1 }, "{harm:?} {topic}: {lines:?}");
        stage.restart();
    }
    // What comes again is passed by, and what is of another session disturbs none.
    for (topic, says) in [
        ("/u/s", "INFO umiak::link::mqtt::server: a message came again, and is passed by node=\"pi-1\""),
        ("/d/s", "INFO umiak::link::mqtt::node: a message came again, and is passed by"),
    ] {
        let sessions = stage.sessions();
        let lines = stage.harm(topic, Harm::Repeat);
        assert!(lines.len() == 1 && lines[0].contains(says), "{topic}: {lines:?}");
        assert_eq!(stage.sessions(), sessions, "the session went on");
    }
    let sessions = stage.sessions();
    let (of_server, of_agent) = (stage.cluster.log().len(), stage.agent.log().len());
    for (topic, content) in first.iter().filter(|(topic, _)| topic.ends_with("/s")) {
        stage.broker.sends(topic, content);
        // Sooner the server would not listen.
        std::thread::sleep(Duration::from_millis(if topic.ends_with("/u/s") { 220 } else { 0 }));
    }
    let (server, agent) = (of_the_link(&stage.cluster.log(), of_server), of_the_link(&stage.agent.log(), of_agent));
    eprintln!("an old session\n    {}\n    {}", server.join("\n    "), agent.join("\n    "));
    assert!(
        server[0].contains("WARN umiak::link::mqtt::server: the session ended: the session was disturbed"),
        "{server:?}"
    );
    assert!(
        server[1..]
            .iter()
            .all(|l| l.contains("refused a message of a session that is over, or never was node=\"pi-1\"")),
        "{server:?}"
    );
    assert!(agent.len() == 1 && agent[0].contains("a message of another session is passed by"), "{agent:?}");
    stage.talk();
    assert_eq!(stage.sessions(), sessions, "the session went on");
    stage.assert_well();

    let Stage { cluster, agent, broker, .. } = stage;
    assert_eq!(agent.processes("# attacked"), processes);
    let token: umiak::link::membership::Token = token.parse().unwrap();
    for secret in [SECRET.as_bytes(), token.secret.as_bytes(), b"attacked", b"BEGIN CERTIFICATE"] {
        for (topic, content) in broker.copies() {
            assert!(!content.windows(secret.len()).any(|part| part == secret), "it reads in {topic}");
        }
    }
    agent.finish();
    drop(broker);
    cluster.finish();
}

#[test]
fn a_board_tells_nothing_to_whoever_sits_at_its_servers_address() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    cluster.stop_daemon(Signal::SIGTERM);
    let before = agent.log().len();
    let stranger = HostileBroker::with(&cluster.netns, "192.168.77.1:8883", &Papers::forged("umiak-server"));
    let refused = || {
        let lines = of_the_link(&agent.log(), before);
        lines.into_iter().filter(|l| l.contains("WARN") && l.contains("UnknownIssuer")).collect::<Vec<_>>()
    };
    until("refused", || !refused().is_empty());
    std::thread::sleep(Duration::from_secs(3));
    let lines = refused();
    eprintln!("{}", lines.join("\n"));
    assert!(lines.len() == 1 && lines[0].contains("192.168.77.1:8883"), "{lines:?}");
    assert!(stranger.copies().is_empty());
    drop(stranger);
    cluster.start_daemon();
    cluster.until_node("pi-1", "True");
    agent.finish();
    cluster.finish();
}
