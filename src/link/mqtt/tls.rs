//! TLS of the link: two sessions, one inside the other.
//!
//! The outer one is between a client and its broker, which may be anybody's. The inner one is between node and server:
//! what the broker carries are its records. Both are TLS 1.3 with certificates of the cluster's CA. A node does not look
//! at the broker's name; it does insist that the inner session's other end is [`SERVER_NAME`].

use std::fmt::{Debug, Display};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};

/// The DNS name that the certificate of the cluster's server carries, and no other certificate of its CA.
pub const SERVER_NAME: &str = "umiak-server";
/// What a client that joins calls the server in the handshake: it is shown the CA's certificate too.
const JOIN_NAME: &str = "umiak-join";
/// The common name of the certificate with which the server goes to a broker that is not its own.
pub const SERVER_USER: &str = "system:umiak-server";
/// The common name of a node's certificate is this and the node's name.
pub const NODE_PREFIX: &str = "system:node:";

/// rustls or webpki refused a key, a certificate or a configuration.
#[derive(Debug, thiserror::Error)]
#[error("TLS of the link: {0}")]
pub struct TlsError(String);

impl TlsError {
    /// From the words of whoever refused.
    pub fn of(cause: impl Display) -> Self {
        Self(cause.to_string())
    }
}

/// Both sessions as a client sees them.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(super) outer: Arc<ClientConfig>,
    pub(super) inner: Arc<ClientConfig>,
}

impl ClientTls {
    /// For a client with a certificate: a node, or the server at an external broker (which has no use for `inner`).
    ///
    /// # Errors
    /// When key and certificate do not fit together.
    pub fn new(
        roots: Arc<RootCertStore>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        time: Arc<dyn TimeProvider>,
    ) -> Result<Self, TlsError> {
        let build = |name| {
            let trust = Trust::Roots { roots: roots.clone(), name };
            let config = client(trust, time.clone())?.with_client_auth_cert(chain.clone(), key.clone_key());
            config.map(small).map_err(TlsError::of)
        };
        Ok(Self { outer: build(None)?, inner: build(Some(server_name()))? })
    }

    #[cfg(test)]
    pub(crate) fn outer_config(&self) -> Arc<ClientConfig> {
        self.outer.clone()
    }

    /// For a client without one that knows only the SHA-256 of the CA's certificate (DER).
    ///
    /// # Errors
    /// When rustls refuses it.
    pub(crate) fn join(ca_sha256: [u8; 32], time: Arc<dyn TimeProvider>) -> Result<Self, TlsError> {
        let build = |trust| Ok(small(client(trust, time.clone())?.with_no_client_auth()));
        Ok(Self { outer: build(Trust::Anybody)?, inner: build(Trust::Pinned(ca_sha256))? })
    }
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client(trust: Trust, time: Arc<dyn TimeProvider>) -> Result<WantsClientCert, TlsError> {
    let provider = Arc::new(default_provider());
    let verifier = Verifier { trust, provider: provider.clone() };
    Ok(ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::of)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn small(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::in_memory_sessions(2);
    Arc::new(config)
}

/// The name to ask for in a handshake.
pub(super) fn server_name() -> ServerName<'static> {
    constant(SERVER_NAME)
}

/// The name to ask for in the handshake of a join.
pub(super) fn join_name() -> ServerName<'static> {
    constant(JOIN_NAME)
}

fn constant(name: &'static str) -> ServerName<'static> {
    match ServerName::try_from(name) {
        Ok(name) => name,
        Err(_) => ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
    }
}

/// The sessions as the server sees them.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Clients at the built-in broker: with a certificate of the CA, or without any, to join.
    pub(crate) broker: Arc<ServerConfig>,
    /// Nodes: with a certificate.
    pub(super) inner: Arc<ServerConfig>,
    /// Those who join: without.
    pub(super) join: Arc<ServerConfig>,
}

impl ServerTls {
    /// `ca` is the cluster's only root; `certificate` must name [`SERVER_NAME`].
    ///
    /// # Errors
    /// When the CA's certificate is damaged.
    pub fn new(
        ca: CertificateDer<'static>,
        certificate: Arc<dyn ResolvesServerCert>,
        time: Arc<dyn TimeProvider>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(TlsError::of)?;
        let roots = Arc::new(roots);
        let verifier = || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let resolver = Arc::new(WithCa { inner: certificate, ca });
        let build = |verifier| {
            let mut config = ServerConfig::builder_with_details(provider.clone(), time.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(TlsError::of)?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(resolver.clone());
            // Sessions live in their tickets, not in this process. Whoever resumes one shows his certificate by it, so
            // that revocation is judged as ever.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.ticketer = Ticketer::new().map_err(TlsError::of)?;
            config.send_tls13_tickets = 1;
            Ok::<_, TlsError>(config)
        };
        let broker = build(verifier().allow_unauthenticated().build().map_err(TlsError::of)?)?;
        let inner = build(verifier().build().map_err(TlsError::of)?)?;
        let mut join = build(WebPkiClientVerifier::no_client_auth())?;
        join.send_tls13_tickets = 0;
        Ok(Self { broker: Arc::new(broker), inner: Arc::new(inner), join: Arc::new(join) })
    }
}

/// Adds the CA's certificate to the chain for those who know no more of it than its hash.
#[derive(Debug)]
struct WithCa {
    inner: Arc<dyn ResolvesServerCert>,
    ca: CertificateDer<'static>,
}

impl ResolvesServerCert for WithCa {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let joins = hello.server_name() == Some(JOIN_NAME);
        let key = self.inner.resolve(hello)?;
        if !joins {
            return Some(key);
        }
        let mut with_ca = CertifiedKey::clone(&key);
        with_ca.cert.push(self.ca.clone());
        Some(Arc::new(with_ca))
    }
}

/// Whom a client takes for the other end.
#[derive(Debug)]
enum Trust {
    /// Certificates of these roots, with this name if any.
    Roots { roots: Arc<RootCertStore>, name: Option<ServerName<'static>> },
    /// [`SERVER_NAME`] by the CA of this hash, which is part of the chain.
    Pinned([u8; 32]),
    /// Whoever carries the messages of an inner session that trusts less.
    Anybody,
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned;
        let (roots, name) = match &self.trust {
            Trust::Anybody => return Ok(ServerCertVerified::assertion()),
            Trust::Roots { roots, name } => (&**roots, name.clone()),
            Trust::Pinned(hash) => {
                let is = |c: &&CertificateDer<'_>| ring::digest::digest(&ring::digest::SHA256, c).as_ref() == hash;
                let ca = intermediates.iter().find(is).ok_or(CertificateError::UnknownIssuer)?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                pinned = roots;
                (&pinned, Some(server_name()))
            }
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        if let Some(name) = &name {
            rustls::client::verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The node a certificate was made for, by its common name. The caller has verified the certificate.
pub fn node_name(certificate: &CertificateDer<'_>) -> Option<String> {
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    let certificate = Certificate::from_der(certificate).ok()?;
    let subject = certificate.tbs_certificate().subject().clone();
    let name = subject.iter().find(|attribute| attribute.oid == COMMON_NAME)?;
    let value = name.value.to_der().ok()?;
    let text = x509_cert::der::asn1::AnyRef::from_der(&value).ok()?;
    let name = std::str::from_utf8(text.value()).ok()?.strip_prefix(NODE_PREFIX)?;
    (!name.is_empty()).then(|| name.to_owned())
}
