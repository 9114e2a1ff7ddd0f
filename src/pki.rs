//! The cluster CA and the certificates it signs.
//!
//! Boards without a clock battery boot in the past, so every certificate is valid from 1970 on, and its end is counted
//! from a time that is never before this release. The server's certificate is issued in memory and replaced while
//! running: when two thirds of its life are over, or when a connection arrives at an address it does not name. [`node`] has the
//! identities of nodes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::clock::RELEASE_TIME;
use crate::files;

pub mod node;
pub mod trusting;

pub use node::Fingerprint;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// Life of a client certificate that lies beside the CA's own key: whoever can read it could sign a new one.
const ADMIN_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const SERVER_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Addresses one server certificate names at most; a host with more is served by the names it had first.
const MAX_ADDRESSES: usize = 64;

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{operation} {path}: {source}")]
    File {
        /// `read` or `write`.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A stored key or certificate does not parse.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Making or signing a certificate failed.
    #[error("issue certificate for {subject}: {source}")]
    Issue {
        /// Common name.
        subject: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// rustls refused the configuration.
    #[error("TLS configuration: {0}")]
    Tls(String),
}

/// A certificate and its key, PEM.
pub struct Identity {
    /// Certificate.
    pub certificate: String,
    /// PKCS#8 private key.
    pub key: String,
}

/// The cluster's certificate authority, kept in a directory of its own (0700).
pub struct Ca {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Opens the CA in `directory`, making it (and the directory) at the first start.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is damaged. Nothing that exists is replaced: a new CA would lock out
    /// every client of the old one.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let (key_path, cert_path) = (directory.join("ca.key"), directory.join("ca.crt"));
        let failed = |source| Error::File { operation: "make directory", path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let key = match read_optional(&key_path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|e| Error::Damaged { path: key_path.clone(), reason: e.to_string() })?
            }
            None => {
                let key = KeyPair::generate().map_err(|source| Error::Issue { subject: "umiak-ca".into(), source })?;
                write(&key_path, &key.serialize_pem())?;
                key
            }
        };
        let issuer = Issuer::new(ca_params(), key);
        let certificate = match read_optional(&cert_path)? {
            Some(pem) if pem.contains("BEGIN CERTIFICATE") => pem,
            Some(_) => return Err(Error::Damaged { path: cert_path, reason: "no certificate in it".into() }),
            None => {
                let pem = ca_params()
                    .self_signed(issuer.key())
                    .map_err(|source| Error::Issue { subject: "umiak-ca".into(), source })?
                    .pem();
                write(&cert_path, &pem)?;
                pem
            }
        };
        Ok(Self { certificate, issuer })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Of the certificate: what a node that joins knows the cluster by.
    ///
    /// # Errors
    /// When the certificate on disk is damaged.
    pub fn fingerprint(&self) -> Result<Fingerprint, Error> {
        fingerprint(&self.certificate)
    }

    /// A client certificate: `user` is the Kubernetes user name (CN), `groups` its groups (O).
    ///
    /// # Errors
    /// When the key cannot be made or the certificate not be signed.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, Error> {
        let mut params = leaf_params(user, groups, ADMIN_LIFE);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(user, &params)
    }

    /// A certificate for an MQTT broker on these hosts (names or addresses), good for ten years: nobody renews it.
    ///
    /// # Errors
    /// When a name is not valid.
    pub fn broker(&self, hosts: &[String]) -> Result<Identity, Error> {
        let (addresses, names) = hosts.iter().cloned().partition::<Vec<String>, _>(|h| h.parse::<IpAddr>().is_ok());
        let addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        self.serving("umiak-broker", ADMIN_LIFE, &names, &addresses)
    }

    fn server(&self, names: &[String], addresses: &BTreeSet<IpAddr>) -> Result<Identity, Error> {
        self.serving("umiak-server", SERVER_LIFE, names, addresses)
    }

    fn serving(
        &self,
        subject: &str,
        life: Duration,
        names: &[String],
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<Identity, Error> {
        let mut params = leaf_params(subject, &[], life);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            let name = name.as_str().try_into().map_err(|source| Error::Issue { subject: name.clone(), source })?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(subject, &params)
    }

    fn sign(&self, subject: &str, params: &CertificateParams) -> Result<Identity, Error> {
        let failed = |source| Error::Issue { subject: subject.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn ca_params() -> CertificateParams {
    let mut params = leaf_params("umiak-ca", &[], CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf_params(common_name: &str, organizations: &[&str], life: Duration) -> CertificateParams {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = UNIX_EPOCH.into();
    params.not_after = (UNIX_EPOCH + floor_time() + life).into();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

/// Of the first certificate in a PEM text.
///
/// # Errors
/// When there is none.
pub fn fingerprint(pem: &str) -> Result<Fingerprint, Error> {
    let certificates = pem_certificates(pem)?;
    let first = certificates.first().ok_or_else(|| Error::Tls("there is no certificate in the text".into()))?;
    Ok(Fingerprint::of(first))
}

/// The time, but never before this release.
pub fn floor_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().max(RELEASE_TIME)
}

fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { operation: "read", path: path.to_owned(), source }),
    }
}

fn write(path: &Path, data: &str) -> Result<(), Error> {
    files::replace(path, data.as_bytes()).map_err(|source| Error::File {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

/// The server's side of TLS: its certificate, which follows the host's addresses, and who may connect.
pub struct ServerTls {
    ca: Arc<Ca>,
    names: Vec<String>,
    clients: Arc<dyn ClientCertVerifier>,
    current: Mutex<Current>,
}

struct Current {
    addresses: BTreeSet<IpAddr>,
    key: Arc<CertifiedKey>,
    renew_after: Duration,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A certificate for these DNS names and addresses. More addresses are added as connections arrive at them.
    ///
    /// # Errors
    /// When no certificate can be issued.
    pub fn new(
        ca: Arc<Ca>,
        names: Vec<String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Arc<Self>, Error> {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().take(MAX_ADDRESSES).collect();
        let current = Current { key: certified(&ca, &names, &addresses)?, addresses, renew_after: renewal() };
        let clients = client_verifier(&ca)?;
        Ok(Arc::new(Self { ca, names, clients, current: Mutex::new(current) }))
    }

    /// Makes sure that the certificate names `address`, at which a connection has arrived.
    pub fn arrived_at(&self, address: IpAddr) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let known = current.addresses.contains(&address) || current.addresses.len() >= MAX_ADDRESSES;
        if known && floor_time() < current.renew_after {
            return;
        }
        current.addresses.insert(address);
        match certified(&self.ca, &self.names, &current.addresses) {
            Ok(key) => {
                current.key = key;
                current.renew_after = renewal();
            }
            Err(error) => tracing::error!(%error, "renew the server certificate"),
        }
    }

    /// Whether a client's certificate chain is of this CA and valid now.
    pub fn trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((end, intermediates)) = chain.split_first() else { return false };
        self.clients.verify_client_cert(end, intermediates, UnixTime::now()).is_ok()
    }

    /// The rustls configuration: TLS 1.3, ALPN `h2` and `http/1.1`. Client certificates are asked for, not required, and
    /// only proven to be the client's own: whether they count is for [`ServerTls::trusts`] to say.
    ///
    /// # Errors
    /// When rustls refuses it.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let tls = |e: &dyn std::fmt::Display| Error::Tls(e.to_string());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(Arc::new(AnyClient(self.clients.clone())))
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Session tickets of the default configuration keep a cache of full sessions; a stateless ticketer would
        // resume clients whose certificate has been revoked since.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// The certificates in a PEM text as those to trust.
///
/// # Errors
/// When one is not readable.
pub fn roots(pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in pem_certificates(pem)? {
        roots.add(certificate).map_err(|e| Error::Tls(e.to_string()))?;
    }
    Ok(Arc::new(roots))
}

fn client_verifier(ca: &Ca) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(roots(&ca.certificate)?, Arc::new(default_provider()))
        .build()
        .map_err(|e| Error::Tls(e.to_string()))
}

/// Lets every client through the handshake, as Kubernetes does: one with a certificate of another CA is to read 401 with
/// a `Status`, not a TLS alert.
#[derive(Debug)]
struct AnyClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }
}

impl ResolvesServerCert for ServerTls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.lock().unwrap_or_else(PoisonError::into_inner).key.clone())
    }
}

fn renewal() -> Duration {
    floor_time() + SERVER_LIFE / 3 * 2 - DAY
}

fn certified(ca: &Ca, names: &[String], addresses: &BTreeSet<IpAddr>) -> Result<Arc<CertifiedKey>, Error> {
    let identity = ca.server(names, addresses)?;
    let tls = |e: &dyn std::fmt::Display| Error::Tls(e.to_string());
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(identity.key.as_bytes());
    let key: PrivateKeyDer<'static> = key.map_err(|e| tls(&e))?;
    let key = any_supported_type(&key).map_err(|e| tls(&e))?;
    Ok(Arc::new(CertifiedKey::new(pem_certificates(&identity.certificate)?, key)))
}

/// The certificates in a PEM text.
///
/// # Errors
/// When one is not readable.
pub fn pem_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| Error::Tls(e.to_string()))
}

/// A kubeconfig that logs in with a client certificate.
pub fn kubeconfig(cluster: &str, server: &str, ca: &str, user: &str, identity: &Identity) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (ca, certificate, key) =
        (STANDARD.encode(ca), STANDARD.encode(&identity.certificate), STANDARD.encode(&identity.key));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\ncontexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    \
         user: {user}\ncurrent-context: {cluster}\npreferences: {{}}\nusers:\n- name: {user}\n  user:\n    \
         client-certificate-data: {certificate}\n    client-key-data: {key}\n"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_reopened_ca_is_the_same_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("pki");
        let first = Ca::open(&pki).unwrap().certificate().to_owned();
        assert_eq!(Ca::open(&pki).unwrap().certificate(), first);
        assert_eq!(fs::metadata(pki.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_ca_is_named_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        Ca::open(directory.path()).unwrap();
        fs::write(directory.path().join("ca.key"), "x").unwrap();
        let error = Ca::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains("ca.key is damaged"), "{error}");
        assert_eq!(fs::read_to_string(directory.path().join("ca.key")).unwrap(), "x");
    }

    #[test]
    fn only_certificates_of_this_ca_are_trusted() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (Arc::new(Ca::open(ours.path()).unwrap()), Ca::open(theirs.path()).unwrap());
        let tls = ServerTls::new(ours.clone(), vec!["localhost".into()], []).unwrap();
        let chain = |ca: &Ca| pem_certificates(&ca.client("a", &["system:masters"]).unwrap().certificate).unwrap();
        assert!(tls.trusts(&chain(&ours)));
        assert!(!tls.trusts(&chain(&theirs)));
        assert!(!tls.trusts(&[]));
    }

    #[test]
    fn a_new_address_is_added_to_the_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open(directory.path()).unwrap());
        let tls = ServerTls::new(ca, vec!["localhost".into()], ["127.0.0.1".parse().unwrap()]).unwrap();
        tls.config().unwrap();
        let key = |tls: &ServerTls| tls.current.lock().unwrap().key.clone();
        let before = key(&tls);
        tls.arrived_at("127.0.0.1".parse().unwrap());
        assert!(Arc::ptr_eq(&before, &key(&tls)));
        tls.arrived_at("192.0.2.7".parse().unwrap());
        assert!(!Arc::ptr_eq(&before, &key(&tls)));
    }
}
