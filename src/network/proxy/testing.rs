//! Services and endpoints for this room's tests.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use super::Config;
use crate::config::ProxyBalance;
use crate::network::services::{Endpoint, EndpointPort, Hints, Protocol, Service, ServicePort, Slice};

/// A node `here` with the address 192.168.1.10 and the pods 10.42.1.0/24.
pub(super) fn config() -> Config {
    Config {
        node: "here".into(),
        node_address: Ipv4Addr::new(192, 168, 1, 10),
        bridge: "umiak0".into(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        pod_cidr: "10.42.1.0/24".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        balance: ProxyBalance::RoundRobin,
    }
}

/// For example `7 here ready z1,z2 here,away`: 10.42.1.7 on this node, or (`away`) another, ready, terminating or broken;
/// the zones and nodes it is meant for, `-` for none.
pub(super) fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let last = words.next().unwrap().parse().unwrap();
    let node = words.next().unwrap().to_owned();
    let state = words.next().unwrap();
    let mut hinted = || -> Vec<String> {
        let names = words.next().filter(|names| *names != "-").into_iter().flat_map(|names| names.split(','));
        names.map(str::to_owned).collect()
    };
    let hints = Hints { zones: hinted(), nodes: hinted() };
    Endpoint {
        address: Ipv4Addr::new(10, 42, 1, last).into(),
        hostname: None,
        node: Some(node),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
        ready: state == "ready",
        serving: state != "broken",
        terminating: state == "terminating",
    }
}

/// A TCP Service `default/NAME` at 10.43.0.100, its ports served at 8080 and up.
pub(super) fn service(name: &str, ports: &[u16], endpoints: Vec<Endpoint>) -> Service {
    let named = |port: &u16| format!("p{port}");
    let port = |port: &u16| ServicePort { name: named(port), protocol: Protocol::Tcp, port: *port, node_port: None };
    let target = |(n, port): (u16, &u16)| EndpointPort { name: named(port), protocol: Protocol::Tcp, port: 8080 + n };
    Service {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        cluster_ips: vec![Ipv4Addr::new(10, 43, 0, 100)],
        ports: ports.iter().map(port).collect(),
        slices: vec![Slice { ports: (0..).zip(ports).map(target).collect(), endpoints }],
        ..Service::default()
    }
}
