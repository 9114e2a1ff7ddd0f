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
