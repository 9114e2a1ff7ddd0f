#![allow(clippy::unwrap_used, clippy::expect_used)]

mod names;
mod packets;
mod sockets;

use std::sync::Arc;

use hickory_proto::op::{Message, Query as Asked};
use hickory_proto::rr::{Name, RecordType};

use super::index::Index;
use super::server::Server;
use super::wire::{MAX_MESSAGE, Query};
use super::*;
use crate::network::services::{Endpoint, EndpointPort, Protocol, Service, ServicePort, Slice};

fn config() -> Config {
    Config::new("cluster.local", "10.43.0.0/16".parse().unwrap(), "10.42.0.0/16".parse().unwrap())
}

fn service(name: &str, cluster_ip: Option<&str>, ports: &[(&str, Protocol, u16)]) -> Service {
    let (namespace, name) = name.split_once('/').unwrap();
    let port = |(name, protocol, port): &(&str, Protocol, u16)| ServicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
        node_port: None,
    };
    Service {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: cluster_ip.into_iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports.iter().map(port).collect(),
        ..Service::default()
    }
}

fn endpoint(address: &str, hostname: Option<&str>, ready: bool) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        hostname: hostname.map(str::to_owned),
        node: None,
        hints: None,
        ready,
        serving: ready,
        terminating: false,
    }
}

fn slice(ports: &[(&str, u16)], endpoints: Vec<Endpoint>) -> Slice {
    let port = |(name, port): &(&str, u16)| EndpointPort { name: (*name).into(), protocol: Protocol::Tcp, port: *port };
    Slice { ports: ports.iter().map(port).collect(), endpoints }
}

fn external(name: &str, target: &str) -> Service {
    Service { external_name: Some(target.into()), ..service(name, None, &[]) }
}

fn services() -> Vec<Service> {
    let peers = vec![
        endpoint("10.42.0.5", Some("pod-a"), true),
        endpoint("10.42.0.6", None, true),
        endpoint("10.42.0.7", Some("pod-c"), false),
        endpoint("fd00::9", None, true),
    ];
    let early = vec![endpoint("10.42.1.1", Some("db-0"), false)];
    vec![
        service("default/kubernetes", Some("10.43.0.1"), &[("https", Protocol::Tcp, 443)]),
        service("default/web", Some("10.43.1.1"), &[("http", Protocol::Tcp, 80), ("quic", Protocol::Udp, 443)]),
        Service {
            slices: vec![slice(&[("peer", 7001)], peers.clone()), slice(&[("other", 8001)], peers)],
            ..service("default/peers", None, &[("peer", Protocol::Tcp, 7000), ("other", Protocol::Tcp, 8000)])
        },
        Service { publish_not_ready: true, slices: vec![slice(&[], early)], ..service("shop/early", None, &[]) },
        service("shop/empty", None, &[]),
        external("shop/outside", "www.example.com"),
        external("shop/inside", "web.default.svc.cluster.local."),
        external("shop/number", "192.0.2.1"),
        external("shop/ring", "ring.shop.svc.cluster.local"),
    ]
}

fn server(services: Vec<Service>) -> Server {
    let server = Server::new(&config());
    *server.index().write().unwrap() = Index::new(services.into_iter().map(Arc::new).collect());
    server
}

/// A query as a client sends it.
fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// What the server says to it by itself, over TCP.
fn ask(server: &Server, query: &Message) -> Option<Message> {
    let query = Query::read(&query.to_vec().unwrap()).unwrap();
    let answer = server.answer_at_once(&query, MAX_MESSAGE)?;
    Some(Message::from_vec(&answer).unwrap())
}

/// Answers in order of the text, without time to live.
fn texts(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    let mut texts: Vec<String> = records.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect();
    texts.sort();
    texts
}
