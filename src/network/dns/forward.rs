//! Asking the node's own name servers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::{Cache, Heard};
use super::wire::{self, Answer, Question};

/// For one server to answer, before the next is asked.
const TRY: Duration = Duration::from_millis(600);
/// For a client to have an answer.
const WHOLE: Duration = Duration::from_millis(1900);
/// What is left of that and not worth another try.
const TOO_LATE: Duration = Duration::from_millis(50);
/// How long a server that gave no answer is asked last.
const DISTRUST: Duration = Duration::from_secs(30);
/// Largest packet that is taken; more than is asked for.
const PACKET: usize = 4096;

/// What will be heard, by question.
type Flights = HashMap<Vec<u8>, watch::Receiver<Option<Arc<Heard>>>>;

/// The node's name servers, and what they said.
#[derive(Debug)]
pub(super) struct Forwarder {
    servers: RwLock<Arc<[Server]>>,
    cache: Mutex<Cache>,
    /// Questions that are being asked.
    flights: Mutex<Flights>,
    random: SystemRandom,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// When it last gave no answer.
    failed: Mutex<Option<Instant>>,
}

impl Server {
    fn failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one server said.
enum Said {
    Answer(Vec<u8>),
    /// That it cannot help.
    Refusal(ResponseCode),
}

/// A question that is being asked; those who ask the same wait for it.
struct Flight<'a> {
    forwarder: &'a Forwarder,
    key: &'a [u8],
    arrival: watch::Sender<Option<Arc<Heard>>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.forwarder.flights().remove(self.key);
    }
}

impl Forwarder {
    pub(super) fn new() -> Self {
        Self {
            servers: RwLock::new(Arc::default()),
            cache: Mutex::default(),
            flights: Mutex::default(),
            random: SystemRandom::new(),
        }
    }

    /// Asks these from now on, in this order.
    pub(super) fn use_servers(&self, addresses: &[SocketAddr]) {
        let servers = addresses.iter().map(|address| Server { address: *address, failed: Mutex::default() }).collect();
        *self.servers.write().unwrap_or_else(PoisonError::into_inner) = servers;
        // The new ones may know what the old ones did not.
        *self.cache() = Cache::default();
    }

    /// What is known already.
    pub(super) fn recall(&self, question: &Question) -> Option<Arc<Heard>> {
        self.cache().get(&question.key(), Instant::now())
    }

    /// The answer, if it must be one that says that there is none; within two seconds.
    pub(super) async fn ask(&self, question: &Question) -> Arc<Heard> {
        let key = question.key();
        loop {
            if let Some(heard) = self.cache().get(&key, Instant::now()) {
                return heard;
            }
            let (arrival, waiting) = watch::channel(None);
            let under_way = self.flights().get(&key).cloned();
            if let Some(mut under_way) = under_way {
                if let Ok(heard) = under_way.wait_for(Option::is_some).await
                    && let Some(heard) = heard.clone()
                {
                    return heard;
                }
                // Who asked gave up.
                continue;
            }
            self.flights().insert(key.clone(), waiting);
            let flight = Flight { forwarder: self, key: &key, arrival };
            let message = self.ask_servers(question).await;
            let heard = Arc::new(Heard::new(message, Instant::now()));
            self.cache().put(&key, &heard);
            flight.arrival.send_replace(Some(heard.clone()));
            return heard;
        }
    }

    /// Asks one server after the other, those that failed lately last, and all of them again while there is time.
    async fn ask_servers(&self, question: &Question) -> Vec<u8> {
        let question = Question { name: question.name.to_lowercase(), ..question.clone() };
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut refusal = ResponseCode::ServFail;
        let deadline = Instant::now() + WHOLE;
        let mut edns = true;
        loop {
            let mut may_answer = false;
            for server in by_trust(&servers) {
                if deadline.saturating_duration_since(Instant::now()) < TOO_LATE {
                    return failure(&question, refusal);
                }
                match self.ask_server(server, &question, edns, deadline).await {
                    Ok(Said::Answer(message)) => {
                        *server.failed() = None;
                        return message;
                    }
                    Ok(Said::Refusal(code)) => refusal = code,
                    Err(error) => {
                        tracing::debug!(server = %server.address, %error, "no answer");
                        *server.failed() = Some(Instant::now());
                        may_answer |= error.kind() == io::ErrorKind::TimedOut;
                    }
                }
            }
            if !may_answer {
                return failure(&question, refusal);
            }
            // Old servers and their like do not answer what they do not know.
            edns = question.dnssec;
        }
    }

    async fn ask_server(
        &self,
        server: &Server,
        question: &Question,
        edns: bool,
        deadline: Instant,
    ) -> io::Result<Said> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut said = timeout(TRY.min(left()), self.ask_by_udp(server.address, question, edns)).await??;
        if edns
            && !question.dnssec
            && matches!(said, Said::Refusal(ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS))
        {
            said = timeout(TRY.min(left()), self.ask_by_udp(server.address, question, false)).await??;
        }
        match &said {
            Said::Answer(message) if wire::is_truncated(message) => {
                // Part of an answer is better than none.
                let whole = timeout(left(), self.ask_by_tcp(server.address, question, edns)).await;
                Ok(whole.ok().and_then(Result::ok).unwrap_or(said))
            }
            _ => Ok(said),
        }
    }

    async fn ask_by_udp(&self, server: SocketAddr, question: &Question, edns: bool) -> io::Result<Said> {
        let any = match server.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        // The kernel chooses a random port, and takes packets from this server alone.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        let id = self.id()?;
        socket.send(&question.query(id, edns)).await?;
        let mut packet = vec![0; PACKET];
        loop {
            let length = socket.recv(&mut packet).await?;
            // Another one may be forged: the right one is still to come.
            if let Some(said) = read(&packet[..length], id, question) {
                return Ok(said);
            }
        }
    }

    async fn ask_by_tcp(&self, server: SocketAddr, question: &Question, edns: bool) -> io::Result<Said> {
        let mut stream = TcpStream::connect(server).await?;
        let id = self.id()?;
        stream.write_all(&framed(&question.query(id, edns))).await?;
        let length = usize::from(stream.read_u16().await?);
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        read(&message, id, question).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn id(&self) -> io::Result<u16> {
        let mut id = [0; 2];
        self.random.fill(&mut id).map_err(|_| io::Error::other("no random numbers"))?;
        Ok(u16::from_ne_bytes(id))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a message says to this question, if it is meant for it.
fn read(message: &[u8], id: u16, question: &Question) -> Option<Said> {
    if !wire::is_response(message, id) {
        return None;
    }
    let code = wire::code(message);
    match code {
        _ if wire::count(message, 0) != 0 && !question.matches(message) => None,
        ResponseCode::NoError | ResponseCode::NXDomain if wire::count(message, 0) == 1 => {
            let mut message = message.to_vec();
            match wire::take_over(&mut message) {
                Some(()) => Some(Said::Answer(message)),
                None => Some(Said::Refusal(ResponseCode::ServFail)),
            }
        }
        // Servers that cannot read a query need not repeat it.
        ResponseCode::NoError | ResponseCode::NXDomain => None,
        code => Some(Said::Refusal(code)),
    }
}

fn by_trust(servers: &[Server]) -> Vec<&Server> {
    let now = Instant::now();
    let mut order: Vec<(&Server, Option<Instant>)> = servers
        .iter()
        .map(|server| (server, server.failed().filter(|at| now.saturating_duration_since(*at) < DISTRUST)))
        .collect();
    order.sort_by_key(|(_, failed)| *failed);
    order.into_iter().map(|(server, _)| server).collect()
}

fn failure(question: &Question, code: ResponseCode) -> Vec<u8> {
    Answer { code, authoritative: false, ..Answer::default() }.encode(question)
}

/// A message as it goes over TCP.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // Messages are no longer.
    let length = message.len() as u16;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    framed
}
