//! `kubectl top`: what nodes and pods use, with the oldest and the newest kubectl at hand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, images, run};
use serde_json::Value;

/// One container does nothing, the other as much as it may.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: both, labels: {app: top}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: idle, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '10000']}
  - name: busy
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'while :; do :; done']
    resources: {limits: {cpu: 200m, memory: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: waiting}
spec:
  nodeSelector: {no: where}
  containers: [{name: c, image: busybox}]
";

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// The columns of a line, from the one of that name on.
fn cells<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let columns = |l: &'a str| -> Vec<&'a str> { l.split_whitespace().collect() };
    let line = table.lines().map(columns).find(|cells| cells.contains(&name)).expect(table);
    line[line.iter().position(|cell| *cell == name).unwrap()..].to_vec()
}

fn number(cell: &str, unit: &str) -> u64 {
    cell.strip_suffix(unit).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{cell} is not in {unit}"))
}

#[test]
fn usage_is_measured_when_asked_for() {
    let cluster = Cluster::start();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(PODS);
    cluster.wait_ready("both");
    for program in common::kubectls() {
        let k = |words: &str| run(cluster.kubectl_of(&program).args(words.split_whitespace()));
        // Some of its life lies in the window.
        let containers = k("top pod both --containers");
        let (idle, busy) = (cells(&containers, "idle"), cells(&containers, "busy"));
        let of_busy = number(busy[1], "m");
        assert!(number(idle[1], "m") == 0 && of_busy > 0 && of_busy <= 300, "{containers}");
        assert!(containers.contains("MEMORY(bytes)") && busy[2].ends_with("Mi"), "{containers}");
        let pods = k("top pods -A -l app=top --no-headers");
        assert_eq!(pods.lines().count(), 1, "{pods}");
        assert!(number(cells(&pods, "both")[1], "m") > 0, "{pods}");
        let nodes = k("top nodes");
        let board = cells(&nodes, "board");
        assert!(number(board[1], "m") > 0 && number(board[3], "Mi") > 0 && board[4].ends_with('%'), "{nodes}");
    }
    let table = cluster.k("get pods.metrics.k8s.io");
    assert!(table.starts_with("NAME   CPU") && cells(&table, "both")[2].ends_with("Ki"), "{table}");
    let document: Value = serde_json::from_str(&cluster.k(&format!("get --raw {METRICS}/nodes"))).unwrap();
    assert_eq!((&document["kind"], &document["items"][0]["kind"]), (&"NodeMetricsList".into(), &"NodeMetrics".into()));
    assert_eq!(document["items"][0]["metadata"]["labels"]["kubernetes.io/hostname"], "board");
    let resources = cluster.k("api-resources --api-group metrics.k8s.io -o wide --no-headers");
    assert!(resources.contains("NodeMetrics") && resources.contains("get,list"), "{resources}");

    assert!(cluster.k_fails("top pod waiting").contains("not found"), "it does not run");
    let absent = cluster.k_fails(&format!("get --raw {METRICS}/namespaces/default/pods/nobody"));
    assert!(absent.contains(r#"pods.metrics.k8s.io "nobody" not found"#), "{absent}");
    let refused = cluster.k_fails("delete nodes.metrics.k8s.io board");
    assert!(refused.contains("the server does not allow this method on the requested resource"), "{refused}");
    cluster.finish();
}
