//! The parts of pods and nodes that matter for scheduling.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::affinity::Affinity;
use super::spread::Constraint;
use super::taints::{Taint, Toleration};
pub(super) use crate::kinds::meta::or_default;

/// String to string, as labels are.
pub type Labels = BTreeMap<String, String>;

/// `metadata`, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// `name`
    pub name: String,
    /// `namespace`
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// `uid`
    #[serde(deserialize_with = "or_default")]
    pub uid: String,
    /// `labels`
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    /// `creationTimestamp`
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// `deletionTimestamp`
    pub deletion_timestamp: Option<jiff::Timestamp>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: PodSpec,
    /// `status`
    #[serde(deserialize_with = "or_default")]
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// `nodeName`
    #[serde(deserialize_with = "or_default")]
    pub node_name: String,
    /// `schedulerName`
    #[serde(deserialize_with = "or_default")]
    pub scheduler_name: String,
    /// `priority`
    #[serde(deserialize_with = "or_default")]
    pub priority: i32,
    /// `preemptionPolicy`
    #[serde(deserialize_with = "or_default")]
    pub preemption_policy: String,
    /// `nodeSelector`
    #[serde(deserialize_with = "or_default")]
    pub node_selector: Labels,
    /// `affinity`
    #[serde(deserialize_with = "or_default")]
    pub affinity: Affinity,
    /// `topologySpreadConstraints`
    #[serde(deserialize_with = "or_default")]
    pub topology_spread_constraints: Vec<Constraint>,
    /// `tolerations`
    #[serde(deserialize_with = "or_default")]
    pub tolerations: Vec<Toleration>,
    /// `schedulingGates`
    #[serde(deserialize_with = "or_default")]
    pub scheduling_gates: Vec<Gate>,
    /// `containers`
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// `initContainers`
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
    /// `overhead`
    #[serde(deserialize_with = "or_default")]
    pub overhead: Amounts,
    /// `resources` of the whole pod.
    #[serde(deserialize_with = "or_default")]
    pub resources: Requests,
    /// `hostNetwork`
    #[serde(deserialize_with = "or_default")]
    pub host_network: bool,
}

/// One of `spec.schedulingGates`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// `name`
    pub name: String,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// `resources`
    #[serde(deserialize_with = "or_default")]
    pub resources: Requests,
    /// `ports`
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<Port>,
    /// `restartPolicy`: `Always` makes an init container a sidecar.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: String,
}

/// `resources`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// `requests`
    #[serde(deserialize_with = "or_default")]
    pub requests: Amounts,
}

/// Quantities by resource name, as written.
pub type Amounts = BTreeMap<String, Value>;

/// One of a container's `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// `hostPort`, 0 without one.
    #[serde(deserialize_with = "or_default")]
    pub host_port: u16,
    /// `hostIP`, empty or `0.0.0.0` for every address.
    #[serde(rename = "hostIP", deserialize_with = "or_default")]
    pub host_ip: String,
    /// `protocol`
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `phase`
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    /// `nominatedNodeName`
    #[serde(deserialize_with = "or_default")]
    pub nominated_node_name: String,
    /// `startTime`
    pub start_time: Option<jiff::Timestamp>,
}

impl Pod {
    /// Whether it has ended for good and needs nothing any more.
    pub fn finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether this scheduler is to find a node for it.
    pub fn wants_node(&self) -> bool {
        self.spec.node_name.is_empty()
            && matches!(self.spec.scheduler_name.as_str(), "" | "default-scheduler")
            && !self.finished()
            && self.metadata.deletion_timestamp.is_none()
    }

    /// Whether something other than this scheduler has to allow it first.
    pub fn gated(&self) -> bool {
        !self.spec.scheduling_gates.is_empty()
    }
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// `metadata`
    pub metadata: NodeMeta,
    /// `spec`
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    /// `status`
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// `metadata` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeMeta {
    /// `name`
    pub name: String,
    /// `labels`
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// `unschedulable`
    #[serde(deserialize_with = "or_default")]
    pub unschedulable: bool,
    /// `taints`
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// `allocatable`
    #[serde(deserialize_with = "or_default")]
    pub allocatable: Amounts,
}
