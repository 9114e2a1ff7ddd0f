//! Removes tokens with which boards can join no more, because their time is over (`pkg/controller/bootstrap`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::fleet::tokens::{NAMESPACE, PREFIX, StoredToken};
use crate::kinds::status::Status;
use crate::kinds::{Kind, meta};
use crate::registry::{DeleteOptions, EventType, Registry};
use crate::store::Key;

use super::model::now;
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, still_there};

const NAME: &str = "token-cleaner";
/// The clock of a board may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// See the module.
pub struct TokenCleaner {
    registry: Registry,
    secrets: Arc<Kind>,
}

impl TokenCleaner {
    /// The controller over a registry.
    pub fn new(registry: &Registry) -> Result<Self, Status> {
        Ok(Self { registry: registry.clone(), secrets: kind(registry, "secrets")? })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let Some(secret) = still_there(self.registry.get(&self.secrets, NAMESPACE, &key.name))? else {
            return Ok(None);
        };
        let Some(token) = StoredToken::of(&secret) else { return Ok(None) };
        let Some(end) = token.expires else { return Ok(None) };
        let now = now();
        if end > now {
            return Ok(Some(end.duration_since(now).unsigned_abs().min(LOOK_AGAIN)));
        }
        let options = DeleteOptions { user: format!("system:{NAME}"), ..DeleteOptions::of(meta::uid(&secret)) };
        match self.registry.delete(&self.secrets, NAMESPACE, &key.name, &options).await {
            Err(status) if !matches!(status.code, 404 | 409) => Err(status),
            _ => Ok(None),
        }
    }
}

impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["secrets"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let key = change.key();
        let token = &*key.namespace == NAMESPACE && key.name.starts_with(PREFIX);
        if token && change.kind != EventType::Deleted { vec![key] } else { Vec::new() }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}
