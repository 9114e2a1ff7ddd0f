#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::*;

const CIDR: &str = "10.77.0.0/24";

/// Runs a test as its own node: a thread in a fresh network namespace with a runtime of its own.
pub(super) fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).unwrap();
        let room = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(room.path().to_owned()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A pod's namespace: alive while the file is open.
pub(super) fn pod() -> File {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// Runs something inside a pod's namespace.
pub(super) fn inside<T: Send + 'static>(pod: &File, work: impl FnOnce() -> T + Send + 'static) -> T {
    let pod = pod.try_clone().unwrap();
    std::thread::spawn(move || {
        setns(&pod, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

pub(super) fn config(state_dir: &Path) -> NetworkConfig {
    NetworkConfig {
        bridge: "umiak0".to_owned(),
        pod_cidr: CIDR.parse().unwrap(),
        cluster_cidr: "10.76.0.0/15".parse().unwrap(),
        state_dir: state_dir.to_owned(),
        mtu: 1450,
    }
}

fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

fn ours() -> usize {
    interfaces().iter().filter(|name| name.starts_with(PREFIX) && name.len() == MAX_NAME).count()
}

fn talk(address: Ipv4Addr, port: u16) -> String {
    let stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = String::new();
    (&stream).read_to_string(&mut text).unwrap();
    text
}

/// Answers one connection on port 80 of a pod or node.
fn greet(listener: TcpListener) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        from.ip().to_string()
    })
}

#[test]
fn pods_reach_each_other_and_the_node() {
    on_a_node(async |room| {
        let network = Network::open(config(&room)).await.unwrap();
        network.masquerade().unwrap();
        let (one, two) = (pod(), pod());
        let first = network.attach("pod-1", Netns::Fd(one.as_fd())).await.unwrap();
        let second = network.attach("pod-2", Netns::Fd(two.as_fd())).await.unwrap();
        assert_eq!([first, second], [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)]);
        assert_eq!(network.gateway(), Ipv4Addr::new(10, 77, 0, 1));

        let hairpin = format!("/sys/class/net/{}/brport/hairpin_mode", host_name("pod-1"));
        assert_eq!(std::fs::read_to_string(hairpin).unwrap().trim(), "1");

        let server = greet(inside(&two, move || TcpListener::bind((second, 80)).unwrap()));
        assert_eq!(inside(&one, move || talk(second, 80)), "hello", "pod to pod");
        assert_eq!(server.join().unwrap(), first.to_string());

        let server = greet(inside(&one, || TcpListener::bind(("0.0.0.0", 80)).unwrap()));
        assert_eq!(talk(first, 80), "hello", "node to pod");
        assert_eq!(server.join().unwrap(), "10.77.0.1");

        let server = greet(TcpListener::bind("0.0.0.0:80").unwrap());
        assert_eq!(inside(&one, || talk(Ipv4Addr::new(10, 77, 0, 1), 80)), "hello", "pod to node");
        assert_eq!(server.join().unwrap(), first.to_string());

        let server = greet(inside(&one, || TcpListener::bind("127.0.0.1:80").unwrap()));
        assert_eq!(inside(&one, || talk(Ipv4Addr::LOCALHOST, 80)), "hello", "pod to its loopback");
        server.join().unwrap();
    });
}

#[test]
fn traffic_that_leaves_the_node_is_masqueraded() {
    on_a_node(async |room| {
        let network = Network::open(config(&room)).await.unwrap();
        let inner = pod();
        network.attach("inner", Netns::Fd(inner.as_fd())).await.unwrap();
        // The world outside: another bridge, whose one host knows no way back to the pods.
        let outside = NetworkConfig {
            bridge: "world0".to_owned(),
            pod_cidr: "192.0.2.0/24".parse().unwrap(),
            cluster_cidr: "192.0.2.0/24".parse().unwrap(),
            state_dir: room.join("world"),
            mtu: 1500,
        };
        let world = Network::open(outside).await.unwrap();
        let host = pod();
        let address = world.attach("host", Netns::Fd(host.as_fd())).await.unwrap();
        let server = greet(inside(&host, move || TcpListener::bind((address, 80)).unwrap()));
        assert_eq!(inside(&inner, move || talk(address, 80)), "hello");
        assert_eq!(server.join().unwrap(), "192.0.2.1", "the node's own address, not the pod's");
    });
}

#[test]
fn attaching_again_keeps_the_address_and_repairs() {
    on_a_node(async |room| {
        let one = pod();
        let network = Network::open(config(&room)).await.unwrap();
        let address = network.attach("pod-1", Netns::Fd(one.as_fd())).await.unwrap();
        drop(network);

        // The daemon was killed and starts again; someone has meddled meanwhile.
        let links = Links::here().unwrap();
        links.delete("umiak0").await.unwrap();
        let network = Network::open(config(&room)).await.unwrap();
        assert_eq!(network.address("pod-1"), Some(address));
        assert_eq!(network.attach("pod-1", Netns::Fd(one.as_fd())).await.unwrap(), address);
        assert_eq!(ours(), 1);
        let server = greet(inside(&one, || TcpListener::bind("0.0.0.0:80").unwrap()));
        assert_eq!(talk(address, 80), "hello");
        server.join().unwrap();

        // A new namespace of the same pod takes the old one's place.
        let again = pod();
        assert_eq!(network.attach("pod-1", Netns::Fd(again.as_fd())).await.unwrap(), address);
        assert_eq!(ours(), 1);

        // The lease file is lost: the pod brings its address back.
        drop(network);
        std::fs::remove_file(room.join("leases.json")).unwrap();
        let network = Network::open(config(&room)).await.unwrap();
        network.attach("other", Netns::Fd(pod().as_fd())).await.unwrap();
        let other = pod();
        assert_ne!(network.attach("third", Netns::Fd(other.as_fd())).await.unwrap(), address);
        drop(one);
    });
}

#[test]
fn a_pod_brings_its_address_back_when_the_leases_are_lost() {
    on_a_node(async |room| {
        let (one, two) = (pod(), pod());
        let network = Network::open(config(&room)).await.unwrap();
        network.attach("pod-1", Netns::Fd(one.as_fd())).await.unwrap();
        let address = network.attach("pod-2", Netns::Fd(two.as_fd())).await.unwrap();
        drop(network);
        std::fs::remove_file(room.join("leases.json")).unwrap();
        let network = Network::open(config(&room)).await.unwrap();
        assert_eq!(network.attach("pod-2", Netns::Fd(two.as_fd())).await.unwrap(), address);
    });
}

#[test]
fn what_is_gone_is_cleaned_up() {
    on_a_node(async |room| {
        let network = Network::open(config(&room)).await.unwrap();
        let pods: Vec<File> = (0..3).map(|_| pod()).collect();
        for (n, pod) in pods.iter().enumerate() {
            network.attach(&format!("pod-{n}"), Netns::Fd(pod.as_fd())).await.unwrap();
        }
        assert_eq!(ours(), 3);
        network.detach("pod-0").await.unwrap();
        network.detach("pod-0").await.unwrap();
        assert_eq!((ours(), network.address("pod-0")), (2, None));
        network.reconcile(&HashSet::from(["pod-1".to_owned()])).await.unwrap();
        assert_eq!((ours(), network.address("pod-2")), (1, None));
        assert!(network.address("pod-1").is_some());
        network.destroy().await.unwrap();
        assert_eq!(interfaces(), ["lo"]);
        assert!(!room.join("leases.json").exists());
    });
}

#[test]
fn futures_may_move_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn movable<T: Send>(_: T) {}
    shared::<Network>();
    on_a_node(async |room| {
        movable(Network::open(config(&room)));
        let network = Network::open(config(&room)).await.unwrap();
        let one = pod();
        movable(network.attach("pod-1", Netns::Fd(one.as_fd())));
        movable(network.detach("pod-1"));
        let live = HashSet::new();
        movable(network.reconcile(&live));
        // Several at once, as pods start together.
        let pods: Vec<File> = (0..8).map(|_| pod()).collect();
        let names: Vec<String> = (0..8).map(|n| format!("many-{n}")).collect();
        let all = pods.iter().zip(&names).map(|(pod, name)| network.attach(name, Netns::Fd(pod.as_fd())));
        let addresses = futures_util::future::join_all(all).await.into_iter().collect::<Result<HashSet<_>>>();
        assert_eq!((addresses.unwrap().len(), ours()), (8, 8));
    });
}

#[test]
fn bad_input_is_named() {
    on_a_node(async |room| {
        for bridge in ["", "a/b", "sixteen-letters-", "."] {
            let config = NetworkConfig { bridge: bridge.to_owned(), ..config(&room) };
            assert!(Network::open(config).await.is_err(), "{bridge}");
        }
        let lo = NetworkConfig { bridge: "lo".to_owned(), ..config(&room) };
        let error = Network::open(lo).await.err().unwrap().to_string();
        assert_eq!(error, "use bridge lo: an interface of that name is no bridge");
        let network = Network::open(config(&room)).await.unwrap();
        let error = network.attach("ghost", Netns::Pid(-1)).await.unwrap_err().to_string();
        assert!(error.starts_with("network namespace of pod ghost: "), "{error}");
        assert_eq!((ours(), network.address("ghost")), (0, None), "nothing is left of a failed attach");
    });
}

#[test]
fn the_callers_thread_stays_where_it_is_and_attach_is_quick() {
    on_a_node(async |room| {
        let network = Network::open(config(&room)).await.unwrap();
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let pods: Vec<File> = (0..20).map(|_| pod()).collect();
        let mut times = Vec::new();
        for (n, pod) in pods.iter().enumerate() {
            let start = Instant::now();
            network.attach(&format!("pod-{n}"), Netns::Fd(pod.as_fd())).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("attach: median {:?}, worst {:?}", times[10], times[19]);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        UdpSocket::bind("10.77.0.1:0").unwrap();
    });
}
