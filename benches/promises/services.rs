//! Services under load: rolling updates and restarts that clients must not notice, and a thousand Services.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::{Cluster, run_with_input};
use crate::{idle, load, table};

const THREADS: usize = 10;
const RATE: usize = 500;
const REQUESTS: usize = 30_000;
const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
const CHANGES: usize = 20;
/// Of the endpoints.
const PORT: u16 = 8000;
/// What the two sets of endpoints say.
const PAGES: [&str; 2] = ["one", "two"];
const WAIT: Duration = Duration::from_secs(2);

const WEB: &str = "---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 3, \
selector: {matchLabels: {app: web}}, strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}, \
template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 2, containers: [{name: c, \
image: busybox, imagePullPolicy: Never, command: [sh, -c, 'echo $HOSTNAME > /index.html; exec httpd -f -p 80 -h /'], \
readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
";

pub fn measure(cluster: &mut Cluster) {
    run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), WEB);
    cluster.k("rollout status deployment web --timeout=60s");
    let address = cluster_address(cluster, "web");
    rolling(cluster, address);
    restart(cluster, address);
}

fn cluster_address(cluster: &Cluster, service: &str) -> SocketAddr {
    let ip = cluster.value(&format!("service {service}"), ".spec.clusterIP");
    SocketAddr::new(ip.parse().unwrap(), 80)
}

/// One request on a connection of its own; what the page says.
fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.trim().to_owned()),
        _ => Err(std::io::Error::other(format!("{answer:?}"))),
    }
}

/// Rolls the Deployment out again and again until enough requests were made.
fn rolling(cluster: &Cluster, address: SocketAddr) {
    let (done, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, netns, end) = (done.clone(), cluster.netns.0.clone(), over.clone());
    let load = std::thread::spawn(move || load::in_namespace(&netns, move || steady(address, &counter, &end)));
    let mut rollouts = 0;
    while done.load(Ordering::Relaxed) < REQUESTS && !load.is_finished() {
        rollouts += 1;
        cluster.k(&format!("set env deployment web ROUND={rollouts}"));
        cluster.k("rollout status deployment web --timeout=60s");
    }
    over.store(true, Ordering::Relaxed);
    let (failed, times) = load.join().unwrap();
    let how = format!(
        "{} requests at {RATE}/s, each on its own connection, through {rollouts} rolling updates of 3 replicas",
        times.len()
    );
    table::at_most("failed requests during rolling updates", "", 0.0, failed as f64, &how);
    table::plain("the slowest of them", "ms", times.iter().copied().fold(0.0, f64::max), &how);
}

/// A steady stream of requests; how many failed, and how long each took in milliseconds.
fn steady(address: SocketAddr, done: &Arc<AtomicUsize>, over: &Arc<AtomicBool>) -> (usize, Vec<f64>) {
    let work = || {
        let (done, over) = (done.clone(), over.clone());
        std::thread::spawn(move || {
            let (mut failed, mut times) = (0, Vec::new());
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                if let Err(error) = get(address) {
                    eprintln!("a request failed after {:?}: {error}", began.elapsed());
                    failed += 1;
                }
                times.push(began.elapsed().as_secs_f64() * 1e3);
                done.fetch_add(1, Ordering::Relaxed);
                next += Duration::from_secs(1) * THREADS as u32 / RATE as u32;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            (failed, times)
        })
    };
    let threads: Vec<_> = (0..THREADS).map(|_| work()).collect();
    threads.into_iter().map(|t| t.join().unwrap()).fold((0, Vec::new()), |mut sum, (failed, times)| {
        sum.0 += failed;
        sum.1.extend(times);
        sum
    })
}

/// The longest time without a successful new connection while the daemon is killed and started.
fn restart(cluster: &mut Cluster, address: SocketAddr) {
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGKILL, "SIGKILL")] {
        let over = Arc::new(AtomicBool::new(false));
        let (netns, end) = (cluster.netns.0.clone(), over.clone());
        let watch = std::thread::spawn(move || load::in_namespace(&netns, move || longest_gap(address, &end)));
        std::thread::sleep(Duration::from_millis(500));
        cluster.stop_daemon(signal);
        cluster.start_daemon();
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
        let how = format!("a new connection every 5 ms; daemon ended by {name} and started at once");
        table::at_most("longest gap between answers over a restart", "s", 1.0, watch.join().unwrap(), &how);
    }
}

fn longest_gap(address: SocketAddr, over: &AtomicBool) -> f64 {
    let (mut last, mut gap) = (Instant::now(), 0.0_f64);
    while !over.load(Ordering::Relaxed) {
        if get(address).is_ok() {
            gap = gap.max(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    gap.max(last.elapsed().as_secs_f64())
}

/// Memory, start-up and reaction with many Services, whose endpoints all answer.
pub fn thousand(cluster: &mut Cluster) {
    let over = serve(cluster);
    std::thread::sleep(Duration::from_secs(20));
    let before = idle::pss(cluster.daemon_pid());
    let mut items = Vec::new();
    for n in 0..SERVICES {
        items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}")},
            "spec": {"ports": [{"port": 80}]}}));
        items.push(slice(n, 0));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    run_with_input(cluster.kubectl().args(["create", "-f", "-"]), &list);
    let address = cluster_address(cluster, &format!("s{}", SERVICES - 1));
    until(cluster, address, PAGES[0]);
    std::thread::sleep(Duration::from_secs(20));
    let how =
        format!("growth of PSS over {SERVICES} Services with {ENDPOINTS} ready endpoints each, after 20 s of rest");
    let grown = idle::pss(cluster.daemon_pid()) - before;
    table::at_most("memory of 1,000 Services", "MB", 15.0, grown, &how);
    let mut times = Vec::new();
    for change in 1..=CHANGES {
        let set = change % 2;
        let patch = json!({"endpoints": slice(SERVICES - 1, set)["endpoints"]}).to_string();
        let name = format!("s{}", SERVICES - 1);
        let mut command = cluster.kubectl();
        command.args(["patch", "endpointslice", &name, "--type=merge", "-p", &patch]);
        // kubectl starts slowly and ends late: the clock starts when the new state can be read.
        let version = cluster.value(&format!("endpointslice {name}"), ".metadata.resourceVersion");
        let watch = changed(cluster, &name, &version);
        crate::common::run(&mut command);
        let began = watch.join().unwrap();
        times.push(until(cluster, address, PAGES[set]).saturating_duration_since(began).as_secs_f64() * 1e3);
    }
    let how = "median of 20, from the change's arrival at a watch to the first answer of one of ten new endpoints";
    table::at_most("an endpoint change reaches the proxy", "ms", 20.0, table::median(times), how);
    cluster.stop_daemon(Signal::SIGTERM);
    let began = Instant::now();
    cluster.start_daemon();
    until(cluster, address, PAGES[CHANGES % 2]);
    let how = "exec to the first answer of the last Service, daemon Ready";
    table::at_most("start with 1,000 Services", "s", 2.0, began.elapsed().as_secs_f64(), how);
    over.store(true, Ordering::Relaxed);
}

/// The addresses of one of two sets of endpoints.
fn endpoints(set: usize) -> impl Iterator<Item = String> {
    (1..=ENDPOINTS).map(move |n| format!("198.51.{set}.{n}"))
}

/// Answers at the endpoints' addresses, in the node's network, with the page of their set, until the flag is set.
fn serve(cluster: &Cluster) -> Arc<AtomicBool> {
    for address in (0..PAGES.len()).flat_map(endpoints) {
        let add = ["address", "add", &address, "dev", "lo"];
        crate::common::run(cluster.netns.command("ip").args(add));
    }
    let over = Arc::new(AtomicBool::new(false));
    let (netns, end) = (cluster.netns.0.clone(), over.clone());
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        load::in_namespace(&netns, move || {
            let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming().take_while(|_| !end.load(Ordering::Relaxed)) {
                // A client that leaves is no business of ours.
                stream.and_then(answer).ok();
            }
        })
    });
    started.recv().unwrap();
    over
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let set = match stream.local_addr()?.ip() {
        std::net::IpAddr::V4(address) => usize::from(address.octets()[2]),
        std::net::IpAddr::V6(_) => 0,
    };
    stream.set_read_timeout(Some(WAIT))?;
    let _ = stream.read(&mut [0; 256])?;
    write!(stream, "HTTP/1.0 200 OK\r\n\r\n{}\n", PAGES[set % PAGES.len()])
}

/// A slice of the endpoints of a set.
fn slice(n: usize, set: usize) -> serde_json::Value {
    let endpoints: Vec<_> =
        endpoints(set).map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("s{n}"), "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "ports": [{"port": PORT}], "endpoints": endpoints})
}

/// A thread that ends, with the time, when the object is no longer at this version.
fn changed(cluster: &Cluster, name: &str, version: &str) -> std::thread::JoinHandle<Instant> {
    let kubeconfig = std::fs::read_to_string(cluster.data_dir().join("admin.kubeconfig")).unwrap();
    let (netns, name, version) = (cluster.netns.0.clone(), name.to_owned(), version.to_owned());
    let (ready, started) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        load::in_namespace(&netns, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(load::first_event(&kubeconfig, &name, &version, || ready.send(()).unwrap()))
        })
    });
    started.recv().unwrap();
    thread
}

/// Asks until the page is there; when it was.
fn until(cluster: &Cluster, address: SocketAddr, page: &str) -> Instant {
    let page = page.to_owned();
    load::in_namespace(&cluster.netns.0, move || {
        let limit = Instant::now() + crate::common::PATIENCE;
        loop {
            let asked = get(address);
            if asked.as_ref().is_ok_and(|got| *got == page) {
                return Instant::now();
            }
            assert!(Instant::now() < limit, "{address} does not serve {page}: {asked:?}");
            std::thread::sleep(Duration::from_micros(500));
        }
    })
}
