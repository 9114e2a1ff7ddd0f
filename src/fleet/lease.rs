//! The node's lease in `kube-node-lease`: how the cluster sees that a node is there. In memory only.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::{Kinds, MANAGER};
use crate::kinds::status::Status;
use crate::kinds::{Object, meta};
use crate::registry::{Registry, WriteOptions};

/// Between two renewals, as kubelet's.
const PERIOD: Duration = Duration::from_secs(10);
/// After this long without one the node counts as gone.
const DURATION_SECONDS: i64 = 40;
const NAMESPACE: &str = "kube-node-lease";

/// Renews the node's lease; never ends.
pub(super) async fn keep(registry: &Registry, kinds: &Kinds, node: &str) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Boxed: it is not to take memory between two renewals.
        if let Err(status) = Box::pin(renew(registry, kinds, node)).await {
            tracing::warn!(node, %status, "cannot renew the node's lease");
        }
    }
}

async fn renew(registry: &Registry, kinds: &Kinds, node: &str) -> Result<(), Status> {
    let options = WriteOptions::by(MANAGER);
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let change = |lease: &mut Object| {
        meta::set(lease, "/spec/holderIdentity", node);
        meta::set(lease, "/spec/leaseDurationSeconds", DURATION_SECONDS);
        meta::set(lease, "/spec/renewTime", now.clone());
        Ok(())
    };
    match registry.modify(&kinds.leases, NAMESPACE, node, None, &options, change).await {
        Err(status) if status.code == 404 => {}
        result => return result.map(drop),
    }
    let owner = registry.get(&kinds.nodes, "", node)?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": NAMESPACE, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": node, "uid": meta::uid(&owner)},
        ]},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now},
    });
    let Value::Object(lease) = lease else { return Ok(()) };
    registry.create(&kinds.leases, NAMESPACE, lease, &options).await.map(drop)
}
