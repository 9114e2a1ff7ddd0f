//! The endpoints of Services that select pods, as EndpointSlices and as Endpoints.
//!
//! kube-controller-manager has a controller for each; here one looks at a Service's pods once and writes both. What it
//! writes can be worked out again, so it reaches the disk with the next status and no reader waits for that.

pub mod index;
pub mod mirror;
pub mod model;
pub mod packing;
pub mod subsets;
#[cfg(test)]
mod tests;
pub mod topology;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::endpoint_slice::SERVICE_NAME;
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::registry::{DeleteOptions, EventType, Registry, WriteOptions};
use crate::store::Key;

use super::model::Meta;
use super::runner::{Change, Controller, Interest, Next};
use super::{kind, namespace_is_terminating, still_there};
use index::{Index, NodeChange};
use model::{Endpoint, NodePlace, Pod, Port, Service};
use topology::Problem;
use write::Slices;

const NAME: &str = "endpointslice-controller";
/// Field manager of Endpoints, and the value of [`ENDPOINTS_MANAGED_BY`].
const ENDPOINTS_MANAGER: &str = "endpoint-controller";
/// The label that says who looks after an EndpointSlice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value for the slices made here.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label that says who looks after Endpoints.
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// See the module.
pub struct Endpoints {
    registry: Registry,
    services: Arc<Kind>,
    pods: Arc<Kind>,
    slices: Arc<Kind>,
    endpoints: Arc<Kind>,
    index: Index,
    /// Services that were deleted: their Endpoints go too, whoever wrote them.
    gone: Mutex<HashSet<Key>>,
    /// Services whose endpoints are shared out among the zones, and what their events said of it last.
    shared: Mutex<HashMap<Key, Result<(), Problem>>>,
    events: EventRecorder,
    slice_options: WriteOptions,
    endpoints_options: WriteOptions,
}

impl Endpoints {
    /// The controller over a registry.
    pub fn new(registry: &Registry, events: &EventRecorder) -> Result<Self, Status> {
        let options = |name| WriteOptions { lazy: true, ..WriteOptions::by(name) };
        Ok(Self {
            registry: registry.clone(),
            services: kind(registry, "services")?,
            pods: kind(registry, "pods")?,
            slices: kind(registry, "endpointslices.discovery.k8s.io")?,
            endpoints: kind(registry, "endpoints")?,
            index: Index::default(),
            gone: Mutex::default(),
            shared: Mutex::default(),
            events: events.of(NAME, ""),
            slice_options: options(NAME),
            endpoints_options: options(ENDPOINTS_MANAGER),
        })
    }

    async fn sync(&self, key: &Key) -> Result<Next, Status> {
        let service = still_there(self.registry.get_as::<Service>(&self.services, &key.namespace, &key.name))?;
        let Some(service) = service else { return self.forget(key).await };
        self.gone().remove(key);
        if !service.selects() || service.metadata.deleting() {
            self.shared().remove(key);
            return Ok(None);
        }
        let mut pods = self.selected(&service)?;
        self.share(key, &service.metadata, &mut pods);
        // The proxies read slices: they go first.
        self.write_slices(&service, &pods).await?;
        self.write_endpoints(&service, &pods).await?;
        Ok(None)
    }

    /// The pods of a Service and the endpoints they are.
    fn selected(&self, service: &Service) -> Result<Vec<(Pod, Endpoint)>, Status> {
        let (namespace, selector) = (&service.metadata.namespace, &service.spec.selector);
        let matching = LabelSelector::from_map(selector);
        let mut selected = Vec::new();
        for name in self.index.matching(namespace, selector) {
            let Some(pod) = still_there(self.registry.get_as::<Pod>(&self.pods, namespace, &name))? else { continue };
            if !matching.matches_labels(Some(&pod.metadata.labels)) || !pod.is_endpoint() {
                continue;
            }
            let zone = self.index.zone(&pod.spec.node_name);
            // A pod of a node that is gone is about to be collected.
            if zone.is_none() && !service.spec.publish_not_ready_addresses {
                continue;
            }
            let endpoint = model::endpoint(service, &pod, zone.flatten());
            selected.push((pod, endpoint));
        }
        Ok(selected)
    }

    /// Gives the endpoints to the zones if the Service asks for that, and tells when it begins or ends.
    fn share(&self, key: &Key, service: &Meta, pods: &mut [(Pod, Endpoint)]) {
        let now = topology::is_wanted(service).then(|| {
            let mut endpoints: Vec<&mut Endpoint> = pods.iter_mut().map(|(_, endpoint)| endpoint).collect();
            topology::allocate(self.index.processors().as_ref(), &mut endpoints)
        });
        let mut shared = self.shared();
        let before = match now.clone() {
            Some(now) => shared.insert(key.clone(), now),
            None => shared.remove(key),
        };
        drop(shared);
        let (kind, state, text) = match (before, now) {
            (before, now) if before == now => return,
            (_, Some(Ok(()))) => (EventKind::Normal, "Enabled", "Topology Aware Hints has been enabled".to_owned()),
            (_, Some(Err(problem))) => (EventKind::Warning, "Disabled", problem.to_string()),
            (Some(Ok(())), None) => {
                (EventKind::Warning, "Disabled", "Topology Aware Hints has been disabled".to_owned())
            }
            (_, None) => return,
        };
        let about = Reference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            uid: service.uid.clone(),
            field_path: String::new(),
        };
        self.events.record(&about, kind, &format!("TopologyAwareHints{state}"), format!("{text}, addressType: IPv4"));
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Result<(), Problem>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_slices(&self, service: &Service, pods: &[(Pod, Endpoint)]) -> Result<(), Status> {
        let slices = Slices {
            registry: &self.registry,
            kind: &self.slices,
            options: &self.slice_options,
            owner: &service.metadata,
            owner_kind: "Service",
            manager: MANAGER,
            labels: model::passed_on(service),
            annotations: None,
            trigger: model::last_change(service, pods.iter().map(|(pod, _)| pod)),
        };
        let existing = Slices::of(&self.registry, &self.slices, &service.metadata, MANAGER)?;
        let (ours, others) = slices.part(existing);
        let mut desired: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
        for (pod, endpoint) in pods {
            desired.entry(model::ports(service, pod)).or_default().push(endpoint.clone());
        }
        let mut plan = packing::pack(ours, desired, true, |slice| slices.stale(slice));
        plan.delete.extend(others.into_iter().map(|slice| slice.metadata.name));
        slices.carry_out(plan).await
    }

    async fn write_endpoints(&self, service: &Service, pods: &[(Pod, Endpoint)]) -> Result<(), Status> {
        let Meta { namespace, name, .. } = &service.metadata;
        let (subsets, truncated) = subsets::subsets(service, pods);
        let mut labels = model::passed_on(service);
        labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), ENDPOINTS_MANAGER.into());
        let trigger = model::last_change(service, pods.iter().map(|(pod, _)| pod));
        let change = |endpoints: &mut Object| {
            let before = endpoints.clone();
            match subsets.is_empty() {
                true => drop(endpoints.remove("subsets")),
                false => drop(endpoints.insert("subsets".to_owned(), subsets.clone().into())),
            }
            meta::set(endpoints, "/metadata/labels", labels.clone());
            if truncated {
                meta::set_annotation(endpoints, OVER_CAPACITY, "truncated");
            } else if meta::annotation(endpoints, OVER_CAPACITY).is_some() {
                meta::object_at_mut(endpoints, "/metadata/annotations").remove(OVER_CAPACITY);
            }
            if *endpoints != before {
                model::note_trigger(endpoints, trigger);
            }
        };
        let modify = |endpoints: &mut Object| {
            change(endpoints);
            Ok(())
        };
        let options = &self.endpoints_options;
        if still_there(self.registry.modify(&self.endpoints, namespace, name, None, options, modify).await)?.is_some() {
            return Ok(());
        }
        let mut endpoints = Object::new();
        meta::set(&mut endpoints, "/metadata/name", name.as_str());
        change(&mut endpoints);
        match self.registry.create(&self.endpoints, namespace, endpoints, options).await {
            // They would go with their namespace.
            Err(status) if namespace_is_terminating(&status) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Removes the Endpoints of a Service that is gone; its slices are collected with their owner. Endpoints that
    /// somebody made before the Service stay.
    async fn forget(&self, key: &Key) -> Result<Next, Status> {
        self.shared().remove(key);
        let deleted = self.gone().contains(key);
        if let Some(raw) = still_there(self.registry.get_raw(&self.endpoints, &key.namespace, &key.name))? {
            let ours = raw.labels()?.get(ENDPOINTS_MANAGED_BY).is_some_and(|manager| manager == ENDPOINTS_MANAGER);
            if ours || deleted {
                let options = DeleteOptions { user: self.endpoints_options.user.clone(), ..DeleteOptions::default() };
                still_there(self.registry.delete(&self.endpoints, &key.namespace, &key.name, &options).await)?;
            }
        }
        self.gone().remove(key);
        Ok(None)
    }

    fn gone(&self) -> std::sync::MutexGuard<'_, HashSet<Key>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service_changed(&self, change: &Change<'_>) -> Vec<Key> {
        let key = change.key();
        let there = change.kind != EventType::Deleted;
        if !there {
            self.gone().insert(key.clone());
        }
        let service = there.then(|| change.object.parse::<Service>()).transpose().unwrap_or_default();
        let selector = service.as_ref().filter(|s| s.selects()).map(|s| &s.spec.selector);
        self.index.service(&key.namespace, &key.name, selector);
        vec![key]
    }

    fn pod_changed(&self, change: &Change<'_>) -> Vec<Key> {
        let key = &change.object.key;
        let after = (change.kind != EventType::Deleted).then_some(&change.meta.labels);
        let before = change.previous.as_ref().map(|meta| &meta.labels);
        let services = self.index.pod(&key.namespace, &key.name, before, after);
        services.iter().map(|name| change.beside("services", name)).collect()
    }

    fn node_changed(&self, change: &Change<'_>) -> Vec<Key> {
        let there = change.kind != EventType::Deleted;
        let place = there.then(|| NodePlace::of(change.object)).transpose();
        let Ok(place) = place.inspect_err(|status| tracing::warn!(%status, "a Node is not readable")) else {
            return Vec::new();
        };
        let key = |(namespace, name)| Key { resource: "services".into(), namespace, name };
        match self.index.node(&change.meta.name, place) {
            NodeChange::Nothing => Vec::new(),
            NodeChange::Zone => self.index.services().into_iter().map(key).collect(),
            NodeChange::Processors => self.shared().keys().cloned().collect(),
        }
    }
}

impl Controller for Endpoints {
    fn name(&self) -> &'static str {
        NAME
    }

    fn interest(&self) -> Interest {
        Interest::Resources(&["services", "pods", "nodes", "endpoints", "endpointslices.discovery.k8s.io"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        match change.resource() {
            "services" => self.service_changed(change),
            "pods" => self.pod_changed(change),
            "nodes" => self.node_changed(change),
            "endpoints" => vec![change.beside("services", &change.meta.name)],
            _ => {
                let both = [Some(&change.meta), change.previous.as_ref()].into_iter().flatten();
                let ours = both.filter(|meta| meta.labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER));
                let owners = ours.filter_map(|meta| meta.labels.get(SERVICE_NAME).and_then(Value::as_str));
                owners.map(|name| change.beside("services", name)).collect()
            }
        }
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(self.sync(key))
    }
}
