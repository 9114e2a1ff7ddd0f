//! A broker that went over to somebody else: it has a good certificate, passes everything on, keeps a copy of it, and
//! harms what it is told to.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode};
use rumqttc::mqttbytes::{Error as CodecError, QoS, matches};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::attacker::{Papers, packet};
use crate::common::Netns;

/// What is done to the next message whose topic ends as given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Harm {
    Flip,
    Truncate,
    /// Cut down to a few bytes.
    Behead,
    Repeat,
    /// The one after it goes first.
    Swap,
    Swallow,
}

type Message = (String, Bytes);

#[derive(Default)]
struct State {
    clients: HashMap<u64, (Vec<String>, mpsc::UnboundedSender<Packet>)>,
    harm: Option<(&'static str, Harm)>,
    held: Option<Message>,
    copies: Vec<Message>,
}

pub(crate) struct HostileBroker {
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl HostileBroker {
    /// Listens in a namespace, with the certificate in a directory.
    pub(crate) fn start(netns: &Netns, address: &str, certificates: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(certificates.join(name)).unwrap();
        Self::with(netns, address, &Papers::of_pem(&read("tls.crt"), &read("tls.key")))
    }

    pub(crate) fn with(netns: &Netns, address: &str, papers: &Papers) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(papers.chain(), papers.key())
            .unwrap();
        let (state, (stop, stopped)) = (Arc::new(Mutex::default()), oneshot::channel());
        let (shared, address) = (state.clone(), address.to_owned());
        let thread = netns.within(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await.unwrap();
                tokio::select! {
                    () = listen(listener, TlsAcceptor::from(Arc::new(config)), shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { state, stop: Some(stop), thread: Some(thread) }
    }

    /// Harms the next message whose topic ends so.
    pub(crate) fn harm(&self, topic: &'static str, harm: Harm) {
        self.state.lock().unwrap().harm = Some((topic, harm));
    }

    /// Whether that has been done.
    pub(crate) fn has_harmed(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.harm.is_none() && state.held.is_none()
    }

    /// All it has carried.
    pub(crate) fn copies(&self) -> Vec<Message> {
        self.state.lock().unwrap().copies.clone()
    }

    /// Sends a message of its own making.
    pub(crate) fn sends(&self, topic: &str, content: &[u8]) {
        self.state.lock().unwrap().deliver(topic, Bytes::copy_from_slice(content));
    }
}

impl Drop for HostileBroker {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().ok();
    }
}

impl State {
    fn deliver(&self, topic: &str, content: Bytes) {
        for (filters, to) in self.clients.values() {
            if filters.iter().any(|filter| matches(topic, filter)) {
                to.send(Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, content.clone()))).ok();
            }
        }
    }

    fn carry(&mut self, topic: String, content: Bytes) {
        self.copies.push((topic.clone(), content.clone()));
        let Some((_, harm)) = self.harm.filter(|(end, _)| topic.ends_with(end)) else {
            return self.deliver(&topic, content);
        };
        if harm == Harm::Swap && self.held.is_none() {
            self.held = Some((topic, content));
            return;
        }
        self.harm = None;
        let mut changed = content.to_vec();
        match harm {
            Harm::Flip => *changed.last_mut().unwrap() ^= 4,
            Harm::Truncate => changed.truncate(changed.len() - 1),
            Harm::Behead => changed.truncate(7),
            Harm::Repeat => self.deliver(&topic, content),
            Harm::Swallow => return,
            Harm::Swap => {}
        }
        self.deliver(&topic, changed.into());
        if let Some((topic, content)) = self.held.take() {
            self.deliver(&topic, content);
        }
    }
}

async fn listen(listener: TcpListener, tls: TlsAcceptor, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    for number in 0.. {
        let (tcp, _) = listener.accept().await.unwrap();
        connections.spawn(serve(number, tcp, tls.clone(), state.clone()));
    }
}

async fn serve(number: u64, tcp: TcpStream, tls: TlsAcceptor, state: Arc<Mutex<State>>) -> Option<()> {
    let (mut from, mut to) = tokio::io::split(tls.accept(tcp).await.ok()?);
    let (answers, mut out) = mpsc::unbounded_channel();
    state.lock().unwrap().clients.insert(number, (Vec::new(), answers.clone()));
    let mut will = None;
    let write = async {
        while let Some(said) = out.recv().await {
            to.write_all(&packet(said)).await.ok()?;
            to.flush().await.ok()?;
        }
        Some(())
    };
    let read = async {
        let mut buffer = BytesMut::new();
        loop {
            let said = match Packet::read(&mut buffer, 1 << 20) {
                Ok(said) => said,
                Err(CodecError::InsufficientBytes(_)) => match from.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return Some(()),
                    Ok(_) => continue,
                },
                Err(_) => return Some(()),
            };
            match said {
                Packet::Connect(connect) => {
                    will = connect.last_will;
                    answers.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).ok()?;
                }
                Packet::Subscribe(asked) => {
                    let granted = vec![SubscribeReasonCode::Success(QoS::AtMostOnce); asked.filters.len()];
                    let mut state = state.lock().unwrap();
                    let filters = &mut state.clients.get_mut(&number).unwrap().0;
                    filters.extend(asked.filters.into_iter().map(|filter| filter.path));
                    answers.send(Packet::SubAck(SubAck::new(asked.pkid, granted))).ok()?;
                }
                Packet::Publish(said) => {
                    if said.qos == QoS::AtLeastOnce {
                        answers.send(Packet::PubAck(PubAck::new(said.pkid))).ok()?;
                    }
                    state.lock().unwrap().carry(said.topic, said.payload);
                }
                Packet::PingReq => answers.send(Packet::PingResp).ok()?,
                _ => return Some(()),
            }
        }
    };
    tokio::select! {
        _ = write => {}
        _ = read => {}
    }
    let mut state = state.lock().unwrap();
    state.clients.remove(&number);
    if let Some(will) = will {
        state.carry(will.topic, will.message);
    }
    Some(())
}
