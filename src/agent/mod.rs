//! Wiring of the agent role: a node whose server is elsewhere, or out of reach for a year.
//!
//! What the board has to run it knows from its own disk, so the node half starts before anybody is asked. Beside it run
//! the link, which looks for the server for as long as it takes, and [`membership`], which keeps the certificate alive.

mod identity;
mod membership;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::AgentConfig;
use crate::daemon::board::{Board, BoardConfig};
use crate::daemon::{self, Signals, notify, status};
use crate::link::membership::{InvalidToken, Refused, Token, cluster_id};
use crate::link::mqtt::{self, LinkState};
use crate::memory::Trimmer;
use crate::network::reach;
use crate::{clock::Clock, pki};
use identity::Identity;
use membership::Membership;

/// The identity, below the data directory.
const DIRECTORY: &str = "agent";

/// Why the agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What every role needs.
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The identity on disk cannot be used.
    #[error("{path} is damaged: {reason}; `umiak reset` and a new token make a node of this board again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A board is made a node by a token.
    #[error("this board is no node yet: give it a token (`umiak token create` on the server prints one)")]
    NoToken,
    /// The token is no token.
    #[error("--token: {0}")]
    Token(#[from] InvalidToken),
    /// A board is a node of one cluster.
    #[error("the token is of another cluster than {0}, to which this board belongs: `umiak reset` ends that")]
    OtherCluster(String),
    /// The server said no.
    #[error("the server refuses this board: {0}")]
    Refused(Refused),
    /// The server gave the node other addresses than its pods have.
    #[error("the pod network of this node is now {0}: the daemon has to start anew")]
    Renumbered(crate::cidr::Cidr),
}

/// Runs the agent until SIGTERM or SIGINT. Pods go on when it returns.
///
/// # Errors
/// Whatever keeps it from starting, named. That no server is in reach is none.
pub async fn run(config: AgentConfig) -> Result<(), Error> {
    let _lock = daemon::begin(&config.data_dir)?;
    let mut signals = Signals::new()?;
    let directory = config.data_dir.join(DIRECTORY);
    daemon::make_directory(&directory)?;
    let token: Option<Token> = config.token.as_deref().map(str::parse).transpose()?;
    let clock = Clock::open(&directory.join("clock"));
    let membership = tokio::select! {
        opened = Membership::open(&directory, &config, token, clock) => opened?,
        () = signals.next() => return Ok(()),
    };
    let identity = membership.identity();
    tracing::info!(node = identity.name, cluster = identity.cluster(), "this board is a node");
    let board = Board::open(board_config(&config, &identity)).await?;
    let (images, view) = (board.images(), board.view());

    let (changes, network) = watch::channel(0);
    let (node_end, state, link) = mqtt::node(link_config(&config, &identity, &membership, network), membership.tls());
    let mut tasks = JoinSet::new();
    let bridge = config.bridge.clone();
    tasks.spawn(async move {
        reach::follow(&bridge, changes).await;
        Err(daemon::Error::Ended("the watch over the network").into())
    });
    tasks.spawn(async move {
        link.await;
        Err(daemon::Error::Ended("the link").into())
    });
    tasks.spawn(async move {
        board.run(node_end).await;
        Err(daemon::Error::Ended("the node half").into())
    });
    let keeping = membership.clone();
    let link_state = state.clone();
    tasks.spawn(async move { keeping.keep(link_state).await });
    let trimmer = Trimmer::default();
    tokio::spawn(trimmer.clone().run(async || {}));
    trimmer.active();
    let data_dir = config.data_dir.clone();
    let source = move || status::Status {
        role: "agent".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        node: membership.identity().name.clone(),
        cluster: membership.identity().cluster(),
        link: Some(link_status(&membership, &state)),
        connected: Vec::new(),
        pods: view.pods(),
    };
    let told = tokio::spawn(async move { status::serve(&data_dir, Arc::new(source)).await });

    notify("READY=1");
    let ended = tokio::select! {
        Some(ended) = tasks.join_next() => ended.unwrap_or(Err(daemon::Error::Ended("a part").into())),
        () = signals.next() => Ok(()),
    };
    notify("STOPPING=1");
    told.abort();
    tasks.shutdown().await;
    if let Err(error) = images.close() {
        tracing::warn!(%error, "close the image store");
    }
    ended
}

fn board_config(config: &AgentConfig, identity: &Identity) -> BoardConfig {
    BoardConfig {
        data_dir: config.data_dir.clone(),
        name: identity.name.clone(),
        address: None,
        labels: [].into(),
        bridge: config.bridge.clone(),
        pod_cidr: identity.pod_cidr,
        service_cidr: identity.service_cidr,
        cluster_cidr: identity.cluster_cidr,
        vxlan: config.vxlan,
        proxy_balance: config.proxy_balance,
    }
}

fn link_config(
    config: &AgentConfig,
    identity: &Identity,
    membership: &Membership,
    network: watch::Receiver<u64>,
) -> mqtt::NodeConfig {
    mqtt::NodeConfig {
        cluster: cluster_id(&identity.ca_fingerprint),
        node: identity.name.clone(),
        addresses: membership.addresses(),
        network,
        keepalive: Duration::from_secs(config.keepalive.into()),
    }
}

fn link_status(membership: &Membership, state: &watch::Receiver<LinkState>) -> status::Link {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let link = state.borrow().clone();
    status::Link {
        servers: membership.servers().to_vec(),
        address: link.address,
        connected: link.connected.map(seconds),
        last_contact: link.last_contact.map(seconds),
        error: link.error,
        removed: membership.removed(),
        certificate_expires: membership.identity().expires.as_secs(),
        now: membership.now().as_secs(),
    }
}
