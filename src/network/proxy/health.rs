//! `healthCheckNodePort`: tells load balancers outside the cluster whether this node has endpoints of a Service with
//! `externalTrafficPolicy: Local`. Any path and method, as kube-proxy: 200 or 503, the endpoints' number as a header and
//! in the body.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Longest head of a request, bytes.
const MAX_HEAD: usize = 4096;
/// For a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Clients of one Service at a time; more wait.
const MAX_CLIENTS: usize = 16;
/// Between attempts to listen or accept.
const AGAIN: Duration = Duration::from_secs(10);

/// What is told of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Ready endpoints on this node.
    pub(super) endpoints: usize,
}

/// What became of a port: why it cannot be served, or `None` if it can again.
pub(super) type News = (u16, Option<io::Error>);

/// One server for each port. Dropping it closes them.
pub(super) struct HealthChecks {
    servers: BTreeMap<u16, Server>,
    news: mpsc::UnboundedSender<News>,
}

struct Server {
    health: watch::Sender<Health>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthChecks {
    /// No servers yet. Each tells once when it cannot listen, and when it can.
    pub(super) fn new(news: mpsc::UnboundedSender<News>) -> Self {
        Self { servers: BTreeMap::new(), news }
    }

    /// Serves these ports and no others.
    pub(super) fn set(&mut self, wanted: BTreeMap<u16, Health>) {
        self.servers.retain(|port, _| wanted.contains_key(port));
        for (port, health) in wanted {
            match self.servers.get(&port) {
                Some(server) => drop(server.health.send_replace(health)),
                None => {
                    let (sender, receiver) = watch::channel(health);
                    let server =
                        Server { health: sender, task: tokio::spawn(serve(port, receiver, self.news.clone())) };
                    self.servers.insert(port, server);
                }
            }
        }
    }
}

async fn serve(port: u16, health: watch::Receiver<Health>, news: mpsc::UnboundedSender<News>) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut connections = JoinSet::new();
    let mut said = false;
    loop {
        let error = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => {
                if std::mem::take(&mut said) {
                    news.send((port, None)).ok();
                }
                loop {
                    // Never closed.
                    let Ok(place) = clients.clone().acquire_owned().await else { return };
                    tokio::select! {
                        accepted = listener.accept() => match accepted {
                            Ok((client, _)) => {
                                let reply = reply(&health.borrow());
                                connections.spawn(async move {
                                    // Who is too slow or leaves gets no answer.
                                    tokio::time::timeout(TIMEOUT, answer(client, &reply)).await.ok();
                                    drop(place);
                                });
                            }
                            Err(error) => break error,
                        },
                        Some(_) = connections.join_next() => {}
                    }
                }
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut said, true) {
            // Without anybody who listens the proxy has ended.
            news.send((port, Some(error))).ok();
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads the head of a request, whatever it asks, and answers it.
async fn answer(mut client: TcpStream, reply: &str) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 512];
        let count = client.read(&mut buffer).await?;
        if count == 0 || head.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    let end = reply.find("\r\n\r\n").map_or(reply.len(), |n| n + 4);
    let reply = if head.starts_with(b"HEAD ") { &reply[..end] } else { reply };
    client.write_all(reply.as_bytes()).await?;
    client.shutdown().await
}

fn reply(health: &Health) -> String {
    let body = json!({
        "service": {"namespace": health.namespace, "name": health.name},
        "localEndpoints": health.endpoints,
        "serviceProxyHealthy": true,
    });
    let (body, endpoints) = (body.to_string(), health.endpoints);
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn ask(port: u16, method: &str) -> io::Result<String> {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        client.write_all(format!("{method} /healthz HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        client.read_to_string(&mut text).await?;
        Ok(text)
    }

    async fn listening(port: u16) {
        while ask(port, "GET").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn load_balancers_are_told() {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let health = |endpoints| Health { namespace: "shop".into(), name: "web".into(), endpoints };
        let (sender, mut news) = mpsc::unbounded_channel();
        let mut checks = HealthChecks::new(sender);
        checks.set(BTreeMap::from([(port, health(2))]));
        let (told, error) = news.recv().await.unwrap();
        assert_eq!((told, error.unwrap().kind()), (port, io::ErrorKind::AddrInUse), "another has it");
        drop(free);
        checks.set(BTreeMap::new());
        checks.set(BTreeMap::from([(port, health(2))]));
        listening(port).await;
        let text = ask(port, "GET").await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = json!({
            "service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
        checks.set(BTreeMap::from([(port, health(0))]));
        let text = ask(port, "HEAD").await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 ") && text.ends_with("\r\n\r\n"), "{text}");
        checks.set(BTreeMap::new());
        while ask(port, "GET").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
