//! Boards join a server, run its pods, are cut off, come back, and are thrown out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::fleet::{Agent, Lan};
use common::{Cluster, images, manifests, run};
use nix::sys::signal::Signal;

const WHERE_I_AM: &str = "
terminationGracePeriodSeconds: 0
nodeSelector: {fleet: 'true'}
containers:
- {name: c, image: busybox, command: [sh, -c, 'echo I am $NODE; echo $NODE > /tmp/index.html; exec httpd -f -p 8080 -h /tmp'],
   env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}
";

fn pinned(name: &str, node: &str, script: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node}, \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, command: [sh, -c, {script:?}]}}]}}}}"
    )
}

fn with_busybox(agent: &Agent) {
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
}

#[test]
fn a_deployment_spreads_over_a_fleet() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agents =
        vec![Agent::new(&mut lan, "pi-1"), Agent::new(&mut lan, "pi-2"), Agent::behind_nat(&mut lan, "pi-nat")];
    for agent in &mut agents {
        let token = cluster.token(&["--label", "fleet=true"]);
        agent.start(&["--token", &token]);
        with_busybox(agent);
        cluster.until_node(&agent.name, "True");
    }
    cluster.until("get node pi-1 -o jsonpath={.status.images[*].names}", |names| names.contains("library/busybox"));
    let wide = cluster.k("get nodes -o wide");
    for agent in &agents {
        let line = wide.lines().find(|l| l.starts_with(&agent.name)).unwrap();
        assert!(line.contains(&agent.address) && line.contains(" Ready "), "{line}");
    }
    let ranges = cluster.k("get nodes -o jsonpath={.items[*].spec.podCIDR}");
    assert_eq!(ranges, "10.42.0.0/24 10.42.1.0/24 10.42.2.0/24 10.42.3.0/24");
    let described = cluster.k("describe node pi-nat");
    for part in ["PodCIDR:", "fleet=true", "KubeletReady", "HolderIdentity:  pi-nat"] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }

    cluster.apply(&manifests::web(9, WHERE_I_AM));
    cluster.k("rollout status deployment web --timeout=90s");
    let nodes = cluster.k("get pods -l app=web -o jsonpath={.items[*].spec.nodeName}");
    for agent in &agents {
        assert_eq!(nodes.split(' ').filter(|n| **n == agent.name).count(), 3, "{nodes}");
    }
    for agent in &agents {
        let name = &agent.name;
        let pod = cluster.k(&format!("get pods -l app=web --field-selector spec.nodeName={name} -o name"));
        let pod = pod.lines().next().unwrap();
        assert_eq!(cluster.k(&format!("logs {pod}")), format!("I am {name}\n"));
        assert!(cluster.k(&format!("exec {pod} -- env")).contains(&format!("\nNODE={name}\n")));
        let path = pod.replacen("pod/", "/api/v1/namespaces/default/pods/", 1);
        assert_eq!(cluster.k(&format!("get --raw {path}:8080/proxy/index.html")), format!("{name}\n"));
        let status = agent.status();
        assert_eq!(status["pods"].as_array().unwrap().len(), 3, "{status}");
        assert!(status["link"]["connected"].is_u64(), "{status}");
    }

    // A board tells of a node port that a program of its own has.
    let mut host = agents[1].netns.command("busybox").args(["nc", "-l", "-p", "30066"]).spawn().unwrap();
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: taken}, spec: {type: NodePort, selector: {app: web}, \
         ports: [{port: 80, targetPort: 8080, nodePort: 30066}]}}",
    );
    cluster
        .until("describe svc taken", |t| t.contains("node \"pi-2\" cannot serve tcp 0.0.0.0:30066: another program"));
    host.kill().unwrap();
    host.wait().unwrap();

    // Pods of the two boards on the switch reach each other.
    let pod_of = |node: &str, what: &str| {
        let path = format!("{{.items[0].{what}}}");
        cluster.k(&format!("get pods -l app=web --field-selector spec.nodeName={node} -o jsonpath={path}"))
    };
    let (from, to) = (pod_of("pi-1", "metadata.name"), pod_of("pi-2", "status.podIP"));
    cluster.until(&format!("exec {from} -- wget -qO- http://{to}:8080/"), |said| said == "pi-2\n");

    // Cordon, label, taint and drain of an agent.
    cluster.k("label node pi-2 disk=ssd");
    cluster.k("drain pi-2 --timeout=60s");
    cluster.until("get pods --field-selector spec.nodeName=pi-2 -o name", str::is_empty);
    cluster.k("uncordon pi-2");
    assert!(cluster.k("get node pi-2 --show-labels").contains("disk=ssd"));
    agents.into_iter().for_each(Agent::finish);
    cluster.finish();
}

#[test]
fn tokens_are_good_once_and_for_a_while() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut first = Agent::new(&mut lan, "pi-1");
    let token = cluster.token(&[]);
    let listed = run(cluster.umiak().args(["token", "ls", "--data-dir"]).arg(cluster.data_dir()));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let secret = cluster.k("get secrets -n kube-system -o yaml");
    assert!(secret.contains("token-secret-sha256") && !secret.contains("token-secret:"), "{secret}");
    first.start(&["--token", &token]);
    cluster.until_node("pi-1", "True");
    assert_eq!(cluster.k("get secrets -n kube-system -o name"), "");

    let second = Agent::new(&mut lan, "pi-2");
    let refused = second.fails(&["--token", &token]);
    assert!(refused.contains("the token is unknown"), "{refused}");
    let short = cluster.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    let refused = second.fails(&["--token", &short]);
    assert!(refused.contains("the token is unknown") || refused.contains("expired"), "{refused}");
    let other = cluster.token(&["--node-name", "pi-3"]);
    let refused = second.fails(&["--token", &other]);
    assert!(refused.contains("the token is for node \"pi-3\""), "{refused}");
    assert!(second.fails(&[]).contains("give it a token"));
    assert!(second.fails(&["--token", "umiak1_x"]).contains("cut off"));

    // A name that another board has.
    let double = Agent::new(&mut lan, "pi-1");
    let refused = double.fails(&["--token", &cluster.token(&[])]);
    assert!(refused.contains("taken by a node that is connected"), "{refused}");
    assert_eq!(cluster.k("get nodes -o name"), "node/board\nnode/pi-1\n");
    for agent in [second, double] {
        drop(agent);
    }
    first.finish();
    cluster.finish();
}

#[test]
fn a_removed_node_is_out_at_once() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    with_busybox(&agent);
    cluster.apply(&pinned("steady", "pi-1", "sleep 1000 # removed-steady"));
    cluster.wait_ready("steady");
    let before = agent.processes("# removed-steady");
    cluster.k("delete node pi-1");
    agent.until_logged("the server has removed this node");
    assert_eq!(agent.status()["link"]["removed"], true);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cluster.k("get nodes -o name"), "node/board\n", "it does not come back by itself");
    assert_eq!(agent.processes("# removed-steady"), before, "its pods go on");
    let attempts = cluster.log().matches("a certificate is refused").count();
    assert!(attempts < 4, "it asked {attempts} times");

    // A new token makes it a node again.
    agent.stop(Signal::SIGTERM);
    agent.start(&["--token", &cluster.token(&[])]);
    cluster.until_node("pi-1", "True");
    run(cluster.umiak().args(["node", "revoke", "pi-1", "--data-dir"]).arg(cluster.data_dir()));
    assert_eq!(cluster.k("get nodes -o name"), "node/board\n");
    agent.finish();
    cluster.finish();
}

#[test]
fn an_agent_needs_no_server_to_run_its_pods() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    with_busybox(&agent);
    cluster.apply(&pinned("steady", "pi-1", "while true; do sleep 1000; done # offline-steady"));
    cluster.apply(&pinned("crashing", "pi-1", "sleep 2; exit 1"));
    cluster.wait_ready("steady");
    let uid = cluster.value("pod steady", ".metadata.uid");
    let before = agent.processes("# offline-steady");

    // The server goes; the agent is restarted, then its board loses power.
    cluster.stop_daemon(Signal::SIGTERM);
    agent.stop(Signal::SIGKILL);
    agent.start(&[]);
    assert_eq!(agent.processes("# offline-steady"), before);
    agent.power_cut();
    let began = Instant::now();
    agent.start(&[]);
    while agent.processes("# offline-steady").is_empty() {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("pods after {:?} without a server", began.elapsed());
    let status = agent.status();
    assert!(status["link"]["connected"].is_null() && status["link"]["error"].is_string(), "{status}");
    let after = agent.processes("# offline-steady");

    cluster.start_daemon();
    cluster.until_node("pi-1", "True");
    cluster.wait_ready("steady");
    assert_eq!(cluster.value("pod steady", ".metadata.uid"), uid);
    assert_eq!(agent.processes("# offline-steady"), after, "nothing is restarted on return");
    // What the server knew of the node before it stopped holds until the board is back.
    cluster.until("exec steady -- true", |_| true);
    agent.finish();
    cluster.finish();
}

#[test]
fn a_node_that_is_cut_off_is_unknown_and_keeps_its_pods() {
    let mut lan = Lan::new();
    let cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    with_busybox(&agent);
    cluster.apply(&pinned("steady", "pi-1", "while true; do sleep 1000; done # cut-steady"));
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: leaves}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 1, \
         tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}], \
         containers: [{name: c, image: busybox, command: [sh, -c, 'sleep 1000 # cut-leaves']}]}}",
    );
    cluster.wait_ready("steady leaves");
    let before = agent.processes("# cut-steady");
    let uid = cluster.value("pod steady", ".metadata.uid");
    let killed = Instant::now();
    agent.stop(Signal::SIGKILL);
    cluster.until_node("pi-1", "Unknown");
    let took = killed.elapsed();
    eprintln!("Unknown after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    cluster.until("get node pi-1 -o jsonpath={.spec.taints[*].key}", |t| t.contains("node.kubernetes.io/unreachable"));
    cluster.until(r#"get pod steady -o jsonpath={.status.conditions[?(@.type=="Ready")].status}"#, |s| s == "False");
    cluster.until("get pod leaves -o jsonpath={.metadata.deletionTimestamp}", |t| !t.is_empty());
    assert_eq!(cluster.value("pod steady", ".metadata.deletionTimestamp"), "");

    let began = Instant::now();
    agent.start(&[]);
    cluster.until_node("pi-1", "True");
    eprintln!("Ready after {:?}", began.elapsed());
    cluster.wait_ready("steady");
    cluster.until("get pods -o name", |p| p == "pod/steady\n");
    assert_eq!(agent.processes("# cut-leaves"), Vec::<String>::new(), "what was deleted meanwhile is gone");
    assert_eq!(cluster.value("pod steady", ".metadata.uid"), uid);
    assert_eq!(agent.processes("# cut-steady"), before);
    cluster.until("get node pi-1 -o jsonpath={.spec.taints}", str::is_empty);
    agent.finish();
    cluster.finish();
}

#[test]
fn a_server_without_a_node_serves_its_agents() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::stopped();
    cluster.server_args.push("--no-node");
    lan.plug(&cluster.netns);
    cluster.start_daemon();
    assert_eq!(cluster.k("get nodes -o name"), "");
    let mut agent = Agent::behind_nat(&mut lan, "pi-1");
    cluster.join(&mut agent);
    with_busybox(&agent);
    cluster.k("create deployment web --image=busybox -- sleep 1000");
    cluster.k("rollout status deployment web --timeout=90s");
    agent.finish();
    cluster.finish();
}
