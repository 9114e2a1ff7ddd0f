//! From pods to endpoints and back into pods, with the real kubectl: what a Service's users see of it besides its address.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, images, manifests};
use nix::sched::{CloneFlags, setns};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.43.7.7
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

const POD: &str = "
terminationGracePeriodSeconds: 20
containers:
- name: nginx
  image: nginx
  # Ends only when it is killed: long enough to be seen terminating.
  command: [sh, -c, 'touch /tmp/ready; trap : TERM; httpd -f -p 80 -h /www & while :; do sleep 1; done']
  ports: [{name: http, containerPort: 80}]
  readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
";

const GATED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: gated, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  readinessGates: [{conditionType: example.com/gate}]
  containers: [{name: c, image: nginx, ports: [{name: http, containerPort: 80}]}]
";

const BY_HAND: &str = "
apiVersion: v1
kind: Service
metadata: {name: endpoint1}
spec: {clusterIP: 10.43.7.8, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: endpoint1}
subsets:
- addresses: [{ip: 192.0.2.5}]
  ports: [{port: 8080}]
";

const TOLD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: told}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, command: [sh, -c, 'env | sort; cat /etc/resolv.conf']}]
---
apiVersion: v1
kind: Pod
metadata: {name: untold}
spec:
  enableServiceLinks: false
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [example.com], options: [{name: ndots, value: '2'}]}
  containers: [{name: c, image: busybox, command: [sh, -c, 'env | sort; cat /etc/resolv.conf']}]
";

/// The conditions of a Service's endpoints as `ready/serving/terminating`, sorted.
fn conditions(cluster: &Cluster, service: &str) -> Vec<String> {
    let path = "{range .items[*].endpoints[*]}{.conditions.ready}/{.conditions.serving}/{.conditions.terminating}{\"\\n\"}{end}";
    let output = cluster
        .kubectl()
        .args(["get", "endpointslices", "-l", &format!("kubernetes.io/service-name={service}"), "-o"])
        .arg(format!("jsonpath={path}"))
        .output()
        .unwrap();
    let mut all: Vec<String> = common::text(&output.stdout).lines().map(str::to_owned).collect();
    all.sort();
    all
}

fn until(what: &str, cluster: &Cluster, test: impl Fn(&Cluster) -> bool) {
    let began = Instant::now();
    while !test(cluster) {
        let state = || cluster.k("get pods,endpoints,endpointslices -o wide");
        assert!(began.elapsed() < common::PATIENCE, "{what}\n{}\n{}", state(), common::tail(&cluster.log(), 40));
        std::thread::sleep(Duration::from_millis(50));
    }
}

const UP: &str = "true/true/false";

#[test]
fn endpoints_follow_their_pods() {
    let cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "web.tar", &images::WEB));
    cluster.apply(SERVICE);
    cluster.apply(&manifests::web(3, POD));
    until("three endpoints", &cluster, |c| conditions(c, "web") == [UP; 3]);
    let listed = cluster.k("get endpoints web --no-headers");
    assert_eq!(listed.matches(":80").count(), 3, "{listed}");
    let slices = cluster.k("get endpointslices --no-headers");
    assert!(slices.lines().any(|l| l.starts_with("web-") && l.contains("IPv4") && l.contains(" 80 ")), "{slices}");
    let described = cluster.k("describe service web");
    assert_eq!(described.matches(":80").count(), 3, "{described}");

    cluster.k("scale deployment web --replicas=4");
    until("four endpoints", &cluster, |c| conditions(c, "web") == [UP; 4]);

    // Readiness lost and found.
    let name = cluster.value("pods -l app=web", ".items[0].metadata.name");
    cluster.k(&format!("exec {name} -- rm /tmp/ready"));
    until("one is not ready", &cluster, |c| conditions(c, "web") == ["false/false/false", UP, UP, UP]);
    let not_ready = cluster.value("endpoints web", ".subsets[*].notReadyAddresses[*].targetRef.name");
    assert_eq!(not_ready, name);
    cluster.k(&format!("exec {name} -- touch /tmp/ready"));
    until("it is ready again", &cluster, |c| conditions(c, "web") == [UP; 4]);

    // A pod whose gate somebody else opens.
    cluster.apply(GATED);
    until("the gate is closed", &cluster, |c| conditions(c, "web") == ["false/false/false", UP, UP, UP, UP]);
    let open = r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#;
    cluster.k(&format!("patch pod gated --subresource=status -p {open}"));
    until("the gate is open", &cluster, |c| conditions(c, "web") == [UP; 5]);
    cluster.k("delete pod gated");
    until("the gate is gone", &cluster, |c| conditions(c, "web") == [UP; 4]);

    // A pod on its way out serves but takes nothing new; it is gone from the Endpoints at once.
    cluster.k(&format!("delete pod {name} --wait=false"));
    until("one is terminating", &cluster, |c| conditions(c, "web").contains(&"false/true/true".to_owned()));
    let left = cluster.value("endpoints web", ".subsets[*].addresses[*].targetRef.name");
    assert!(!left.contains(&name), "{left}");
    cluster.k(&format!("delete pod {name} --grace-period=0 --force"));
    until("another takes its place", &cluster, |c| conditions(c, "web") == [UP; 4]);

    cluster.k("delete deployment web --cascade=foreground --timeout=60s");
    until("none is left", &cluster, |c| conditions(c, "web").is_empty());
    assert!(cluster.k("get endpoints web --no-headers").contains("<none>"));
    cluster.k("delete service web");
    until("nothing is left", &cluster, |c| {
        c.k("get endpoints,endpointslices -o name").lines().all(|l| !l.contains("web"))
    });
    cluster.finish();
}

#[test]
fn endpoints_by_hand_are_mirrored_and_pods_are_told() {
    let mut cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(BY_HAND);
    until("it is mirrored", &cluster, |c| {
        c.k("get endpointslices --no-headers").lines().any(|l| l.starts_with("endpoint1-") && l.contains("192.0.2.5"))
    });
    let described = cluster.k("describe endpoints endpoint1");
    assert!(described.contains("192.0.2.5") && described.contains("8080"), "{described}");
    cluster.apply(SERVICE);

    let check = |cluster: &Cluster| {
        cluster.apply(TOLD);
        for pod in ["told", "untold"] {
            cluster.until(&format!("get pod {pod} -o jsonpath={{.status.phase}}"), |phase| phase == "Succeeded");
        }
        let told = cluster.k("logs told");
        for line in [
            "KUBERNETES_SERVICE_HOST=10.43.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "WEB_SERVICE_HOST=10.43.7.7",
            "WEB_SERVICE_PORT=80",
            "WEB_SERVICE_PORT_HTTP=80",
            "WEB_PORT_80_TCP_ADDR=10.43.7.7",
            "ENDPOINT1_PORT=tcp://10.43.7.8:8080",
            "search default.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.43.0.10",
            "options ndots:5",
        ] {
            assert!(told.lines().any(|l| l.starts_with(line)), "{line} is missing:\n{told}");
        }
        let untold = cluster.k("logs untold");
        assert!(untold.contains("KUBERNETES_SERVICE_HOST=10.43.0.1") && !untold.contains("10.43.7.7"), "{untold}");
        assert!(untold.ends_with("search example.com\nnameserver 192.0.2.53\noptions ndots:2\n"), "{untold}");
        cluster.k("delete pod told untold");
    };
    check(&cluster);
    // A node that was killed and starts again knows the Services too.
    cluster.stop_daemon(nix::sys::signal::Signal::SIGKILL);
    cluster.start_daemon();
    check(&cluster);
    cluster.k("delete service endpoint1");
    until("all is gone", &cluster, |c| !c.k("get endpoints,endpointslices -o name").contains("endpoint1"));
    cluster.finish();
}

const ROLLING: &str = "
apiVersion: v1
kind: Service
metadata: {name: page}
spec: {clusterIP: 10.43.7.9, selector: {app: page}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: page}
spec:
  replicas: 3
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: page}}
  template:
    metadata: {labels: {app: page}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - {name: c, image: nginx, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}
";

/// One request on a connection of its own.
fn get(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, common::PATIENCE)?;
    stream.set_read_timeout(Some(common::PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains(" 200 ") {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("{answer:?}"))),
    }
}

/// httpd ends at once when it is told to: only what clients are told before that keeps them from noticing.
#[test]
fn a_rolling_update_fails_no_request() {
    let cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "web.tar", &images::WEB));
    cluster.apply(ROLLING);
    cluster.k("rollout status deployment page --timeout=90s");
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            let namespace = std::fs::File::open(format!("/run/netns/{}", cluster.netns.0)).unwrap();
            std::thread::spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let mut failed = Vec::new();
                let mut made = 0;
                while !over.load(Ordering::Relaxed) {
                    made += 1;
                    failed.extend(get("10.43.7.9:80".parse().unwrap()).err());
                    std::thread::sleep(Duration::from_millis(5));
                }
                (made, failed)
            })
        })
        .collect();
    for round in 0..2 {
        cluster.k(&format!("set env deployment page ROUND={round}"));
        cluster.k("rollout status deployment page --timeout=90s");
    }
    until("the old pods are gone", &cluster, |c| c.k("get pods -o name").lines().count() == 3);
    over.store(true, Ordering::Relaxed);
    let results: Vec<(usize, Vec<std::io::Error>)> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    let made: usize = results.iter().map(|(made, _)| made).sum();
    let failed: Vec<_> = results.into_iter().flat_map(|(_, failed)| failed).collect();
    assert!(failed.is_empty(), "{} of {made} requests failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    assert!(made > 100, "only {made} requests were made");
    eprintln!("{made} requests, none failed");
    cluster.finish();
}
