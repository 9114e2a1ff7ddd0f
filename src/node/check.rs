//! One look at a container: a command, an HTTP request or a TCP connection. Probes and lifecycle hooks are made of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::engine::Sandbox;
use crate::pki::trusting;
use crate::runtime::{Capture, ContainerId};

/// Bytes of an answer or of a command's output that are kept.
const MAX_OUTPUT: usize = 10 * 1024;
/// Redirections that are followed, as kubelet does.
const MAX_REDIRECTS: usize = 10;

/// Where to look.
#[derive(Clone)]
pub(super) struct Target<S> {
    /// The pod's sandbox.
    pub(super) sandbox: S,
    /// The container.
    pub(super) id: ContainerId,
    /// The pod's address.
    pub(super) address: IpAddr,
    /// The container, for the names of its ports.
    pub(super) container: Arc<Container>,
}

/// What to do.
#[derive(Clone, Copy)]
pub(super) enum Action<'a> {
    /// Run a command; 0 is well.
    Exec(&'a ExecAction),
    /// Get a page; 200 to 399 is well.
    Http(&'a HTTPGetAction),
    /// Open a connection.
    Tcp(&'a TCPSocketAction),
}

/// Looks once. The error is kubelet's text.
pub(super) async fn look<S: Sandbox>(target: &Target<S>, action: Action<'_>, timeout: Duration) -> Result<(), String> {
    match action {
        Action::Exec(action) => exec(target, action.command.as_deref().unwrap_or_default(), timeout).await,
        Action::Http(action) => http(target, action, timeout).await,
        Action::Tcp(action) => {
            let address = socket(target, action.host.as_deref(), &action.port).await?;
            connect(address, timeout).await.map(drop)
        }
    }
}

async fn exec<S: Sandbox>(target: &Target<S>, command: &[String], timeout: Duration) -> Result<(), String> {
    let capture = Capture { timeout, limit: MAX_OUTPUT };
    let result = target.sandbox.exec(&target.id, command, capture).await.map_err(|e| e.to_string())?;
    match result.code {
        Some(0) => Ok(()),
        Some(code) => {
            let output = String::from_utf8_lossy(&result.output).trim_end().to_owned();
            Err(if output.is_empty() { format!("command exited with {code}") } else { output })
        }
        None => Err(format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs())),
    }
}

fn port<S>(target: &Target<S>, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = |p: &&k8s_openapi::api::core::v1::ContainerPort| p.name.as_ref() == Some(name);
            let port = target.container.ports.iter().flatten().find(named);
            port.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {port:?}"))
}

async fn socket<S>(target: &Target<S>, host: Option<&str>, wanted: &IntOrString) -> Result<SocketAddr, String> {
    let port = port(target, wanted)?;
    match host.filter(|h| !h.is_empty()) {
        None => Ok(SocketAddr::new(target.address, port)),
        Some(host) => match host.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, port)),
            Err(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|e| format!("lookup {host}: {e}"))?
                .next()
                .ok_or_else(|| format!("lookup {host}: no such host")),
        },
    }
}

async fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {address}: connect: connection refused"))
        }
        Ok(Err(e)) => Err(format!("dial tcp {address}: {e}")),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

async fn http<S>(target: &Target<S>, action: &HTTPGetAction, timeout: Duration) -> Result<(), String> {
    let address = socket(target, action.host.as_deref(), &action.port).await?;
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if tls { "https" } else { "http" };
    let mut path = action.path.clone().unwrap_or_default();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    let first = format!("{scheme}://{address}{path}");
    let fail = |why: String| format!("Get {first:?}: {why}");
    let follow = async {
        for _ in 0..MAX_REDIRECTS {
            let answer = get(address, tls, action, &path, timeout).await?;
            match answer.status {
                300..=399 => match local_redirect(&answer, scheme, address) {
                    Some(next) => path = next,
                    // A redirection to another host is taken for well.
                    None => return Ok(answer.status),
                },
                status => return Ok(status),
            }
        }
        Err("stopped after 10 redirects".to_owned())
    };
    match tokio::time::timeout(timeout, follow).await {
        Ok(Ok(200..=399)) => Ok(()),
        Ok(Ok(status)) => Err(format!("HTTP probe failed with statuscode: {status}")),
        Ok(Err(why)) => Err(fail(why)),
        Err(_) => Err(fail("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())),
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
}

fn local_redirect(answer: &Answer, scheme: &str, address: SocketAddr) -> Option<String> {
    let location = answer.location.as_deref()?;
    let own = format!("{scheme}://{address}");
    match location.strip_prefix(&own) {
        Some(path) if path.starts_with('/') => Some(path.to_owned()),
        _ => (location.starts_with('/') && !location.starts_with("//")).then(|| location.to_owned()),
    }
}

async fn get(
    address: SocketAddr,
    tls: bool,
    action: &HTTPGetAction,
    path: &str,
    timeout: Duration,
) -> Result<Answer, String> {
    let stream = connect(address, timeout).await?;
    let request = request(address, action, path);
    if !tls {
        return exchange(stream, &request).await;
    }
    let name = ServerName::from(address.ip());
    let connector = tokio_rustls::TlsConnector::from(trusting::tls()?);
    let stream = connector.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    exchange(stream, &request).await
}

fn request(address: SocketAddr, action: &HTTPGetAction, path: &str) -> String {
    let mut headers = vec![("User-Agent".to_owned(), "kube-probe/1.35".to_owned())];
    headers.push(("Accept".to_owned(), "*/*".to_owned()));
    let mut host = address.to_string();
    for header in action.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case(&header.name));
            headers.push((header.name.clone(), header.value.clone()));
        }
    }
    // A line end inside a value would begin another header.
    let clean = |text: &str| text.replace(['\r', '\n'], " ");
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", path.replace([' ', '\r', '\n'], "%20"), clean(&host));
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{}: {}\r\n", clean(name), clean(value)));
    }
    text.push_str("Connection: close\r\n\r\n");
    text
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<Answer, String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while head.len() < MAX_OUTPUT && !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buffer).await.map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        head.extend_from_slice(&buffer[..n]);
    }
    if head.is_empty() {
        return Err("EOF".to_owned());
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let malformed = || "malformed HTTP response".to_owned();
    let first = lines.next().filter(|l| l.starts_with("HTTP/")).ok_or_else(malformed)?;
    let status = first.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
    let location = lines
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("location"))
        .map(|(_, value)| value.trim().to_owned());
    Ok(Answer { status, location })
}
