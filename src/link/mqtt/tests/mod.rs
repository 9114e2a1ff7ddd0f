#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod authority;
mod chaos;
mod ends;
mod mosquitto;
mod relay;
mod world;

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::DefaultTimeProvider;

pub(crate) use authority::{Authority, Leaf};

use super::tls::{ClientTls, NODE_PREFIX, SERVER_NAME, ServerTls};

impl Authority {
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    /// What a client of this CA with that certificate connects with.
    pub(crate) fn trusting(&self, leaf: Leaf) -> ClientTls {
        ClientTls::new(self.roots(), leaf.chain, leaf.key, Arc::new(DefaultTimeProvider)).unwrap()
    }

    pub(crate) fn node_tls(&self, node: &str) -> ClientTls {
        self.trusting(self.client(&format!("{NODE_PREFIX}{node}")))
    }

    pub(crate) fn server_tls(&self) -> ServerTls {
        ServerTls::new(self.certificate.clone(), resolver(self.server(&[SERVER_NAME])), Arc::new(DefaultTimeProvider))
            .unwrap()
    }
}

pub(crate) fn resolver(leaf: Leaf) -> Arc<dyn ResolvesServerCert> {
    let key = any_supported_type(&leaf.key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(leaf.chain, key)))
}
