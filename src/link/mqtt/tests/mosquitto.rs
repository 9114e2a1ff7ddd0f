//! The link over Mosquitto with the shipped configuration.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::time_provider::DefaultTimeProvider;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Authority;
use crate::kinds::Object;
use crate::link::message::{DesiredPod, NodeReport, Sequence, ToNode, ToServer};
use crate::link::mqtt::client::{self, Options};
use crate::link::mqtt::tls::{SERVER_USER, join_name, server_name};
use crate::link::mqtt::{Accepted, Incoming, LinkState, NodeConfig, RemoteConfig, accept, join, node, random, remote};
use crate::link::stream::{Channel, Frame, Stream, StreamRequest};
use crate::link::{NodeEnd, Open};

const SOON: Duration = Duration::from_secs(60);

struct Mosquitto {
    directory: tempfile::TempDir,
    child: Child,
    /// A loopback address of its own: tests run in parallel.
    host: String,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &std::path::Path) -> Child {
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.arg("-c").arg(directory.join("mosquitto.conf")).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("no Mosquitto: `tests/setup.sh tests` installs it")
}

impl Mosquitto {
    /// With the files of `configs/`, but for their places and ports.
    async fn start(authority: &Authority) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        let leaf = authority.server(&["localhost"]);
        let [a, b, c, ..] = random().to_be_bytes();
        let host = format!("127.{a}.{b}.{}", c | 1);
        let conf = include_str!("../../../../configs/mosquitto.conf")
            .replace("/etc/mosquitto/certs", here.to_str().unwrap())
            .replace("/etc/mosquitto", here.to_str().unwrap())
            .replace("listener 8883", &format!("listener 8883 {host}"))
            .replace("listener 8884", &format!("listener 8884 {host}"));
        for (name, text) in [
            // It cannot read the directory as another user.
            ("mosquitto.conf", format!("user root\n{conf}").as_str()),
            ("mosquitto.acl", include_str!("../../../../configs/mosquitto.acl")),
            ("mosquitto-join.acl", include_str!("../../../../configs/mosquitto-join.acl")),
            ("ca.crt", &authority.pem),
            ("tls.crt", &format!("{}{}", leaf.certificate_pem, authority.pem)),
            ("tls.key", &leaf.key_pem),
        ] {
            std::fs::write(here.join(name), text).unwrap();
        }
        let this = Self { child: spawn(here), directory, host };
        this.listening().await;
        this
    }

    async fn listening(&self) {
        let up = async {
            while TcpStream::connect((self.host.as_str(), 8883)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, up).await.expect("Mosquitto does not start");
    }

    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.directory.path());
        self.listening().await;
    }
}

struct Cluster {
    authority: Authority,
    broker: Mosquitto,
    incoming: mpsc::Receiver<Incoming>,
    server: JoinSet<()>,
    tasks: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Self {
        let authority = Authority::new();
        let broker = Mosquitto::start(&authority).await;
        let incoming = mpsc::channel(1).1;
        let mut this = Self { authority, broker, incoming, server: JoinSet::new(), tasks: JoinSet::new() };
        this.start_server();
        this
    }

    fn start_server(&mut self) {
        let tls = self.authority.trusting(self.authority.client(SERVER_USER));
        let url = format!("mqtts://{}", self.broker.host);
        let config = RemoteConfig { cluster: "c".into(), url, keepalive: Duration::from_secs(60) };
        let (bus, inbox, connecting) = remote(config, Arc::new(move || Ok(tls.clone()))).unwrap();
        let (incoming, _, serving) = accept("c", self.authority.server_tls(), Arc::new(|_, _| true), bus, inbox);
        self.incoming = incoming;
        self.server.spawn(connecting);
        self.server.spawn(serving);
    }

    fn node(&mut self, name: &str) -> (NodeEnd, watch::Receiver<LinkState>) {
        let tls = self.authority.node_tls(name);
        let (_, addresses) = watch::channel(vec![format!("{}:8883", self.broker.host)]);
        let config = NodeConfig {
            cluster: "c".into(),
            node: name.into(),
            addresses,
            network: watch::channel(0).1,
            keepalive: Duration::from_secs(60),
        };
        let (end, state, run) = node(config, Arc::new(move || Ok(tls.clone())));
        self.tasks.spawn(run);
        (end, state)
    }

    async fn accepted(&mut self) -> Accepted {
        match timeout(SOON, self.incoming.recv()).await.expect("nobody came").unwrap() {
            Incoming::Node(accepted) => accepted,
            Incoming::Join { .. } => panic!("a join"),
        }
    }
}

async fn report(end: &NodeEnd, sequence: &mut Sequence, text: &str) -> ToServer {
    let report = ToServer::Node(NodeReport { labels: Object::new(), status: json!(text) });
    end.tx.send(sequence.wrap(report.clone())).await.unwrap();
    report
}

async fn hears(rx: &mut crate::link::channel::Receiver<crate::link::message::Envelope<ToServer>>) -> ToServer {
    timeout(SOON, rx.recv()).await.expect("nothing came").unwrap().body
}

#[tokio::test]
async fn mosquitto_carries_the_link() {
    let mut cluster = Cluster::start().await;
    let (mut node, mut state) = cluster.node("pi-1");
    let mut server = cluster.accepted().await.end;
    assert_eq!(hears(&mut server.rx).await, ToServer::Hello);
    let (mut up, mut down) = (Sequence::start(), Sequence::start());
    let said = report(&node, &mut up, "hello").await;
    assert_eq!(hears(&mut server.rx).await, said);
    let pod: Object = json!({"data": "x#".repeat(600_000)}).as_object().unwrap().clone();
    let pod = ToNode::Pod(DesiredPod { pod, objects: Vec::new() });
    server.tx.send(down.wrap(pod.clone())).await.unwrap();
    assert_eq!(timeout(SOON, node.rx.recv()).await.unwrap().unwrap().body, pod);

    let (mut ours, theirs) = Stream::pair();
    let request = StreamRequest::PortForward { pod: "u".into(), port: 1 };
    server.streams.send(Open { request, stream: theirs }).await.unwrap();
    let stream = timeout(SOON, node.streams.recv()).await.unwrap().unwrap().stream;
    tokio::spawn(async move {
        for _ in 0..128 {
            let data = Bytes::from(vec![1; 32 * 1024]);
            stream.tx.send(Frame { channel: Channel::Stdout, data }).await.unwrap();
        }
    });
    let mut bytes = 0;
    while let Some(frame) = timeout(SOON, ours.rx.recv()).await.unwrap() {
        bytes += frame.data.len();
    }
    assert_eq!(bytes, 4 << 20);

    // The server dies; the node learns it from the broker, and comes when there is a server again.
    cluster.server.shutdown().await;
    timeout(SOON, state.wait_for(|s| s.connected.is_none())).await.unwrap().unwrap();
    cluster.start_server();
    let mut server = cluster.accepted().await.end;
    assert_eq!(hears(&mut server.rx).await, ToServer::Hello);

    // The broker dies.
    cluster.broker.restart().await;
    assert!(timeout(SOON, server.rx.recv()).await.unwrap().is_none());
    let mut server = cluster.accepted().await.end;
    assert_eq!(hears(&mut server.rx).await, ToServer::Hello);
    let said = report(&node, &mut up, "again").await;
    assert_eq!(hears(&mut server.rx).await, said);

    // The node dies.
    cluster.tasks.shutdown().await;
    assert!(timeout(Duration::from_secs(3), server.rx.recv()).await.expect("a dead link within 3 s").is_none());
}

#[tokio::test]
async fn mosquitto_keeps_nodes_apart() {
    let mut cluster = Cluster::start().await;
    let (node, _state) = cluster.node("pi-1");
    let mut server = cluster.accepted().await.end;
    assert_eq!(hears(&mut server.rx).await, ToServer::Hello);
    let evil = cluster.authority.node_tls("pi-2");
    let options = Options {
        // The name of another, and everything there is.
        id: "system:node:pi-1".into(),
        name: server_name(),
        keepalive: Duration::from_secs(60),
        will: Some(("umiak/v1/c/system:node:pi-1/u/p".into(), Bytes::from_static(&[0; 8]))),
        filters: vec!["#".into(), "umiak/v1/c/system:node:pi-1/d/#".into(), "umiak/v1/c/system:node:pi-1/u/#".into()],
    };
    let address = format!("{}:8883", cluster.broker.host);
    let evil = client::connect(&address, evil.outer, options).await.unwrap();
    let (send, outgoing) = mpsc::channel(8);
    let (incoming, mut stolen) = mpsc::channel(8);
    let evil = tokio::spawn(async move { evil.run(outgoing, incoming, || {}).await });
    for topic in ["u/s", "u/p", "d/s", "d/r"] {
        let topic = format!("umiak/v1/c/system:node:pi-1/{topic}");
        send.send((topic, Bytes::from_static(&[0; 40]))).await.unwrap();
    }
    send.send(("umiak/v1/c/all/d/server".into(), Bytes::from_static(b"online"))).await.unwrap();
    let mut up = Sequence::start();
    for n in 0..20 {
        let said = report(&node, &mut up, &n.to_string()).await;
        assert_eq!(hears(&mut server.rx).await, said);
        sleep(Duration::from_millis(10)).await;
    }
    assert!(stolen.try_recv().is_err(), "it read what is not its own");
    assert!(cluster.incoming.try_recv().is_err(), "the session was disturbed");
    evil.abort();

    let stranger = Authority::new();
    let tls = cluster.authority.trusting(stranger.client("system:node:pi-1"));
    let options = Options {
        id: "pi-1".into(),
        name: server_name(),
        keepalive: Duration::from_secs(60),
        will: None,
        filters: vec!["#".into()],
    };
    client::connect(&address, tls.outer, options).await.expect_err("a stranger was let in");
}

#[tokio::test]
async fn boards_join_by_mosquitto() {
    let mut cluster = Cluster::start().await;
    // A broker keeps nothing for a server that is not there yet.
    let _node = cluster.node("pi-1");
    cluster.accepted().await;
    let digest = ring::digest::digest(&ring::digest::SHA256, &cluster.authority.certificate);
    let hash = <[u8; 32]>::try_from(digest.as_ref()).unwrap();
    let address = format!("{}:8884", cluster.broker.host);
    let joined = join(std::slice::from_ref(&address), hash, "c", Arc::new(DefaultTimeProvider));
    let joined = async { joined.await.map_err(|e| e.to_string()) };
    let incoming = async { timeout(SOON, cluster.incoming.recv()).await.map_err(|e| e.to_string()) };
    let (mut joined, incoming) = tokio::try_join!(joined, incoming).unwrap();
    let Some(Incoming::Join { stream: mut server, .. }) = incoming else { panic!() };
    joined.write_all(b"token").await.unwrap();
    joined.flush().await.unwrap();
    let mut token = [0; 5];
    timeout(SOON, server.read_exact(&mut token)).await.unwrap().unwrap();
    assert_eq!(&token, b"token");

    // Without a certificate there is nothing but joining.
    let tls = crate::link::mqtt::tls::ClientTls::join(hash, Arc::new(DefaultTimeProvider)).unwrap();
    let options = Options {
        id: "join-other".into(),
        name: join_name(),
        keepalive: Duration::from_secs(60),
        will: None,
        filters: vec!["#".into(), "umiak/v1/c/join/+/d".into()],
    };
    let spy = client::connect(&address, tls.outer, options).await.unwrap();
    let (_send, outgoing) = mpsc::channel(1);
    let (incoming, mut stolen) = mpsc::channel(8);
    let spy = tokio::spawn(async move { spy.run(outgoing, incoming, || {}).await });
    server.write_all(&[7; 1000]).await.unwrap();
    server.flush().await.unwrap();
    let mut answer = [0; 1000];
    timeout(SOON, joined.read_exact(&mut answer)).await.unwrap().unwrap();
    assert!(stolen.try_recv().is_err(), "it read what is not its own");
    spy.abort();
}
