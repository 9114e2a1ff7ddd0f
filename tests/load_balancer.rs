//! Services of type LoadBalancer as the course teaches them, reached from a host of its own on the same segment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, Netns, PATIENCE, images, manifests, run};
use nix::sys::signal::Signal;

const POOL: &str = "192.168.56.200-192.168.56.210";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: nginx, imagePullPolicy: Never, ports: [{containerPort: 80}]}]
";

/// A Service of the pod: its name, its port, and what else its metadata and specification say.
fn service(name: &str, port: u16, metadata: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, {metadata}}}
spec: {{type: LoadBalancer, selector: {{app: web}}, ports: [{{port: {port}, targetPort: 80}}], {spec}}}
"
    )
}

/// A cluster on a segment with one other host.
fn on_a_lan() -> (Cluster, Netns) {
    let (mut cluster, host) = Cluster::on_a_wire();
    cluster.start_daemon();
    (cluster, host)
}

/// What a web client in a namespace gets, if anything. `address` is without a port for port 80.
fn fetch(place: &Netns, address: &str) -> Option<String> {
    let address = if address.contains(':') { address.to_owned() } else { format!("{address}:80") };
    place.within(move || common::fetch(address.parse().unwrap(), Duration::from_secs(2))).join().unwrap()
}

fn until(what: &str, test: impl Fn() -> bool) {
    let began = Instant::now();
    while !test() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn address(cluster: &Cluster, service: &str) -> String {
    let path = "jsonpath={.status.loadBalancer.ingress[*].ip}";
    cluster.until(&format!("get svc {service} -o {path}"), |ip| !ip.is_empty())
}

fn neighbour(host: &Netns, address: &str) -> String {
    run(host.command("ip").args(["neigh", "show", address]))
}

#[test]
fn the_course_and_what_users_ask_for() {
    let (mut cluster, host) = on_a_lan();
    cluster.import(&images::archive(cluster.dir.path(), "web.tar", &images::WEB));
    cluster.apply(POD);
    cluster.wait_ready("web");

    // No pool, no address; the pool comes, and so does the address.
    cluster.k("expose pod web --type=LoadBalancer --name=kubia-http --port=80");
    cluster.until("describe svc kubia-http", |t| t.contains("no pool of load-balancer addresses is configured"));
    assert!(cluster.k("get svc kubia-http").contains("<pending>"));
    cluster.apply(&manifests::pool(POOL));
    assert_eq!(address(&cluster, "kubia-http"), "192.168.56.200");
    assert_eq!(cluster.value("svc/kubia-http", ".status.loadBalancer.ingress[0].ipMode"), "VIP");
    assert!(cluster.k("get svc kubia-http").contains("192.168.56.200"));
    until("the page", || fetch(&host, "192.168.56.200").is_some_and(|page| page.contains("Welcome")));
    let shown = run(cluster.netns.command("ip").args(["-o", "link", "show", "lan0"]));
    let mac = shown.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap();
    assert!(neighbour(&host, "192.168.56.200").contains(mac), "{}", neighbour(&host, "192.168.56.200"));
    assert_eq!(fetch(&host, "192.168.56.201"), None);
    assert!(!neighbour(&host, "192.168.56.201").contains("lladdr"));
    cluster.until("describe svc kubia-http", |t| t.contains("IPAllocated") && t.contains("nodeAssigned"));
    // Its other addresses, from outside and on the node.
    let node_port = cluster.value("svc/kubia-http", ".spec.ports[0].nodePort");
    assert!(fetch(&host, &format!("192.168.56.2:{node_port}")).is_some());
    assert!(fetch(&cluster.netns, &cluster.value("svc/kubia-http", ".spec.clusterIP")).is_some());
    assert!(fetch(&cluster.netns, "192.168.56.200").is_some());

    // Wishes.
    cluster.apply(&service("wished", 80, "", "loadBalancerIP: 192.168.56.205"));
    assert_eq!(address(&cluster, "wished"), "192.168.56.205");
    cluster.apply(&service("outside", 80, "", "loadBalancerIP: 192.168.57.1"));
    cluster.until("describe svc outside", |t| t.contains("192.168.57.1 is in no pool"));
    let shared = "annotations: {metallb.universe.tf/allow-shared-ip: key}";
    cluster.apply(&service("one", 80, shared, "loadBalancerIP: 192.168.56.206"));
    cluster.apply(&service("two", 8080, shared, ""));
    assert_eq!(
        (address(&cluster, "one"), address(&cluster, "two")),
        ("192.168.56.206".into(), "192.168.56.206".into())
    );
    until("both ports", || fetch(&host, "192.168.56.206").is_some() && fetch(&host, "192.168.56.206:8080").is_some());
    cluster.apply(&service("foreign", 80, "", "loadBalancerClass: example.com/other"));
    cluster.apply(&service("guarded", 80, "", "loadBalancerSourceRanges: [192.168.56.101/32]"));
    let by_annotation = |client: u8| {
        let name = "service.beta.kubernetes.io/load-balancer-source-ranges";
        service("annotated", 80, &format!("annotations: {{{name}: '192.168.56.{client}/32,10.9.0.0/16'}}"), "")
    };
    cluster.apply(&by_annotation(101));
    let (guarded, annotated) = (address(&cluster, "guarded"), address(&cluster, "annotated"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!([&guarded, &annotated].map(|to| fetch(&host, to)), [None, None], "not from there");
    cluster.apply(&service("guarded", 80, "", "loadBalancerSourceRanges: [192.168.56.100/32]"));
    cluster.apply(&by_annotation(100));
    until("from there now", || [&guarded, &annotated].iter().all(|to| fetch(&host, to).is_some()));
    assert_eq!(cluster.value("svc/foreign", ".status.loadBalancer.ingress"), "");

    // A configuration that cannot be read changes nothing.
    cluster.apply(&manifests::pool("192.168.56.200-192.168.56.1"));
    cluster.until("describe configmap -n metallb-system config", |t| t.contains("the last comes before the first"));
    assert_eq!(address(&cluster, "kubia-http"), "192.168.56.200");
    cluster.apply(&manifests::pool(POOL));

    // The daemon dies: same addresses, and they answer again.
    let before = cluster.k("get svc -o jsonpath={.items[*].status.loadBalancer.ingress[*].ip}");
    cluster.stop_daemon(Signal::SIGKILL);
    assert_eq!(fetch(&host, "192.168.56.200"), None);
    cluster.start_daemon();
    until("the page again", || fetch(&host, "192.168.56.200").is_some());
    assert_eq!(cluster.k("get svc -o jsonpath={.items[*].status.loadBalancer.ingress[*].ip}"), before);

    // What is no load balancer any more has no such address.
    cluster.k("patch svc kubia-http -p {\"spec\":{\"type\":\"ClusterIP\"}}");
    cluster.until("get svc kubia-http", |t| t.contains("<none>") && !t.contains("192.168.56.200"));
    until("silence", || {
        run(host.command("ip").args(["neigh", "flush", "all"]));
        fetch(&host, "192.168.56.200").is_none() && !neighbour(&host, "192.168.56.200").contains("lladdr")
    });
    cluster.apply(&service("next", 80, "", ""));
    assert_eq!(address(&cluster, "next"), "192.168.56.200", "free again");
    cluster.k("delete svc --all --wait=false");
    cluster.stop_daemon(Signal::SIGTERM);
    run(cluster.netns.command("ip").args(["link", "del", "lan0"]));
    cluster.finish();
}
