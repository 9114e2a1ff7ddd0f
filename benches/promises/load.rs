//! A thin load generator: HTTP/1.1 over TLS with client certificates, one request under way a connection.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::Cluster;
use crate::table;

/// Where the server listens, as seen in its namespace.
pub(crate) const ADDRESS: &str = "127.0.0.1:6443";
const CONNECTIONS: usize = 32;
const OBJECTS: usize = 40_000;

pub(crate) fn measure(cluster: &Cluster) {
    let kubeconfig = fs::read_to_string(cluster.data_dir().join("admin.kubeconfig")).unwrap();
    let (creates, gets) = in_namespace(&cluster.netns.0, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(both(&kubeconfig))
    });
    let how = "32 connections over TLS on loopback, client on the same cores, 40,000 ConfigMaps";
    table::at_least("objects created", "/s", 14_910.0, creates, how);
    table::at_least("objects got", "/s", 30_785.0, gets, how);
}

/// Runs a thread in the server's network namespace; the process stays in its own.
pub(crate) fn in_namespace<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/run/netns/{netns}")).unwrap();
    let thread = std::thread::spawn(|| {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Creates and then gets the objects; gives creates and gets per second.
async fn both(kubeconfig: &str) -> (f64, f64) {
    let connector = connector(kubeconfig, &[]);
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(connect(&connector).await);
    }
    let each = OBJECTS / CONNECTIONS;
    let (streams, creates) = phase(streams, each, |connection, n| {
        let body = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"load-{connection}-{n}\"}},\
             \"data\":{{\"a\":\"{:0>200}\"}}}}",
            n
        );
        format!(
            "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    })
    .await;
    let (_, gets) = phase(streams, each, |connection, n| {
        format!("GET /api/v1/namespaces/default/configmaps/load-{connection}-{n} HTTP/1.1\r\nHost: s\r\n\r\n")
    })
    .await;
    (creates, gets)
}

pub(crate) type Connection = TlsStream<TcpStream>;

async fn phase(
    streams: Vec<Connection>,
    each: usize,
    request: impl Fn(usize, usize) -> String + Copy + Send + 'static,
) -> (Vec<Connection>, f64) {
    let began = Instant::now();
    let total = streams.len() * each;
    let mut tasks = tokio::task::JoinSet::new();
    for (connection, mut stream) in streams.into_iter().enumerate() {
        tasks.spawn(async move {
            for n in 0..each {
                stream.write_all(request(connection, n).as_bytes()).await.unwrap();
                answered(&mut stream).await;
            }
            stream
        });
    }
    let streams = tasks.join_all().await;
    (streams, total as f64 / began.elapsed().as_secs_f64())
}

/// Reads one answer with a Content-Length; it must be a success.
async fn answered(stream: &mut Connection) {
    let mut buffer = Vec::with_capacity(2048);
    loop {
        assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "closed: {}", String::from_utf8_lossy(&buffer));
        let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
        assert!(head.starts_with("http/1.1 20"), "{}", String::from_utf8_lossy(&buffer));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if buffer.len() >= end + 4 + length.trim().parse::<usize>().unwrap() {
            return;
        }
    }
}

/// Watches an EndpointSlice from a version on and gives the time of the first event; `watching` is called before.
pub(crate) async fn first_event(kubeconfig: &str, name: &str, version: &str, watching: impl FnOnce()) -> Instant {
    let mut stream = connect(&connector(kubeconfig, &[])).await;
    let request = format!(
        "GET /apis/discovery.k8s.io/v1/namespaces/default/endpointslices?watch=1&resourceVersion={version}\
         &fieldSelector=metadata.name%3D{name} HTTP/1.1\r\nHost: s\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = Vec::new();
    while !buffer.windows(4).any(|w| w == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the watch was closed");
    }
    watching();
    while !buffer.windows(8).any(|w| w == b"MODIFIED") {
        assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the watch was closed");
    }
    Instant::now()
}

pub(crate) async fn connect(connector: &TlsConnector) -> Connection {
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.unwrap()
}

/// With the client certificate of a kubeconfig.
pub(crate) fn connector(kubeconfig: &str, protocols: &[&[u8]]) -> TlsConnector {
    let field = |name: &str| {
        let line = kubeconfig.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        STANDARD.decode(line.trim()).unwrap()
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&field("certificate-authority-data:")).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_slice(&field("client-certificate-data:")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&field("client-key-data:")).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}
