//! Fields of Kubernetes that this build cannot honour. They are refused on create, so that nobody relies on them in vain.
//! Supporting one means deleting its line.

use serde_json::Value;

use super::Object;
use super::check::{Errors, join, present};
use super::status::FieldError;

/// What is said of such a field.
const TEXT: &str = "not supported by umiak";

/// In a pod spec.
const POD_SPEC: &[&str] = &[
    "ephemeralContainers",
    "hostnameOverride",
    "imagePullSecrets",
    "overhead",
    "resourceClaims",
    "resources",
    "runtimeClassName",
    "workloadRef",
];

/// In a pod spec, where only `true` or only `false` asks for something.
const POD_SPEC_FLAGS: &[(&str, bool)] =
    &[("automountServiceAccountToken", true), ("hostUsers", false), ("shareProcessNamespace", true)];

/// In a pod's security context.
const POD_SECURITY: &[&str] = &["seLinuxChangePolicy", "seLinuxOptions", "windowsOptions"];

/// In a container.
const CONTAINER: &[&str] = &["resizePolicy", "restartPolicyRules", "volumeDevices"];

/// In a container's lifecycle.
const LIFECYCLE: &[&str] = &["stopSignal"];

/// In a container's security context.
const CONTAINER_SECURITY: &[&str] = &["seLinuxOptions", "windowsOptions"];

/// In a probe.
const PROBE: &[&str] = &["grpc"];

/// In `valueFrom`.
const ENV_SOURCE: &[&str] = &["fileKeyRef"];

/// Volume sources. Those that are supported are listed in `pod::volumes`.
const VOLUME: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Sources of a projected volume.
const PROJECTION: &[&str] = &["clusterTrustBundle", "podCertificate", "serviceAccountToken"];

/// Parts of objects with fields that may be unsupported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A pod spec.
    PodSpec,
    /// A pod's security context.
    PodSecurity,
    /// A container.
    Container,
    /// A container's lifecycle.
    Lifecycle,
    /// A container's security context.
    ContainerSecurity,
    /// A probe.
    Probe,
    /// The `valueFrom` of a variable.
    EnvSource,
    /// A volume.
    Volume,
    /// A source of a projected volume.
    Projection,
}

/// Refuses the unsupported fields of one part of an object.
pub fn refuse(errors: &mut Errors, path: &str, part: Part, object: &Object) {
    let list = match part {
        Part::PodSpec => POD_SPEC,
        Part::PodSecurity => POD_SECURITY,
        Part::Container => CONTAINER,
        Part::Lifecycle => LIFECYCLE,
        Part::ContainerSecurity => CONTAINER_SECURITY,
        Part::Probe => PROBE,
        Part::EnvSource => ENV_SOURCE,
        Part::Volume => VOLUME,
        Part::Projection => PROJECTION,
    };
    for key in list {
        // An empty object is a choice too: `csi: {}`.
        if present(object, key).is_some() || matches!(object.get(*key), Some(Value::Object(_)) if part != Part::PodSpec)
        {
            refuse_field(errors, &join(path, key));
        }
    }
    if part == Part::PodSpec {
        for (key, refused) in POD_SPEC_FLAGS {
            if object.get(*key).and_then(Value::as_bool) == Some(*refused) {
                refuse_field(errors, &join(path, key));
            }
        }
    }
}

/// Refuses one field.
pub fn refuse_field(errors: &mut Errors, path: &str) {
    errors.push(FieldError::forbidden(path, TEXT));
}
