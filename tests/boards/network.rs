//! Pods of one board reach those of another, straight and through Services; and who decides where pods run.

use std::time::{Duration, Instant};

use crate::common::fleet::Fleet;
use crate::common::{Cluster, fetch, manifests, text};

/// Says where it is.
const POD: &str = "
terminationGracePeriodSeconds: 0
nodeSelector: {fleet: 'true'}
containers:
- {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo $NODE > /tmp/index.html; exec httpd -f -p 8080 -h /tmp'],
   env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}
";

/// Of every kind; `near` leaves the board behind NAT out.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: all}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {type: NodePort, selector: {app: web, near: 'true'}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web, near: 'true'}, ports: [{port: 8080}]}
";

const NEAR: [&str; 2] = ["pi-1", "pi-2"];

/// What a pod gets from a web server, or why not.
fn wget(cluster: &Cluster, pod: &str, address: &str) -> String {
    let url = format!("http://{address}/");
    let output = cluster.kubectl().args(["exec", pod, "--", "wget", "-qO-", &url]).output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// The addresses that a name has inside a pod. (The resolver of a static C library is not to be had there.)
fn look_up(cluster: &Cluster, pod: &str, name: &str) -> Vec<String> {
    // It asks for the name in every search domain, and fails if one does not have it.
    let output = cluster.kubectl().args(["exec", pod, "--", "nslookup", name]).output().unwrap();
    let said = text(&output.stdout);
    let answer = said.split("Name:").skip(1).flat_map(str::lines);
    answer.filter_map(|line| Some(line.strip_prefix("Address")?.split_whitespace().nth(1)?.to_owned())).collect()
}

/// Asks until every board of these has answered.
fn until_all(names: &[&str], ask: impl Fn() -> String) {
    let began = Instant::now();
    let mut missing = names.to_vec();
    let mut said = Vec::new();
    while !missing.is_empty() {
        let answer = ask();
        missing.retain(|name| *name != answer.trim());
        said.push(answer);
        assert!(began.elapsed() < Duration::from_secs(30), "{missing:?} not heard in {said:?}");
    }
}

#[test]
fn pods_and_services_reach_across_boards() {
    let fleet = Fleet::new();
    let cluster = &fleet.cluster;
    cluster.apply(&manifests::web(3, POD));
    cluster.apply(SERVICES);
    cluster.k("rollout status deployment web --timeout=90s");
    for node in NEAR {
        cluster.k(&format!("label {} near=true", cluster.pod_on(node, "app=web")));
    }
    let service = |name: &str, path: &str| cluster.value(&format!("service {name}"), path);
    let cluster_ip = service("near", ".spec.clusterIP");
    let node_port: u16 = service("near", ".spec.ports[0].nodePort").parse().unwrap();
    cluster.until("get endpoints near -o jsonpath={.subsets[*].addresses[*].nodeName}", |n| n.split(' ').count() == 2);

    std::thread::scope(|scope| {
        for (node, other) in [(NEAR[0], NEAR[1]), (NEAR[1], NEAR[0])] {
            let cluster_ip = &cluster_ip;
            scope.spawn(move || {
                let pod = &cluster.pod_on(node, "app=web");
                let there = cluster.value(&cluster.pod_on(other, "app=web"), ".status.podIP");
                until_all(&[other], || wget(cluster, pod, &format!("{there}:8080")));
                for name in ["near", "near.default.svc.cluster.local"] {
                    assert_eq!(look_up(cluster, pod, name), [cluster_ip.as_str()]);
                }
                until_all(&NEAR, || wget(cluster, pod, cluster_ip));
                let pods = look_up(cluster, pod, "headless");
                assert!(pods.len() == 2 && pods.contains(&there), "{pods:?}");
            });
        }
        // Names are known behind NAT, too.
        let behind = cluster.pod_on("pi-nat", "app=web");
        assert_eq!(look_up(cluster, &behind, "kubernetes.default.svc.cluster.local"), ["10.43.0.1"]);
        // Every board's node port, from outside, leads to both.
        for agent in &fleet.agents[..2] {
            let to = (agent.address.parse::<std::net::IpAddr>().unwrap(), node_port).into();
            let (name, netns) = (&agent.name, &fleet.cluster.netns);
            scope.spawn(move || {
                until_all(&NEAR, || {
                    let page = netns.within(move || fetch(to, Duration::from_secs(5))).join().unwrap();
                    page.and_then(|p| Some(p.lines().last()?.to_owned())).unwrap_or_else(|| format!("{name} is mute"))
                });
            });
        }
    });

    // Nothing reaches a pod behind NAT from outside, but a Service that has one among others still answers.
    let pod = cluster.pod_on("pi-1", "app=web");
    let began = Instant::now();
    for n in 0..6 {
        let answer = wget(cluster, &pod, "all");
        assert!(NEAR.contains(&answer.trim()), "{n}: {answer}");
    }
    eprintln!("6 requests beside an endpoint out of reach: {:?}", began.elapsed());
    let behind = cluster.pod_on("pi-nat", "app=web");
    assert_eq!(wget(cluster, &behind, "127.0.0.1:8080"), "pi-nat\n");
    fleet.finish();
}

fn pods_on(cluster: &Cluster, node: &str) -> usize {
    cluster.k(&format!("get pods -l app=spread --field-selector spec.nodeName={node} -o name")).lines().count()
}

fn spread(replicas: u8, extra: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: spread}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: spread}}}}, template: {{metadata: {{labels: {{app: spread}}}}, spec: {{ \
         terminationGracePeriodSeconds: 0, {extra} \
         containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}]}}}}}}}}"
    )
}

#[test]
fn cordon_taint_label_and_drain_steer_pods() {
    let fleet = Fleet::new();
    let cluster = &fleet.cluster;
    let on_fleet = "nodeSelector: {fleet: 'true'},";
    let settled = |count: usize| {
        cluster.k("rollout status deployment spread --timeout=90s");
        cluster.until("get pods -l app=spread -o name", |names| names.lines().count() == count);
    };

    // Cordoned: nothing new comes, what runs stays, and what can run nowhere else waits.
    cluster.apply(&spread(3, on_fleet));
    settled(3);
    cluster.k("cordon pi-2");
    assert!(cluster.k("get node pi-2").contains("Ready,SchedulingDisabled"));
    cluster.k("scale deployment spread --replicas=7");
    settled(7);
    assert_eq!(pods_on(cluster, "pi-2"), 1);
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: picky}, spec: {nodeSelector: {kubernetes.io/hostname: pi-2}, \
         terminationGracePeriodSeconds: 0, containers: [{name: c, image: busybox, command: [sleep, '1000']}]}}",
    );
    cluster.until("describe pod picky", |d| d.contains("1 node(s) were unschedulable"));
    cluster.k("uncordon pi-2");
    cluster.wait_ready("picky");
    assert_eq!(cluster.value("pod picky", ".spec.nodeName"), "pi-2");
    cluster.k("delete pod picky");

    // Drained: its pods run elsewhere.
    cluster.k("drain pi-1 --timeout=60s");
    settled(7);
    assert_eq!(pods_on(cluster, "pi-1"), 0);
    fleet.agents[0].until_no_process("sleep");
    cluster.k("uncordon pi-1");

    // Tainted: NoSchedule keeps new ones away, NoExecute removes those that run, unless they tolerate it.
    cluster.k("taint node pi-nat use=camera:NoSchedule");
    let before = pods_on(cluster, "pi-nat");
    cluster.k("scale deployment spread --replicas=12");
    settled(12);
    assert_eq!(pods_on(cluster, "pi-nat"), before);
    assert!(pods_on(cluster, "pi-1") > 0);
    cluster.k("taint node pi-nat use=camera:NoExecute");
    cluster.until("get pods -l app=spread --field-selector spec.nodeName=pi-nat -o name", str::is_empty);
    settled(12);
    let tolerant = "nodeSelector: {kubernetes.io/hostname: pi-nat}, \
                    tolerations: [{key: use, operator: Equal, value: camera}],";
    cluster.apply(&spread(2, tolerant));
    settled(2);
    assert_eq!(pods_on(cluster, "pi-nat"), 2);
    cluster.k("taint node pi-nat use=camera:NoSchedule- use=camera:NoExecute-");
    assert_eq!(cluster.value("node pi-nat", ".spec.taints"), "");

    // Labels steer, too; one that goes later moves nothing.
    cluster.k("label node pi-2 disk=ssd");
    cluster.apply(&spread(4, "nodeSelector: {disk: ssd},"));
    settled(4);
    assert_eq!(pods_on(cluster, "pi-2"), 4);
    cluster.k("label node pi-2 disk-");
    assert_eq!(pods_on(cluster, "pi-2"), 4);
    cluster.k("scale deployment spread --replicas=5");
    cluster.until("describe pods -l app=spread", |d| d.contains("didn't match Pod's node affinity/selector"));
    cluster.k("delete deployment spread");
    cluster.until("get pods -o name", str::is_empty);
    fleet.finish();
}
