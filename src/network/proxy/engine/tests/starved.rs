//! An engine that has too few descriptors, in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command as Process, Stdio};

use nix::sys::resource::{Resource, setrlimit};

use super::*;

const CHILD: &str = "network::proxy::engine::tests::starved::engine_of_a_child";
/// Where the child's endpoint is.
const ENDPOINT: &str = "UMIAK_TEST_ENDPOINT";
/// Descriptors it may have: enough for some twenty connections.
const FEW: u64 = 64;

/// Not a test by itself.
#[test]
#[ignore = "the process that the other tests here start"]
fn engine_of_a_child() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    setrlimit(Resource::RLIMIT_NOFILE, FEW, FEW).unwrap();
    let endpoint = endpoint.parse().unwrap();
    let bench = Bench::new();
    let table = Table::of(&[endpoint]);
    let (tcp, udp) = (bench.listen(Protocol::Tcp, &table), bench.listen(Protocol::Udp, &table));
    eprintln!("listening {} {}", tcp.address, udp.address);
    std::thread::sleep(SOON);
}

struct Starved {
    child: Child,
    tcp: SocketAddrV4,
    udp: SocketAddrV4,
}

impl Starved {
    fn start(endpoint: SocketAddrV4) -> Self {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--ignored", "--nocapture"])
            .env(ENDPOINT, endpoint.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = said.find(|line| line.starts_with("listening ")).unwrap();
        let addresses: Vec<SocketAddrV4> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
        Self { child, tcp: addresses[0], udp: addresses[1] }
    }

    /// Processor time in hundredths of a second (utime and stime of proc_pid_stat(5)).
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn clients_beyond_what_descriptors_allow_are_told_and_the_listener_lives_on() {
    alone();
    let starved = Starved::start(echo());
    let listen = Listen { protocol: Protocol::Tcp, address: starved.tcp };
    let mut clients: Vec<TcpStream> = (0..60).map(|_| connect(listen)).collect();
    let before = starved.ticks();
    let served = clients.iter_mut().filter_map(|client| {
        // Who was refused may find out while writing.
        client.write_all(b"x").and_then(|()| client.read_exact(&mut [0])).ok()
    });
    let served = served.count();
    assert!((10..30).contains(&served), "{served} were served, and all others refused");
    std::thread::sleep(Duration::from_millis(500));
    assert!(starved.ticks() - before < 20, "{} ticks: it does not rest", starved.ticks() - before);
    drop(clients);
    wait_for("descriptors to come back", || {
        let mut client = connect(listen);
        client.write_all(b"x").and_then(|()| client.read_exact(&mut [0])).is_ok()
    });
}

#[test]
fn more_udp_clients_than_descriptors_end_the_oldest_flows() {
    alone();
    let endpoint = UdpSocket::bind("127.0.0.1:0").unwrap();
    let starved = Starved::start(v4(endpoint.local_addr().unwrap()));
    endpoint.set_read_timeout(Some(SOON)).unwrap();
    let clients: Vec<UdpSocket> = (0..100).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(SOON)).unwrap();
        client.send_to(b"x", starved.udp).unwrap();
        let (_, flow) = endpoint.recv_from(&mut [0]).unwrap();
        endpoint.send_to(b"y", flow).unwrap();
        client.recv(&mut [0]).unwrap();
    }
}
