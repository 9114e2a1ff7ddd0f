//! The sockets, and who answers what.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use hickory_proto::op::ResponseCode;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind as bind_to, setsockopt, socket, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Config;
use super::forward::{Forwarder, framed};
use super::index::Index;
use super::wire::{self, Answer, MAX_MESSAGE, Query, Question, Rejected};
use super::zone::Zone;

const PORT: u16 = 53;
/// Largest query that is taken.
const PACKET: usize = 4096;
/// What the kernel keeps of queries that arrive at once, bytes.
const BURST: usize = 1 << 20;
/// Queries by UDP that wait for an answer from upstream; more are turned away.
const MAX_WAITING: usize = 512;
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
const BACKLOG: u32 = 128;
/// Queries of one connection that are answered at a time.
const MAX_PIPELINED: usize = 8;
/// A connection that asks nothing for this long, or does not take its answer, is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Aliases that are followed within the cluster.
const MAX_ALIASES: usize = 8;
/// After an error of a socket that would come again at once.
const RECOVER: Duration = Duration::from_millis(100);

/// Answers queries.
#[derive(Debug)]
pub(super) struct Server {
    zone: Zone,
    index: RwLock<Index>,
    forwarder: Forwarder,
    /// Which of several addresses is the first of the next answer.
    turn: AtomicUsize,
}

impl Server {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            zone: Zone::new(&config.domain, config.address, config.networks.clone()),
            index: RwLock::default(),
            forwarder: Forwarder::new(),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn index(&self) -> &RwLock<Index> {
        &self.index
    }

    pub(super) fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// The answer to a query, if nobody else has to be asked for it.
    pub(super) fn answer_at_once(&self, query: &Query, limit: usize) -> Option<Vec<u8>> {
        if let Some(code) = query.objection() {
            return Some(query.refuse(code));
        }
        let question = &query.question;
        let message = match self.own(question) {
            Some((answer, None)) => answer.encode(question),
            Some((_, Some(_))) => return None,
            None => self.recall(question)?,
        };
        Some(query.answer(message, limit))
    }

    /// The answer to a query.
    async fn answer(&self, query: &Query, limit: usize) -> Vec<u8> {
        let question = &query.question;
        let message = match self.own(question) {
            Some((answer, None)) => answer.encode(question),
            Some((mut answer, Some(outside))) => {
                let heard = self.forwarder.ask(&outside).await;
                answer.answers.extend(wire::addresses(&heard.message(Instant::now())));
                // That the alias leads nowhere for now is no reason to keep it back.
                if heard.code() == ResponseCode::NXDomain {
                    answer.code = ResponseCode::NXDomain;
                }
                answer.encode(question)
            }
            None => {
                let mut message = self.forwarder.ask(question).await.message(Instant::now());
                wire::rotate(&mut message, self.next_turn());
                message
            }
        };
        query.answer(message, limit)
    }

    /// What the cluster's own names say, and the outside name an alias of them leads to. `None` for other names.
    fn own(&self, question: &Question) -> Option<(Answer, Option<Question>)> {
        let turn = self.next_turn();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut answer = self.zone.answer(&index, &question.name, question.kind, turn)?;
        for _ in 0..MAX_ALIASES {
            let Some(target) = answer.alias(question.kind).cloned() else { return Some((answer, None)) };
            match self.zone.answer(&index, &target, question.kind, turn) {
                Some(next) => answer.continue_with(next),
                None => return Some((answer, Some(Question::new(target, question.kind)))),
            }
        }
        // In circles.
        answer.code = ResponseCode::ServFail;
        Some((answer, None))
    }

    fn recall(&self, question: &Question) -> Option<Vec<u8>> {
        let mut message = self.forwarder.recall(question)?.message(Instant::now());
        wire::rotate(&mut message, self.next_turn());
        Some(message)
    }

    fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Answers packets. Never ends.
    pub(super) async fn serve_udp(self: Arc<Self>, socket: UdpSocket) -> Infallible {
        let socket = Arc::new(socket);
        let mut waiting = JoinSet::new();
        let mut packet = vec![0; PACKET];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut packet) => received,
                Some(_) = waiting.join_next() => continue,
            };
            let (length, client) = match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receive a query");
                    tokio::time::sleep(RECOVER).await;
                    continue;
                }
            };
            let query = match Query::read(&packet[..length]) {
                Ok(query) => query,
                Err(Rejected::Silently) => continue,
                Err(Rejected::With(answer)) => {
                    send(&socket, &answer, client).await;
                    continue;
                }
            };
            if let Some(answer) = self.answer_at_once(&query, query.udp_limit()) {
                send(&socket, &answer, client).await;
            } else if waiting.len() < MAX_WAITING {
                let (server, socket) = (self.clone(), socket.clone());
                waiting.spawn(async move {
                    send(&socket, &server.answer(&query, query.udp_limit()).await, client).await;
                });
            } else {
                send(&socket, &query.refuse(ResponseCode::ServFail), client).await;
            }
        }
    }

    /// Answers connections. Never ends.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        let server = self.clone();
                        connections.spawn(async move { server.serve(stream).await });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "accept a connection");
                        tokio::time::sleep(RECOVER).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Answers the queries of one connection, each as soon as it can be.
    async fn serve(&self, stream: TcpStream) {
        let (reader, mut writer) = stream.into_split();
        let queries = stream::unfold(reader, next_query);
        let mut answers = pin!(queries.map(|packet| self.respond(packet)).buffer_unordered(MAX_PIPELINED));
        while let Some(answer) = answers.next().await {
            let Some(answer) = answer else { return };
            if !matches!(timeout(IDLE, writer.write_all(&framed(&answer))).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// `None`: not worth keeping the connection.
    async fn respond(&self, packet: Vec<u8>) -> Option<Vec<u8>> {
        match Query::read(&packet) {
            Ok(query) => Some(match self.answer_at_once(&query, MAX_MESSAGE) {
                Some(answer) => answer,
                None => self.answer(&query, MAX_MESSAGE).await,
            }),
            Err(Rejected::Silently) => None,
            Err(Rejected::With(answer)) => Some(answer),
        }
    }
}

/// The next query of a connection, if it comes in time.
async fn next_query(mut reader: OwnedReadHalf) -> Option<(Vec<u8>, OwnedReadHalf)> {
    let packet = timeout(IDLE, async {
        let length = usize::from(reader.read_u16().await?);
        if length > PACKET {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut packet = vec![0; length];
        reader.read_exact(&mut packet).await?;
        io::Result::Ok(packet)
    });
    Some((packet.await.ok()?.ok()?, reader))
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "send an answer");
    }
}

/// The sockets of an address that need not be on an interface.
pub(super) fn bind(address: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let address = SocketAddrV4::new(address, PORT);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let udp: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&udp, sockopt::IpFreebind, &true)?;
    // Beyond the system's limit, where that is allowed.
    if setsockopt(&udp, sockopt::RcvBufForce, &BURST).is_err() {
        setsockopt(&udp, sockopt::RcvBuf, &BURST)?;
    }
    bind_to(udp.as_raw_fd(), &SockaddrIn::from(address))?;
    let udp = UdpSocket::from_std(udp.into())?;
    let tcp = TcpSocket::new_v4()?;
    tcp.set_reuseaddr(true)?;
    setsockopt(&tcp, sockopt::IpFreebind, &true)?;
    tcp.bind(address.into())?;
    Ok((udp, tcp.listen(BACKLOG)?))
}
