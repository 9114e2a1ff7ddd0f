//! What is measured: the direct way, HAProxy, and a ClusterIP.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::common::Cluster;
use crate::lab::{self, Lab, Running};

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

/// One of the three. It has the ports of the backend.
pub struct Subject {
    /// Where a client finds it.
    address: Ipv4Addr,
    pid: Option<u32>,
    udp: bool,
    _process: Option<Running>,
}

/// Of the Service; in the default range.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 77);

impl Subject {
    pub fn direct() -> Self {
        Self { address: lab::BACKEND, pid: None, udp: true, _process: None }
    }

    /// HAProxy as Debian has it, with threads as it likes.
    pub fn haproxy(lab: &Lab, cluster: &Cluster) -> Self {
        let mut config = "global\n  maxconn 7000\ndefaults\n  mode tcp\n  option splice-auto\n  maxconn 7000\n  \
            timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            .to_owned();
        for backend in [Port::Requests, Port::Once, Port::Source].map(Port::at_backend) {
            let port = backend.port();
            config += &format!("listen p{port}\n  bind {}:{port}\n  server s {backend}\n", lab::NODE);
        }
        let path = std::env::temp_dir().join(format!("umiak-bench-haproxy-{}", std::process::id()));
        fs::write(&path, config).unwrap();
        let mut command = cluster.netns.command("haproxy");
        let process = Running(command.arg("-db").arg("-f").arg(&path).spawn().expect("apt-get install haproxy"));
        let pid = Some(process.0.id());
        let subject = Self { address: lab::NODE, pid, udp: false, _process: Some(process) };
        lab.wait_for(subject.address(Port::Requests));
        fs::remove_file(path).unwrap();
        subject
    }

    /// A Service of the cluster.
    pub fn cluster_ip(lab: &Lab, cluster: &Cluster) -> Self {
        cluster.apply(&manifest());
        lab.route(CLUSTER_IP, lab::NODE);
        Self { address: CLUSTER_IP, pid: Some(cluster.daemon_pid().cast_unsigned()), udp: true, _process: None }
    }

    /// Where a client finds it.
    pub fn address(&self, port: Port) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port.at_backend().port())
    }

    /// HAProxy has no UDP.
    pub fn has(&self, port: Port) -> bool {
        self.udp || !matches!(port, Port::Udp)
    }

    /// Processor time it took since it started; none for the direct way.
    pub fn cpu_seconds(&self) -> f64 {
        self.pid.map_or(0.0, lab::cpu_seconds)
    }

    /// Its memory.
    pub fn pss_kib(&self) -> Option<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid?)).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        Some(line.trim().trim_end_matches(" kB").parse().unwrap())
    }
}

/// A Service of all ports, with the backend for its endpoint.
fn manifest() -> String {
    let ports = PORTS.map(|port| {
        let (number, protocol) = (port.at_backend().port(), if matches!(port, Port::Udp) { "UDP" } else { "TCP" });
        format!("{{name: p{number}, port: {number}, protocol: {protocol}}}")
    });
    let ports = ports.join(", ");
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: bench}}, spec: {{clusterIP: {CLUSTER_IP}, ports: [{ports}]}}}}\n\
         ---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: bench-1, \
         labels: {{kubernetes.io/service-name: bench}}}}, ports: [{ports}], \
         endpoints: [{{addresses: [{}], conditions: {{ready: true}}}}]}}\n",
        lab::BACKEND
    )
}
