//! Who this board is, on its own disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::time_provider::TimeProvider;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::cidr::Cidr;
use crate::daemon;
use crate::link::membership::{Granted, cluster_id};
use crate::link::mqtt::tls::ClientTls;
use crate::pki::{self, Fingerprint, pem_certificates};

const FILE: &str = "identity.json";

/// A node's identity but for its key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The node's name.
    pub(super) name: String,
    /// The addresses of its pods.
    pub(super) pod_cidr: Cidr,
    /// Network of the Services.
    pub(super) service_cidr: Cidr,
    /// Network of the pods.
    pub(super) cluster_cidr: Cidr,
    /// Of the CA's certificate.
    pub(super) ca_fingerprint: Fingerprint,
    /// End of its certificate, since 1970.
    pub(super) expires: Duration,
    /// Where its server was when it joined.
    pub(super) servers: Vec<String>,
    granted: Granted,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    servers: Vec<String>,
    #[serde(flatten)]
    granted: Granted,
}

impl Identity {
    /// What a server granted, if it makes sense.
    pub(super) fn new(granted: Granted, servers: Vec<String>) -> Result<Self, pki::Error> {
        let certificate = pem_certificates(&granted.certificate)?;
        let expires = certificate.first().and_then(|der| pki::node::expiry(der));
        Ok(Self {
            name: granted.name.clone(),
            pod_cidr: granted.pod_cidr,
            service_cidr: granted.service_cidr,
            cluster_cidr: granted.cluster_cidr,
            ca_fingerprint: pki::fingerprint(&granted.ca)?,
            expires: expires.ok_or_else(|| pki::Error::Tls("the certificate is not readable".into()))?,
            servers,
            granted,
        })
    }

    /// Reads the identity kept in a directory; `None` if there is none yet.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(FILE);
        let damaged = |path: &PathBuf, reason: String| Error::Damaged { path: path.clone(), reason };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(daemon::Error::DataDir { path, source }.into()),
        };
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| damaged(&path, e.to_string()))?;
        Self::new(stored.granted, stored.servers).map(Some).map_err(|e| damaged(&path, e.to_string()))
    }

    /// Keeps it.
    pub(super) fn save(&self, directory: &Path) -> Result<(), Error> {
        let stored = Stored { servers: self.servers.clone(), granted: self.granted.clone() };
        let text = serde_json::to_string(&stored).unwrap_or_default();
        Ok(daemon::keep(directory.join(FILE), &text)?)
    }

    /// Where the link is: at the broker the server named, or else at one of these servers.
    pub(super) fn link_addresses(&self, servers: &[String]) -> Vec<String> {
        self.granted.broker.clone().map_or_else(|| servers.to_vec(), |broker| vec![broker])
    }

    /// Identifier of the cluster.
    pub(super) fn cluster(&self) -> String {
        cluster_id(&self.ca_fingerprint)
    }

    /// Both TLS sessions of the link with this identity and its key.
    pub(super) fn tls(&self, key_pem: &str, time: Arc<dyn TimeProvider>) -> Result<ClientTls, pki::Error> {
        let failed = |error: &dyn std::fmt::Display| pki::Error::Tls(error.to_string());
        let chain = pem_certificates(&self.granted.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| failed(&e))?;
        ClientTls::new(pki::roots(&self.granted.ca)?, chain, key, time).map_err(|e| failed(&e))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::Clock;
    use crate::pki::Ca;
    use crate::pki::node::{NodeKey, ProvenKey};

    fn granted(ca: &Ca, key: &NodeKey) -> Granted {
        let proven = ProvenKey::of(&key.request().unwrap()).unwrap();
        Granted {
            name: "pi".into(),
            certificate: ca.node("pi", &proven).unwrap(),
            ca: ca.certificate().to_owned(),
            time: 0,
            pod_cidr: "10.42.1.0/24".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            broker: None,
        }
    }

    #[test]
    fn an_identity_is_kept_and_fits_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("pki")).unwrap();
        let key = NodeKey::open(&dir.path().join("node.key")).unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
        let identity = Identity::new(granted(&ca, &key), vec!["192.0.2.1:8883".into()]).unwrap();
        identity.save(dir.path()).unwrap();
        let loaded = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!((&loaded.name, &loaded.servers), (&identity.name, &identity.servers));
        assert_eq!(loaded.ca_fingerprint, ca.fingerprint().unwrap());
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let clock = Clock::open(&dir.path().join("clock"));
        loaded.tls(&key.pem(), clock.clone()).unwrap();
        let other = NodeKey::open(&dir.path().join("other.key")).unwrap();
        assert!(loaded.tls(&other.pem(), clock).is_err());
    }

    #[test]
    fn a_damaged_identity_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", "nonsense"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains("identity.json is damaged") && error.contains("umiak reset"), "{error}");
        }
        let ca = Ca::open(&dir.path().join("pki")).unwrap();
        let key = NodeKey::open(&dir.path().join("node.key")).unwrap();
        for granted in [
            Granted { certificate: String::new(), ..granted(&ca, &key) },
            Granted { ca: "x".into(), ..granted(&ca, &key) },
        ] {
            assert!(Identity::new(granted, Vec::new()).is_err());
        }
    }
}
