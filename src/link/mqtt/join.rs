//! The way in for those who have no certificate yet.
//!
//! A byte stream in numbered messages, at most [`AHEAD`] bytes of it unread by the other end, and a TLS session on it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::ServerConfig;
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::client::{self, Options};
use super::server::Incoming;
use super::tls::{ClientTls, TlsError, join_name};
use super::topic::{JOIN_PREFIX, Topics};
use super::{Bus, random};

/// How long joining may take.
const LIFE: Duration = Duration::from_secs(120);
/// For the TLS handshake in it.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Bytes in one message.
const PIECE: usize = 8 * 1024;
/// Bytes either side buffers. What is said in a join is shorter.
const AHEAD: usize = 64 * 1024;
/// Messages that wait.
const MESSAGES: usize = 32;
/// The last will of who joins: a number that is never reached.
const FAREWELL: &[u8] = &[0xff; 8];
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A sealed byte stream between a joining node, that knows the CA's hash, and the server, that knows nothing of it yet.
pub type JoinStream = TlsStream<DuplexStream>;

/// Why no server could be reached.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Of every address tried, what was wrong.
    #[error("no server could be reached: {0}")]
    Unreachable(String),
    /// The configuration was refused.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Reaches a server at one of the addresses (`host:port`), whose CA has this certificate (SHA-256 of its DER form).
///
/// The stream ends when it is dropped, by the server when it likes to, and after two minutes.
///
/// # Errors
/// When no address leads to a server of that CA.
pub async fn join(
    addresses: &[String],
    ca_sha256: [u8; 32],
    cluster: &str,
    time: Arc<dyn TimeProvider>,
) -> Result<JoinStream, JoinError> {
    let tls = ClientTls::join(ca_sha256, time)?;
    let mut failures = Vec::new();
    for address in addresses {
        match attempt(address, &tls, &Topics::new(cluster)).await {
            Ok(stream) => return Ok(stream),
            Err(reason) => {
                failures.push(if reason.contains(address) { reason } else { format!("{address}: {reason}") })
            }
        }
    }
    if failures.is_empty() {
        failures.push("no address given".into());
    }
    Err(JoinError::Unreachable(failures.join("; ")))
}

async fn attempt(address: &str, tls: &ClientTls, topics: &Topics) -> Result<JoinStream, String> {
    let id = format!("{JOIN_PREFIX}{:016x}{:016x}", random(), random());
    let options = Options {
        id: id.clone(),
        name: join_name(),
        keepalive: KEEPALIVE,
        will: Some((topics.join_up(&id), Bytes::from_static(FAREWELL))),
        filters: vec![topics.join_down(&id)],
    };
    let client = client::connect(address, tls.outer.clone(), options).await.map_err(|e| e.to_string())?;
    let (ours, theirs) = tokio::io::duplex(AHEAD);
    let (to_broker, outgoing) = mpsc::channel(1);
    let (incoming, mut from_broker) = mpsc::channel::<(String, Bytes)>(MESSAGES);
    let (pieces, messages) = mpsc::channel(MESSAGES);
    let up = topics.join_up(&id);
    let carry = async move {
        let (from, to) = tokio::io::split(ours);
        let (packed, mut to_carry) = mpsc::channel(1);
        let unpack = async move {
            while let Some((_, message)) = from_broker.recv().await {
                if pieces.send(message).await.is_err() {
                    break;
                }
            }
        };
        // The connection ends when what was said last is written: the next board may be waiting for this place.
        let send = async move {
            while let Some(message) = to_carry.recv().await {
                if to_broker.send((up.clone(), message)).await.is_err() {
                    break;
                }
            }
        };
        let arrive = async { tokio::join!(unpack, deliver(messages, to)) };
        let leave = async { tokio::join!(client.run(outgoing, incoming, || {}), pack(from, packed), send) };
        tokio::select! {
            _ = leave => {}
            _ = arrive => {}
        }
    };
    tokio::spawn(async move {
        // Whoever joins notices the end by his stream.
        let _ = timeout(LIFE, carry).await;
    });
    let connect = TlsConnector::from(tls.inner.clone()).connect(join_name(), theirs);
    match timeout(HANDSHAKE, connect).await {
        Ok(Ok(stream)) => Ok(stream.into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the server does not answer".into()),
    }
}

/// Cuts a byte stream into numbered messages. The last is empty.
async fn pack(mut from: ReadHalf<DuplexStream>, to: mpsc::Sender<Bytes>) {
    for number in 0u64.. {
        let mut message = BytesMut::with_capacity(1024);
        message.put_u64(number);
        let length = from.read_buf(&mut (&mut message).limit(PIECE)).await.unwrap_or(0);
        if to.send(message.freeze()).await.is_err() || length == 0 {
            return;
        }
    }
}

/// Puts a byte stream together from messages, until the last or a gap. The last will of who joins is a gap.
async fn deliver(mut messages: mpsc::Receiver<Bytes>, mut to: WriteHalf<DuplexStream>) {
    let mut expected = 0;
    while let Some(mut message) = messages.recv().await {
        let Ok(number) = message.try_get_u64() else { break };
        if number < expected {
            continue;
        }
        if number > expected || message.is_empty() || to.write_all(&message).await.is_err() {
            break;
        }
        expected += 1;
    }
    // Fails only where nobody reads.
    let _ = to.shutdown().await;
}

/// Whether a message is the first of a stream.
pub(super) fn is_first(message: &[u8]) -> bool {
    message.starts_with(&[0; 8])
}

/// Whether a message is the last will of who joined.
pub(super) fn is_farewell(message: &[u8]) -> bool {
    message == FAREWELL
}

/// The server's side of a join.
#[derive(Debug)]
pub(super) struct Server {
    messages: mpsc::Sender<Bytes>,
}

impl Server {
    /// Takes a message; false: there are too many.
    pub(super) fn take(&self, message: Bytes) -> bool {
        !matches!(self.messages.try_send(message), Err(mpsc::error::TrySendError::Full(_)))
    }
}

/// The handle of a join and the task that serves it: shakes hands, passes the stream on, and carries it to its end.
pub(super) fn serve(
    tls: Arc<ServerConfig>,
    bus: Bus,
    client: String,
    incoming: mpsc::Sender<Incoming>,
) -> (Server, impl Future<Output = ()> + Send) {
    let (messages, receiver) = mpsc::channel(MESSAGES);
    let run = async move {
        let (ours, theirs) = tokio::io::duplex(AHEAD);
        let (from, to) = tokio::io::split(ours);
        let from_whom = bus.origin(&client);
        let greet = async {
            match timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(theirs)).await {
                Ok(Ok(stream)) => {
                    let join = Incoming::Join { stream: Box::new(stream.into()), from: from_whom.clone() };
                    // Fails only when the server ends.
                    drop(incoming.send(join).await);
                }
                // So rustls calls what it does not accept. The others are those of a connection that breaks.
                Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                    tracing::warn!(from = from_whom, %error, "a join is refused");
                }
                Ok(Err(error)) => tracing::info!(from = from_whom, %error, "a join failed"),
                Err(_) => tracing::info!(from = from_whom, "a join fell silent"),
            }
        };
        let (packed, mut to_carry) = mpsc::channel(1);
        let send = async {
            while let Some(message) = to_carry.recv().await {
                if bus.to_join(&client, message).await.is_err() {
                    break;
                }
            }
        };
        let carry = async { tokio::join!(greet, pack(from, packed), send, deliver(receiver, to)) };
        if timeout(LIFE, carry).await.is_err() {
            tracing::info!(from = from_whom, "a join took too long");
        }
    };
    (Server { messages }, run)
}
