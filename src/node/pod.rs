//! A pod as the node half reads it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::Value;

use crate::kinds::Object;
use crate::link::message::{DesiredPod, PodName, Reference};

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: goes on beside the others.
    Sidecar,
    /// One of `spec.containers`.
    App,
    /// One of `spec.ephemeralContainers`: runs once.
    Ephemeral,
}

/// A container of a pod and its role.
#[derive(Clone, Debug)]
pub(super) struct ContainerSpec {
    /// What it is for.
    pub(super) role: Role,
    /// Its specification.
    pub(super) spec: Container,
}

/// A pod the node should have, with what it uses.
#[derive(Debug)]
pub(super) struct Desired {
    /// The pod; its lists of containers are moved to [`Desired::containers`].
    pub(super) pod: Pod,
    /// Init containers, containers, ephemeral containers, in this order.
    pub(super) containers: Vec<ContainerSpec>,
    objects: BTreeMap<Reference, Object>,
}

/// What the pod can learn of its surroundings (downward API).
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// The pod's addresses; empty before it has a sandbox.
    pub(super) pod_ips: Vec<IpAddr>,
    /// The node's addresses.
    pub(super) host_ips: Vec<IpAddr>,
    /// CPU of the node for pods, in thousandths.
    pub(super) cpu_milli: i64,
    /// Memory of the node for pods, in bytes.
    pub(super) memory: i64,
    /// Disk of the node for pods, in bytes.
    pub(super) storage: i64,
}

impl Desired {
    /// Reads what the server sent.
    pub(super) fn parse(desired: &DesiredPod) -> Result<Self, serde_json::Error> {
        let mut pod: Pod = serde_json::from_value(Value::Object(desired.pod.clone()))?;
        let mut containers = Vec::new();
        if let Some(spec) = pod.spec.as_mut() {
            for spec in spec.init_containers.take().into_iter().flatten() {
                let sidecar = spec.restart_policy.as_deref() == Some("Always");
                containers.push(ContainerSpec { role: if sidecar { Role::Sidecar } else { Role::Init }, spec });
            }
            for spec in std::mem::take(&mut spec.containers) {
                containers.push(ContainerSpec { role: Role::App, spec });
            }
            for spec in spec.ephemeral_containers.take().into_iter().flatten() {
                let spec = serde_json::from_value(serde_json::to_value(spec)?)?;
                containers.push(ContainerSpec { role: Role::Ephemeral, spec });
            }
        }
        let objects = desired.objects.iter().filter_map(|d| Some((d.reference.clone(), d.object.clone()?))).collect();
        Ok(Self { pod, containers, objects })
    }

    /// `spec`.
    pub(super) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// `metadata.uid`.
    pub(super) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.name`.
    pub(super) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`.
    pub(super) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The full name.
    pub(super) fn pod_name(&self) -> PodName {
        PodName { uid: self.uid().to_owned(), namespace: self.namespace().to_owned(), name: self.name().to_owned() }
    }

    /// A container by name.
    pub(super) fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.containers.iter().find(|c| c.spec.name == name)
    }

    /// Whether the server wants the pod ended.
    pub(super) fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Seconds containers have to end: of the deletion if there is one, else of the specification.
    pub(super) fn grace(&self) -> i64 {
        let deletion = self.pod.metadata.deletion_grace_period_seconds.filter(|_| self.deleting());
        deletion.or(self.spec().termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    /// `restartPolicy`.
    pub(super) fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// Whether the pod lives in the node's network.
    pub(super) fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    /// The pod's host name as its processes see it.
    pub(super) fn hostname(&self) -> &str {
        let spec = self.spec();
        let name = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).filter(|h| !h.is_empty());
        // A host name has at most 63 characters; kubelet cuts there and drops what may not end one.
        let name = name.unwrap_or_else(|| self.name());
        name.get(..63).unwrap_or(name).trim_end_matches(['-', '.'])
    }

    /// An object of the pod's namespace that it refers to.
    pub(super) fn object(&self, resource: &str, name: &str) -> Option<&Object> {
        self.object_in(resource, self.namespace(), name)
    }

    /// An object the pod refers to.
    pub(super) fn object_in(&self, resource: &str, namespace: &str, name: &str) -> Option<&Object> {
        let reference =
            Reference { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
        self.objects.get(&reference)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::message::Dependency;

    /// A pod in namespace `ns` named `pod` with this `spec` and these objects (`resource/name`, content).
    pub(crate) fn desired(spec: Value, objects: &[(&str, Value)]) -> Desired {
        Desired::parse(&desired_message(spec, objects)).unwrap()
    }

    pub(crate) fn desired_message(spec: Value, objects: &[(&str, Value)]) -> DesiredPod {
        let metadata = json!({
            "name": "pod", "namespace": "ns", "uid": "u-1", "labels": {"app": "web", "tier": "a\"b"},
            "annotations": {"note": "one\ntwo"}, "generation": 3,
        });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let objects = objects
            .iter()
            .map(|(name, object)| {
                let (resource, name) = name.split_once('/').unwrap();
                let namespace = if resource == "persistentvolumes" { "" } else { "ns" };
                let reference = Reference { resource: resource.into(), namespace: namespace.into(), name: name.into() };
                Dependency { reference, object: object.as_object().cloned() }
            })
            .collect();
        DesiredPod { pod: pod.as_object().unwrap().clone(), objects }
    }

    #[test]
    fn roles_and_host_names() {
        let pod = desired(
            json!({
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}],
                "ephemeralContainers": [{"name": "e", "image": "x"}],
                "hostname": "h".repeat(62) + "-rest",
            }),
            &[],
        );
        let roles: Vec<_> = pod.containers.iter().map(|c| (c.spec.name.as_str(), c.role)).collect();
        assert_eq!(roles, [("i", Role::Init), ("s", Role::Sidecar), ("a", Role::App), ("e", Role::Ephemeral)]);
        assert_eq!(pod.hostname(), "h".repeat(62));
        assert_eq!(desired(json!({}), &[]).hostname(), "pod");
    }
}
