//! Services and their like as objects, with the oldest and the newest kubectl at hand: what is accepted, given out,
//! shown and refused. What packets do is tested elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use common::{Cluster, run, run_with_input, text};
use nix::sys::signal::Signal;

/// The course's manifests on Services.
const COURSE: [&str; 6] = [
    "
apiVersion: v1
kind: Service
metadata: {name: hello-node-svc}
spec:
  selector: {app: hello-node}
  type: NodePort
  ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080, nodePort: 30036}]
",
    "
apiVersion: v1
kind: Service
metadata: {name: clusterip1}
spec:
  selector: {svc: clusterip}
  ports: [{port: 80, targetPort: 8080}]
",
    "
apiVersion: v1
kind: Service
metadata: {name: headless1}
spec:
  selector: {svc: headless}
  ports: [{port: 80, targetPort: 8080}]
  clusterIP: None
",
    "
apiVersion: v1
kind: Service
metadata: {name: endpoint2}
spec:
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: endpoint2}
subsets:
- addresses: [{ip: 20.111.156.67}]
  ports: [{port: 8080}]
",
    "
apiVersion: v1
kind: Service
metadata: {name: externalname1}
spec: {type: ExternalName, externalName: github.github.io}
",
    "
apiVersion: v1
kind: ReplicationController
metadata: {name: kubia}
spec:
  replicas: 1
  selector: {run: kubia}
  template:
    metadata: {labels: {run: kubia}}
    spec:
      containers: [{name: kubia, image: tree9295/kubia, imagePullPolicy: Never, ports: [{containerPort: 8080}]}]
",
];

/// The words of each line of a table.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

/// One row of a table without its ages.
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    rows(table).into_iter().find(|row| row.first() == Some(&name)).unwrap_or_else(|| panic!("no {name} in\n{table}"))
}

fn course(cluster: &Cluster, kubectl: &Path) {
    let k = |words: &str| run(cluster.kubectl_of(kubectl).args(words.split_whitespace()));
    for verb in ["create", "apply"] {
        for manifest in COURSE {
            run_with_input(cluster.kubectl_of(kubectl).args([verb, "-f", "-"]), manifest);
        }
        let services = k("get svc -o wide");
        assert_eq!(rows(&services)[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]);
        let node = row(&services, "hello-node-svc");
        assert!(node[1] == "NodePort" && node[2].starts_with("10.43.") && node[4] == "80:30036/TCP", "{node:?}");
        assert_eq!(row(&services, "headless1")[2..5], ["None", "<none>", "80/TCP"]);
        assert_eq!(row(&services, "externalname1")[1..5], ["ExternalName", "<none>", "github.github.io", "<none>"]);
        assert_eq!(row(&services, "kubernetes")[1..5], ["ClusterIP", "10.43.0.1", "<none>", "443/TCP"]);
        assert_eq!(row(&k("get endpoints"), "endpoint2")[1], "20.111.156.67:8080");
        cluster.until("describe svc endpoint2", |text| text.contains("20.111.156.67:8080"));
        let described = k("describe endpoints endpoint2");
        assert!(described.contains("20.111.156.67") && described.contains("8080  TCP"), "{described}");

        let exposed = k("expose rc kubia --type=LoadBalancer --name kubia-http");
        assert_eq!(exposed.trim(), "service/kubia-http exposed");
        let balanced = k("get svc kubia-http");
        assert_eq!(row(&balanced, "kubia-http")[1], "LoadBalancer");
        assert!(row(&balanced, "kubia-http")[4].starts_with("8080:3"), "{balanced}");
        k("scale rc kubia --replicas=3");
        cluster.until("get rc kubia -o wide", |table| row(table, "kubia")[1..3] == ["3", "3"]);
        let wide = k("get rc kubia -o wide");
        assert_eq!(rows(&wide)[0], ["NAME", "DESIRED", "CURRENT", "READY", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]);
        assert_eq!(row(&wide, "kubia")[5..], ["kubia", "tree9295/kubia", "run=kubia"]);
        assert!(k("describe rc kubia").contains("3 current / 3 desired"));
        let all = k("get all -o name");
        assert!(all.contains("replicationcontroller/kubia") && all.contains("service/clusterip1"), "{all}");
        k("delete svc --all");
        k("delete rc kubia");
        k("delete endpoints endpoint2 --ignore-not-found");
        cluster.until("get pods -o name", str::is_empty);
        cluster.until("get endpoints -o name", |names| names == "endpoints/kubernetes\n");
    }
}

#[test]
fn the_courses_services_with_every_kubectl() {
    let cluster = Cluster::start();
    let kubectls = common::kubectls();
    course(&cluster, kubectls.first().unwrap());
    if kubectls.len() > 1 {
        course(&cluster, kubectls.last().unwrap());
    }

    let refused = |words: &str| text(&cluster.kubectl().args(words.split_whitespace()).output().unwrap().stderr);
    cluster.k("create service nodeport first --tcp=80 --node-port=30036");
    assert!(
        refused("create service nodeport second --tcp=80 --node-port=30036")
            .contains("spec.ports[0].nodePort: Invalid value: 30036: provided port is already allocated")
    );
    cluster.k("create service nodeport third --tcp=80");
    let picked: u16 = cluster.value("svc third", ".spec.ports[0].nodePort").parse().unwrap();
    assert!((30_000..=32_767).contains(&picked));

    // A client that says nothing of the address keeps it, whatever the type.
    let manifest = |kind: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: {kind}, ports: [{{port: 80}}]}}}}"
        )
    };
    cluster.apply(&manifest("ClusterIP"));
    let address = cluster.value("svc web", ".spec.clusterIP");
    for kind in ["NodePort", "LoadBalancer", "ClusterIP"] {
        run_with_input(cluster.kubectl().args(["replace", "-f", "-"]), &manifest(kind));
        assert_eq!(cluster.value("svc web", ".spec.type"), kind);
        assert_eq!(cluster.value("svc web", ".spec.clusterIP"), address);
    }
    assert_eq!(cluster.value("svc web", ".spec.ports[0].nodePort"), "");
    let moved = cluster.kubectl().args(["patch", "svc", "web", "-p", r#"{"spec":{"clusterIP":"10.43.3.3"}}"#]).output();
    assert!(text(&moved.unwrap().stderr).contains("may not change once set"));
    cluster.k("create service clusterip tenant --tcp=80 --clusterip=None");
    let dry = cluster.k("create service clusterip dry --tcp=81 --dry-run=server -o jsonpath={.spec.clusterIP}");
    assert!(dry.starts_with("10.43."), "{dry}");
    assert!(refused("get svc dry").contains("not found"));
    cluster.finish();
}

/// Address and node port of the Service `kept`.
fn held(cluster: &Cluster) -> String {
    let path = "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}";
    run(cluster.kubectl().args(["get", "svc", "kept", "-o", path]))
}

#[test]
fn addresses_outlive_a_crash() {
    let mut cluster = Cluster::start();
    cluster.k("create service nodeport kept --tcp=80");
    let before = held(&cluster);
    let api = "endpointslice kubernetes";
    let revision = cluster.value(api, ".metadata.resourceVersion");
    cluster.stop_daemon(Signal::SIGKILL);
    cluster.start_daemon();
    assert_eq!(held(&cluster), before);
    assert_eq!(cluster.value(api, ".metadata.resourceVersion"), revision, "what is right is left alone");
    let port = before.split_once(' ').unwrap().1;
    let taken = cluster.k_fails(&format!("create service nodeport thief --tcp=80 --node-port={port}"));
    assert!(taken.contains("provided port is already allocated"), "{taken}");

    // The cluster's own Services come back, and lead where they should.
    let uid = cluster.value("svc kubernetes", ".metadata.uid");
    cluster.k("delete svc kubernetes");
    cluster.until("get svc kubernetes -o jsonpath={.metadata.uid}", |now| !now.is_empty() && now != uid);
    cluster.k("delete endpoints kubernetes");
    cluster.until("get endpoints kubernetes", |table| row(table, "kubernetes")[1].ends_with(":6443"));
    let dns = cluster.k("get svc -n kube-system kube-dns");
    assert_eq!(row(&dns, "kube-dns")[2..5], ["10.43.0.10", "<none>", "53/UDP,53/TCP"]);
    cluster.finish();
}
