//! What is measured: the direct way, HAProxy, Umiak's engine. The proxies are processes of their own.

use std::fs;
use std::net::SocketAddrV4;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;

use umiak::network::proxy::engine::{Engine, Report};
use umiak::network::proxy::{Backend, Command as Order, Frontend, Listen};
use umiak::network::services::Protocol;

use crate::lab::{self, Lab, Running, within};

/// What the backend serves; see `backend`.
#[derive(Clone, Copy)]
pub enum Port {
    /// Answers every request.
    Requests = 1,
    /// Answers one request.
    Once = 2,
    /// Sends without end.
    Source = 3,
    /// Answers every datagram.
    Udp = 4,
}

const PORTS: [Port; 4] = [Port::Requests, Port::Once, Port::Source, Port::Udp];

impl Port {
    /// Where the backend has it.
    pub fn at_backend(self) -> SocketAddrV4 {
        SocketAddrV4::new(lab::BACKEND, 7000 + self as u16)
    }
}

/// One of the three.
pub struct Subject {
    /// Of its addresses at the proxies' namespace; `None`: direct.
    ports: Option<u16>,
    process: Option<Running>,
    udp: bool,
}

const HAPROXY_PORTS: u16 = 7100;
const ENGINE_PORTS: u16 = 7200;

impl Subject {
    pub fn direct() -> Self {
        Self { ports: None, process: None, udp: true }
    }

    /// HAProxy as Debian has it, with threads as it likes.
    pub fn haproxy(lab: &Lab) -> Self {
        let mut config = "global\n  maxconn 7000\ndefaults\n  mode tcp\n  option splice-auto\n  maxconn 7000\n  \
            timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            .to_owned();
        for port in [Port::Requests, Port::Once, Port::Source] {
            let (own, backend) = (HAPROXY_PORTS + port as u16, port.at_backend());
            config += &format!("listen p{own}\n  bind {}:{own}\n  server s {backend}\n", lab::PROXY);
        }
        let path = std::env::temp_dir().join(format!("umiak-bench-haproxy-{}", std::process::id()));
        fs::write(&path, config).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path);
        let process = within(&lab.proxy, &mut command).spawn().expect("apt-get install haproxy");
        let subject = Self { ports: Some(HAPROXY_PORTS), process: Some(Running(process)), udp: false };
        lab.wait_for(subject.address(Port::Requests));
        fs::remove_file(path).unwrap();
        subject
    }

    /// Umiak's engine.
    pub fn engine(lab: &Lab) -> Self {
        let process = Some(lab.spawn(&lab.proxy, &["role-engine"]));
        Self { ports: Some(ENGINE_PORTS), process, udp: true }
    }

    /// Where a client finds it.
    pub fn address(&self, port: Port) -> SocketAddrV4 {
        match self.ports {
            Some(first) => SocketAddrV4::new(lab::PROXY, first + port as u16),
            None => port.at_backend(),
        }
    }

    /// HAProxy has no UDP.
    pub fn has(&self, port: Port) -> bool {
        self.udp || !matches!(port, Port::Udp)
    }

    /// Processor time it took since it started; none for the direct way.
    pub fn cpu_seconds(&self) -> f64 {
        self.process.as_ref().map_or(0.0, Running::cpu_seconds)
    }

    /// Its memory.
    pub fn pss_kib(&self) -> Option<f64> {
        let process = self.process.as_ref()?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.0.id())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        Some(line.trim().trim_end_matches(" kB").parse().unwrap())
    }
}

/// Always the same endpoint.
struct Fixed(SocketAddrV4);

impl Frontend for Fixed {
    fn pick(&self, _: SocketAddrV4, tried: &[SocketAddrV4]) -> Option<Backend> {
        (!tried.contains(&self.0)).then_some(Backend { endpoint: self.0, keep_source: false })
    }

    fn release(&self, _: SocketAddrV4, _: bool) {}
}

/// The engine's process: proxies every port until it is killed.
pub fn run_engine() {
    let (sender, reports) = channel();
    let engine = Engine::start(move |report| sender.send(report).unwrap()).unwrap();
    for port in PORTS {
        let protocol = if matches!(port, Port::Udp) { Protocol::Udp } else { Protocol::Tcp };
        let address = SocketAddrV4::new(lab::PROXY, ENGINE_PORTS + port as u16);
        engine.send(Order::Listen(Listen { protocol, address }, Arc::new(Fixed(port.at_backend()))));
    }
    for report in reports {
        assert!(matches!(report, Report::Listening(_)), "{report:?}");
    }
}
