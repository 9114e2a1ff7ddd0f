//! Names as pods see them: Services, headless Services, aliases, search lists, the world outside.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE, images, run, text};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

const APP: images::Recipe<'static> = images::Recipe {
    names: &["kubetm/app:latest"],
    command: &["httpd", "-f", "-p", "8080", "-h", "/www"],
    env: &[],
    files: &[("www/index.html", "hello\n")],
};

/// What the course has in its lessons on ClusterIP, headless Services and ExternalName.
const LESSONS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: request-pod}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, command: [sleep, '1000'], imagePullPolicy: IfNotPresent}]
---
apiVersion: v1
kind: Service
metadata: {name: clusterip1}
spec: {selector: {svc: clusterip}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless1}
spec: {selector: {svc: headless}, clusterIP: None, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: externalname1}
spec: {type: ExternalName, externalName: github.github.io}
---
apiVersion: v1
kind: Pod
metadata: {name: pod4, labels: {svc: headless}}
spec:
  hostname: pod-a
  subdomain: headless1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: kubetm/app, imagePullPolicy: IfNotPresent}]
---
apiVersion: v1
kind: Pod
metadata: {name: pod5, labels: {svc: headless}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: kubetm/app, imagePullPolicy: IfNotPresent}]
";

/// What a command in the pod prints, error or not.
fn in_pod(cluster: &Cluster, command: &[&str]) -> String {
    let output = cluster.kubectl().args(["exec", "request-pod", "--"]).args(command).output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// Asks until it is so: what was just made takes a moment to be known.
fn until(cluster: &Cluster, command: &[&str], is_so: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let said = in_pod(cluster, command);
        if is_so(&said) {
            return said;
        }
        assert!(start.elapsed() < PATIENCE, "{command:?} still says: {said}\n{}", common::tail(&cluster.log(), 30));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A name server outside the cluster, where the node's list says that there is one; knows every name but `missing.*`.
fn outside(cluster: &Cluster) {
    let list = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let server = list.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap().trim().to_owned();
    let address: IpAddr = server.parse().unwrap();
    if !address.is_loopback() {
        run(Command::new("ip").args(["-n", &cluster.netns.0, "address", "add", &server, "dev", "lo"]));
    }
    let namespace = std::fs::File::open(format!("/run/netns/{}", cluster.netns.0)).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let mut packet = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut packet) {
            let query = Message::from_vec(&packet[..length]).unwrap();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            let question = query.queries[0].clone();
            if question.name().iter().next() == Some(b"missing") {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if question.query_type() == RecordType::A {
                let address = RData::A(A(Ipv4Addr::new(198, 51, 100, 7)));
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, address));
            }
            answer.add_query(question);
            socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
        }
    });
}

#[test]
fn names_as_pods_see_them() {
    let mut cluster = Cluster::start();
    for (file, recipe) in [("busybox.tar", &images::BUSYBOX), ("app.tar", &APP)] {
        cluster.import(&images::archive(cluster.dir.path(), file, recipe));
    }
    cluster.apply(LESSONS);
    cluster.wait_ready("--all");
    let cluster_ip = cluster.value("service/clusterip1", ".spec.clusterIP");
    let pod4 = cluster.value("pod/pod4", ".status.podIP");
    let pod5 = cluster.value("pod/pod5", ".status.podIP");

    assert!(cluster_ip.starts_with("10.43."), "{cluster_ip}");
    // By the search list and in full.
    for name in ["clusterip1", "clusterip1.default.svc.cluster.local."] {
        until(&cluster, &["nslookup", name], |said| said.contains(&format!("Address: {cluster_ip}\n")));
    }
    let said = in_pod(&cluster, &["nslookup", "clusterip1"]);
    assert!(said.contains("10.43.0.10") && said.contains("clusterip1.default.svc.cluster.local"), "{said}");
    let said = in_pod(&cluster, &["nslookup", "kubernetes.default.svc.cluster.local"]);
    assert!(said.contains("10.43.0.1\n"), "{said}");
    let said = in_pod(&cluster, &["nslookup", "nothing1.default.svc.cluster.local"]);
    assert!(said.contains("NXDOMAIN"), "{said}");

    // Headless: the pods themselves, and each by its name.
    until(&cluster, &["nslookup", "headless1"], |said| said.contains(&pod4) && said.contains(&pod5));
    // Busybox takes a name with a dot for a full one.
    let said = in_pod(&cluster, &["nslookup", "pod-a.headless1.default.svc.cluster.local"]);
    assert!(said.contains(&pod4) && !said.contains(&pod5), "{said}");
    assert_eq!(in_pod(&cluster, &["wget", "-qO-", "http://pod-a.headless1:8080/"]), "hello\n");
    let said = in_pod(&cluster, &["nslookup", "-type=srv", "_http._tcp.headless1.default.svc.cluster.local"]);
    assert!(said.contains("8080 pod-a.headless1.default.svc.cluster.local"), "{said}");
    let said = in_pod(&cluster, &["nslookup", &pod4]);
    assert!(said.contains("pod-a.headless1.default.svc.cluster.local"), "{said}");
    cluster.k("delete pod pod5 --wait");
    until(&cluster, &["nslookup", "headless1"], |said| said.contains(&pod4) && !said.contains(&pod5));

    // Nobody is there to ask for other names: an alias is shown, the rest fails at once.
    let said = in_pod(&cluster, &["nslookup", "-type=a", "externalname1.default.svc.cluster.local"]);
    assert!(said.contains("canonical name = github.github.io"), "{said}");
    let start = Instant::now();
    let said = in_pod(&cluster, &["nslookup", "www.example.com."]);
    assert!(said.contains("SERVFAIL"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(2));

    outside(&cluster);
    let said = until(&cluster, &["nslookup", "-type=a", "externalname1"], |said| said.contains("198.51.100.7"));
    assert!(said.contains("canonical name = github.github.io"), "{said}");
    assert!(in_pod(&cluster, &["nslookup", "www.example.com"]).contains("198.51.100.7"));
    assert!(in_pod(&cluster, &["nslookup", "missing.example.com."]).contains("NXDOMAIN"));

    // A daemon that was killed answers again, from what it knew.
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    until(&cluster, &["nslookup", "clusterip1"], |said| said.contains(&cluster_ip));
    cluster.k("delete service clusterip1");
    until(&cluster, &["nslookup", "clusterip1.default.svc.cluster.local"], |said| said.contains("NXDOMAIN"));
    cluster.k("delete pod --all --now");
    cluster.finish();
}
