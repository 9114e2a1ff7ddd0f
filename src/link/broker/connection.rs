//! One connection, from its TLS handshake to its last will.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, SubAck, Subscribe, SubscribeFilter,
    SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{Protocol, QoS};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clients::{Client, Clients};
use super::joins::{Join, Joins};
use super::stream::TlsStream;
use crate::link::channel;
use crate::link::mqtt::tls::{ServerTls, node_name};
use crate::link::mqtt::topic::{Identity, identify};
use crate::link::mqtt::{Allowed, MAX_PACKET, PacketError, PacketReader, encode};

/// From the first byte to CONNECT, on a link that is slow and loses packets.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Largest packet of a client that is not accepted yet, in bytes.
const MAX_CONNECT: usize = 4096;
/// Silence of a client that asks for no limit, or for more.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(1200);
/// For one packet to make its way into the socket.
const WRITE: Duration = Duration::from_secs(60);
/// Clients connected at once.
const MAX_CLIENTS: usize = 8192;
/// Answers of the broker that wait to be written; a client that does not read them is not read either.
const ANSWERS: usize = 4;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("no introduction within {} s", HANDSHAKE.as_secs())]
    Silent,
    #[error("refused a TLS handshake: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error("refused {0}")]
    Refused(String),
    /// Nobody's fault, and it comes again: a fleet that is switched on is no news, a thousand times.
    #[error("too many are joining")]
    Busy,
    #[error("{client}: {reason}")]
    Violation { client: String, reason: String },
    #[error("silent for longer than its keepalive")]
    Expired,
    #[error("does not read what it is sent")]
    Slow,
    #[error("said farewell")]
    Farewell,
    #[error("disconnected by the server")]
    Disconnected,
    #[error("the time to join is over")]
    JoinOver,
    #[error("the server takes no messages")]
    ServerGone,
}

impl End {
    /// Whether the client did what no honest one does: its owner wants to know, however it came to it.
    pub(super) fn is_offence(&self) -> bool {
        match self {
            // So rustls calls what it does not accept. The others are those of a connection that breaks.
            Self::Tls(error) => error.kind() == std::io::ErrorKind::InvalidData,
            Self::Packet(error) => matches!(error, PacketError::Malformed(_)),
            Self::Refused(_) | Self::Violation { .. } => true,
            _ => false,
        }
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) clients: Arc<Clients>,
    pub(super) joins: Arc<Joins>,
    pub(super) tls: ServerTls,
    pub(super) allowed: Allowed,
}

/// A client that is let in.
pub(super) struct Admitted {
    from: ReadHalf<TlsStream>,
    to: WriteHalf<TlsStream>,
    reader: PacketReader,
    client: Arc<Client>,
    keepalive: Duration,
    will: Option<LastWill>,
    join: Option<Join>,
}

/// Finds out who connects and whether he may.
pub(super) async fn admit(shared: &Shared, tcp: TcpStream, peer: SocketAddr) -> Result<Admitted, End> {
    timeout(HANDSHAKE, introduce(shared, tcp, peer)).await.unwrap_or(Err(End::Silent))
}

async fn introduce(shared: &Shared, tcp: TcpStream, peer: SocketAddr) -> Result<Admitted, End> {
    let mut stream = TlsStream::accept(tcp, shared.tls.broker.clone()).await.map_err(End::Tls)?;
    let mut reader = PacketReader::default();
    let connect = match reader.next(&mut stream, MAX_CONNECT).await? {
        Packet::Connect(connect) => connect,
        other => return Err(End::Refused(format!("a client that begins with {:?}", kind(&other)))),
    };
    let judged = judge(shared, &stream, &connect);
    let code = judged.as_ref().map_or_else(|(code, _)| *code, |_| ConnectReturnCode::Success);
    write(&mut stream, &Packet::ConnAck(ConnAck::new(code, false))).await?;
    let (identity, join) = match judged {
        Ok(admitted) => admitted,
        Err((_, reason)) => {
            // Closing properly gives the client time to read why.
            let _ = stream.shutdown().await;
            return Err(if code == ConnectReturnCode::ServiceUnavailable { End::Busy } else { End::Refused(reason) });
        }
    };
    let asked = Duration::from_secs(connect.keep_alive.into());
    let keepalive = if asked.is_zero() { LONGEST_KEEPALIVE } else { asked.min(LONGEST_KEEPALIVE) };
    let client = Client::new(connect.client_id, identity, peer);
    // Here, so that what is left is small: it is moved about.
    let (from, to) = tokio::io::split(stream);
    Ok(Admitted { from, to, reader, client, keepalive, will: connect.last_will, join })
}

type Judgement = Result<(Identity, Option<Join>), (ConnectReturnCode, String)>;

fn judge(shared: &Shared, stream: &TlsStream, connect: &Connect) -> Judgement {
    let id = &connect.client_id;
    let refuse = |code, reason: String| Err((code, reason));
    if connect.protocol != Protocol::V4 {
        return refuse(ConnectReturnCode::RefusedProtocolVersion, format!("{id:?}: it speaks another MQTT than 3.1.1"));
    }
    let denied = |reason: &str| refuse(ConnectReturnCode::NotAuthorized, format!("{id:?}: {reason}"));
    if shared.clients.count() >= MAX_CLIENTS {
        return refuse(ConnectReturnCode::ServiceUnavailable, format!("{id:?}: there is no room for more clients"));
    }
    let name = match stream.certificate() {
        None => None,
        Some(certificate) => match node_name(certificate) {
            Some(name) if (shared.allowed)(&name, certificate) => Some(name),
            Some(name) => return denied(&format!("the certificate of {name} is not valid any more")),
            None => return denied("its certificate is not of a node"),
        },
    };
    let Some(identity) = identify(id, name.as_deref()) else {
        let whom = name.as_deref().unwrap_or("a client without certificate");
        return refuse(
            ConnectReturnCode::BadClientId,
            format!("{id:?}: it is the identifier of somebody else than {whom}"),
        );
    };
    if let Some(will) = &connect.last_will
        && (will.retain || will.qos == QoS::ExactlyOnce || !shared.clients.topics.may_publish(&identity, &will.topic))
    {
        return denied("its last will is not allowed");
    }
    let join = match identity {
        Identity::Node(_) => None,
        Identity::Joining(_) => match shared.joins.begin() {
            Some(join) => Some(join),
            None => return refuse(ConnectReturnCode::ServiceUnavailable, format!("{id:?}: too many are joining")),
        },
    };
    Ok((identity, join))
}

/// Serves a client until its end, and publishes its last will unless it said farewell.
pub(super) async fn serve(clients: &Clients, admitted: Admitted) -> End {
    let Admitted { mut from, mut to, mut reader, client, keepalive, will, join } = admitted;
    clients.add(client.clone());
    let (answers, mut answer) = channel::channel(ANSWERS);
    let read = async {
        loop {
            let packet = timeout(keepalive * 3 / 2, reader.next(&mut from, MAX_PACKET));
            let packet = packet.await.map_err(|_| End::Expired)??;
            // Boxed, as most of the time there is nothing to take.
            if let Some(packet) = Box::pin(take(clients, &client, packet)).await? {
                let bytes = encode(&packet).map_err(PacketError::Malformed)?;
                answers.send(bytes).await.map_err(|_| End::Disconnected)?;
            }
        }
    };
    let write = async {
        loop {
            let bytes: Option<Bytes> = tokio::select! {
                biased;
                bytes = answer.recv() => bytes,
                bytes = client.queue.pop() => bytes,
            };
            let bytes = bytes.ok_or(End::Disconnected)?;
            timeout(WRITE, send(&mut to, &bytes)).await.map_err(|_| End::Slow)??;
        }
    };
    let over = async {
        match &join {
            Some(join) => join.over().await,
            None => std::future::pending().await,
        }
    };
    let end: Result<std::convert::Infallible, End> = tokio::select! {
        end = read => end,
        end = write => end,
        () = over => Err(End::JoinOver),
    };
    clients.remove(&client);
    client.queue.close();
    let end = match end {
        Ok(never) => match never {},
        Err(end) => end,
    };
    if let (Some(will), false) = (will, matches!(end, End::Farewell)) {
        // Fails only when there is no server to tell.
        let _ = clients.deliver(will.topic, will.message).await;
    }
    end
}

/// Acts on a packet; the answer, if there is one.
async fn take(clients: &Clients, client: &Client, packet: Packet) -> Result<Option<Packet>, End> {
    let violation = |reason: String| Err(End::Violation { client: client.id.clone(), reason });
    match packet {
        Packet::Publish(Publish { qos, retain, topic, pkid, payload, .. }) => {
            if retain || qos == QoS::ExactlyOnce {
                return violation("retained messages and QoS 2 are not supported".into());
            }
            if !clients.topics.may_publish(&client.identity, &topic) {
                return violation(format!("may not publish to {topic:?}"));
            }
            clients.deliver(topic, payload).await.map_err(|_| End::ServerGone)?;
            Ok((qos == QoS::AtLeastOnce).then(|| Packet::PubAck(PubAck::new(pkid))))
        }
        Packet::Subscribe(Subscribe { pkid, filters }) => {
            let mut refused = Vec::new();
            let grant = |filter: SubscribeFilter| {
                let may = clients.topics.may_subscribe(&client.identity, &filter.path);
                if may && client.subscribe(&filter.path) {
                    return SubscribeReasonCode::Success(filter.qos.min_once());
                }
                refused.push(filter.path);
                SubscribeReasonCode::Failure
            };
            let codes = filters.into_iter().map(grant).collect();
            if !refused.is_empty() {
                let (peer, client) = (client.peer, &client.id);
                tracing::warn!(%peer, "{client}: may not subscribe to {refused:?}");
            }
            Ok(Some(Packet::SubAck(SubAck::new(pkid, codes))))
        }
        Packet::Unsubscribe(packet) => {
            packet.topics.iter().for_each(|filter| client.unsubscribe(filter));
            Ok(Some(Packet::UnsubAck(UnsubAck::new(packet.pkid))))
        }
        Packet::PingReq => Ok(Some(Packet::PingResp)),
        Packet::Disconnect => Err(End::Farewell),
        other => violation(format!("sent {} where a client must not", kind(&other))),
    }
}

trait Granted {
    fn min_once(self) -> QoS;
}

impl Granted for QoS {
    /// QoS 2 is granted as QoS 1.
    fn min_once(self) -> QoS {
        if self == QoS::AtMostOnce { self } else { QoS::AtLeastOnce }
    }
}

fn kind(packet: &Packet) -> &'static str {
    match packet {
        Packet::Connect(_) => "CONNECT",
        Packet::ConnAck(_) => "CONNACK",
        Packet::Publish(_) => "PUBLISH",
        Packet::PubAck(_) => "PUBACK",
        Packet::PubRec(_) => "PUBREC",
        Packet::PubRel(_) => "PUBREL",
        Packet::PubComp(_) => "PUBCOMP",
        Packet::Subscribe(_) => "SUBSCRIBE",
        Packet::SubAck(_) => "SUBACK",
        Packet::Unsubscribe(_) => "UNSUBSCRIBE",
        Packet::UnsubAck(_) => "UNSUBACK",
        Packet::PingReq => "PINGREQ",
        Packet::PingResp => "PINGRESP",
        Packet::Disconnect => "DISCONNECT",
    }
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, packet: &Packet) -> Result<(), End> {
    let bytes = encode(packet).map_err(PacketError::Malformed)?;
    send(stream, &bytes).await
}

async fn send<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> Result<(), End> {
    to.write_all(bytes).await.map_err(PacketError::Io)?;
    to.flush().await.map_err(PacketError::Io)?;
    Ok(())
}
