//! Three nodes: two on one segment, the third behind a router, each with a pod.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use tokio::sync::oneshot;

use super::*;
use crate::network::test_lan::{Netns, Switch, until};
use crate::network::{Network, NetworkConfig};

/// More than any window, so that packets of full size are under way.
const AMOUNT: usize = 1 << 20;

fn pods(n: u8) -> Cidr {
    format!("10.42.{n}.0/24").parse().unwrap()
}

fn peer(n: u8, address: &str) -> Peer {
    Peer { name: format!("node-{n}"), address: address.parse().unwrap(), pod_cidr: pods(n), announces: true }
}

/// A node's network in its namespace, with one pod.
struct Node {
    pod: Netns,
    peers: watch::Sender<Vec<Peer>>,
    problem: watch::Receiver<Option<String>>,
    stop: Option<oneshot::Sender<bool>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    fn start(host: &Netns, n: u8, peers: &[Peer]) -> Self {
        let (pod, to_attach) = {
            let pod = Netns::new();
            (pod.again(), pod)
        };
        let (peers, seen) = watch::channel(peers.to_vec());
        let (say, problem) = watch::channel(None);
        let (stop, mut stopped) = oneshot::channel::<bool>();
        let (up, is_up) = std::sync::mpsc::channel();
        let thread = host.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let room = tempfile::tempdir().unwrap();
            runtime.block_on(async {
                let network = Network::open(NetworkConfig {
                    bridge: "umiak0".into(),
                    pod_cidr: pods(n),
                    cluster_cidr: "10.42.0.0/16".parse().unwrap(),
                    state_dir: room.path().to_owned(),
                    mtu: 1500,
                });
                let network = network.await.unwrap();
                network.attach("pod", crate::network::Netns::Path(to_attach.path().as_ref())).await.unwrap();
                up.send(()).unwrap();
                let config = RouteConfig {
                    node: format!("node-{n}"),
                    pod_cidr: pods(n),
                    bridge: "umiak0".into(),
                    vxlan: Vxlan::default(),
                };
                let reset = tokio::select! {
                    () = run(config, seen, say) => false,
                    reset = &mut stopped => reset.unwrap_or_default(),
                };
                if reset {
                    network.destroy().await.unwrap();
                }
            });
        });
        is_up.recv().unwrap();
        Self { pod, peers, problem, stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it as a kill would, or with a reset.
    fn end(&mut self, reset: bool) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            stop.send(reset).unwrap();
            thread.join().unwrap();
        }
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

/// Routes of this program, without their mark.
fn routes(host: &Netns) -> Vec<String> {
    let shown = host.ip("route show proto 117");
    shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Sends from one pod to another; gives the address the other saw.
fn talk(from: &Netns, to: &Netns, address: &str) -> String {
    let address: Ipv4Addr = address.parse().unwrap();
    let listener = to.inside(move || TcpListener::bind((address, 80)).unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, client) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), AMOUNT);
        client.ip().to_string()
    });
    from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(5)).unwrap();
        stream.write_all(&vec![7; AMOUNT]).unwrap();
    });
    server.join().unwrap()
}

#[test]
fn pods_of_all_nodes_reach_each_other() {
    let (here, there) = (Switch::new(), Switch::new());
    let hosts = [here.host("192.168.7.1/24"), here.host("192.168.7.2/24"), there.host("10.9.0.3/24")];
    let router = here.host("192.168.7.254/24");
    router.plug(&there, "eth1", "10.9.0.254/24");
    router.run("sysctl", "-qw net.ipv4.ip_forward=1");
    for (host, gateway) in hosts.iter().zip(["192.168.7.254", "192.168.7.254", "10.9.0.254"]) {
        host.ip(&format!("route add default via {gateway}"));
    }
    let all = [peer(1, "192.168.7.1"), peer(2, "192.168.7.2"), peer(3, "10.9.0.3")];
    let mut nodes: Vec<Node> = hosts.iter().zip(1..).map(|(host, n)| Node::start(host, n, &all)).collect();
    let expected = ["10.42.2.0/24 via 192.168.7.2 dev eth0", "10.42.3.0/24 via 10.42.3.0 dev umiak.vx onlink"];
    until("routes", || routes(&hosts[0]) == expected);
    until("routes", || routes(&hosts[2]).len() == 2);
    until("routes", || routes(&hosts[1]).len() == 2);

    for (from, to) in [(0, 1), (0, 2), (2, 1), (1, 0)] {
        let seen = talk(&nodes[from].pod, &nodes[to].pod, &format!("10.42.{}.2", to + 1));
        assert_eq!(seen, format!("10.42.{}.2", from + 1), "the pod's own address, not the node's");
    }
    // The nodes themselves, too.
    talk(&hosts[0], &nodes[2].pod, "10.42.3.2");
    talk(&hosts[0], &nodes[1].pod, "10.42.2.2");
    // The outside still sees the node.
    assert_eq!(talk(&nodes[0].pod, &router, "192.168.7.254"), "192.168.7.1");
    assert!(hosts[0].ip("link show umiak.vx").contains("mtu 1450"));
    assert_eq!(*nodes[0].problem.borrow(), None);

    // Somebody meddles; the interface flaps.
    hosts[0].ip("route del 10.42.2.0/24");
    until("the route is back", || routes(&hosts[0]) == expected);
    hosts[0].ip("link set eth0 down");
    hosts[0].ip("link set eth0 up");
    until("the routes are back", || routes(&hosts[0]) == expected);
    hosts[0].ip("route replace default via 192.168.7.254");

    // A daemon that was killed, and nodes that came, went and moved meanwhile.
    nodes[0].end(false);
    assert_eq!(routes(&hosts[0]), expected);
    hosts[0].ip("route add 10.42.9.0/24 via 192.168.7.2 proto 117");
    hosts[0].ip("neigh add 10.42.9.0 lladdr 0a:58:0a:2a:09:00 dev umiak.vx");
    hosts[2].ip("addr add 10.9.0.33/24 dev eth0");
    let moved = [all[0].clone(), all[1].clone(), peer(3, "10.9.0.33")];
    nodes[0] = Node::start(&hosts[0], 1, &moved);
    until("routes", || routes(&hosts[0]) == expected);
    assert!(!hosts[0].ip("neigh show dev umiak.vx").contains("10.42.9.0"));
    let forwarding = hosts[0].run("bridge", "fdb show dev umiak.vx");
    assert_eq!(forwarding.trim(), "0a:58:0a:2a:03:00 dst 10.9.0.33 self permanent");
    talk(&nodes[0].pod, &nodes[2].pod, "10.42.3.2");

    // Nobody is far any more: no tunnel.
    nodes[0].peers.send_replace(all[..2].to_vec());
    until("one route", || routes(&hosts[0]) == expected[..1]);
    assert!(!hosts[0].ip("link show").contains("umiak.vx"));
    nodes[0].peers.send_replace(all.to_vec());
    until("routes", || routes(&hosts[0]) == expected);

    nodes[0].end(true);
    assert_eq!(routes(&hosts[0]), Vec::<String>::new());
    let left = hosts[0].ip("link show");
    assert!(!left.contains("umiak"), "{left}");
}

#[test]
fn ranges_that_clash_are_left_alone() {
    let vxlan = Vxlan::default();
    let config = RouteConfig { node: "node-1".into(), pod_cidr: pods(1), bridge: "umiak0".into(), vxlan };
    let interfaces = [crate::network::interfaces::tests::interface(4, &[("192.168.7.1", 24)])];
    let mut peers = vec![peer(1, "192.168.7.1"), peer(2, "192.168.7.2"), peer(3, "10.9.0.3"), peer(4, "192.168.7.4")];
    peers[3].pod_cidr = "10.42.0.0/16".parse().unwrap();
    let (near, far) = sort(&config, &peers, &interfaces);
    let hop = Hop { gateway: peers[1].address, interface: 4, is_onlink: false };
    assert_eq!(near.into_iter().collect::<Vec<_>>(), [(key(pods(2)), hop)]);
    assert_eq!(far, [Far { address: peers[2].address, pods: pods(3) }]);
}
