#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, Publish, Subscribe, SubscribeFilter, SubscribeReasonCode, Unsubscribe,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::link::mqtt::tests::Authority;
use crate::link::mqtt::tls::ClientTls;
use crate::link::mqtt::{PacketReader, encode};

const SOON: Duration = Duration::from_secs(10);
const UP: &str = "umiak/v1/c/system:node:a/u/s";
const DOWN: &str = "umiak/v1/c/system:node:a/d/#";

struct Fixture {
    authority: Authority,
    address: SocketAddr,
    bus: Bus,
    inbox: Inbox,
    allowed: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fixture {
    async fn start() -> Self {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let allowed = Arc::new(AtomicBool::new(true));
        let judge = allowed.clone();
        let config = BrokerConfig {
            cluster: "c".into(),
            tls: authority.server_tls(),
            allowed: Arc::new(move |_, _| judge.load(Ordering::Relaxed)),
        };
        let (bus, mut inbox, run) = broker(config, listener);
        let task = tokio::spawn(run);
        assert!(matches!(inbox.recv().await, Some(Event::Up)));
        Self { authority, address, bus, inbox, allowed, task }
    }

    async fn wire(&self, tls: &ClientTls) -> Wire {
        Wire::to(self.address, tls).await.unwrap()
    }

    /// A node's connection, accepted and subscribed.
    async fn node(&self, name: &str) -> Wire {
        let mut wire = self.wire(&self.authority.node_tls(name)).await;
        wire.send(Packet::Connect(connect(name))).await;
        assert_eq!(wire.code().await, Some(ConnectReturnCode::Success));
        wire
    }

    async fn message(&mut self) -> (String, Bytes) {
        match timeout(SOON, self.inbox.recv()).await.expect("no message").unwrap() {
            Event::Message { topic, payload } => (topic, payload),
            other => panic!("{other:?}"),
        }
    }

    /// The broker still serves others.
    async fn assert_alive(&mut self) {
        let mut wire = self.node("witness").await;
        wire.publish("umiak/v1/c/system:node:witness/u/s", "x", 1).await;
        assert!(matches!(wire.next().await, Some(Packet::PubAck(_))));
        assert_eq!(self.message().await.0, "umiak/v1/c/system:node:witness/u/s");
    }
}

fn connect(id: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.keep_alive = 60;
    connect
}

/// A client without manners.
struct Wire {
    stream: TlsStream<TcpStream>,
    reader: PacketReader,
}

impl Wire {
    async fn to(address: SocketAddr, tls: &ClientTls) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("umiak-server").unwrap();
        let stream = TlsConnector::from(tls.outer_config()).connect(name, tcp).await?;
        Ok(Self { stream, reader: PacketReader::default() })
    }

    async fn send(&mut self, packet: Packet) {
        self.raw(&encode(&packet).unwrap()).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn publish(&mut self, topic: &str, payload: &str, pkid: u16) {
        let qos = if pkid == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = pkid;
        self.send(Packet::Publish(publish)).await;
    }

    async fn subscribe(&mut self, filters: &[&str]) -> Vec<SubscribeReasonCode> {
        let filters = filters.iter().map(|f| SubscribeFilter::new((*f).to_owned(), QoS::AtLeastOnce)).collect();
        self.send(Packet::Subscribe(Subscribe { pkid: 7, filters })).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => ack.return_codes,
            other => panic!("{other:?}"),
        }
    }

    /// `None`: the connection has ended.
    async fn next(&mut self) -> Option<Packet> {
        timeout(SOON, self.reader.next(&mut self.stream, 1 << 20)).await.expect("nothing came").ok()
    }

    async fn code(&mut self) -> Option<ConnectReturnCode> {
        match self.next().await {
            Some(Packet::ConnAck(ack)) => Some(ack.code),
            _ => None,
        }
    }
}

fn granted(codes: &[SubscribeReasonCode]) -> Vec<bool> {
    codes.iter().map(|c| matches!(c, SubscribeReasonCode::Success(_))).collect()
}

#[tokio::test]
async fn introductions_are_judged() {
    use ConnectReturnCode::*;
    let mut fixture = Fixture::start().await;
    let (node, admin) =
        (fixture.authority.node_tls("a"), fixture.authority.trusting(fixture.authority.client("umiak-admin")));
    let nobody = ClientTls::join([0; 32], Arc::new(rustls::time_provider::DefaultTimeProvider)).unwrap();
    let with = |change: &dyn Fn(&mut Connect)| {
        let mut packet = connect("a");
        change(&mut packet);
        packet
    };
    let will = |topic: &str, qos, retain| LastWill { topic: topic.into(), message: Bytes::new(), qos, retain };
    for (tls, packet, expected) in [
        (&node, connect("a"), Success),
        (&node, connect("a~s"), Success),
        (&node, with(&|c| c.clean_session = false), Success),
        (&node, with(&|c| c.last_will = Some(will(UP, QoS::AtLeastOnce, false))), Success),
        (&node, connect("b"), BadClientId),
        (&node, connect("a/+$#"), BadClientId),
        (&node, connect(""), BadClientId),
        (&node, connect("join-0123456789abcdef"), BadClientId),
        (
            &node,
            with(&|c| c.last_will = Some(will("umiak/v1/c/system:node:b/u/s", QoS::AtMostOnce, false))),
            NotAuthorized,
        ),
        (&node, with(&|c| c.last_will = Some(will(UP, QoS::AtMostOnce, true))), NotAuthorized),
        (&node, with(&|c| c.protocol = rumqttc::mqttbytes::Protocol::V5), RefusedProtocolVersion),
        (&admin, connect("a"), NotAuthorized),
        (&nobody, connect("a"), BadClientId),
        (&nobody, connect("join-1"), BadClientId),
        (&nobody, connect("join-0123456789abcdef"), Success),
    ] {
        let mut wire = fixture.wire(tls).await;
        let id = packet.client_id.clone();
        wire.send(Packet::Connect(packet)).await;
        assert_eq!(wire.code().await, Some(expected), "{id:?}");
        if expected != Success {
            assert_eq!(wire.next().await, None, "{id:?} is still connected");
        }
    }
    fixture.allowed.store(false, Ordering::Relaxed);
    let mut wire = fixture.wire(&node).await;
    wire.send(Packet::Connect(connect("a"))).await;
    assert_eq!(wire.code().await, Some(NotAuthorized));
    fixture.allowed.store(true, Ordering::Relaxed);
    fixture.assert_alive_after_wills().await;
}

impl Fixture {
    async fn assert_alive_after_wills(&mut self) {
        while let Ok(event) = timeout(Duration::from_millis(100), self.inbox.recv()).await {
            assert!(matches!(event, Some(Event::Message { topic, .. }) if topic == UP));
        }
        self.assert_alive().await;
    }
}

#[tokio::test]
async fn certificates_of_another_ca_do_not_count() {
    let mut fixture = Fixture::start().await;
    let stranger = Authority::new();
    let tls = fixture.authority.trusting(stranger.client("system:node:a"));
    if let Ok(mut wire) = Wire::to(fixture.address, &tls).await {
        // The client is done with its handshake before the server has looked.
        let _ = wire.stream.write_all(&encode(&Packet::Connect(connect("a"))).unwrap()).await;
        assert_eq!(wire.next().await, None);
    }
    let trusting_stranger = stranger.node_tls("a");
    assert!(Wire::to(fixture.address, &trusting_stranger).await.is_err(), "the client took a stranger's broker");
    fixture.assert_alive().await;
}

#[tokio::test]
async fn violations_end_the_connection_and_no_other() {
    let mut fixture = Fixture::start().await;
    let retained = {
        let mut publish = Publish::new(UP, QoS::AtMostOnce, "x");
        publish.retain = true;
        encode(&Packet::Publish(publish)).unwrap()
    };
    let twice = {
        let mut publish = Publish::new(UP, QoS::ExactlyOnce, "x");
        publish.pkid = 1;
        encode(&Packet::Publish(publish)).unwrap()
    };
    let to = |topic: &str| encode(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "x"))).unwrap();
    let cases: Vec<(&str, Bytes)> = vec![
        ("another node's topic", to("umiak/v1/c/system:node:b/u/s")),
        ("its own downward topic", to("umiak/v1/c/system:node:a/d/s")),
        ("another cluster", to("umiak/v1/d/system:node:a/u/s")),
        ("a wildcard", to("umiak/v1/c/system:node:a/u/#")),
        ("a joining client's topic", to("umiak/v1/c/join/join-0123456789abcdef/u")),
        ("the system's topics", to("$SYS/broker")),
        ("a topic beyond ASCII", to("é")),
        ("an empty topic", to("")),
        ("retained", retained),
        ("QoS 2", twice),
        ("a second CONNECT", encode(&Packet::Connect(connect("a"))).unwrap()),
        ("an answer", encode(&Packet::PingResp).unwrap()),
        ("a CONNACK", Bytes::from_static(&[0x20, 2, 0, 0])),
        ("a type there is none", Bytes::from_static(&[0xf0, 0])),
        ("an empty PUBLISH", Bytes::from_static(&[0x30, 0])),
        ("a length of five bytes", Bytes::from_static(&[0x30, 0xff, 0xff, 0xff, 0xff, 1])),
        ("more than the largest packet", Bytes::from_static(&[0x30, 0xff, 0xff, 0x7f])),
        ("a topic longer than its packet", Bytes::from_static(&[0x30, 3, 0, 9, b'x'])),
        ("a topic that is no text", Bytes::from_static(&[0x30, 4, 0, 2, 0xff, 0xfe])),
        ("packet identifier 0", Bytes::from_static(&[0x32, 5, 0, 1, b'x', 0, 0])),
        ("an empty SUBSCRIBE", Bytes::from_static(&[0x82, 2, 0, 1])),
        ("noise", Bytes::from("GET / HTTP/1.1\r\n".repeat(9))),
    ];
    for (what, bytes) in cases {
        let mut wire = fixture.node("a").await;
        wire.raw(&bytes).await;
        assert_eq!(wire.next().await, None, "{what}");
        assert!(fixture.inbox.try_recv().is_err(), "{what} came through");
    }
    fixture.assert_alive().await;
}

#[tokio::test]
async fn what_comes_before_connect_is_refused() {
    let mut fixture = Fixture::start().await;
    let tls = fixture.authority.node_tls("a");
    let mut long = BytesMut::from(&[0x10, 0x80, 0x40][..]);
    long.resize(8192, 0);
    for bytes in [encode(&Packet::PingReq).unwrap(), Bytes::from_static(&[0x10, 2, 0, 0]), long.freeze()] {
        let mut wire = fixture.wire(&tls).await;
        wire.raw(&bytes).await;
        assert_eq!(wire.next().await, None);
    }
    let mut plain = TcpStream::connect(fixture.address).await.unwrap();
    plain.write_all(&encode(&Packet::Connect(connect("a"))).unwrap()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(&[0x20]), "CONNACK without TLS");
    fixture.assert_alive().await;
}

#[tokio::test]
async fn nodes_hear_what_is_theirs() {
    let mut fixture = Fixture::start().await;
    let (mut a, mut b) = (fixture.node("a").await, fixture.node("b").await);
    let filters = ["#", "+/#", "umiak/v1/c/+/d/#", "umiak/v1/c/system:node:b/d/#", "$SYS/#", DOWN];
    assert_eq!(granted(&a.subscribe(&filters).await), [false, false, false, false, false, true]);
    assert_eq!(granted(&b.subscribe(&["umiak/v1/c/system:node:b/d/#"]).await), [true]);
    fixture.bus.to_node("b", "s", Bytes::from_static(b"for b")).await.unwrap();
    fixture.bus.to_node("a", "s", Bytes::from_static(b"for a")).await.unwrap();
    for (wire, expected) in [(&mut a, "for a"), (&mut b, "for b")] {
        match wire.next().await {
            Some(Packet::Publish(publish)) => assert_eq!(publish.payload, expected),
            other => panic!("{other:?}"),
        }
    }
    a.send(Packet::Unsubscribe(Unsubscribe { pkid: 3, topics: vec![DOWN.into()] })).await;
    assert!(matches!(a.next().await, Some(Packet::UnsubAck(_))));
    assert!(fixture.bus.to_node("a", "s", Bytes::new()).await.is_err());
    assert!(fixture.bus.to_node("c", "s", Bytes::new()).await.is_err());
    a.publish(UP, "up", 9).await;
    assert!(matches!(a.next().await, Some(Packet::PubAck(ack)) if ack.pkid == 9));
    assert_eq!(fixture.message().await, (UP.to_owned(), Bytes::from_static(b"up")));
    a.send(Packet::PingReq).await;
    assert_eq!(a.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn last_wills() {
    let mut fixture = Fixture::start().await;
    let mut inbox = std::mem::replace(&mut fixture.inbox, mpsc::channel(1).1);
    let tls = fixture.authority.node_tls("a");
    let willing = |keepalive| {
        let mut packet = connect("a");
        packet.keep_alive = keepalive;
        let message = Bytes::from_static(b"gone");
        packet.last_will = Some(LastWill { topic: UP.into(), message, qos: QoS::AtLeastOnce, retain: false });
        Packet::Connect(packet)
    };
    let begin = async |keepalive| {
        let mut wire = fixture.wire(&tls).await;
        wire.send(willing(keepalive)).await;
        assert_eq!(wire.code().await, Some(ConnectReturnCode::Success));
        wire
    };
    let will = (UP.to_owned(), Bytes::from_static(b"gone"));

    let broken = begin(60).await;
    broken.stream.get_ref().0.set_zero_linger().unwrap();
    drop(broken);
    let begun = Instant::now();
    let mut message = async || match timeout(SOON, inbox.recv()).await.unwrap().unwrap() {
        Event::Message { topic, payload } => (topic, payload),
        other => panic!("{other:?}"),
    };
    assert_eq!(message().await, will, "after a reset");
    assert!(begun.elapsed() < Duration::from_secs(3));

    let silent = begin(1).await;
    let begun = Instant::now();
    assert_eq!(message().await, will, "after silence");
    assert!(begun.elapsed() > Duration::from_millis(1300), "{:?}", begun.elapsed());
    drop(silent);

    let mut older = begin(60).await;
    let mut newer = begin(60).await;
    assert_eq!(message().await, will, "after a new connection took over");
    assert_eq!(older.next().await, None);
    newer.publish(UP, "here", 0).await;
    assert_eq!(message().await.1, "here");

    newer.send(Packet::Disconnect).await;
    assert_eq!(newer.next().await, None);
    assert!(timeout(Duration::from_millis(200), message()).await.is_err(), "a last will after a farewell");
}

#[tokio::test]
async fn silent_connections_block_nobody() {
    let mut fixture = Fixture::start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(fixture.address).await.unwrap());
    }
    let tls = fixture.authority.node_tls("a");
    let greeted = fixture.wire(&tls).await;
    let begun = Instant::now();
    fixture.assert_alive().await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop((silent, greeted));
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let mut fixture = Fixture::start().await;
    let mut slow = fixture.node("a").await;
    assert_eq!(granted(&slow.subscribe(&[DOWN]).await), [true]);
    let mut other = fixture.node("b").await;
    assert_eq!(granted(&other.subscribe(&["umiak/v1/c/system:node:b/d/#"]).await), [true]);
    let bus = fixture.bus.clone();
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        // Until the sockets' buffers and the queue are full.
        while let Ok(Ok(())) =
            timeout(Duration::from_millis(500), bus.to_node("a", "s", vec![0; 32 * 1024].into())).await
        {
            sent += 1;
        }
        sent
    });
    for _ in 0..20 {
        fixture.bus.to_node("b", "s", Bytes::from_static(b"x")).await.unwrap();
        assert!(matches!(other.next().await, Some(Packet::Publish(_))));
        sleep(Duration::from_millis(5)).await;
    }
    let sent = flood.await.unwrap();
    assert!((8..2000).contains(&sent), "{sent} messages of 32 KiB were taken");
    fixture.bus.disconnect("a");
    let closed = async { while slow.next().await.is_some() {} };
    timeout(SOON, closed).await.expect("disconnected at once");
    fixture.assert_alive().await;
}

#[tokio::test]
async fn stopping_disconnects_everybody() {
    let fixture = Fixture::start().await;
    let mut wire = fixture.node("a").await;
    fixture.task.abort();
    assert_eq!(wire.next().await, None);
    assert!(TcpStream::connect(fixture.address).await.is_err());
}
