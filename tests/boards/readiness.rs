//! With no server in reach a board's own Services leave out its pods that are not ready, and take them in again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, PATIENCE, fetch, images};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: web}}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'cd /tmp; touch well; echo I am NAME > index.html; httpd -p 8080; while true; do sleep 1000; done # web-NAME']
    readinessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
";
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, \
                       spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}";

struct Board {
    agent: Agent,
    target: SocketAddr,
}

impl Board {
    /// Who answers.
    fn answering(&self) -> BTreeSet<String> {
        let target = self.target;
        let asking = move || (0..10).map(|_| fetch(target, Duration::from_secs(1)).unwrap_or_default()).collect();
        let pages: Vec<String> = self.agent.netns.within(asking).join().unwrap();
        pages.iter().map(|page| page.lines().last().unwrap_or("nobody").to_owned()).collect()
    }

    fn until_answered_by(&self, names: &[&str]) {
        let began = Instant::now();
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        while self.answering() != wanted {
            assert!(began.elapsed() < PATIENCE, "{wanted:?}, but {:?}", self.answering());
        }
    }

    /// Whether a pod is well; no server lets us tell it.
    fn set_well(&self, name: &str, well: bool) {
        let pid = self.agent.processes(&format!("# web-{name}")).remove(0);
        let file = format!("/proc/{pid}/root/tmp/well");
        if well { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    }
}

#[test]
fn a_board_that_is_cut_off_knows_which_of_its_pods_are_ready() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    for name in ["one", "two"] {
        cluster.apply(&POD.replace("NAME", name));
    }
    cluster.wait_ready("one two");
    cluster.apply(SERVICE);
    let address: IpAddr = cluster.value("svc web", ".spec.clusterIP").parse().unwrap();
    let mut board = Board { agent, target: (address, 80).into() };
    board.until_answered_by(&["I am one", "I am two"]);

    cluster.stop_daemon(Signal::SIGKILL);
    board.set_well("one", false);
    board.until_answered_by(&["I am two"]);
    board.set_well("two", false);
    board.until_answered_by(&["nobody"]);
    board.set_well("one", true);
    board.until_answered_by(&["I am one"]);

    // The same after a start of the agent, whose disk says otherwise.
    board.agent.stop(Signal::SIGKILL);
    board.agent.start(&[]);
    board.until_answered_by(&["I am one"]);
    board.set_well("two", true);
    board.until_answered_by(&["I am one", "I am two"]);

    // The server agrees.
    cluster.start_daemon();
    cluster.until_node("pi-1", "True");
    cluster.wait_ready("one two");
    board.until_answered_by(&["I am one", "I am two"]);
    board.agent.finish();
    cluster.finish();
}
