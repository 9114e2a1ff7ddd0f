//! Services as their clients know them: from pods, from the node, from the LAN, and while everything behind them changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Cluster, Netns, PATIENCE, images, manifests, run, text};
use nix::sched::{CloneFlags, setns};

const POD: &str = r"
terminationGracePeriodSeconds: 1
containers:
- name: httpd
  image: busybox
  imagePullPolicy: IfNotPresent
  command:
  - sh
  - -c
  - |
    mkdir -p /www/cgi-bin
    hostname > /www/hostname
    printf '#!/bin/sh\necho; echo $REMOTE_ADDR\n' > /www/cgi-bin/client
    chmod +x /www/cgi-bin/client
    exec httpd -f -p 8080 -h /www
  readinessProbe: {httpGet: {port: 8080, path: /hostname}, periodSeconds: 1}
";

const REST: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.43.50.1
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30036}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
";

const CLUSTER: &str = "10.43.50.1:80";
const NODE_PORT: &str = "198.18.0.1:30036";
const GATEWAY: &str = "10.42.0.1";

/// The host's own web server, at port 80 of all addresses.
struct HostServer(std::process::Child);

impl Drop for HostServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A cluster, and another host on its LAN: 198.18.0.1 and 198.18.0.2.
struct Site {
    cluster: Cluster,
    lan: Netns,
    host: HostServer,
}

impl Site {
    fn start() -> Self {
        let mut cluster = Cluster::stopped();
        let lan = Netns::new();
        let ip = |words: &str| drop(run(Command::new("ip").args(words.split_whitespace())));
        let (node, other) = (&cluster.netns.0, &lan.0);
        ip(&format!("-n {node} link add lan0 type veth peer name eth0 netns {other}"));
        for (namespace, link, own, gateway) in [(node, "lan0", 1, 2), (other, "eth0", 2, 1)] {
            ip(&format!("-n {namespace} address add 198.18.0.{own}/24 dev {link}"));
            ip(&format!("-n {namespace} link set {link} up"));
            ip(&format!("-n {namespace} route add default via 198.18.0.{gateway}"));
        }
        let page = cluster.dir.path().join("host");
        std::fs::create_dir(&page).unwrap();
        std::fs::write(page.join("hostname"), "the host itself\n").unwrap();
        let host = cluster.netns.command("busybox").args(["httpd", "-f", "-p", "80", "-h"]).arg(&page).spawn().unwrap();
        cluster.start_daemon();
        let archive = images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX);
        cluster.import(&archive);
        cluster.apply(&manifests::web(3, POD));
        cluster.apply(REST);
        run(cluster.kubectl().args(["rollout", "status", "deployment/web", "--timeout=90s"]));
        cluster.wait_ready("client");
        Self { cluster, lan, host: HostServer(host) }
    }

    fn finish(self) {
        let Self { cluster, host, .. } = self;
        drop(host);
        run(Command::new("ip").args(["-n", &cluster.netns.0, "link", "delete", "lan0"]));
        cluster.finish();
    }

    fn k(&self, words: &str) -> String {
        self.cluster.k(words)
    }

    fn patch(&self, spec: &str) {
        run(self.cluster.kubectl().args(["patch", "service", "web", "--patch", &format!("{{\"spec\": {spec}}}")]));
    }

    fn pods(&self) -> BTreeSet<String> {
        let names = self.k("get pods -l app=web -o jsonpath={.items[*].metadata.name}");
        names.split_whitespace().map(str::to_owned).collect()
    }

    /// What a pod gets; `None` if it is refused.
    fn in_pod(&self, pod: &str, url: &str) -> Option<String> {
        let url = format!("http://{url}");
        let output = self.cluster.kubectl().args(["exec", pod, "--", "wget", "-qO-", &url]).output().unwrap();
        let error = text(&output.stderr);
        assert!(output.status.success() || error.contains("refused") || error.contains("reset"), "{url}: {error}");
        output.status.success().then(|| text(&output.stdout).trim().to_owned())
    }
}

/// What a host gets; `None` if it is refused.
fn on(host: &Netns, url: &str) -> Option<String> {
    let output = host.command("curl").args(["-sS", "--max-time", "5", &format!("http://{url}")]).output().unwrap();
    let error = text(&output.stderr);
    assert!(!error.contains("timed out"), "{url}: {error}");
    // busybox httpd names its client as IPv6 does.
    let plain = |out: String| out.trim().trim_start_matches("[::ffff:").trim_end_matches(']').to_owned();
    output.status.success().then(|| plain(text(&output.stdout)))
}

/// Waits for what changes from one moment to the next.
fn until(what: &str, mut test: impl FnMut() -> bool) {
    let began = Instant::now();
    while !test() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Who answers, of so many requests.
fn answers(count: usize, mut ask: impl FnMut() -> Option<String>) -> BTreeSet<String> {
    (0..count).map(|_| ask().expect("an answer")).collect()
}

#[test]
fn services_lead_to_their_pods_from_everywhere() {
    let site = Site::start();
    let (node, lan) = (&site.cluster.netns, &site.lan);
    let pods = site.pods();
    assert_eq!(pods.len(), 3);

    // The host's own server has port 80 of all other addresses.
    assert_eq!(on(node, "127.0.0.1/hostname").unwrap(), "the host itself");
    assert_eq!(on(node, "10.43.50.2/hostname"), None, "an address of no Service");
    assert_eq!(answers(9, || on(node, "10.43.50.1/hostname")), pods, "from the node");
    assert_eq!(answers(9, || site.in_pod("client", "10.43.50.1/hostname")), pods, "from a pod");
    let one = pods.first().unwrap();
    assert_eq!(answers(9, || site.in_pod(one, "10.43.50.1/hostname")), pods, "from one of them, to itself as well");
    assert_eq!(answers(9, || on(lan, "198.18.0.1:30036/hostname")), pods, "from the LAN");
    assert_eq!(answers(9, || on(node, "127.0.0.1:30036/hostname")), pods, "at the node's loopback");
    assert_eq!(on(node, "10.43.50.1:81/hostname"), None, "no such port");

    site.patch(r#"{"sessionAffinity": "ClientIP"}"#);
    until("a client keeps its pod", || answers(6, || on(lan, "198.18.0.1:30036/hostname")).len() == 1);
    site.patch(r#"{"sessionAffinity": "None"}"#);
    until("until it does not", || answers(6, || on(lan, "198.18.0.1:30036/hostname")).len() == 3);

    let client = format!("{NODE_PORT}/cgi-bin/client");
    assert_eq!(on(lan, &client).unwrap(), GATEWAY);
    site.patch(r#"{"externalTrafficPolicy": "Local"}"#);
    until("the client's address is seen", || on(lan, &client).unwrap() == "198.18.0.2");
    assert_eq!(on(node, &client).unwrap(), GATEWAY, "the node's own clients are not outside");
    assert_eq!(
        on(lan, &format!("{CLUSTER}/cgi-bin/client")).unwrap(),
        GATEWAY,
        "the policy is not that of the cluster"
    );

    site.patch(r#"{"externalTrafficPolicy": "Cluster", "externalIPs": ["203.0.113.9"]}"#);
    until("the external address answers", || on(lan, "203.0.113.9/hostname").is_some_and(|pod| pods.contains(&pod)));
    assert!(pods.contains(&on(node, "203.0.113.9/hostname").unwrap()));
    assert!(pods.contains(&site.in_pod("client", "203.0.113.9/hostname").unwrap()));

    site.patch(r#"{"type": "ClusterIP", "externalIPs": null}"#);
    until("no node port any more", || on(lan, "198.18.0.1:30036/hostname").is_none());
    assert!(pods.contains(&on(node, "10.43.50.1/hostname").unwrap()));
    site.patch(r#"{"type": "NodePort", "ports": [{"port": 80, "nodePort": 30037}]}"#);
    until("another node port", || on(lan, "198.18.0.1:30037/hostname").is_some());

    site.k("scale deployment/web --replicas=0");
    until("nobody is there", || on(node, "10.43.50.1/hostname").is_none());
    // Pods that end may still be asked, and then take their time; with the last of them gone nobody waits.
    until("refused at once", || {
        let asked = Instant::now();
        on(lan, "198.18.0.1:30037/hostname").is_none() && asked.elapsed() < Duration::from_secs(1)
    });
    site.k("scale deployment/web --replicas=1");
    until("somebody is", || on(node, "10.43.50.1/hostname").is_some());
    site.k("delete service web");
    until("the Service is gone", || on(node, "10.43.50.1/hostname").is_none());
    site.finish();
}

/// Asks again and again until told to stop; counts the answers, and keeps what went wrong.
fn load(netns: &str, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(usize, Vec<String>)> {
    let namespace = std::fs::File::open(format!("/run/netns/{netns}")).unwrap();
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let (mut count, mut failed) = (0, Vec::new());
        while !stop.load(Relaxed) {
            match request() {
                Ok(answer) if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") => count += 1,
                Ok(answer) => failed.push(format!("{answer:?}")),
                Err(error) => failed.push(error.to_string()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        (count, failed)
    })
}

fn request() -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&CLUSTER.parse().unwrap(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn an_update_is_not_noticed() {
    let site = Site::start();
    let before = site.pods();
    let stop = Arc::new(AtomicBool::new(false));
    let loads = [0; 2].map(|_| load(&site.cluster.netns.0, stop.clone()));
    for version in ["one", "two"] {
        site.k(&format!("set env deployment/web VERSION={version}"));
        run(site.cluster.kubectl().args(["rollout", "status", "deployment/web", "--timeout=90s"]));
    }
    site.cluster.until("get pods -l app=web --no-headers", |text| text.lines().count() == 3);
    stop.store(true, Relaxed);
    assert!(before.is_disjoint(&site.pods()));
    let mut total = 0;
    for load in loads {
        let (count, failed) = load.join().unwrap();
        assert_eq!(failed, [""; 0], "beside {count} that were answered");
        total += count;
    }
    assert!(total > 200, "{total} requests are too few to say anything");
    site.finish();
}
