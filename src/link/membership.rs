//! How a board becomes a node and stays one: the token its owner gives it, and what it says to the server to get a
//! certificate.
//!
//! The two sides speak on a byte stream whose other end has proven to hold a certificate of the cluster's CA. Each
//! message is its length (4 bytes, big endian) and JSON. A board asks once and gets one answer.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::cidr::Cidr;
use crate::pki::Fingerprint;

/// Longest message in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// A side that says nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Begins every token, so that one is recognised when it lies about.
const PREFIX: &str = "umiak1_";

/// What a board needs to join a cluster, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Where the server listens for nodes: `host:port`, the most likely first.
    #[serde(rename = "s")]
    pub servers: Vec<String>,
    /// Of the CA's certificate; the cluster's id follows from it.
    #[serde(rename = "c")]
    pub ca: Fingerprint,
    /// Name of the token.
    #[serde(rename = "i")]
    pub id: String,
    /// What makes it valid.
    #[serde(rename = "k")]
    pub secret: String,
}

/// A text that is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no token as `umiak token create` prints: it may be cut off")]
pub struct InvalidToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} at {:?})", self.id, self.servers)
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let data = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken)?;
        let json = URL_SAFE_NO_PAD.decode(data).map_err(|_| InvalidToken)?;
        serde_json::from_slice(&json).map_err(|_| InvalidToken)
    }
}

/// The name of a cluster on the wire: it follows from its CA.
pub fn cluster_id(ca: &Fingerprint) -> String {
    ca.to_string().chars().take(16).collect()
}

/// What a board asks for: a certificate for its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The node's name: the one it has, or would like to have.
    pub name: String,
    /// The name was chosen by a person: another one will not do.
    #[serde(default)]
    pub name_is_wanted: bool,
    /// PKCS#10, DER, in base64: signed by the node's key.
    pub csr: String,
    /// Id and secret of a token; without one only a node that the server knows gets a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<(String, String)>,
    /// The addresses of its pods when it was a node before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<Cidr>,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// It is a node.
    Granted(Box<Granted>),
    /// It is not.
    Refused(Refused),
}

/// What a node is told of itself and its cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    /// The node's name.
    pub name: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The server's time, seconds since 1970.
    pub time: u64,
    /// The addresses of its pods.
    pub pod_cidr: Cidr,
    /// The addresses of all pods.
    pub cluster_cidr: Cidr,
    /// The addresses of Services.
    pub service_cidr: Cidr,
    /// Where the link is, if it is not where boards join: `host:port` of a broker that is not the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
}

/// Why a board gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Refused {
    /// What kind of refusal it is.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The request makes no sense.
    Malformed,
    /// The token is unknown, used, expired or wrong.
    Token,
    /// The name is taken, or not the one the token is for.
    Name,
    /// The server knows no node of this name with this key: it was never there, or has been removed.
    Unknown,
    /// The server could not, this time.
    Unavailable,
}

impl Refused {
    /// A refusal.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        self.reason == Reason::Unavailable
    }
}

/// Asks the server at the other end.
///
/// # Errors
/// When the stream fails, or its other end does not answer in time or in this language.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &Request) -> io::Result<Reply> {
    within(async {
        send(stream, request).await?;
        receive(stream).await
    })
    .await
}

/// Answers the board at the other end.
///
/// # Errors
/// When the stream fails, or its other end does not ask in time or in this language.
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    decide: impl AsyncFnOnce(Request) -> Reply,
) -> io::Result<()> {
    within(async {
        let request = receive(stream).await?;
        send(stream, &decide(request).await).await?;
        stream.shutdown().await
    })
    .await
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|n| *n as usize <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    stream.write_all(&[&length.to_be_bytes()[..], &json].concat()).await?;
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin, T: DeserializeOwned>(stream: &mut S) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request { name: "pi".into(), name_is_wanted: false, csr: "x".into(), token: None, pod_cidr: None }
    }

    #[test]
    fn tokens_are_read_as_printed() {
        let token = Token {
            servers: vec!["192.0.2.1:8883".into(), "[2001:db8::1]:8883".into()],
            ca: Fingerprint::of(b"ca"),
            id: "abcdef".into(),
            secret: "0123456789abcdef".into(),
        };
        let text = token.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{text}");
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0123456789abcdef"));
        for wrong in ["", "umiak1_", &text[..text.len() - 5], &text[1..], "K10abc::server:x"] {
            assert_eq!(wrong.parse::<Token>(), Err(InvalidToken), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_question_gets_its_answer() {
        let (mut board, mut server) = tokio::io::duplex(100);
        let refusal = Reply::Refused(Refused::new(Reason::Token, "no"));
        let decide = async |asked: Request| {
            assert_eq!(asked, request());
            refusal.clone()
        };
        let asked = request();
        let (reply, answered) = tokio::join!(ask(&mut board, &asked), answer(&mut server, decide));
        answered.unwrap();
        assert_eq!(reply.unwrap(), refusal);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_or_believed_for_ever() {
        let never = async |_| -> Reply { unreachable!() };
        let (_board, mut server) = tokio::io::duplex(100);
        assert_eq!(answer(&mut server, never).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        for bytes in [&[255, 255, 255, 255, 1][..], &[0, 0, 0, 2, b'{', b'x'], &[0, 0]] {
            let (mut board, mut server) = tokio::io::duplex(100);
            board.write_all(bytes).await.unwrap();
            drop(board);
            assert!(answer(&mut server, never).await.is_err());
        }
    }
}
