//! The way in for those who have no certificate yet.

use std::sync::Arc;

use rustls::time_provider::TimeProvider;
use tokio::io::DuplexStream;
use tokio_rustls::TlsStream;

/// A sealed byte stream between a joining node, that knows the CA's hash, and the server, that knows nothing of it yet.
pub type JoinStream = TlsStream<DuplexStream>;

/// Why no server could be reached.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Of every address tried, what was wrong.
    #[error("no server could be reached: {0}")]
    Unreachable(String),
    /// The configuration was refused.
    #[error(transparent)]
    Tls(#[from] super::tls::TlsError),
}

/// Reaches a server at one of the addresses (`host:port`), whose CA has this certificate (SHA-256 of its DER form).
///
/// The stream ends when it is dropped, by the server when it likes to, and after two minutes.
///
/// # Errors
/// When no address leads to a server of that CA.
pub async fn join(
    addresses: &[String],
    ca_sha256: [u8; 32],
    cluster: &str,
    time: Arc<dyn TimeProvider>,
) -> Result<JoinStream, JoinError> {
    todo!()
}
