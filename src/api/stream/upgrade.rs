//! What protocol a client can speak.

use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::channels::MAX_PORTS;
use crate::kinds::status::Status;

const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// By WebSocket, in no order of preference: the client's order counts. They differ in the half-close message, which
/// a v4 client never sends.
const COMMAND_WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
const FORWARD_WEBSOCKET: &[&str] = &[TUNNEL, "v5.channel.k8s.io", "v4.channel.k8s.io"];
const COMMAND_SPDY: &[&str] = &["v4.channel.k8s.io"];
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
/// SPDY in the binary messages of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What is spoken after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// WebSocket messages with a channel number first.
    Channels,
    /// SPDY inside WebSocket messages.
    Tunnel,
    /// SPDY on the bare connection.
    Spdy,
}

/// A protocol that client and server agree on.
#[derive(Clone, Debug)]
pub struct Upgrade {
    name: &'static str,
    /// The answer to a WebSocket client's key; `None` for SPDY.
    accept: Option<HeaderValue>,
}

impl Upgrade {
    /// For exec and attach.
    ///
    /// # Errors
    /// 400 naming what is missing; `kubectl` then tries SPDY.
    pub fn remote_command(method: &Method, headers: &HeaderMap) -> Result<Self, Status> {
        Self::negotiate(method, headers, COMMAND_WEBSOCKET, COMMAND_SPDY)
    }

    /// For port-forward; `ports` are those of the query.
    ///
    /// # Errors
    /// 400 naming what is missing; `kubectl` then tries SPDY.
    pub fn port_forward(method: &Method, headers: &HeaderMap, ports: &[u16]) -> Result<Self, Status> {
        let upgrade = Self::negotiate(method, headers, FORWARD_WEBSOCKET, FORWARD_SPDY)?;
        if upgrade.protocol() == Protocol::Channels && !(1..=MAX_PORTS).contains(&ports.len()) {
            return Err(Status::bad_request(format!("the query parameter ports must name 1 to {MAX_PORTS} ports")));
        }
        Ok(upgrade)
    }

    fn negotiate(
        method: &Method,
        headers: &HeaderMap,
        websocket: &[&'static str],
        spdy: &[&'static str],
    ) -> Result<Self, Status> {
        if !tokens(headers, CONNECTION.as_str()).any(|t| t.eq_ignore_ascii_case("upgrade")) {
            return Err(refused("Upgrade request required"));
        }
        let wants = |name: &str| tokens(headers, UPGRADE.as_str()).any(|t| t.eq_ignore_ascii_case(name));
        if wants("websocket") {
            let name = choose(headers, SEC_WEBSOCKET_PROTOCOL.as_str(), websocket)?;
            return Ok(Self { name, accept: Some(accept_key(method, headers)?) });
        }
        if wants(SPDY) {
            return Ok(Self { name: choose(headers, STREAM_PROTOCOL, spdy)?, accept: None });
        }
        Err(refused("only upgrades to websocket and SPDY/3.1 are supported"))
    }

    pub(super) fn protocol(&self) -> Protocol {
        match (&self.accept, self.name) {
            (None, _) => Protocol::Spdy,
            (Some(_), TUNNEL) => Protocol::Tunnel,
            (Some(_), _) => Protocol::Channels,
        }
    }

    /// The `101` answer.
    pub(super) fn response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let name = HeaderValue::from_static(self.name);
        if let Some(accept) = self.accept {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, name);
        } else {
            headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
            headers.insert(STREAM_PROTOCOL, name);
        }
        response
    }
}

fn accept_key(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, Status> {
    if method != Method::GET {
        return Err(refused("a WebSocket handshake is a GET request"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return Err(refused("Sec-WebSocket-Version must be 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| refused("Sec-WebSocket-Key is missing"))?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)
}

/// The first of the client's protocols that is one of ours.
fn choose(headers: &HeaderMap, header: &str, ours: &[&'static str]) -> Result<&'static str, Status> {
    let chosen = tokens(headers, header).find_map(|theirs| ours.iter().find(|o| **o == theirs));
    chosen.copied().ok_or_else(|| {
        let theirs: Vec<&str> = tokens(headers, header).collect();
        refused(&format!("unable to negotiate protocol: client supports {theirs:?}, server accepts {ours:?}"))
    })
}

fn refused(why: &str) -> Status {
    Status::bad_request(format!("unable to upgrade: {why}"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_can_speak() {
        const WS: &str = "websocket";
        let both = "v5.channel.k8s.io, v4.channel.k8s.io";
        type Case = (bool, &'static str, &'static str, &'static str, Result<(&'static str, Protocol), &'static str>);
        let table: [Case; 11] = [
            (false, "GET", WS, both, Ok(("v5.channel.k8s.io", Protocol::Channels))),
            (false, "GET", WS, "v4.channel.k8s.io", Ok(("v4.channel.k8s.io", Protocol::Channels))),
            (false, "GET", WS, "v1.channel.k8s.io,v4.channel.k8s.io", Ok(("v4.channel.k8s.io", Protocol::Channels))),
            (false, "GET", WS, TUNNEL, Err("unable to negotiate protocol")),
            (false, "POST", WS, both, Err("GET request")),
            (
                false,
                "POST",
                "spdy/3.1",
                "v5.channel.k8s.io,v4.channel.k8s.io",
                Ok(("v4.channel.k8s.io", Protocol::Spdy)),
            ),
            (false, "POST", SPDY, "portforward.k8s.io", Err("unable to negotiate protocol")),
            (false, "POST", "h2c", "", Err("only upgrades to websocket and SPDY/3.1")),
            (true, "GET", "WebSocket", TUNNEL, Ok((TUNNEL, Protocol::Tunnel))),
            (true, "GET", WS, "v4.channel.k8s.io", Ok(("v4.channel.k8s.io", Protocol::Channels))),
            (true, "POST", SPDY, "portforward.k8s.io", Ok(("portforward.k8s.io", Protocol::Spdy))),
        ];
        for (forward, method, upgrade, protocols, expected) in table {
            let header = if upgrade.eq_ignore_ascii_case(WS) { "sec-websocket-protocol" } else { STREAM_PROTOCOL };
            let request = http::Request::builder()
                .header("connection", "keep-alive, Upgrade")
                .header("upgrade", upgrade)
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header(header, protocols)
                .body(())
                .unwrap();
            let (method, headers) = (method.parse().unwrap(), request.headers());
            let result = if forward {
                Upgrade::port_forward(&method, headers, &[80])
            } else {
                Upgrade::remote_command(&method, headers)
            };
            match (result, expected) {
                (Ok(agreed), Ok((name, protocol))) => {
                    assert_eq!((agreed.name, agreed.protocol()), (name, protocol));
                    let response: Response<()> = agreed.response();
                    assert_eq!(response.status(), 101);
                    assert_eq!(response.headers()[header], name);
                    // The example of RFC 6455, section 1.3.
                    let accept = response.headers().get("sec-websocket-accept");
                    assert_eq!(accept.is_some_and(|a| a == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), protocol != Protocol::Spdy);
                }
                (Err(status), Err(text)) => {
                    assert!(status.code == 400 && status.message.contains(text), "{status}");
                }
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
        assert!(Upgrade::remote_command(&Method::GET, &HeaderMap::new()).is_err());
    }
}
