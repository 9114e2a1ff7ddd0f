//! `services/NAME/proxy` and `pods/NAME/proxy`: requests handed on to a pod, as `kubectl proxy` and
//! `kubectl get --raw` know them (`pkg/registry/core/{service,pod}`, `apimachinery/pkg/util/proxy`).
//!
//! The way to the pod is that of port-forward, so it works wherever the pod's node is; inside the pod the connection
//! comes from its own loopback. Headers `Location` are led back through the proxy; links inside of pages are not.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONNECTION, HOST, LOCATION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsConnector;

use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::link::stream::{Channel, Frame, MAX_FRAME, Stream, StreamRequest};
use crate::pki::trusting;

use super::reply::{Body, full};
use super::request::Call;
use super::route::Target;

/// Headers that are between two neighbours only (RFC 9110 7.6.1), and who the client is to this server.
const NOT_PASSED_ON: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Segments of a path up to the subresource: `/api/v1/namespaces/NS/services/NAME/proxy`.
const SEGMENTS: usize = 7;

/// Whether a target is proxied.
pub(super) fn is_proxy(target: &Target) -> bool {
    target.sub == Some(Subresource::Other("proxy"))
}

/// Whether a path is a proxied one, by a look at it.
pub(super) fn is_path(path: &str) -> bool {
    path.split('/').nth(SEGMENTS) == Some("proxy")
}

/// Hands the request on and answers what comes back.
pub(super) async fn answer(mut call: Call, body: Incoming) -> Result<Response<Body>, Status> {
    let (base, path) = parts(call.head.uri.path());
    if path.is_empty() && matches!(call.head.method, Method::GET | Method::HEAD) {
        return redirect(&format!("{base}/"), call.head.uri.query());
    }
    let base = base.to_owned();
    let wanted = Wanted::parse(&call.target.name).ok_or_else(|| {
        let kind = call.kind().kind.to_lowercase();
        Status::bad_request(format!("invalid {kind} request {:?}", call.target.name))
    })?;
    let backend = match &*call.kind().plural {
        "services" => of_service(&call, &wanted)?,
        _ => of_pod(&call, &wanted)?,
    };
    let request = StreamRequest::PortForward { pod: backend.uid.clone(), port: backend.port };
    let stream = call.api.streams.open(&backend.node, request).await.map_err(|status| unreachable(&status.message))?;
    let failure = Failure::default();
    let (near, far) = tokio::io::duplex(2 * MAX_FRAME);
    tokio::spawn(carry(stream, far, failure.clone()));
    // What the upgrade of the client's connection needs.
    let upgrade = call.head.headers.contains_key(UPGRADE).then(|| call.head.extensions.remove()).flatten();
    let outgoing = outgoing(&call, &backend, body)?;
    let result = match wanted.tls {
        true => exchange(encrypted(near, &backend).await?, outgoing, upgrade).await,
        false => exchange(near, outgoing, upgrade).await,
    };
    let mut response = result.map_err(|error| unreachable(&failure.take().unwrap_or_else(|| error.to_string())))?;
    lead_back(response.headers_mut(), &base, &backend.host());
    Ok(response)
}

/// The path up to the subresource and what comes after it, as they were sent.
fn parts(path: &str) -> (&str, &str) {
    path.match_indices('/').nth(SEGMENTS).map_or((path, ""), |(at, _)| path.split_at(at))
}

fn unreachable(why: &str) -> Status {
    Status::unavailable(format!("error trying to reach service: {why}"))
}

fn redirect(to: &str, query: Option<&str>) -> Result<Response<Body>, Status> {
    let to = query.map_or_else(|| to.to_owned(), |query| format!("{to}?{query}"));
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, HeaderValue::try_from(to).map_err(Status::internal)?);
    Ok(response)
}

/// `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
#[derive(Debug, PartialEq)]
struct Wanted<'a> {
    tls: bool,
    name: &'a str,
    /// A number or a name, maybe empty.
    port: &'a str,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, name, port) = match *text.split(':').collect::<Vec<_>>() {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let valid = !name.is_empty() && ["", "http", "https"].contains(&scheme);
        valid.then_some(Self { tls: scheme == "https", name, port })
    }
}

/// The pod that answers.
struct Backend {
    uid: String,
    node: String,
    address: String,
    port: u16,
}

impl Backend {
    fn of(pod: &Object, address: &str, port: u16) -> Self {
        let node = meta::str_at(pod, "/spec/nodeName").to_owned();
        Self { uid: meta::uid(pod).to_owned(), node, address: address.to_owned(), port }
    }

    fn host(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

fn of_pod(call: &Call, wanted: &Wanted<'_>) -> Result<Backend, Status> {
    let pod = call.api.registry.get(call.kind(), &call.target.ns, wanted.name)?;
    let first = || {
        let containers = meta::list_at(&pod, "/spec/containers").iter();
        containers.filter_map(|c| c["ports"].as_array()?.first()?["containerPort"].as_u64()).next()
    };
    let port = match (wanted.port, wanted.tls) {
        ("", false) => Some(first().unwrap_or(80)),
        ("", true) => Some(first().unwrap_or(443)),
        (text, _) => text.parse().ok(),
    };
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| Status::bad_request(format!("invalid pod request {:?}", call.target.name)))?;
    match meta::str_at(&pod, "/status/podIP") {
        "" => Err(unreachable(&format!("pod {:?} has no address", wanted.name))),
        address => Ok(Backend::of(&pod, address, port)),
    }
}

fn of_service(call: &Call, wanted: &Wanted<'_>) -> Result<Backend, Status> {
    let (registry, ns, name) = (&call.api.registry, &call.target.ns, wanted.name);
    let mut port = wanted.port.to_owned();
    if let Ok(number) = wanted.port.parse::<i64>() {
        let service = registry.get(call.kind(), ns, name)?;
        let ports = meta::list_at(&service, "/spec/ports");
        let declared = ports
            .iter()
            .find(|p| p["port"] == number)
            .ok_or_else(|| Status::unavailable(format!("no service port {number} found for service {name:?}")))?;
        port = declared["name"].as_str().unwrap_or_default().to_owned();
    }
    let kind = |resource: &str| registry.kinds().by_resource(resource).ok_or_else(Status::no_such_path);
    let endpoints = registry.get(&*kind("endpoints")?, ns, name)?;
    let pods = kind("pods")?;
    let chosen = candidates(&endpoints, &port).into_iter().find_map(|(address, number)| {
        // Only what is a pod's is proxied to: Endpoints can be written by hand, and name any address.
        let target = &address["targetRef"];
        let pod = target["name"].as_str().filter(|_| target["kind"] == "Pod")?;
        let pod = registry.get(&pods, ns, pod).ok()?;
        let ip = address["ip"].as_str()?;
        (meta::str_at(&pod, "/status/podIP") == ip).then(|| Backend::of(&pod, ip, number))
    });
    chosen.ok_or_else(|| {
        let told = if meta::list_at(&endpoints, "/subsets").is_empty() { name } else { &call.target.name };
        Status::unavailable(format!("no endpoints available for service {told:?}"))
    })
}

/// The ready addresses that serve a port, from a random one on.
fn candidates<'a>(endpoints: &'a Object, port: &str) -> Vec<(&'a Value, u16)> {
    let list = |value: &'a Value| value.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for subset in meta::list_at(endpoints, "/subsets") {
        let served = list(&subset["ports"]).iter().find(|p| p["name"].as_str().unwrap_or_default() == port);
        let number = served.and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
        found.extend(number.into_iter().flat_map(|number| list(&subset["addresses"]).iter().map(move |a| (a, number))));
    }
    if !found.is_empty() {
        let start = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() as usize % found.len();
        found.rotate_left(start);
    }
    found
}

/// The request as the pod gets it.
fn outgoing(call: &Call, backend: &Backend, body: Incoming) -> Result<Request<Incoming>, Status> {
    let uri = &call.head.uri;
    let (_, path) = parts(uri.path());
    let path = if path.is_empty() { "/" } else { path };
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut headers = call.head.headers.clone();
    let upgrade = headers.get(UPGRADE).cloned();
    drop_private(&mut headers);
    let secret = |name: &HeaderName| *name == AUTHORIZATION || name.as_str().starts_with("impersonate-");
    let secrets: Vec<HeaderName> = headers.keys().filter(|name| secret(name)).cloned().collect();
    secrets.iter().for_each(|name| drop(headers.remove(name)));
    let host = uri.authority().map(ToString::to_string);
    let host = host.or_else(|| Some(headers.get(HOST)?.to_str().ok()?.to_owned())).unwrap_or_default();
    let value = |text: &str| HeaderValue::try_from(text).map_err(Status::internal);
    for (name, text) in [("x-forwarded-uri", uri.path()), ("x-forwarded-host", &host), ("x-forwarded-proto", "https")] {
        headers.insert(name, value(text)?);
    }
    headers.insert(HOST, value(&backend.host())?);
    match upgrade {
        Some(protocol) => {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, protocol);
        }
        None => drop(headers.insert(CONNECTION, HeaderValue::from_static("close"))),
    }
    let mut request = Request::new(body);
    *request.method_mut() = call.head.method.clone();
    *request.uri_mut() = target.parse().map_err(|_| Status::bad_request("the path cannot be passed on"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Removes what is between neighbours, also what `Connection` names.
fn drop_private(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let named: Vec<HeaderName> = named.filter_map(|name| name.trim().parse().ok()).collect();
    named.iter().for_each(|name| drop(headers.remove(name)));
    NOT_PASSED_ON.iter().for_each(|name| drop(headers.remove(*name)));
}

/// One request and its answer on a connection of its own.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Incoming>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response<Body>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection");
        }
    });
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgrade
    {
        let pod = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(client), Ok(pod)) = (client.await, pod.await) else { return };
            // Either end may break off.
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(pod)).await.ok();
        });
        return Ok(response.map(|_| full(Bytes::new())));
    }
    let (mut head, body) = response.into_parts();
    drop_private(&mut head.headers);
    Ok(Response::from_parts(head, body.map_err(Status::internal).boxed_unsync()))
}

/// TLS to the pod; Kubernetes verifies no certificate there either.
async fn encrypted(
    near: DuplexStream,
    backend: &Backend,
) -> Result<tokio_rustls::client::TlsStream<DuplexStream>, Status> {
    let connector = TlsConnector::from(trusting::tls().map_err(Status::internal)?);
    let address: IpAddr = backend.address.parse().map_err(Status::internal)?;
    connector.connect(ServerName::from(address), near).await.map_err(|error| unreachable(&error.to_string()))
}

/// Leads redirects to the pod back through the proxy.
fn lead_back(headers: &mut HeaderMap, base: &str, host: &str) {
    let led = headers.get(LOCATION).and_then(|value| value.to_str().ok()).and_then(|to| {
        let uri: Uri = to.parse().ok()?;
        let here = uri.authority().is_none_or(|authority| authority.as_str() == host);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        (here && path.starts_with('/')).then(|| format!("{base}{path}"))
    });
    if let Some(Ok(led)) = led.map(HeaderValue::try_from) {
        headers.insert(LOCATION, led);
    }
}

/// What the node said of a connection that failed.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Copies between a stream to a pod and a connection until either ends.
async fn carry(stream: Stream, io: DuplexStream, failure: Failure) {
    let Stream { tx, mut rx } = stream;
    let (mut from, mut to) = tokio::io::split(io);
    let inbound = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(MAX_FRAME);
            let read = (&mut from).take(MAX_FRAME as u64).read_buf(&mut buffer).await;
            let data = buffer.split().freeze();
            if !matches!(read, Ok(count) if count > 0)
                || tx.send(Frame { channel: Channel::Stdin, data }).await.is_err()
            {
                return;
            }
        }
    };
    let outbound = async {
        while let Some(Frame { channel, data }) = rx.recv().await {
            match channel {
                Channel::Stdout if data.is_empty() => return,
                Channel::Stdout => {
                    if to.write_all(&data).await.is_err() {
                        return;
                    }
                }
                Channel::Error => {
                    let status: Value = serde_json::from_slice(&data).unwrap_or_default();
                    return failure.set(status["message"].as_str().unwrap_or_default().to_owned());
                }
                Channel::Stdin | Channel::Stderr | Channel::Resize => {}
            }
        }
    };
    tokio::select! {
        () = inbound => {}
        () = outbound => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn names_say_scheme_and_port() {
        for (text, expected) in [
            ("web", Some((false, "web", ""))),
            ("web:80", Some((false, "web", "80"))),
            ("http:web:", Some((false, "web", ""))),
            ("https:web:https", Some((true, "web", "https"))),
            (":web:80", Some((false, "web", "80"))),
            ("ftp:web:80", None),
            ("http::80", None),
            ("a:b:c:d", None),
        ] {
            let wanted = Wanted::parse(text).map(|w| (w.tls, w.name, w.port));
            assert_eq!(wanted, expected, "{text}");
        }
    }

    #[test]
    fn paths_are_cut_after_the_subresource() {
        for (path, expected) in [
            ("/api/v1/namespaces/a/services/b/proxy", ("/api/v1/namespaces/a/services/b/proxy", "")),
            ("/api/v1/namespaces/a/services/b/proxy/", ("/api/v1/namespaces/a/services/b/proxy", "/")),
            ("/api/v1/namespaces/a/pods/b/proxy/x%20y//z/", ("/api/v1/namespaces/a/pods/b/proxy", "/x%20y//z/")),
        ] {
            assert_eq!(parts(path), expected);
            assert!(is_path(path));
        }
        assert!(!is_path("/api/v1/namespaces/a/pods/proxy"));
    }

    #[test]
    fn redirects_stay_in_the_proxy() {
        for (location, expected) in [
            ("/login?next=%2F", "/base/proxy/login?next=%2F"),
            ("http://10.42.0.9:8080/x", "/base/proxy/x"),
            ("http://example.com/x", "http://example.com/x"),
            ("x", "x"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(location));
            lead_back(&mut headers, "/base/proxy", "10.42.0.9:8080");
            assert_eq!(headers[LOCATION], expected, "{location}");
        }
    }

    #[test]
    fn ready_addresses_of_the_port_are_asked() {
        let address = |ip: &str| json!({"ip": ip});
        let endpoints = json!({"subsets": [
            {"addresses": [address("a"), address("b")], "notReadyAddresses": [address("c")],
             "ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]},
            {"addresses": [address("d")], "ports": [{"name": "http", "port": 8080}]},
        ]});
        let endpoints = endpoints.as_object().unwrap();
        for (port, expected) in [("http", "a80 b80 d8080"), ("admin", "a81 b81"), ("", "")] {
            let found = candidates(endpoints, port);
            let mut told: Vec<String> =
                found.iter().map(|(a, n)| format!("{}{n}", a["ip"].as_str().unwrap())).collect();
            told.sort();
            assert_eq!(told.join(" "), expected, "{port}");
        }
    }

    #[test]
    fn private_headers_are_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, X-Own"), ("x-own", "1"), ("te", "trailers"), ("accept", "*/*")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        drop_private(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
