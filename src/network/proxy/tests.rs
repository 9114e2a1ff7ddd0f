//! The proxy with its engine, pods and a world outside, each in a network namespace of its own.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Shutdown as Side, SockFlag, SockType, SockaddrIn, bind, setsockopt, shutdown, socket, sockopt,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::testing::service;
use super::*;
use crate::network::links::Links;
use crate::network::services::{Endpoint, Service, Services};
use crate::network::tests::{config, inside, on_a_node, pod};
use crate::network::{Netns, Network, NetworkConfig, masquerade};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 100);

/// A node with one pod, another host outside, and the proxy running.
struct Board {
    network: Network,
    world: Network,
    pod: File,
    /// Of the pod.
    address: Ipv4Addr,
    host: File,
    services: Services,
    proxy: JoinHandle<Result<(), StartError>>,
}

impl Board {
    async fn start(room: PathBuf) -> Self {
        Links::here().unwrap().up(1, "lo").await.unwrap();
        let network = Network::open(config(&room)).await.unwrap();
        let pod = pod();
        let address = network.attach("pod", Netns::Fd(pod.as_fd())).await.unwrap();
        let outside = NetworkConfig {
            bridge: "world0".to_owned(),
            pod_cidr: "192.0.2.0/24".parse().unwrap(),
            cluster_cidr: "192.0.2.0/24".parse().unwrap(),
            state_dir: room.join("world"),
            mtu: 1500,
        };
        let world = Network::open(outside).await.unwrap();
        // Who is outside shows its own address.
        masquerade::remove("world0").unwrap();
        let host = self::pod();
        world.attach("host", Netns::Fd(host.as_fd())).await.unwrap();
        let services = Services::default();
        let zone = watch::channel(None);
        let proxy = tokio::spawn(run(here(), services.clone(), zone.1, drop));
        Self { network, world, pod, address, host, services, proxy }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address.into(),
            hostname: None,
            node: Some("here".into()),
            hints: None,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// Serves in the pod at 8080, where the Services' first ports lead to.
    fn serve(&self) -> Server {
        Server::start(inside(&self.pod, || TcpListener::bind("0.0.0.0:8080").unwrap()))
    }

    async fn stop(self) {
        self.proxy.abort();
        assert!(self.proxy.await.unwrap_err().is_cancelled());
        self.network.destroy().await.unwrap();
        self.world.destroy().await.unwrap();
    }
}

fn here() -> Config {
    Config {
        node: "here".into(),
        node_address: Ipv4Addr::new(192, 0, 2, 1),
        bridge: "umiak0".into(),
        cluster_cidr: "10.77.0.0/16".parse().unwrap(),
        pod_cidr: "10.77.0.0/24".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        balance: ProxyBalance::RoundRobin,
    }
}

/// Tells every client who it is, until dropped.
struct Server {
    listener: TcpListener,
}

impl Server {
    fn start(listener: TcpListener) -> Self {
        let accepting = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut client, from)) = accepting.accept() {
                // A client that leaves is no business of ours.
                client.write_all(from.ip().to_string().as_bytes()).ok();
                client.shutdown(Shutdown::Both).ok();
            }
        });
        Self { listener }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        shutdown(self.listener.as_raw_fd(), Side::Both).ok();
    }
}

/// Connects, and says what the endpoint says of its client.
fn ask(address: SocketAddrV4) -> Result<String, ErrorKind> {
    let timeout = Duration::from_secs(3);
    let mut client = TcpStream::connect_timeout(&address.into(), timeout).map_err(|e| e.kind())?;
    client.set_read_timeout(Some(timeout)).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).map_err(|e| e.kind())?;
    Ok(text)
}

/// The proxy works while a test's thread waits.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open("/proc/thread-self/ns/net").unwrap();
    tokio::task::spawn_blocking(move || inside(&namespace, work)).await.unwrap()
}

async fn from(namespace: &File, address: SocketAddrV4) -> Result<String, ErrorKind> {
    let namespace = namespace.try_clone().unwrap();
    tokio::task::spawn_blocking(move || inside(&namespace, move || ask(address))).await.unwrap()
}

/// Asks until the answer is as expected: changes take a moment.
async fn becomes(expected: Result<&str, ErrorKind>, address: SocketAddrV4) {
    becomes_from(&File::open("/proc/thread-self/ns/net").unwrap(), expected, address).await;
}

/// The same, from a namespace.
async fn becomes_from(namespace: &File, expected: Result<&str, ErrorKind>, address: SocketAddrV4) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let answer = from(namespace, address).await;
        if answer.as_deref().map_err(|e| *e) == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{address}: {answer:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn at(ip: impl Into<Ipv4Addr>, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip.into(), port)
}

const REFUSED: Result<String, ErrorKind> = Err(ErrorKind::ConnectionRefused);
const GATEWAY: &str = "10.77.0.1";

#[test]
fn a_cluster_address_leads_to_the_pod_from_everywhere() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let server = board.serve();
        let web = service("web", &[80], vec![board.endpoint()]);
        board.services.put(web.clone());
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 80)).await;
        assert_eq!(from(&board.pod, at(CLUSTER_IP, 80)).await.unwrap(), GATEWAY, "the pod itself");
        assert_eq!(from(&board.host, at(CLUSTER_IP, 80)).await.unwrap(), GATEWAY, "who routes it here");
        assert_eq!(from(&board.pod, at(CLUSTER_IP, 81)).await, REFUSED, "no such port");
        assert_eq!(from(&board.pod, at([10, 43, 9, 9], 80)).await, REFUSED, "no such Service");
        board.services.put(Service { slices: Vec::new(), ..web.clone() });
        becomes(Err(ErrorKind::ConnectionReset), at(CLUSTER_IP, 80)).await;
        board.services.put(web.clone());
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 80)).await;
        board.services.remove(&web.id());
        becomes(Err(ErrorKind::ConnectionRefused), at(CLUSTER_IP, 80)).await;
        drop(server);
        board.stop().await;
    });
}

#[test]
fn external_addresses_are_taken_in_port_by_port() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let _server = board.serve();
        let mut web = service("web", &[80], vec![board.endpoint()]);
        // One of nobody, one of another host.
        web.external_ips = vec![Ipv4Addr::new(203, 0, 113, 5), Ipv4Addr::new(192, 0, 2, 2)];
        board.services.put(web.clone());
        for ip in web.external_ips.clone() {
            becomes(Ok(GATEWAY), at(ip, 80)).await;
            assert_eq!(from(&board.pod, at(ip, 80)).await.unwrap(), GATEWAY);
        }
        assert_eq!(from(&board.host, at([203, 0, 113, 5], 80)).await.unwrap(), GATEWAY, "by way of its gateway");
        let _other = Server::start(inside(&board.host, || TcpListener::bind("0.0.0.0:81").unwrap()));
        let own = elsewhere(|| ask(at([192, 0, 2, 2], 81))).await;
        assert_eq!(own.unwrap(), "192.0.2.1", "its other ports are the other host's");
        web.external_ips.truncate(1);
        board.services.put(web.clone());
        becomes(Err(ErrorKind::ConnectionRefused), at([192, 0, 2, 2], 80)).await;
        // Another process takes over what this one leaves.
        board.proxy.abort();
        let services = board.services.clone();
        web.external_ips = vec![Ipv4Addr::new(203, 0, 113, 6)];
        services.put(web);
        let again = tokio::spawn(run(here(), services, watch::channel(None).1, drop));
        becomes(Ok(GATEWAY), at([203, 0, 113, 6], 80)).await;
        assert_eq!(rules(), ["to 203.0.113.6 ipproto tcp dport 80"]);
        again.abort();
        board.stop().await;
        assert_eq!(rules(), [""; 0], "nothing is left");
    });
}

/// Our routing rules, without what they have in common.
fn rules() -> Vec<String> {
    let output = std::process::Command::new("ip").args(["rule", "show"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ours = text.lines().filter(|line| line.starts_with("98:") || line.starts_with("100:"));
    let selectors = ours.map(|line| line.split_once("from all ").unwrap().1.split_once(" lookup").unwrap().0);
    selectors.map(str::to_owned).collect()
}

#[test]
fn node_ports_and_policies() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let _server = board.serve();
        let mut web = service("web", &[80], vec![board.endpoint()]);
        web.ports[0].node_port = Some(30080);
        board.services.put(web.clone());
        let node_port = at([192, 0, 2, 1], 30080);
        becomes(Ok(GATEWAY), node_port).await;
        assert_eq!(from(&board.host, node_port).await.unwrap(), GATEWAY);
        becomes(Ok(GATEWAY), at(Ipv4Addr::LOCALHOST, 30080)).await;

        web.external_local = true;
        web.health_check_node_port = Some(30999);
        board.services.put(web.clone());
        becomes_from(&board.host, Ok("192.0.2.2"), node_port).await;
        assert_eq!(from(&board.host, at(CLUSTER_IP, 80)).await.unwrap(), GATEWAY, "another policy");
        assert_eq!(from(&board.pod, node_port).await.unwrap(), GATEWAY, "pods are not told apart");
        becomes(Ok(GATEWAY), node_port).await;
        let told = elsewhere(|| health(30999)).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");

        web.slices[0].endpoints[0].node = Some("away".into());
        board.services.put(web.clone());
        becomes_from(&board.host, Err(ErrorKind::ConnectionReset), node_port).await;
        becomes(Ok(GATEWAY), node_port).await;
        let told = elsewhere(|| health(30999)).await;
        assert!(told.starts_with("HTTP/1.1 503"), "{told}");

        // Without such a Service nothing of it is left.
        assert_eq!(rules(), ["fwmark 0x756d6961"]);
        web.external_local = false;
        board.services.put(web);
        becomes_from(&board.host, Ok(GATEWAY), node_port).await;
        assert_eq!(rules(), [""; 0]);
        board.stop().await;
    });
}

fn health(port: u16) -> String {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut client = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_another_program_has_is_left_to_it() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let _server = board.serve();
        let other = Server::start(TcpListener::bind("0.0.0.0:30080").unwrap());
        let mut web = service("web", &[80, 30081], vec![board.endpoint()]);
        web.slices[0].ports[1].port = 8080;
        web.ports[0].node_port = Some(30080);
        web.ports[1].node_port = Some(30081);
        board.services.put(web);
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 80)).await;
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 30081)).await;
        becomes(Ok(GATEWAY), at(Ipv4Addr::LOCALHOST, 30081)).await;
        becomes(Ok("127.0.0.1"), at(Ipv4Addr::LOCALHOST, 30080)).await;
        drop(other);
        becomes(Ok(GATEWAY), at(Ipv4Addr::LOCALHOST, 30080)).await;
        board.stop().await;
    });
}

#[test]
fn cluster_addresses_are_apart_from_listeners_of_all_addresses() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let _server = board.serve();
        let before = Server::start(TcpListener::bind("0.0.0.0:80").unwrap());
        let mut web = service("web", &[80, 81], vec![board.endpoint()]);
        web.slices[0].ports[1].port = 8080;
        web.ports[0].node_port = Some(30080);
        board.services.put(web);
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 80)).await;
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 81)).await;
        let after = Server::start(TcpListener::bind("0.0.0.0:81").unwrap());
        for port in [80, 81] {
            assert_eq!(from(&board.pod, at(CLUSTER_IP, port)).await.unwrap(), GATEWAY);
            let own = elsewhere(move || ask(at(Ipv4Addr::LOCALHOST, port))).await;
            assert_eq!(own.unwrap(), "127.0.0.1", "the host's own");
            assert_eq!(from(&board.pod, at([10, 43, 0, 7], port)).await, REFUSED, "no such Service");
        }
        becomes(Ok(GATEWAY), at(Ipv4Addr::LOCALHOST, 30080)).await;
        assert_eq!(from(&board.pod, at(CLUSTER_IP, 30080)).await, REFUSED, "a port of nodes");
        // The name server's address is its own business.
        let name_server = TcpListener::bind("10.43.0.10:53").unwrap();
        let _name_server = Server::start(name_server);
        assert!(from(&board.pod, at([10, 43, 0, 10], 53)).await.is_ok());
        drop((before, after));
        board.stop().await;
    });
}

/// Asks by UDP from a socket of no certain address and port; what came back, and from where.
fn question(address: SocketAddrV4, text: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.send_to(text, address).map_err(|e| e.kind())?;
    let mut buffer = vec![0; 65_536];
    let (count, from) = client.recv_from(&mut buffer).map_err(|e| e.kind())?;
    assert_eq!(from, address.into(), "who was asked is who answers");
    buffer.truncate(count);
    Ok(buffer)
}

/// Answers datagrams with themselves and a name, until it gets one that says stop.
fn echo_udp(socket: UdpSocket, name: &'static str) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            if &buffer[..count] == b"stop" {
                return;
            }
            socket.send_to(&[&buffer[..count], name.as_bytes()].concat(), from).unwrap();
        }
    })
}

#[test]
fn a_udp_service_and_a_program_of_the_host_may_have_the_same_port() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let pod = echo_udp(inside(&board.pod, || UdpSocket::bind("0.0.0.0:8080").unwrap()), "-pod");
        // It says nothing of sharing its port.
        let host = echo_udp(UdpSocket::bind("0.0.0.0:53").unwrap(), "-host");
        let mut dns = service("dns", &[53], vec![board.endpoint()]);
        dns.ports[0].protocol = Protocol::Udp;
        dns.slices[0].ports[0].protocol = Protocol::Udp;
        dns.external_ips = vec![Ipv4Addr::new(203, 0, 113, 5)];
        board.services.put(dns.clone());
        let address = at(CLUSTER_IP, 53);
        let deadline = Instant::now() + Duration::from_secs(5);
        while elsewhere(move || question(address, b"q")).await.as_deref() != Ok(b"q-pod") {
            assert!(Instant::now() < deadline, "never served");
        }
        let external = at([203, 0, 113, 5], 53);
        for size in [0, 1, 1472, 9000, 60_000] {
            let text: Vec<u8> = (0..size).map(|i: u32| i as u8).collect();
            for (to, name) in [(address, "-pod"), (external, "-pod"), (at(Ipv4Addr::LOCALHOST, 53), "-host")] {
                let (text, expected) = (text.clone(), [&text[..], name.as_bytes()].concat());
                assert!(elsewhere(move || question(to, &text)).await == Ok(expected), "{size} bytes to {to}");
            }
        }
        for (namespace, to, name) in [
            (&board.pod, address, "q-pod"),
            (&board.host, external, "q-pod"),
            (&board.host, at([192, 0, 2, 1], 53), "q-host"),
        ] {
            let namespace = namespace.try_clone().unwrap();
            let asked =
                tokio::task::spawn_blocking(move || inside(&namespace, move || question(to, b"q"))).await.unwrap();
            assert_eq!(asked.as_deref(), Ok(name.as_bytes()), "{to}");
        }
        // One that comes later and shares gets its port, too.
        let mut ntp = service("ntp", &[123], vec![board.endpoint()]);
        ntp.cluster_ips = vec![Ipv4Addr::new(10, 43, 0, 101)];
        ntp.ports[0].protocol = Protocol::Udp;
        ntp.slices[0].ports[0].protocol = Protocol::Udp;
        board.services.put(ntp);
        let ntp = at([10, 43, 0, 101], 123);
        while elsewhere(move || question(ntp, b"q")).await.as_deref() != Ok(b"q-pod") {
            assert!(Instant::now() < deadline, "never served");
        }
        let shared = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&shared, sockopt::ReuseAddr, &true).unwrap();
        bind(shared.as_raw_fd(), &SockaddrIn::from(at(Ipv4Addr::UNSPECIFIED, 123))).unwrap();
        let later = echo_udp(shared.into(), "-later");
        assert_eq!(elsewhere(move || question(ntp, b"q")).await.as_deref(), Ok(&b"q-pod"[..]));
        let own = at(Ipv4Addr::LOCALHOST, 123);
        assert_eq!(elsewhere(move || question(own, b"q")).await.as_deref(), Ok(&b"q-later"[..]));
        for (namespace, port) in [(&board.pod, 8080), (&here_now(), 53), (&here_now(), 123)] {
            inside(namespace, move || {
                UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"stop", ("127.0.0.1", port)).unwrap()
            });
        }
        [pod, host, later].into_iter().for_each(|thread| thread.join().unwrap());
        board.stop().await;
    });
}

fn here_now() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Services with this many endpoints each, and a node port every tenth.
fn many(count: u16, endpoints: u8) -> Vec<Service> {
    let endpoint = |n: u8| Endpoint {
        address: Ipv4Addr::new(10, 77, 3, n).into(),
        hostname: None,
        node: Some(format!("node-{n}")),
        hints: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    let make = |n: u16| {
        let mut made = service(&format!("service-{n}"), &[80], (1..=endpoints).map(endpoint).collect());
        made.cluster_ips = vec![Ipv4Addr::from_bits(CLUSTER_IP.to_bits() + u32::from(n) + 1)];
        made.ports[0].node_port = n.is_multiple_of(10).then_some(31000 + n);
        made
    };
    (0..count).map(make).collect()
}

/// Kilobytes of this process in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn a_thousand_services_are_little() {
    on_a_node(async |room| {
        let board = Board::start(room).await;
        let server = board.serve();
        let web = service("web", &[80], vec![board.endpoint()]);
        board.services.put(web.clone());
        becomes(Ok(GATEWAY), at(CLUSTER_IP, 80)).await;
        let (before, start) = (resident(), Instant::now());
        let all = many(1000, 10);
        let last = at(all[990].cluster_ips[0], 80);
        let view = resident().saturating_sub(before);
        all.into_iter().for_each(|service| board.services.put(service));
        // Its endpoints are nowhere: the listener is what is waited for.
        let listening = move || TcpStream::connect_timeout(&last.into(), Duration::from_secs(1)).is_ok();
        while !elsewhere(listening).await {
            assert!(start.elapsed() < Duration::from_secs(2), "no listener after 2 s");
        }
        let took = start.elapsed();
        // Of every change of endpoints, the time until the first client gets a new one.
        let mut times = Vec::new();
        for endpoints in [Vec::new(), vec![board.endpoint()]].iter().cycle().take(20) {
            let mut changed = web.clone();
            changed.slices[0].endpoints = endpoints.clone();
            let start = Instant::now();
            board.services.put(changed);
            let expected = if endpoints.is_empty() { Err(ErrorKind::ConnectionReset) } else { Ok(GATEWAY.to_owned()) };
            while elsewhere(|| ask(at(CLUSTER_IP, 80))).await != expected {}
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "1000 Services: {} kB ({view} kB of it the view), listening after {took:?}, a change after {:?}, {:?} at worst",
            resident().saturating_sub(before),
            times[10],
            times[19],
        );
        assert!(times[10] < Duration::from_millis(100), "a change takes {:?}", times[10]);
        drop(server);
        board.stop().await;
    });
}
