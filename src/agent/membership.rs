//! Becoming a node, and staying one: asks the server for certificates over the way in that needs none.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Error;
use super::identity::Identity;
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::link::membership::{Reason, Refused, Reply, Request, Token, ask, cluster_id};
use crate::link::mqtt::tls::TlsError;
use crate::link::mqtt::{self, LinkState, TlsProvider};
use crate::pki::Fingerprint;
use crate::pki::node::{NODE_LIFE, NodeKey};

/// Between attempts to reach a server: from the first to the last of these, doubling.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A link that fails for this long may fail for the certificate; asked again ever more seldom, down to [`SELDOM`].
const DOUBT: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(600);
/// At most so long between two looks at the clock, which a server may have set since.
const LOOK: Duration = Duration::from_secs(24 * 3600);
/// A renewal in good time that failed is tried again after this long.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// A board's membership in its cluster.
pub(super) struct Membership {
    directory: PathBuf,
    key: NodeKey,
    key_pem: String,
    clock: Arc<Clock>,
    servers: Vec<String>,
    /// Where the link is to be looked for; a server may name another place.
    addresses: watch::Sender<Vec<String>>,
    token: Option<Token>,
    state: Mutex<State>,
}

struct State {
    identity: Arc<Identity>,
    /// The server does not know this node any more.
    removed: bool,
}

/// Why the server gave no certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    NoAnswer(String),
    #[error(transparent)]
    Here(#[from] Error),
}

/// Whom to ask, and by what name.
struct Asking<'a> {
    key: &'a NodeKey,
    clock: &'a Arc<Clock>,
    servers: &'a [String],
    ca: Fingerprint,
}

impl Membership {
    /// Takes up the identity on disk; joins where there is none, for as long as it takes.
    pub(super) async fn open(
        directory: &Path,
        config: &AgentConfig,
        token: Option<Token>,
        clock: Arc<Clock>,
    ) -> Result<Arc<Self>, Error> {
        let directory = directory.to_owned();
        let key = NodeKey::open(&directory.join("node.key"))?;
        let identity = match (Identity::load(&directory)?, &token) {
            (Some(identity), Some(token)) if token.ca != identity.ca_fingerprint => {
                return Err(Error::OtherCluster(identity.cluster()));
            }
            (Some(identity), _) => identity,
            (None, None) => return Err(Error::NoToken),
            (None, Some(token)) => {
                let servers = if config.server.is_empty() { &token.servers } else { &config.server };
                let asking = Asking { key: &key, clock: &clock, servers, ca: token.ca };
                let identity = asking.join(config, token).await?;
                identity.save(&directory)?;
                identity
            }
        };
        let servers = if config.server.is_empty() { identity.servers.clone() } else { config.server.clone() };
        let addresses = watch::Sender::new(identity.link_addresses(&servers));
        let state = Mutex::new(State { identity: Arc::new(identity), removed: false });
        let key_pem = key.pem();
        Ok(Arc::new(Self { directory, key, key_pem, clock, servers, addresses, token, state }))
    }

    /// The identity as it is now.
    pub(super) fn identity(&self) -> Arc<Identity> {
        self.state().identity.clone()
    }

    /// Where the server is looked for.
    pub(super) fn servers(&self) -> &[String] {
        &self.servers
    }

    /// Where the link is to be looked for, as it changes.
    pub(super) fn addresses(&self) -> watch::Receiver<Vec<String>> {
        self.addresses.subscribe()
    }

    /// Whether the server has removed this node.
    pub(super) fn removed(&self) -> bool {
        self.state().removed
    }

    /// The time as this board knows it.
    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// TLS of the link with the certificate of the moment.
    pub(super) fn tls(self: &Arc<Self>) -> TlsProvider {
        let this = self.clone();
        Arc::new(move || this.identity().tls(&this.key_pem, this.clock.clone()).map_err(TlsError::of))
    }

    /// Renews the certificate in good time, and asks what is wrong when the link does not come up.
    pub(super) async fn keep(&self, mut link: watch::Receiver<LinkState>) -> Result<(), Error> {
        let mut pause = DOUBT;
        loop {
            let doubtful = tokio::select! {
                () = self.certificate_is_old() => false,
                () = link_fails(&mut link, &mut pause) => true,
            };
            match self.renew().await {
                Ok(()) => {}
                Err(Failure::Here(error)) => return Err(error),
                Err(failure) => tracing::debug!(%failure, "no new certificate"),
            }
            if doubtful {
                pause = (pause * 2).min(SELDOM);
            } else {
                sleep(RENEW_AGAIN).await;
            }
        }
    }

    /// Waits for the time to renew, by the board's clock or by the server's, whichever is later.
    async fn certificate_is_old(&self) {
        loop {
            let due = self.identity().expires.saturating_sub(NODE_LIFE / 3);
            let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let left = due.saturating_sub(self.now().max(system));
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }

    /// Asks for a new certificate by the key alone; with the token where the server has removed this node.
    async fn renew(&self) -> Result<(), Failure> {
        let identity = self.identity();
        let asking = Asking { key: &self.key, clock: &self.clock, servers: &self.servers, ca: identity.ca_fingerprint };
        let request = |token: Option<&Token>| Request {
            name: identity.name.clone(),
            name_is_wanted: false,
            csr: String::new(),
            token: token.map(|t| (t.id.clone(), t.secret.clone())),
            pod_cidr: Some(identity.pod_cidr),
        };
        let mut answer = asking.ask(request(None)).await;
        if self.is_removal(&answer)
            && let Some(token) = &self.token
        {
            answer = asking.ask(request(Some(token))).await;
        }
        if self.is_removal(&answer) {
            self.set_removed();
        }
        let renewed = answer?;
        if renewed.pod_cidr != identity.pod_cidr || renewed.name != identity.name {
            renewed.save(&self.directory)?;
            return Err(Error::Renumbered(renewed.pod_cidr).into());
        }
        renewed.save(&self.directory)?;
        tracing::info!(node = renewed.name, "the certificate is renewed");
        let addresses = renewed.link_addresses(&self.servers);
        self.addresses.send_if_modified(|known| std::mem::replace(known, addresses.clone()) != addresses);
        *self.state() = State { identity: Arc::new(renewed), removed: false };
        Ok(())
    }

    fn is_removal(&self, answer: &Result<Identity, Failure>) -> bool {
        matches!(answer, Err(Failure::Refused(refused)) if matches!(refused.reason, Reason::Unknown | Reason::Token))
    }

    fn set_removed(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.removed, true) {
            tracing::error!(
                node = state.identity.name,
                "the server has removed this node: it gets nothing any more, its pods go on; start it with a new token \
                 to make it a node again, or `umiak reset` it"
            );
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the link has been down, with an error, for `patience`, which is short again once it was up.
async fn link_fails(link: &mut watch::Receiver<LinkState>, patience: &mut Duration) {
    let failing = |state: &LinkState| state.connected.is_none() && state.error.is_some();
    loop {
        if link.wait_for(failing).await.is_err() {
            return std::future::pending().await;
        }
        let recovered = link.wait_for(|state| state.connected.is_some());
        if timeout(*patience, recovered).await.is_err() {
            return;
        }
        *patience = DOUBT;
    }
}

impl Asking<'_> {
    /// Joins; waits for a server for as long as it takes.
    async fn join(&self, config: &AgentConfig, token: &Token) -> Result<Identity, Error> {
        let mut pause = RETRY.0;
        loop {
            let request = Request {
                name: config.name(),
                name_is_wanted: config.node_name.is_some(),
                csr: String::new(),
                token: Some((token.id.clone(), token.secret.clone())),
                pod_cidr: None,
            };
            match self.ask(request).await {
                Ok(identity) => return Ok(identity),
                Err(Failure::Refused(refused)) if !refused.may_pass() => return Err(Error::Refused(refused)),
                Err(Failure::Here(error)) => return Err(error),
                Err(failure) => tracing::warn!(%failure, ?pause, "cannot join yet, will try again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Asks one of the servers.
    async fn ask(&self, mut request: Request) -> Result<Identity, Failure> {
        let no_answer = |error: &dyn std::fmt::Display| Failure::NoAnswer(error.to_string());
        request.csr = STANDARD.encode(self.key.request().map_err(Error::from)?);
        let cluster = cluster_id(&self.ca);
        let reached = mqtt::join(self.servers, *self.ca.bytes(), &cluster, self.clock.clone()).await;
        let mut stream = reached.map_err(|e| no_answer(&e))?;
        match ask(&mut stream, &request).await.map_err(|e| no_answer(&e))? {
            Reply::Refused(refused) => Err(refused.into()),
            Reply::Granted(granted) => {
                self.clock.learn(Duration::from_secs(granted.time));
                let identity = Identity::new(*granted, self.servers.to_vec()).map_err(|e| no_answer(&e))?;
                if identity.ca_fingerprint != self.ca {
                    return Err(Failure::NoAnswer("the server sent the CA of another cluster".into()));
                }
                Ok(identity)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_link_that_fails_for_long_raises_doubt() {
        let (tell, mut link) = watch::channel(LinkState::default());
        let mut pause = DOUBT;
        let waits = async |link: &mut watch::Receiver<LinkState>, pause: &mut Duration| {
            timeout(Duration::from_secs(60), link_fails(link, pause)).await.is_err()
        };
        assert!(waits(&mut link, &mut pause).await, "nothing was tried yet");
        tell.send_modify(|state| state.error = Some("refused".into()));
        assert!(!waits(&mut link, &mut pause).await);
        pause = SELDOM;
        assert!(waits(&mut link, &mut pause).await, "ever more seldom");
        let flapping = async {
            for _ in 0..10 {
                sleep(DOUBT / 2).await;
                tell.send_modify(|state| state.connected = Some(SystemTime::now()));
                sleep(DOUBT / 2).await;
                tell.send_modify(|state| state.connected = None);
            }
        };
        tokio::select! {
            () = flapping => {}
            () = link_fails(&mut link, &mut pause) => panic!("it came up again and again"),
        }
        assert_eq!(pause, DOUBT);
    }
}
