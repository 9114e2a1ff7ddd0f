//! The Services by their names and addresses, following what the node is told.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::broadcast::error::RecvError;

use crate::network::services::{Endpoint, Service, ServiceChange, Services};

/// The Services, indexed.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By namespace and name. A namespace without Services is none.
    names: HashMap<Box<str>, HashMap<Box<str>, Arc<Service>>>,
    /// Those with this cluster address, or headless ones with this endpoint.
    addresses: HashMap<IpAddr, Vec<Arc<Service>>>,
}

impl Index {
    pub(super) fn new(services: Vec<Arc<Service>>) -> Self {
        let mut index = Self::default();
        services.into_iter().for_each(|service| index.put(service));
        index
    }

    pub(super) fn put(&mut self, service: Arc<Service>) {
        self.remove(&service);
        for address in addresses(&service) {
            self.addresses.entry(address).or_default().push(service.clone());
        }
        let namespace = self.names.entry(service.namespace.as_str().into()).or_default();
        namespace.insert(service.name.as_str().into(), service);
    }

    /// Forgets the Service of this name.
    pub(super) fn remove(&mut self, service: &Service) {
        let Some(namespace) = self.names.get_mut(service.namespace.as_str()) else { return };
        let Some(known) = namespace.remove(service.name.as_str()) else { return };
        if namespace.is_empty() {
            self.names.remove(service.namespace.as_str());
        }
        for address in addresses(&known) {
            if let Some(services) = self.addresses.get_mut(&address) {
                services.retain(|other| !Arc::ptr_eq(other, &known));
                if services.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.names.get(namespace)?.get(name)
    }

    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.names.contains_key(namespace)
    }

    /// The Services an address has a name by.
    pub(super) fn at(&self, address: IpAddr) -> &[Arc<Service>] {
        self.addresses.get(&address).map_or(&[], Vec::as_slice)
    }
}

/// Keeps the index as the Services are. Never ends.
pub(super) async fn follow(services: Services, index: &RwLock<Index>) -> Infallible {
    let write = || index.write().unwrap_or_else(PoisonError::into_inner);
    loop {
        let (all, mut changes) = services.subscribe();
        *write() = Index::new(all);
        loop {
            match changes.recv().await {
                Ok(ServiceChange::Put(service)) => write().put(service),
                Ok(ServiceChange::Gone(service)) => write().remove(&service),
                // What was missed is read anew. It is never closed: `services` sends.
                Err(RecvError::Lagged(_) | RecvError::Closed) => break,
            }
        }
    }
}

/// Whether names lead to the endpoints themselves.
pub(super) fn is_headless(service: &Service) -> bool {
    service.cluster_ips.is_empty() && service.external_name.is_none()
}

/// The endpoints that have names.
pub(super) fn published(service: &Service) -> impl Iterator<Item = &Endpoint> {
    let endpoints = service.slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints.filter(|endpoint| is_published(service, endpoint))
}

pub(super) fn is_published(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.ready || service.publish_not_ready
}

/// The addresses a Service's own name has.
pub(super) fn addresses(service: &Service) -> Vec<IpAddr> {
    if is_headless(service) {
        unique(published(service).map(|endpoint| endpoint.address).collect())
    } else {
        service.cluster_ips.iter().map(|address| IpAddr::V4(*address)).collect()
    }
}

pub(super) fn unique<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}
