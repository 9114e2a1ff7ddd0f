//! The HTTP server: listener, authentication, routing by the kind table, content negotiation, verbs, watch, streams.
//!
//! A request passes through one file after the other: [`listen`] (connection, TLS), [`identity`] (who), [`request`]
//! (what is asked for), [`limits`] (whether now), [`verbs`] (doing it through the [`Registry`]), [`reply`] (how the
//! answer is written).

mod body;
mod discovery;
mod health;
mod identity;
mod limits;
mod listen;
mod metrics;
mod openapi;
mod pods;
mod proxy;
mod query;
mod reply;
mod request;
mod reviews;
mod route;
pub mod stream;
mod subresource;
mod table;
mod verbs;
mod watch;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use crate::kinds::status::Status;
use crate::link::stream::{Stream, StreamRequest};
use crate::registry::Registry;

pub use identity::User;

/// A boxed future, for trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens byte streams to pods, wherever they run.
pub trait PodStreams: Send + Sync {
    /// A stream to a pod on a node; an error names what is missing.
    fn open<'a>(&'a self, node: &'a str, request: StreamRequest) -> BoxFuture<'a, Result<Stream, Status>>;
}

/// Judges a client's certificate chain.
pub type Trusted = dyn Fn(&[CertificateDer<'_>]) -> bool + Send + Sync;

/// Bounds and parts of an API server.
pub struct Options {
    /// Server certificate, client certificates, ALPN.
    pub tls: Arc<ServerConfig>,
    /// Told the local address of every connection before its handshake, so that the certificate can follow it.
    pub arrived: Arc<dyn Fn(IpAddr) + Send + Sync>,
    /// Whether a client's certificate chain counts; the handshake has only proven that the client holds its key.
    pub trusted: Arc<Trusted>,
    /// Streams to pods.
    pub streams: Arc<dyn PodStreams>,
    /// Most connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Most requests at a time that change something; more are answered 429.
    pub max_mutating: usize,
    /// Most other requests at a time, watches and streams not counted.
    pub max_readonly: usize,
}

impl Options {
    /// The bounds of a small board.
    pub fn new(tls: Arc<ServerConfig>, trusted: Arc<Trusted>, streams: Arc<dyn PodStreams>) -> Self {
        Self {
            tls,
            trusted,
            arrived: Arc::new(|_| ()),
            streams,
            max_connections: 4096,
            max_mutating: 400,
            max_readonly: 800,
        }
    }
}

/// An API server over a registry.
pub struct Api {
    registry: Registry,
    streams: Arc<dyn PodStreams>,
    arrived: Arc<dyn Fn(IpAddr) + Send + Sync>,
    trusted: Arc<Trusted>,
    tls: Arc<ServerConfig>,
    limits: limits::Limits,
    stopping: tokio::sync::watch::Sender<bool>,
}

impl Api {
    /// An API server; [`Api::serve`] starts it.
    pub fn new(registry: Registry, options: Options) -> Arc<Self> {
        Arc::new(Self {
            registry,
            streams: options.streams,
            arrived: options.arrived,
            trusted: options.trusted,
            tls: options.tls,
            limits: limits::Limits::new(options.max_connections, options.max_mutating, options.max_readonly),
            stopping: tokio::sync::watch::Sender::new(false),
        })
    }
}
