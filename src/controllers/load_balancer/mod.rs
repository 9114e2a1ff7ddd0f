//! The load-balancer controller: gives Services of type LoadBalancer an address of a pool.
//!
//! All Services are settled at once, from what they and the pools say now ([`allocate`]); nothing is remembered that a
//! restart could lose. Announcing the addresses is the nodes' part.

mod allocate;
mod sources;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Subresource};
use crate::pools::{AddressRange, Pool};
use crate::registry::{EventType, ListOptions, Raw, Registry, WriteOptions};
use crate::store::Key;

use super::runner::{Change, Controller, Interest, Next};
use super::{kind, still_there};
use allocate::{Outcome, Service};
use sources::{ADVERTISEMENTS, CONFIG_MAP, POOLS, Sources};

const NAME: &str = "load-balancer-controller";

/// See the module.
pub struct LoadBalancers {
    registry: Registry,
    events: EventRecorder,
    services: Arc<Kind>,
    namespaces: Arc<Kind>,
    sources: Sources,
    options: WriteOptions,
    /// Why a Service has no address, by UID, so that it is told once and not at every look.
    told: Mutex<HashMap<String, String>>,
}

impl LoadBalancers {
    /// The controller over a registry, with the pools of the configuration and what no pool may reach into.
    pub fn new(
        registry: &Registry,
        events: &EventRecorder,
        pools: &[Pool],
        reserved: &[AddressRange],
    ) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            events: events.of(NAME, ""),
            services: kind(registry, "services")?,
            namespaces: kind(registry, "namespaces")?,
            sources: Sources::new(pools, reserved),
            options: WriteOptions::by(NAME),
            told: Mutex::default(),
        })
    }

    async fn sync(&self) -> Result<(), Status> {
        let mut pools = self.sources.read(&self.registry, &self.events)?;
        if pools.pools.iter().any(|pool| !pool.namespace_selectors.is_empty()) {
            pools.namespaces = self.namespace_labels()?;
        }
        let all = self.registry.list_slowly(&self.services, &ListOptions::default()).await?;
        let concerned = all.items.iter().filter(|raw| concerns_us(raw));
        let services = concerned.map(Raw::parse).collect::<Result<Vec<Service>, Status>>()?;
        let outcomes = allocate::settle(&pools, &services);
        self.forget_all_but(&services);
        for (service, outcome) in services.iter().zip(outcomes) {
            self.apply(service, outcome).await?;
        }
        Ok(())
    }

    fn namespace_labels(&self) -> Result<BTreeMap<String, crate::kinds::Object>, Status> {
        let all = self.registry.list(&self.namespaces, &ListOptions::default())?;
        all.items.iter().map(|raw| Ok((raw.key.name.to_string(), raw.labels()?))).collect()
    }

    async fn apply(&self, service: &Service, outcome: Outcome) -> Result<(), Status> {
        match outcome {
            Outcome::NotOurs | Outcome::Unknown => Ok(()),
            Outcome::NotNeeded => self.write(service, None).await,
            Outcome::Kept(address) => self.write(service, Some(address)).await,
            Outcome::Assigned(address) => {
                self.write(service, Some(address)).await?;
                self.tell(service, EventKind::Normal, "IPAllocated", format!("Assigned IP [\"{address}\"]"));
                Ok(())
            }
            Outcome::Pending(reason) => {
                self.write(service, None).await?;
                let Service { metadata, .. } = service;
                let text = format!("Failed to allocate IP for \"{}/{}\": {reason}", metadata.namespace, metadata.name);
                self.tell(service, EventKind::Warning, "AllocationFailed", text);
                Ok(())
            }
        }
    }

    async fn write(&self, service: &Service, address: Option<Ipv4Addr>) -> Result<(), Status> {
        let ingress: Vec<Value> = address.map(|ip| json!({"ip": ip, "ipMode": "VIP"})).into_iter().collect();
        if service.status.load_balancer.ingress == ingress {
            return Ok(());
        }
        let Service { metadata, .. } = service;
        let status = Some(Subresource::Status);
        let write = self.registry.modify(
            &self.services,
            &metadata.namespace,
            &metadata.name,
            status,
            &self.options,
            |stored| {
                // Another Service of the same name, or one that changed meanwhile, is looked at anew.
                if meta::uid(stored) == metadata.uid && meta::generation(stored) == metadata.generation {
                    let value = if ingress.is_empty() { json!({}) } else { json!({ "ingress": ingress }) };
                    meta::set(stored, "/status/loadBalancer", value);
                }
                Ok(())
            },
        );
        still_there(write.await).map(drop)
    }

    fn tell(&self, service: &Service, kind: EventKind, reason: &str, message: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Service { metadata, .. } = service;
        if told.get(&metadata.uid) == Some(&message) {
            return;
        }
        let about = Reference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            field_path: String::new(),
        };
        self.events.record(&about, kind, reason, message.clone());
        told.insert(metadata.uid.clone(), message);
    }

    fn forget_all_but(&self, services: &[Service]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() > services.len() {
            told.retain(|uid, _| services.iter().any(|s| s.metadata.uid == *uid));
        }
    }
}

/// Whether a Service has to do with load balancers, by a look at its bytes: most have not, and are not parsed.
fn concerns_us(service: &Raw) -> bool {
    let bytes = service.json();
    ["\"LoadBalancer\"", "\"ingress\""].iter().any(|word| bytes.windows(word.len()).any(|part| part == word.as_bytes()))
}

impl Controller for LoadBalancers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["services", "configmaps", "namespaces", POOLS, ADVERTISEMENTS])
    }

    /// One key stands for everything: addresses are settled for all Services together.
    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let concerned = match change.resource() {
            "services" => concerns_us(change.object) || change.before.is_some_and(concerns_us),
            "configmaps" => (change.meta.namespace.as_str(), change.meta.name.as_str()) == CONFIG_MAP,
            "namespaces" => {
                let relabelled = change.previous.as_ref().is_some_and(|p| p.labels != change.meta.labels);
                relabelled && change.kind == EventType::Modified
            }
            _ => true,
        };
        let all = Key { resource: "services".into(), namespace: "".into(), name: "".into() };
        if concerned { vec![all] } else { Vec::new() }
    }

    fn reconcile<'a>(&'a self, _: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(async { self.sync().await.map(|()| None) })
    }
}

#[cfg(test)]
mod tests;
