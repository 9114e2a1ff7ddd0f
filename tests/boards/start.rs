//! A board that starts with no server in reach: its pods run as if nothing were missing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, PATIENCE, text};

const PODS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {word: configured}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {word: secret}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: pi-1}
      containers:
      - name: web
        image: nginx
        imagePullPolicy: IfNotPresent
        readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'touch /tmp/well; while true; do sleep 1; done # client']
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 2}
    env: [{name: SECRET, valueFrom: {secretKeyRef: {name: key, key: word}}}]
    volumeMounts: [{name: settings, mountPath: /settings}, {name: key, mountPath: /key}]
  volumes: [{name: settings, configMap: {name: settings}}, {name: key, secret: {secretName: key}}]
---
apiVersion: v1
kind: Pod
metadata: {name: chatty}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: chatty, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'yes so it goes on and on and on | head -n 1000000; sleep 1000 # chatty']}
";

/// Runs a shell in the board's client pod, whom no server lets us ask.
fn inside(agent: &Agent, script: &str) -> String {
    let Some(pid) = agent.processes("# client").into_iter().next() else { return String::new() };
    let mut command = Command::new("timeout");
    command.args(["10", "nsenter", "-t", &pid, "-n", "-m", "-r", "--", "/bin/sh", "-c", script]);
    let output = command.env("PATH", "/bin").stdin(Stdio::null()).output().unwrap();
    text(&output.stdout)
}

fn until(what: &str, test: impl Fn() -> bool) {
    let began = Instant::now();
    while !test() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pod(agent: &Agent, name: &str) -> serde_json::Value {
    let status = agent.status();
    status["pods"].as_array().unwrap().iter().find(|p| p["name"] == name).cloned().unwrap_or_default()
}

/// Bytes of the chatty pod's log files.
fn logs(agent: &Agent) -> Vec<u64> {
    let mut command = Command::new("find");
    command.arg(agent.data_dir()).args(["-path", "*chatty*", "-type", "f", "-name", "*.log*", "-printf", "%s\n"]);
    let listed = text(&command.output().unwrap().stdout);
    listed.lines().map(|size| size.parse().unwrap()).collect()
}

#[test]
fn a_board_needs_nobody() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import_all();
    cluster.apply(PODS);
    cluster.k("rollout status deployment web --timeout=90s");
    cluster.wait_ready("client chatty");
    let cluster_ip = cluster.value("service web", ".spec.clusterIP");
    cluster.until("get endpoints web -o jsonpath={.subsets[*].addresses[*].ip}", |ips| ips.split(' ').count() == 2);
    until("the Service is known", || inside(&agent, &format!("wget -qO- http://{cluster_ip}/")).contains("Welcome"));
    // What changes is on the board's disk within five seconds.
    std::thread::sleep(Duration::from_secs(6));

    cluster.power_cut();
    agent.power_cut();
    let began = Instant::now();
    agent.start(&[]);
    until("all run", || agent.processes("# client").len() == 1 && agent.processes("httpd").len() == 2);
    let running = began.elapsed();
    until("the Service answers", || inside(&agent, &format!("wget -qO- http://{cluster_ip}/")).contains("Welcome"));
    let serving = began.elapsed();
    let found = inside(&agent, "nslookup web.default.svc.cluster.local");
    assert!(found.contains(&format!("Address: {cluster_ip}")), "{found}");
    eprintln!("without a server: all pods run after {running:?}, their Service answers after {serving:?}");
    assert!(running < Duration::from_secs(5) && serving < Duration::from_secs(5));
    let given = inside(&agent, "cat /settings/word /key/word; tr '\\0' '\\n' < /proc/1/environ | grep SECRET");
    assert!(given.starts_with("configuredsecret"), "{given}");
    for _ in 0..10 {
        assert!(inside(&agent, &format!("wget -qO- http://{cluster_ip}/")).contains("Welcome"));
    }

    // Probes are run and obeyed.
    until("all are ready", || ["client", "chatty"].iter().all(|name| pod(&agent, name)["ready"] == 1));
    let restarts = pod(&agent, "client")["restarts"].as_u64().unwrap();
    inside(&agent, "rm /tmp/well");
    until("the probe has it started again", || pod(&agent, "client")["restarts"] == restarts + 1);
    // Logs do not fill the disk: five files of 10 MB each for this run and the one before.
    until("a log is full", || logs(&agent).len() > 1);
    let sizes = logs(&agent);
    assert!(sizes.len() <= 10 && sizes.iter().all(|size| *size <= 10 << 20), "{sizes:?}");

    let status = agent.status();
    assert!(status["link"]["connected"].is_null() && status["link"]["error"].is_string(), "{status}");
    cluster.start_daemon();
    cluster.until_node("pi-1", "True");
    cluster.wait_ready("client chatty");
    cluster.k("rollout status deployment web --timeout=90s");
    agent.finish();
    cluster.finish();
}
