//! A board is its key: not its address, not its server's, and not what its clock says.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;

use common::fleet::{Agent, Lan};
use common::{Clock, Cluster, Netns, images, leaks, run};
use nix::sys::signal::Signal;

/// Runs a pod on a board; gives its processes, which are to live on whatever happens.
fn steady(cluster: &Cluster, agent: &Agent) -> Vec<String> {
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: steady}}, spec: {{nodeName: {}, containers: [{{name: c, \
         image: busybox, command: [sh, -c, 'echo here; while true; do sleep 1000; done # identity-steady']}}]}}}}",
        agent.name
    ));
    cluster.wait_ready("steady");
    steady_processes(agent)
}

fn steady_processes(agent: &Agent) -> Vec<String> {
    let found = agent.processes("# identity-steady");
    assert!(!found.is_empty());
    found
}

/// Gives a namespace another address in place of the one it has.
fn renumber(netns: &Netns, from: &str, to: &str) {
    for change in [format!("del {from}/24"), format!("add {to}/24")] {
        let words = format!("-n {} addr {change} dev {}", netns.0, leaks::UPLINK);
        run(Command::new("ip").args(words.split(' ')));
    }
}

fn restart(agent: &mut Agent, clock: Clock, args: &[&str]) {
    agent.stop(Signal::SIGTERM);
    agent.clock = clock;
    agent.start(args);
}

#[test]
fn addresses_change() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    let running = steady(&cluster, &agent);

    // The board gets another address by DHCP.
    renumber(&agent.netns, &agent.address, "192.168.77.70");
    let address = "get node pi-1 -o jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    cluster.until(address, |a| a == "192.168.77.70");
    cluster.until_node("pi-1", "True");
    cluster.until("logs steady", |said| said == "here\n");

    // The server moves: one line in the board's configuration.
    cluster.stop_daemon(Signal::SIGTERM);
    renumber(&cluster.netns, "192.168.77.1", "192.168.77.80");
    cluster.start_daemon();
    let config = agent.dir.path().join("agent.yaml");
    std::fs::write(&config, "server: [192.168.77.80]\n").unwrap();
    restart(&mut agent, Clock::default(), &["--config", config.to_str().unwrap()]);
    cluster.until("logs steady", |said| said == "here\n");
    cluster.until_node("pi-1", "True");
    assert_eq!(steady_processes(&agent), running);
    agent.finish();
    cluster.finish();
}

#[test]
fn clocks_are_wrong_and_certificates_end() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    // A board without a battery joins.
    agent.clock = Clock(Some("@1970-01-02 00:00:00"));
    cluster.join(&mut agent);
    assert!(agent.log().contains("1970-01-02T"), "libfaketime does not work:\n{}", agent.log());
    let running = steady(&cluster, &agent);
    assert_eq!(cluster.k("logs steady"), "here\n");
    assert!(!agent.log().contains("the certificate is renewed"));

    // Two thirds of the certificate's life are over, by the board's clock.
    restart(&mut agent, Clock(Some("+300d")), &[]);
    agent.until_logged("the certificate is renewed");
    cluster.until("logs steady", |said| said == "here\n");
    assert_eq!(agent.log().matches("the certificate is renewed").count(), 1, "once, though the server's clock differs");

    // All of it is over by the server's clock, and the board does not even know what year it is.
    cluster.stop_daemon(Signal::SIGTERM);
    cluster.clock = Clock(Some("+800d"));
    cluster.start_daemon();
    restart(&mut agent, Clock(Some("@1970-01-02 00:00:00")), &[]);
    cluster.until("logs steady", |said| said == "here\n");
    cluster.until_node("pi-1", "True");
    assert_eq!(agent.log().matches("the certificate is renewed").count(), 2);
    assert_eq!(steady_processes(&agent), running);
    agent.finish();
    cluster.finish();
}
