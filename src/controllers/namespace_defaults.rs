//! What every namespace has: the service account `default` and the ConfigMap `kube-root-ca.crt`.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};
use crate::registry::{EventType, Registry, WriteOptions};
use crate::store::Key;

use super::namespace::namespace_key;
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, namespace_is_terminating, still_there};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

/// See the module.
pub struct NamespaceDefaults {
    registry: Registry,
    namespaces: Arc<Kind>,
    accounts: Arc<Kind>,
    config_maps: Arc<Kind>,
    ca: String,
}

impl NamespaceDefaults {
    /// The controller over a registry; `ca` is the cluster's CA certificate as PEM.
    pub fn new(registry: &Registry, ca: &str) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            namespaces: kind(registry, "namespaces")?,
            accounts: kind(registry, "serviceaccounts")?,
            config_maps: kind(registry, "configmaps")?,
            ca: ca.to_owned(),
        })
    }

    async fn sync(&self, key: &Key) -> Result<(), Status> {
        let Some(namespace) = still_there(self.registry.get(&self.namespaces, "", &key.name))? else { return Ok(()) };
        if meta::is_deleting(&namespace) {
            return Ok(());
        }
        self.account(&key.name).await?;
        self.root_ca(&key.name).await
    }

    async fn account(&self, namespace: &str) -> Result<(), Status> {
        if still_there(self.registry.get_raw(&self.accounts, namespace, ACCOUNT))?.is_some() {
            return Ok(());
        }
        self.create(&self.accounts, namespace, json!({"metadata": {"name": ACCOUNT}}), "service-account-controller")
            .await
    }

    async fn root_ca(&self, namespace: &str) -> Result<(), Status> {
        const WRITER: &str = "root-ca-certificate-publisher";
        let Some(known) = still_there(self.registry.get(&self.config_maps, namespace, ROOT_CA))? else {
            let map = json!({"metadata": {"name": ROOT_CA}, "data": {"ca.crt": self.ca}});
            return self.create(&self.config_maps, namespace, map, WRITER).await;
        };
        let data = json!({"ca.crt": self.ca});
        if known.get("data") == Some(&data) {
            return Ok(());
        }
        let options = WriteOptions::by(WRITER);
        let mended = self.registry.modify(&self.config_maps, namespace, ROOT_CA, None, &options, |map: &mut Object| {
            map.insert("data".to_owned(), data.clone());
            Ok(())
        });
        still_there(mended.await).map(drop)
    }

    async fn create(&self, kind: &Kind, namespace: &str, object: Value, by: &str) -> Result<(), Status> {
        let Value::Object(object) = object else { return Ok(()) };
        match self.registry.create(kind, namespace, object, &WriteOptions::by(by)).await {
            Err(status) if status.reason == "AlreadyExists" || namespace_is_terminating(&status) => Ok(()),
            Err(status) if status.code == 404 => Ok(()),
            result => result.map(drop),
        }
    }
}

impl Controller for NamespaceDefaults {
    fn name(&self) -> &'static str {
        "namespace-defaults"
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["namespaces", "serviceaccounts", "configmaps"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let name = change.meta.name.as_str();
        match (change.resource(), change.kind) {
            ("namespaces", EventType::Added) => vec![change.key()],
            ("serviceaccounts", EventType::Deleted) if name == ACCOUNT => vec![namespace_key(&change.meta.namespace)],
            ("configmaps", EventType::Deleted | EventType::Modified) if name == ROOT_CA => {
                vec![namespace_key(&change.meta.namespace)]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(async { self.sync(key).await.map(|()| None) })
    }
}
