//! An MQTT 3.1.1 client for one connection: no sessions, no retries. What is under way when the connection ends is lost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, PubAck, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backoff::Failure;
use super::doubt::Doubt;
use super::packet::{MAX_PACKET, PacketError, PacketReader, encode, publish};
use super::socket::prepare;

/// For a TCP connection. A lost SYN is sent again after 1 and after 3 s.
const CONNECT: Duration = Duration::from_secs(4);
/// For everything between that and the subscription, on a link that is slow and loses packets.
const GREET: Duration = Duration::from_secs(90);
/// For one write to make its way into the socket.
const WRITE: Duration = Duration::from_secs(60);
/// For the answer to a ping, at least.
const ANSWER: Duration = Duration::from_secs(5);

/// Why there is no connection (any more).
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No TCP connection.
    #[error("connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    /// TLS or MQTT failed before the first message.
    #[error("{operation} with {address}: {reason}")]
    Greet { operation: &'static str, address: String, reason: String, refused: bool },
    /// It ended.
    #[error("{0}")]
    Lost(String),
}

impl ClientError {
    /// How soon to try again.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Greet { refused: true, .. } => Failure::Refused,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => Failure::Unanswered,
            _ => Failure::Unreachable,
        }
    }

    fn lost(cause: impl ToString) -> Self {
        Self::Lost(cause.to_string())
    }
}

/// What a client says of itself when it connects.
pub(super) struct Options {
    /// Client identifier.
    pub(super) id: String,
    /// Whom to ask for in the handshake.
    pub(super) name: ServerName<'static>,
    /// Longest silence.
    pub(super) keepalive: Duration,
    /// Topic and content of the last will.
    pub(super) will: Option<(String, Bytes)>,
    /// What to subscribe to.
    pub(super) filters: Vec<String>,
}

/// A connection that is subscribed.
#[derive(Debug)]
pub(super) struct Client {
    stream: TlsStream<TcpStream>,
    reader: PacketReader,
    keepalive: Duration,
    doubt: Doubt,
    network: watch::Receiver<u64>,
}

/// Connects, introduces itself, and subscribes.
pub(super) async fn connect(address: &str, tls: Arc<ClientConfig>, options: Options) -> Result<Client, ClientError> {
    let failed = |source| ClientError::Connect { address: address.to_owned(), source };
    let tcp =
        timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
    let tcp = tcp.map_err(failed)?;
    prepare(&tcp).map_err(failed)?;
    let greet = Box::pin(greet(tcp, tls, options));
    let failed = |Ungreeted { operation, reason, refused }| {
        let address = address.to_owned();
        ClientError::Greet { operation, address, reason, refused }
    };
    let silent = || Ungreeted { operation: "introduction", reason: "no answer".into(), refused: false };
    timeout(GREET, greet).await.unwrap_or_else(|_| Err(silent())).map_err(failed)
}

struct Ungreeted {
    operation: &'static str,
    reason: String,
    refused: bool,
}

impl Ungreeted {
    /// rustls says with this kind of error that it, or the other side, found something wrong.
    fn io(operation: &'static str, error: &io::Error) -> Self {
        Self { operation, reason: error.to_string(), refused: error.kind() == io::ErrorKind::InvalidData }
    }

    fn packet(operation: &'static str) -> impl Fn(PacketError) -> Self {
        move |error| match error {
            PacketError::Io(error) => Self::io(operation, &error),
            PacketError::Closed => Self { operation, reason: error.to_string(), refused: false },
            PacketError::Malformed(_) => Self::refused(operation, error.to_string()),
        }
    }

    fn refused(operation: &'static str, reason: String) -> Self {
        Self { operation, reason, refused: true }
    }
}

async fn greet(tcp: TcpStream, tls: Arc<ClientConfig>, options: Options) -> Result<Client, Ungreeted> {
    let Options { id, name, keepalive, will, filters } = options;
    let doubt = Doubt::of(&tcp).map_err(|e| Ungreeted::io("introduction", &e))?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|e| Ungreeted::io("TLS handshake", &e))?;
    let mut client = Client { stream, reader: PacketReader::default(), keepalive, doubt, network: watch::channel(0).1 };
    let mut connect = Connect::new(id);
    connect.keep_alive = u16::try_from(keepalive.as_secs().max(1)).unwrap_or(u16::MAX);
    connect.last_will = will.map(|(topic, message)| LastWill { topic, message, qos: QoS::AtLeastOnce, retain: false });
    let operation = "introduction";
    client.write(&Packet::Connect(connect)).await.map_err(Ungreeted::packet(operation))?;
    match client.reader.next(&mut client.stream, MAX_PACKET).await.map_err(Ungreeted::packet(operation))? {
        Packet::ConnAck(ack) => match ack.code {
            ConnectReturnCode::Success => {}
            code => {
                let refused = code != ConnectReturnCode::ServiceUnavailable;
                return Err(Ungreeted { operation, reason: format!("refused: {code:?}"), refused });
            }
        },
        other => return Err(Ungreeted::refused(operation, format!("unexpected answer {other:?}"))),
    }
    let operation = "subscription";
    let wanted = filters.len();
    let filters = filters.into_iter().map(|path| SubscribeFilter { path, qos: QoS::AtMostOnce }).collect();
    client.write(&Packet::Subscribe(Subscribe { pkid: 1, filters })).await.map_err(Ungreeted::packet(operation))?;
    match client.reader.next(&mut client.stream, MAX_PACKET).await.map_err(Ungreeted::packet(operation))? {
        Packet::SubAck(ack) => {
            let granted = ack.return_codes.iter().filter(|c| matches!(c, SubscribeReasonCode::Success(_))).count();
            if granted < wanted {
                return Err(Ungreeted::refused(operation, "refused".into()));
            }
        }
        other => return Err(Ungreeted::refused(operation, format!("unexpected answer {other:?}"))),
    }
    Ok(client)
}

impl Client {
    /// Tries whether the connection still lives whenever the network has changed.
    pub(super) fn watching(self, network: watch::Receiver<u64>) -> Self {
        Self { network, ..self }
    }

    async fn write(&mut self, packet: &Packet) -> Result<(), PacketError> {
        let bytes = encode(packet).map_err(PacketError::Malformed)?;
        self.stream.write_all(&bytes).await.map_err(PacketError::Io)?;
        self.stream.flush().await.map_err(PacketError::Io)
    }

    /// Carries messages both ways until the connection ends, or nobody sends any more, which closes it without a
    /// farewell: the broker then publishes the last will. `heard` is called at every sign of life.
    pub(super) async fn run(
        self,
        mut outgoing: mpsc::Receiver<(String, Bytes)>,
        incoming: mpsc::Sender<(String, Bytes)>,
        heard: impl Fn(),
    ) -> ClientError {
        let Self { stream, mut reader, keepalive, doubt, network } = self;
        let (mut from, mut to) = tokio::io::split(stream);
        let (answers, mut answer) = mpsc::channel::<Packet>(4);
        let ping = Notify::new();
        let read = async {
            loop {
                let packet = match timeout(keepalive * 5 / 4, reader.next(&mut from, MAX_PACKET)).await {
                    Ok(packet) => packet,
                    Err(_) => {
                        ping.notify_one();
                        let grace = ANSWER.max(keepalive / 4);
                        timeout(grace, reader.next(&mut from, MAX_PACKET))
                            .await
                            .map_err(|_| ClientError::lost("the broker does not answer"))?
                    }
                };
                heard();
                doubt.heard();
                match packet.map_err(ClientError::lost)? {
                    Packet::Publish(publish) => {
                        if publish.pkid != 0 {
                            let ack = Packet::PubAck(PubAck::new(publish.pkid));
                            answers.send(ack).await.map_err(ClientError::lost)?;
                        }
                        incoming
                            .send((publish.topic, publish.payload))
                            .await
                            .map_err(|_| ClientError::lost("nobody listens"))?;
                    }
                    Packet::PingResp => {}
                    other => return Err(ClientError::lost(format!("unexpected packet {other:?}"))),
                }
            }
        };
        let write = async {
            loop {
                let packet = tokio::select! {
                    biased;
                    packet = answer.recv() => packet.unwrap_or(Packet::PingReq),
                    () = ping.notified() => Packet::PingReq,
                    message = timeout(keepalive, outgoing.recv()) => match message {
                        Err(_) => Packet::PingReq,
                        Ok(Some((topic, payload))) => publish(topic, payload),
                        Ok(None) => return Err(ClientError::lost("closed")),
                    },
                };
                let mut bytes = BytesMut::new();
                packet.write(&mut bytes, MAX_PACKET).map_err(ClientError::lost)?;
                doubt.sent();
                send(&mut to, &bytes).await?;
            }
        };
        let ended: Result<std::convert::Infallible, ClientError> = tokio::select! {
            ended = read => ended,
            ended = write => ended,
            () = doubt.stuck(network, &ping) => Err(ClientError::lost("it is stuck, and another gets through")),
        };
        match ended {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> Result<(), ClientError> {
    let write = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    match timeout(WRITE, write).await {
        Ok(result) => result.map_err(ClientError::lost),
        Err(_) => Err(ClientError::lost("the broker takes nothing any more")),
    }
}
