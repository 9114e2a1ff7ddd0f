//! What kubectl does with pods, on every board of a fleet, one of them behind NAT.

use std::io::Write;
use std::time::Duration;

use crate::common::fleet::Fleet;
use crate::common::{Cluster, Running, fetch, run, text};

/// A web server, and a shell that repeats what it is told.
fn pod(node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: on-{node}, labels: {{app: verbs}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: web, image: nginx, imagePullPolicy: IfNotPresent, ports: [{{containerPort: 80}}]}}
  - {{name: echo, image: busybox, imagePullPolicy: IfNotPresent, stdin: true, command: [sh, -c, 'echo here; while read word; do echo got $word; done']}}
"
    )
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {kubernetes.io/change-cause: first}}
spec:
  replicas: 9
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {fleet: 'true'}
      containers: [{name: web, image: 'nginx:1.7.9', imagePullPolicy: IfNotPresent, ports: [{containerPort: 80}]}]
";

/// Reads lines until one has these words.
fn until_said(lines: &mut impl Iterator<Item = String>, words: &str) {
    let mut seen = Vec::new();
    for line in lines {
        if line.contains(words) {
            return;
        }
        seen.push(line);
    }
    panic!("{words:?} is not in {seen:?}");
}

fn looks(cluster: &Cluster, node: &str) {
    let name = format!("on-{node}");
    let mut watch = Running::start(cluster, &format!("get pods -w --field-selector spec.nodeName={node}"));
    assert_eq!(cluster.apply(&pod(node)), format!("pod/{name} created\n"));
    until_said(&mut watch.lines(), "2/2");
    cluster.wait_ready(&name);
    let wide = cluster.k(&format!("get pod {name} -o wide"));
    let address = cluster.value(&format!("pod {name}"), ".status.podIP");
    assert!(wide.contains("Running") && wide.contains(node) && wide.contains(&address), "{wide}");
    let yaml = cluster.k(&format!("get pod {name} -o yaml"));
    assert!(yaml.contains(&format!("nodeName: {node}")) && yaml.contains("phase: Running"), "{yaml}");
    let described = cluster.until(&format!("describe pod {name}"), |d| d.contains("Started container echo"));
    assert!(described.contains("Container image \"nginx\" already present"), "{described}");
    cluster.k(&format!("label pod {name} site={node}"));
    assert_eq!(cluster.k(&format!("get pods -l site={node} -o name")), format!("pod/{name}\n"));
}

fn talks(cluster: &Cluster, node: &str) {
    let name = format!("on-{node}");
    assert_eq!(cluster.k(&format!("logs {name} -c echo")), "here\n");
    let mut follow = Running::start(cluster, &format!("logs -f {name} -c echo"));
    let mut followed = follow.lines();
    until_said(&mut followed, "here");
    let mut attached = Running::start(cluster, &format!("attach -i {name} -c echo"));
    attached.0.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    until_said(&mut attached.lines(), "got hello");
    until_said(&mut followed, "got hello");

    let mut exec = Running::start(cluster, &format!("exec -i {name} -c web -- sh -c exit${{IFS}}7"));
    drop(exec.0.stdin.take());
    assert_eq!(exec.0.wait().unwrap().code(), Some(7));
    // The terminal has the size of the one here.
    let kubectl = cluster.kubectl();
    let program = kubectl.get_args().last().unwrap().to_string_lossy().into_owned();
    let line = format!("{program} exec -it {name} -c echo -- sh -c 'test -t 0 && test -t 1 && echo a terminal'");
    let mut script = cluster.netns.command("script");
    script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"));
    let shown = run(&mut script);
    assert!(shown.contains("a terminal"), "{shown}");
}

fn measures(cluster: &Cluster, node: &str) {
    let containers = cluster.k(&format!("top pod on-{node} --containers --no-headers"));
    let mut named: Vec<&str> = containers.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
    named.sort_unstable();
    assert_eq!(named, ["echo", "web"], "{containers}");
    let top = cluster.k(&format!("top node {node} --no-headers"));
    assert!(top.starts_with(node) && top.contains('%'), "{top}");
}

fn carries(cluster: &Cluster, node: &str) {
    let name = format!("on-{node}");
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(&there, &content).unwrap();
    cluster.k(&format!("cp -c echo {} {name}:/tmp/file", there.display()));
    cluster.k(&format!("cp -c echo {name}:/tmp/file {}", back.display()));
    assert!(std::fs::read(&back).unwrap() == content, "the file came back changed");

    let mut forward = Running::start(cluster, &format!("port-forward pod/{name} :80"));
    // Kept: kubectl ends when it cannot say more.
    let mut lines = forward.lines();
    let said = lines.next().unwrap();
    let port: u16 = said.split("127.0.0.1:").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect(&said);
    let page = move || fetch(([127, 0, 0, 1], port).into(), Duration::from_secs(20));
    for _ in 0..3 {
        assert!(cluster.netns.within(page).join().unwrap().is_some_and(|p| p.contains("Welcome")), "{said}");
    }
}

fn ends(cluster: &Cluster, node: &str) {
    let name = format!("on-{node}");
    let mut follow = Running::start(cluster, &format!("logs -f {name} -c echo"));
    let mut followed = follow.lines();
    until_said(&mut followed, "here");
    assert_eq!(cluster.k(&format!("delete pod {name}")), format!("pod \"{name}\" deleted\n"));
    assert_eq!(followed.last().as_deref(), Some("got hello"), "what follows a log ends with its pod");
    assert!(cluster.k_fails(&format!("exec {name} -- true")).contains("not found"));
}

#[test]
fn every_verb_works_on_every_board() {
    let fleet = Fleet::new();
    let cluster = &fleet.cluster;
    std::thread::scope(|scope| {
        for agent in &fleet.agents {
            scope.spawn(|| {
                for verbs in [looks, talks, measures, carries, ends] {
                    verbs(cluster, &agent.name);
                }
                agent.until_no_process("while read word");
            });
        }
        scope.spawn(|| rollouts(&fleet));
    });
    fleet.finish();
}

/// What is done with Deployments, its pods on all boards.
fn rollouts(fleet: &Fleet) {
    let cluster = &fleet.cluster;
    let image_everywhere = |image: &str| {
        for agent in &fleet.agents {
            let images = cluster.k(&format!(
                "get pods -l app=web --field-selector spec.nodeName={},status.phase=Running -o jsonpath={}",
                agent.name, "{.items[*].spec.containers[0].image}"
            ));
            assert!(!images.is_empty() && images.split(' ').all(|i| i == image), "{}: {images}", agent.name);
        }
    };
    let settled = || {
        cluster.k("rollout status deployment web --timeout=90s");
        cluster.until("get pods -l app=web -o name", |names| names.lines().count() == 9);
    };
    assert_eq!(cluster.apply(DEPLOYMENT), "deployment.apps/web created\n");
    settled();
    image_everywhere("nginx:1.7.9");
    cluster.k("set image deployment/web web=nginx:1.9.1");
    cluster.k("annotate deployment web kubernetes.io/change-cause=second --overwrite");
    settled();
    for agent in &fleet.agents {
        let pod = cluster.pod_on(&agent.name, "app=web");
        assert!(cluster.k(&format!("exec {pod} -- wget -qO- http://127.0.0.1/")).contains("1.9.1"));
    }
    let history = cluster.k("rollout history deployment web");
    assert!(history.contains("first") && history.contains("second"), "{history}");
    cluster.k("rollout undo deployment web");
    settled();
    let image = cluster.value("deployment web", ".spec.template.spec.containers[0].image");
    assert_eq!(image, "nginx:1.7.9");
    cluster.k("scale deployment web --replicas=3");
    cluster.until("get pods -l app=web -o name", |names| names.lines().count() == 3);
    cluster.k("scale deployment web --replicas=9");
    settled();
    image_everywhere("nginx:1.7.9");
    let output = cluster.kubectl().args(["delete", "deployment", "web", "--wait=true"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    cluster.until("get pods,rs -l app=web -o name", str::is_empty);
}
