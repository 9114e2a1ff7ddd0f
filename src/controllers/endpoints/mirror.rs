//! The EndpointSlice mirroring controller: Endpoints that somebody wrote by hand become slices, for whoever reads
//! nothing else (`pkg/controller/endpointslicemirroring`).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;

use crate::controllers::model::{Meta, or_default};
use crate::controllers::runner::{Change, Controller, Interest, Next};
use crate::controllers::{kind, still_there};
use crate::kinds::Kind;
use crate::kinds::endpoint_slice::SERVICE_NAME;
use crate::kinds::status::Status;
use crate::registry::{Registry, WriteOptions};
use crate::store::Key;

use super::model::{Conditions, Endpoint, Port, Service};
use super::packing::pack;
use super::write::Slices;
use super::{ENDPOINTS_MANAGED_BY, ENDPOINTS_MANAGER, MANAGED_BY};

const NAME: &str = "endpointslice-mirroring-controller";
/// `endpointslice.kubernetes.io/managed-by` of what it makes.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that concern the Endpoints alone.
const NOT_MIRRORED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// See the module.
pub struct Mirror {
    registry: Registry,
    services: Arc<Kind>,
    endpoints: Arc<Kind>,
    slices: Arc<Kind>,
    options: WriteOptions,
}

/// Endpoints written by hand.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoints {
    metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    subsets: Vec<Subset>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Address>,
    #[serde(deserialize_with = "or_default")]
    not_ready_addresses: Vec<Address>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<Port>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    ip: String,
    hostname: Option<String>,
    node_name: Option<String>,
    target_ref: Option<Value>,
}

impl Mirror {
    /// The controller over a registry.
    pub fn new(registry: &Registry) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            services: kind(registry, "services")?,
            endpoints: kind(registry, "endpoints")?,
            slices: kind(registry, "endpointslices.discovery.k8s.io")?,
            options: WriteOptions { lazy: true, ..WriteOptions::by(NAME) },
        })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let Key { namespace, name, .. } = key;
        let endpoints = still_there(self.registry.get_as::<Endpoints>(&self.endpoints, namespace, name))?;
        let service = still_there(self.registry.get_as::<Service>(&self.services, namespace, name))?;
        let mirrored =
            endpoints.filter(|e| mirrors(&e.metadata) && service.is_some_and(|s| s.spec.selector.is_empty()));
        let Endpoints { metadata, subsets } = mirrored.unwrap_or_else(|| {
            let metadata = Meta { namespace: namespace.to_string(), name: name.to_string(), ..Meta::default() };
            Endpoints { metadata, subsets: Vec::new() }
        });
        let existing = Slices::of(&self.registry, &self.slices, &metadata, MANAGER)?;
        if existing.is_empty() && subsets.is_empty() {
            return Ok(None);
        }
        let mut annotations = metadata.annotations.clone();
        annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
        let slices = Slices {
            registry: &self.registry,
            kind: &self.slices,
            options: &self.options,
            owner: &metadata,
            owner_kind: "Endpoints",
            manager: MANAGER,
            labels: metadata.labels.clone(),
            annotations: Some(annotations.into_iter().collect()),
            trigger: None,
        };
        let (ours, others) = slices.part(existing);
        let mut plan = pack(ours, desired(subsets), false, |slice| slices.stale(slice));
        plan.delete.extend(others.into_iter().map(|s| s.metadata.name));
        slices.carry_out(plan).await?;
        Ok(None)
    }
}

/// Whether Endpoints are to be mirrored, as far as they themselves say.
fn mirrors(endpoints: &Meta) -> bool {
    let label = |key: &str, value: &str| endpoints.labels.get(key).is_some_and(|v| v == value);
    !label(SKIP, "true")
        && !label(ENDPOINTS_MANAGED_BY, ENDPOINTS_MANAGER)
        && !endpoints.annotations.contains_key(LEADER)
        && !endpoints.deleting()
}

fn desired(subsets: Vec<Subset>) -> BTreeMap<Vec<Port>, Vec<Endpoint>> {
    let mut desired: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for Subset { addresses, not_ready_addresses, ports } in subsets {
        let all = desired.entry(ports).or_default();
        for (address, ready) in
            addresses.into_iter().map(|a| (a, true)).chain(not_ready_addresses.into_iter().map(|a| (a, false)))
        {
            all.push(Endpoint {
                addresses: vec![address.ip],
                conditions: Conditions { ready: Some(ready), ..Conditions::default() },
                hostname: address.hostname.filter(|h| !h.is_empty()),
                node_name: address.node_name.filter(|n| !n.is_empty()),
                target_ref: address.target_ref,
                ..Endpoint::default()
            });
        }
    }
    desired
}

impl Controller for Mirror {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["endpoints", "services", "endpointslices.discovery.k8s.io"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let both = || [Some(&change.meta), change.previous.as_ref()].into_iter().flatten();
        match change.resource() {
            "endpoints" if both().all(|meta| !mirrors(meta)) => Vec::new(),
            "endpoints" => vec![change.key()],
            "services" => vec![change.beside("endpoints", &change.meta.name)],
            _ => {
                let ours = both().filter(|meta| meta.labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER));
                let owners = ours.filter_map(|meta| meta.labels.get(SERVICE_NAME)?.as_str());
                owners.map(|name| change.beside("endpoints", name)).collect()
            }
        }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subsets_become_endpoints() {
        let subsets: Vec<Subset> = serde_json::from_value(json!([
            {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2", "hostname": "h"}],
             "ports": [{"port": 80, "protocol": "TCP"}]},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 80, "protocol": "TCP"}]},
        ]))
        .unwrap();
        let made = desired(subsets);
        let told: Vec<_> = made.values().flatten().map(|e| (e.addresses[0].as_str(), e.conditions.ready)).collect();
        assert_eq!(told, [("192.0.2.1", Some(true)), ("192.0.2.2", Some(false)), ("192.0.2.3", Some(true))]);
        assert_eq!(made.keys().next().unwrap()[0].port, Some(80));
    }

    #[test]
    fn some_are_not_mirrored() {
        for (meta, expected) in [
            (json!({}), true),
            (json!({"labels": {SKIP: "true"}}), false),
            (json!({"labels": {SKIP: "false"}}), true),
            (json!({"labels": {ENDPOINTS_MANAGED_BY: ENDPOINTS_MANAGER}}), false),
            (json!({"annotations": {LEADER: "{}"}}), false),
        ] {
            assert_eq!(mirrors(&serde_json::from_value(meta.clone()).unwrap()), expected, "{meta}");
        }
    }
}
