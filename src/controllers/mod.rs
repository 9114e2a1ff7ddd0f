//! One file a controller, one shared work queue and runner.

pub mod claim;
pub mod cluster_services;
pub mod deployment;
pub mod endpoints;
pub mod garbage;
pub mod load_balancer;
pub mod model;
pub mod namespace;
pub mod namespace_defaults;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod queue;
pub mod replicaset;
pub mod runner;
pub mod token_cleaner;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::cidr::Cidr;
use crate::events::EventRecorder;
use crate::kinds::Kind;
use crate::kinds::status::Status;
use crate::pools::{AddressRange, Pool};
use crate::registry::Registry;

pub use crate::events;

use runner::Controller;

/// What the controllers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's CA certificate as PEM, which every namespace gets in the ConfigMap `kube-root-ca.crt`.
    pub ca: String,
    /// Pools of load-balancer addresses of the configuration.
    pub pools: Vec<Pool>,
    /// Where pods reach the API: the server's address and port.
    pub api: SocketAddr,
    /// Network of the Services.
    pub service_cidr: Cidr,
    /// The cluster's own networks, which no pool may reach into.
    pub reserved: Vec<AddressRange>,
}

/// Runs all controllers until `shutdown` ends. May be dropped at any time: what was half done is done again.
///
/// # Errors
/// If a kind the controllers cannot do without is not served.
pub async fn run(
    registry: &Registry,
    events: &EventRecorder,
    config: &Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Status> {
    let controllers: Vec<Box<dyn Controller>> = vec![
        Box::new(deployment::Deployments::new(registry, events)?),
        Box::new(replicaset::ReplicaSets::new(registry, events, &replicaset::REPLICA_SETS)?),
        Box::new(replicaset::ReplicaSets::new(registry, events, &replicaset::REPLICATION_CONTROLLERS)?),
        Box::new(cluster_services::ClusterServices::new(registry, config)?),
        Box::new(endpoints::Endpoints::new(registry, events)?),
        Box::new(endpoints::mirror::Mirror::new(registry)?),
        Box::new(garbage::Garbage::new(registry)),
        Box::new(load_balancer::LoadBalancers::new(registry, events, &config.pools, &config.reserved)?),
        Box::new(namespace::Namespaces::new(registry)?),
        Box::new(namespace_defaults::NamespaceDefaults::new(registry, &config.ca)?),
        Box::new(pod_gc::PodGarbage::new(registry)?),
        Box::new(node_lifecycle::NodeLifecycle::new(registry, events)?),
        Box::new(token_cleaner::TokenCleaner::new(registry)?),
    ];
    runner::run(registry, &controllers, shutdown).await;
    Ok(())
}

/// A kind the controllers cannot do without.
fn kind(registry: &Registry, resource: &str) -> Result<Arc<Kind>, Status> {
    registry.kinds().by_resource(resource).ok_or_else(|| Status::internal(format!("{resource} are not served")))
}

/// `None` for an object that is gone.
fn still_there<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(status) if status.code == 404 => Ok(None),
        Err(status) => Err(status),
    }
}

/// Whether a create was refused because the namespace is being deleted.
fn namespace_is_terminating(status: &Status) -> bool {
    let causes = status.details.get("causes").and_then(Value::as_array);
    causes.is_some_and(|list| {
        list.iter().any(|c| c.get("reason").and_then(Value::as_str) == Some("NamespaceTerminating"))
    })
}

#[cfg(test)]
mod tests;
