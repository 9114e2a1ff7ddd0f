//! A client of the server's broker without manners: it says whatever it likes, with whatever certificate it has.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish, Subscribe, SubscribeFilter};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use umiak::clock::Clock;
use umiak::link::membership::{Reply, Request, Token, ask, cluster_id};
use umiak::link::mqtt;
use umiak::pki::node::NodeKey;

use crate::common::Netns;

/// Silence after which nothing more is expected.
const SILENCE: Duration = Duration::from_millis(400);

/// A certificate and its key.
pub(crate) struct Papers {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Papers {
    pub(crate) fn of_pem(certificate: &str, key: &str) -> Self {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
        Self { chain, key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap() }
    }

    /// Of a CA made up for it; `name` is the common name.
    pub(crate) fn forged(name: &str) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        Self::of_pem(&leaf.pem(), &key.serialize_pem())
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) packets: Vec<Packet>,
    /// The other side ended the connection.
    pub(crate) ended: bool,
}

impl Heard {
    /// Nothing but refusals: no message of anybody.
    pub(crate) fn no_message(&self) -> bool {
        !self.packets.iter().any(|packet| matches!(packet, Packet::Publish(_)))
    }
}

/// Somebody on the network.
pub(crate) struct Attacker<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) server: String,
    pub(crate) dir: PathBuf,
}

impl Attacker<'_> {
    fn tcp(&self) -> TcpStream {
        let server = self.server.clone();
        let stream = self.netns.within(move || TcpStream::connect(server).unwrap()).join().unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream
    }

    /// A TLS session; the other end may not think so yet.
    pub(crate) fn connect(&self, papers: Option<&Papers>) -> Wire<StreamOwned<ClientConnection, TcpStream>> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let config = match papers {
            Some(papers) => config.with_client_auth_cert(papers.chain(), papers.key()).unwrap(),
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("umiak-server").unwrap();
        Wire::new(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), self.tcp()))
    }

    /// Sends bytes without TLS.
    pub(crate) fn says_in_clear(&self, bytes: &[u8]) -> Heard {
        Wire::new(self.tcp()).says(bytes)
    }

    /// Introduces itself as a client and says something.
    pub(crate) fn says(&self, papers: Option<&Papers>, id: &str, bytes: &[u8]) -> Heard {
        self.connect(papers).says(&[&packet(Packet::Connect(introduction(id))), bytes].concat())
    }

    /// Asks for a certificate with a token, as a board of this name that keeps its key.
    pub(crate) fn joins(&self, token: &Token, name: &str) -> Reply {
        let (token, name, dir) = (token.clone(), name.to_owned(), self.dir.clone());
        let servers = [self.server.clone()];
        let asking = self.netns.within(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (key, clock) = (NodeKey::open(&key_file(&dir, &name)).unwrap(), Clock::open(&dir.join("clock")));
                let csr = STANDARD.encode(key.request().unwrap());
                let secret = Some((token.id.clone(), token.secret.clone()));
                let request = Request { name, name_is_wanted: true, csr, token: secret, pod_cidr: None };
                let cluster = cluster_id(&token.ca);
                let mut stream = mqtt::join(&servers, *token.ca.bytes(), &cluster, clock).await.unwrap();
                ask(&mut stream, &request).await.unwrap()
            })
        });
        asking.join().unwrap()
    }

    /// Becomes a node.
    pub(crate) fn becomes(&self, token: &Token, name: &str) -> Papers {
        let Reply::Granted(granted) = self.joins(token, name) else { panic!("{name} was refused") };
        let key = NodeKey::open(&key_file(&self.dir, name)).unwrap();
        Papers::of_pem(&granted.certificate, &key.pem())
    }
}

fn key_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.key"))
}

/// A connection.
pub(crate) struct Wire<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: Read + Write> Wire<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Says something and listens until the other side ends it or says nothing more.
    pub(crate) fn says(&mut self, bytes: &[u8]) -> Heard {
        // Where the other end hangs up first, what it said can be read all the same.
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).ok();
        let mut packets = Vec::new();
        let ended = loop {
            match Packet::read(&mut self.buffer, 1 << 20) {
                Ok(packet) => packets.push(packet),
                Err(CodecError::InsufficientBytes(_)) => {
                    let mut some = [0; 4096];
                    match self.stream.read(&mut some) {
                        Ok(0) => break true,
                        Ok(length) => self.buffer.extend_from_slice(&some[..length]),
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                            break false;
                        }
                        Err(_) => break true,
                    }
                }
                // Not MQTT: an alert of TLS to who spoke without.
                Err(_) => self.buffer.clear(),
            }
        };
        Heard { packets, ended }
    }
}

pub(crate) fn packet(packet: Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, 1 << 20).unwrap();
    bytes.to_vec()
}

pub(crate) fn introduction(id: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.keep_alive = 60;
    connect
}

pub(crate) fn publish(topic: &str, content: &[u8]) -> Vec<u8> {
    packet(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, content)))
}

pub(crate) fn subscribe(filters: &[String]) -> Vec<u8> {
    let filters = filters.iter().map(|path| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce)).collect();
    packet(Packet::Subscribe(Subscribe { pkid: 7, filters }))
}

/// Trusts whoever answers.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
