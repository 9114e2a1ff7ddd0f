//! The engine with real sockets, each test on the loopback interface of a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::super::super::services::Protocol;
use super::super::{Backend, Command, Frontend, Listen};
use super::{Engine, Report};

mod connect;
mod relay;
mod starved;
mod udp;

/// Longest anything here may take.
const SOON: Duration = Duration::from_secs(20);

/// Gives out its endpoints in order, and keeps account.
#[derive(Default)]
struct Table {
    endpoints: Mutex<Vec<SocketAddrV4>>,
    open: Mutex<HashMap<SocketAddrV4, i64>>,
    failed: Mutex<Vec<SocketAddrV4>>,
    keep_source: bool,
}

impl Table {
    fn of(endpoints: &[SocketAddrV4]) -> Arc<Self> {
        Arc::new(Self { endpoints: Mutex::new(endpoints.to_vec()), ..Self::default() })
    }

    fn open(&self) -> i64 {
        self.open.lock().unwrap().values().sum()
    }

    /// Waits until nothing is counted as open.
    fn wait_closed(&self) {
        wait_for("every pick to be released", || self.open() == 0);
    }
}

impl Frontend for Table {
    fn pick(&self, _: SocketAddrV4, tried: &[SocketAddrV4]) -> Option<Backend> {
        let endpoint = *self.endpoints.lock().unwrap().iter().find(|endpoint| !tried.contains(endpoint))?;
        *self.open.lock().unwrap().entry(endpoint).or_default() += 1;
        Some(Backend { endpoint, keep_source: self.keep_source })
    }

    fn release(&self, endpoint: SocketAddrV4, failed: bool) {
        *self.open.lock().unwrap().get_mut(&endpoint).unwrap() -= 1;
        if failed {
            self.failed.lock().unwrap().push(endpoint);
        }
    }
}

/// An engine and what it reports.
struct Bench {
    engine: Engine,
    reports: Receiver<Report>,
}

impl Bench {
    fn new() -> Self {
        let (sender, reports) = channel();
        let sender = Mutex::new(sender);
        let engine = Engine::start(move |report| sender.lock().unwrap().send(report).unwrap()).unwrap();
        Self { engine, reports }
    }

    /// Listens at a free port.
    fn listen(&self, protocol: Protocol, frontend: &Arc<Table>) -> Listen {
        let address = match protocol {
            Protocol::Tcp => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
            Protocol::Udp => std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        };
        let listen = Listen { protocol, address: v4(address) };
        self.engine.send(Command::Listen(listen, frontend.clone()));
        match self.reports.recv_timeout(SOON).unwrap() {
            Report::Listening(at) if at == listen => listen,
            other => panic!("{other:?}"),
        }
    }

    /// A TCP proxy for these endpoints.
    fn tcp(endpoints: &[SocketAddrV4]) -> (Self, Arc<Table>, Listen) {
        let (bench, table) = (Self::new(), Table::of(endpoints));
        let listen = bench.listen(Protocol::Tcp, &table);
        (bench, table, listen)
    }
}

fn v4(address: std::net::SocketAddr) -> SocketAddrV4 {
    match address {
        std::net::SocketAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

/// Takes this thread, and those it starts from now on, to a network namespace of their own.
fn alone() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server at a free port that handles each connection on a thread of its own.
fn server(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = v4(listener.local_addr().unwrap());
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handle) = (stream.unwrap(), handle.clone());
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// Sends back what it gets, then the end.
fn echo() -> SocketAddrV4 {
    server(|mut stream| {
        // Clients of these tests also break connections.
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut copy).ok();
    })
}

/// An address that refuses.
fn refusing() -> SocketAddrV4 {
    v4(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

fn connect(listen: Listen) -> TcpStream {
    let stream = TcpStream::connect(listen.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
