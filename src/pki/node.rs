//! The identity of a node: a key it makes itself, and the certificates the CA gives out for it.
//!
//! A node is its key. A certificate only says so for a while, so whoever holds a key the cluster knows gets a new one at
//! any time, an expired one proves nothing less.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::request::CertReq;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::{Ca, Error, leaf_params, read_optional, write};

/// Life of a node's certificate.
pub const NODE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
/// Begins the user names of nodes.
pub const NODE_USER: &str = "system:node:";

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// A SHA-256: of a public key (its SubjectPublicKeyInfo) or of a certificate. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 32]);

/// A text is no [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct InvalidFingerprint;

impl Fingerprint {
    /// Of any bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(hash)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let mut hash = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(InvalidFingerprint);
        }
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| InvalidFingerprint)?;
        }
        Ok(Self(hash))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidFingerprint;

    fn try_from(text: String) -> Result<Self, InvalidFingerprint> {
        text.parse()
    }
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// CN: the Kubernetes user.
    pub common_name: String,
    /// O: the user's groups.
    pub organizations: Vec<String>,
    /// Of the public key.
    pub key: Fingerprint,
}

impl Subject {
    /// Reads a certificate; `None` if it is none. Says nothing about whether to trust it.
    pub fn of(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let key = certificate.tbs_certificate().subject_public_key_info().to_der().ok()?;
        let mut subject = Self { common_name: String::new(), organizations: Vec::new(), key: Fingerprint::of(&key) };
        for attribute in certificate.tbs_certificate().subject().iter() {
            let text = attribute.value.to_der().ok().and_then(|der| text(&der));
            match (attribute.oid, text) {
                (COMMON_NAME, Some(text)) => subject.common_name = text,
                (ORGANIZATION, Some(text)) => subject.organizations.push(text),
                _ => {}
            }
        }
        Some(subject)
    }

    /// The node's name, if this is a node.
    pub fn node(&self) -> Option<&str> {
        let name = self.common_name.strip_prefix(NODE_USER).filter(|name| !name.is_empty());
        name.filter(|_| self.organizations.iter().any(|group| group == NODES))
    }
}

/// When a certificate ends, since 1970; `None` if it is none.
pub fn expiry(der: &[u8]) -> Option<Duration> {
    let certificate = Certificate::from_der(der).ok()?;
    Some(certificate.tbs_certificate().validity().not_after.to_unix_duration())
}

/// The text of a short DER string (UTF8String, PrintableString, IA5String) of less than 256 bytes.
fn text(der: &[u8]) -> Option<String> {
    let content = match der {
        [_, length, rest @ ..] if *length < 0x80 && rest.len() == usize::from(*length) => rest,
        [_, 0x81, length, rest @ ..] if rest.len() == usize::from(*length) => rest,
        _ => return None,
    };
    std::str::from_utf8(content).ok().map(str::to_owned)
}

/// A node's private key.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// Opens the key in a file, making it (0600) where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged: it is never replaced.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let key = match read_optional(path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|e| Error::Damaged { path: path.to_owned(), reason: e.to_string() })?
            }
            None => {
                let failed = |source| Error::Issue { subject: "a node's key".into(), source };
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
                write(path, &key.serialize_pem())?;
                key
            }
        };
        Ok(Self(key))
    }

    /// The public half's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0.subject_public_key_info())
    }

    /// The private key, PKCS#8 PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A request for a certificate (PKCS#10, DER), signed with the key: proof that its sender has it.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        let failed = |source| Error::Issue { subject: "a node".into(), source };
        Ok(params.serialize_request(&self.0).map_err(failed)?.der().to_vec())
    }
}

/// A public key whose holder asked for a certificate.
#[derive(Clone, Debug)]
pub struct ProvenKey {
    point: Vec<u8>,
    fingerprint: Fingerprint,
}

impl ProvenKey {
    /// Reads a request as [`NodeKey::request`] makes it; `None` unless it is signed by the key it names.
    pub fn of(request: &[u8]) -> Option<Self> {
        let request = CertReq::from_der(request).ok()?;
        let info: &SubjectPublicKeyInfoOwned = &request.info.public_key;
        let curve = info.algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
        if info.algorithm.oid != EC_KEY || curve != Some(P256) || request.algorithm.oid != ECDSA_SHA256 {
            return None;
        }
        let point = info.subject_public_key.as_bytes()?.to_vec();
        let signed = request.info.to_der().ok()?;
        let signature = request.signature.as_bytes()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point).verify(&signed, signature).ok()?;
        Some(Self { point, fingerprint: Fingerprint::of(&info.to_der().ok()?) })
    }

    /// The key's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl PublicKeyData for ProvenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Ca {
    /// A certificate for a node's key, PEM, valid for [`NODE_LIFE`] from now.
    ///
    /// # Errors
    /// When signing fails.
    pub fn node(&self, name: &str, key: &ProvenKey) -> Result<String, Error> {
        let user = format!("{NODE_USER}{name}");
        let mut params = leaf_params(&user, &[NODES], NODE_LIFE);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(key, &self.issuer);
        Ok(signed.map_err(|source| Error::Issue { subject: user, source })?.pem())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_node_gets_a_certificate_for_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("pki")).unwrap();
        let path = dir.path().join("node.key");
        let key = NodeKey::open(&path).unwrap();
        assert_eq!(NodeKey::open(&path).unwrap().fingerprint(), key.fingerprint());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let proven = ProvenKey::of(&key.request().unwrap()).unwrap();
        assert_eq!(proven.fingerprint(), key.fingerprint());
        let certificate = ca.node("pi-1", &proven).unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let life = expiry(&certificate).unwrap() - crate::pki::floor_time();
        assert!(life <= NODE_LIFE && life > NODE_LIFE - Duration::from_secs(60), "{life:?}");
        let subject = Subject::of(&certificate).unwrap();
        assert_eq!((subject.node(), subject.key), (Some("pi-1"), key.fingerprint()));
    }

    #[test]
    fn a_request_must_be_signed_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let request = NodeKey::open(&dir.path().join("a")).unwrap().request().unwrap();
        assert!(ProvenKey::of(&request).is_some());
        for at in 0..request.len() {
            let mut forged = request.clone();
            forged[at] ^= 1;
            assert!(ProvenKey::of(&forged).is_none(), "byte {at}");
        }
        assert!(ProvenKey::of(&request[..request.len() - 1]).is_none());
        assert!(ProvenKey::of(b"").is_none());
    }

    #[test]
    fn only_nodes_are_nodes() {
        let subject = |common_name: &str, groups: &[&str]| Subject {
            common_name: common_name.into(),
            organizations: groups.iter().map(ToString::to_string).collect(),
            key: Fingerprint::of(b""),
        };
        for (name, groups, expected) in [
            ("system:node:pi", &[NODES][..], Some("pi")),
            ("system:node:pi", &["system:masters"], None),
            ("system:node:", &[NODES], None),
            ("pi", &[NODES], None),
        ] {
            assert_eq!(subject(name, groups).node(), expected, "{name}");
        }
    }

    #[test]
    fn fingerprints_are_read_as_written() {
        let fingerprint = Fingerprint::of(b"x");
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        for text in ["", "ab", &"x".repeat(64), &"é".repeat(32)] {
            assert_eq!(text.parse::<Fingerprint>(), Err(InvalidFingerprint), "{text}");
        }
    }
}
