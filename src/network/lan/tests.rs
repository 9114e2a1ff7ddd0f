//! Nodes, clients and intruders on a segment of namespaces, with the kernel's own neighbour tables as witnesses.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use super::*;
use crate::network::addresses::LocalAddresses;
use crate::network::arp::testing::{announce, send_raw};
use crate::network::test_lan::{Netns, Switch, until};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 200);
const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(400);

fn service() -> Service {
    let load_balancer_ips = vec![ADDRESS];
    Service { namespace: "default".into(), name: "web".into(), load_balancer_ips, ..Service::default() }
}

fn peer(n: u8, announces: bool) -> Peer {
    let pod_cidr = format!("10.42.{n}.0/24").parse().unwrap();
    Peer { name: format!("node-{n}"), address: Ipv4Addr::new(192, 168, 7, n), pod_cidr, announces }
}

/// A node's announcer in its namespace.
struct Node {
    services: Services,
    peers: watch::Sender<Vec<Peer>>,
    notices: Arc<Mutex<Vec<Notice>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    fn start(host: &Netns, n: u8, peers: &[Peer]) -> Self {
        let services = Services::default();
        services.put(service());
        let (peers, seen) = watch::channel(peers.to_vec());
        let (stop, stopped) = oneshot::channel::<()>();
        let notices = Arc::<Mutex<Vec<Notice>>>::default();
        let (view, said) = (services.clone(), notices.clone());
        let thread = host.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let note = move |notice| said.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
            let name = format!("node-{n}");
            runtime.block_on(async {
                tokio::select! {
                    () = run(&name, "umiak0", &view, seen, note) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { services, peers, notices, stop: Some(stop), thread: Some(thread) }
    }

    fn reasons(&self) -> Vec<&'static str> {
        let reason = |n: &Notice| match n.news {
            News::Taken => "nodeAssigned",
            News::Yielded(_) => "nodeUnassigned",
            _ => "AddressConflict",
        };
        self.notices.lock().unwrap().iter().map(reason).collect()
    }

    fn has(&self, reason: &str) -> bool {
        self.reasons().contains(&reason)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_neighbour_learns_the_address_of_the_node_and_no_other() {
    let switch = Switch::new();
    let (host, client) = (switch.host("192.168.7.1/24"), switch.host("192.168.7.9/24"));
    let node = Node::start(&host, 1, &[]);
    until("it announces", || node.has("nodeAssigned"));
    assert_eq!(client.resolve(ADDRESS, SOON), Some(host.mac("eth0")));
    assert_eq!(client.resolve(Ipv4Addr::new(192, 168, 7, 201), NEVER), None);

    // Nonsense on the wire.
    let (index, mac) = (client.index("eth0"), client.mac_bytes("eth0"));
    client.inside(move || send_raw(index, mac, ADDRESS));
    assert_eq!(client.resolve(ADDRESS, SOON), Some(host.mac("eth0")));

    // The Service goes, and so does the address.
    node.services.remove(&service().id());
    until("it is given up", || client.resolve(ADDRESS, NEVER).is_none());
    node.services.put(service());
    until("it is back", || client.resolve(ADDRESS, NEVER).is_some());
    assert_eq!(node.notices.lock().unwrap()[0].service.name, "web");
}

#[test]
fn an_interface_that_flaps_and_one_whose_address_changes() {
    let switch = Switch::new();
    let (host, client) = (switch.host("192.168.7.1/24"), switch.host("192.168.7.9/24"));
    let node = Node::start(&host, 1, &[]);
    until("it announces", || node.has("nodeAssigned"));
    host.ip("link set eth0 down");
    assert_eq!(client.resolve(ADDRESS, NEVER), None);
    node.notices.lock().unwrap().clear();
    host.ip("link set eth0 up");
    until("it announces again", || node.has("nodeAssigned"));
    assert_eq!(client.resolve(ADDRESS, SOON), Some(host.mac("eth0")));

    // Another network: the address is nobody's here, until the host is back in its own.
    host.ip("addr flush dev eth0");
    host.ip("addr add 10.1.1.1/24 dev eth0");
    until("it is given up", || client.resolve(ADDRESS, NEVER).is_none());
    host.ip("addr add 192.168.7.2/24 dev eth0");
    until("it is back", || client.resolve(ADDRESS, NEVER).is_some());

    // The host gets the address itself: then it is the kernel's.
    host.ip(&format!("addr add {ADDRESS}/24 dev eth0"));
    std::thread::sleep(NEVER);
    assert_eq!(client.resolve(ADDRESS, SOON), Some(host.mac("eth0")));
    assert!(!node.has("AddressConflict"));
}

#[test]
fn only_the_segment_of_the_address_hears_of_it() {
    let (lan, other) = (Switch::new(), Switch::new());
    let (host, client, stranger) = (lan.host("192.168.7.1/24"), lan.host("192.168.7.9/24"), other.host("10.9.0.9/24"));
    host.plug(&other, "eth1", "10.9.0.1/24");
    stranger.ip("route add 192.168.7.0/24 dev eth0");
    let local = host.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let local = LocalAddresses::open().unwrap();
            local.ensure_local(ADDRESS).await.unwrap();
            local.ensure_local(ADDRESS).await.unwrap();
            local.ensure_local_range("10.43.0.0/16".parse().unwrap()).await.unwrap();
            local.local().await.unwrap()
        })
    });
    assert_eq!(local.into_iter().collect::<Vec<_>>(), [ADDRESS]);
    // The kernel keeps still on both segments, for load-balancer and cluster addresses; by default it would not.
    client.ip("route add 10.43.0.0/16 dev eth0");
    for address in [ADDRESS, Ipv4Addr::new(10, 43, 0, 1)] {
        assert_eq!((client.resolve(address, NEVER), stranger.resolve(ADDRESS, NEVER)), (None, None), "{address}");
    }
    host.run("sysctl", "-qw net.ipv4.conf.all.arp_ignore=0");
    assert!(stranger.resolve(ADDRESS, SOON).is_some(), "this test would see it");
    host.run("sysctl", "-qw net.ipv4.conf.all.arp_ignore=1");

    let node = Node::start(&host, 1, &[]);
    until("it announces", || node.has("nodeAssigned"));
    assert_eq!(client.resolve(ADDRESS, SOON), Some(host.mac("eth0")));
    assert_eq!(stranger.resolve(ADDRESS, NEVER), None);
    // What the host sends in the address' name asks for neighbours in its own.
    host.inside(|| {
        let socket = std::net::UdpSocket::bind((ADDRESS, 0)).unwrap();
        let _ = socket.send_to(b"x", "10.9.0.9:9");
    });
    until("the host was asked for", || stranger.neighbour(Ipv4Addr::new(10, 9, 0, 1)).is_some());
    assert_eq!(stranger.neighbour(ADDRESS), None);
}

#[test]
fn another_host_that_has_the_address() {
    let switch = Switch::new();
    let (host, intruder) = (switch.host("192.168.7.1/24"), switch.host("192.168.7.9/24"));
    let client = switch.host("192.168.7.8/24");
    intruder.ip(&format!("addr add {ADDRESS}/24 dev eth0"));
    let node = Node::start(&host, 1, &[]);
    until("it is told", || node.has("AddressConflict"));
    assert_eq!(client.resolve(ADDRESS, SOON), Some(intruder.mac("eth0")));
    intruder.ip(&format!("addr del {ADDRESS}/24 dev eth0"));
    until("it is taken", || node.has("nodeAssigned"));

    // A claim is contradicted once …
    client.resolve(ADDRESS, SOON);
    node.notices.lock().unwrap().clear();
    let (index, mac) = (intruder.index("eth0"), intruder.mac_bytes("eth0"));
    intruder.inside(move || announce(index, mac, ADDRESS));
    until("it is told", || node.has("AddressConflict"));
    until("the client knows better", || client.neighbour(ADDRESS) == Some(host.mac("eth0")));
    // … and then the address is left to whoever insists.
    std::thread::sleep(Duration::from_millis(600));
    intruder.inside(move || announce(index, mac, ADDRESS));
    until("it is given up", || node.reasons().len() == 2);
    assert_eq!(client.resolve(ADDRESS, NEVER), None);
}

#[test]
fn another_node_takes_over_and_gives_back() {
    let switch = Switch::new();
    let hosts = [switch.host("192.168.7.1/24"), switch.host("192.168.7.2/24"), switch.host("192.168.7.3/24")];
    let client = switch.host("192.168.7.9/24");
    let all = [peer(1, true), peer(2, true), peer(3, true)];
    let start = |n: usize| Node::start(&hosts[n], n as u8 + 1, &all);
    let mut nodes: Vec<Option<Node>> = (0..3).map(|n| Some(start(n))).collect();
    let holder = |client: &Netns| {
        let mac = client.neighbour(ADDRESS);
        hosts.iter().position(|host| Some(host.mac("eth0")) == mac)
    };
    until("one announces", || nodes.iter().flatten().any(|n| n.has("nodeAssigned")));
    client.resolve(ADDRESS, SOON).unwrap();
    let first = holder(&client).unwrap();

    // The owner dies with nobody to tell the others.
    nodes[first] = None;
    let took = until("the client sends to another node", || holder(&client).is_some_and(|n| n != first));
    println!("with the server down: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let second = holder(&client).unwrap();

    // It comes back and has its address again, without a conflict.
    nodes[first] = Some(start(first));
    let took = until("the address returns", || holder(&client) == Some(first));
    println!("back: {took:?}");
    until("it is given back", || nodes[second].as_ref().unwrap().has("nodeUnassigned"));

    // The server says that the owner is to be left alone (drained, or not ready).
    let mut drained = all.clone();
    drained[first].announces = false;
    nodes.iter().flatten().for_each(|n| drop(n.peers.send_replace(drained.to_vec())));
    let took = until("the address moves", || holder(&client) == Some(second));
    println!("on drain: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(nodes.iter().flatten().all(|n| !n.has("AddressConflict")));
}
