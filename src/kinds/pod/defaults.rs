//! Defaults of pods and pod templates (`pkg/apis/core/v1/defaults.go` and the admission plugins that are always on:
//! ServiceAccount, Priority, DefaultTolerationSeconds).

use serde_json::{Value, json};

use crate::kinds::Object;
use crate::kinds::meta::{self, child, default_number, default_to, items_mut};
use crate::kinds::quantity::{canonicalize, canonicalize_list};

/// Where containers of a pod spec are listed.
pub(super) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The default mode of files in volumes, 0644.
const FILE_MODE: u32 = 0o644;

/// Seconds a pod stays on a node that is not ready or not reachable, unless it says otherwise.
const NOT_READY_SECONDS: u32 = 300;

/// The defaults of a pod, admission's among them.
pub(super) fn pod(object: &mut Object) {
    let spec = child(object, "spec");
    pod_spec(spec);
    default_to(spec, "enableServiceLinks", true);
    if meta::flag(spec, "hostNetwork") {
        host_ports(spec);
    }
    for list in ["initContainers", "containers"] {
        items_mut(spec, list).for_each(requests_from_limits);
    }
    service_account(spec, Some("default"));
    priority(spec);
    tolerate_lost_node(spec, "node.kubernetes.io/not-ready");
    tolerate_lost_node(spec, "node.kubernetes.io/unreachable");
}

/// The defaults of a pod template: those of a pod spec alone.
pub fn template(template: &mut Object) {
    pod_spec(child(template, "spec"));
}

fn pod_spec(spec: &mut Object) {
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_to(spec, "schedulerName", "default-scheduler");
    default_to(spec, "securityContext", json!({}));
    service_account(spec, None);
    for list in CONTAINER_LISTS {
        items_mut(spec, list).for_each(container);
    }
    items_mut(spec, "volumes").for_each(volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`: both are always the same.
fn service_account(spec: &mut Object, fallback: Option<&str>) {
    let names = [meta::text(spec, "serviceAccountName"), meta::text(spec, "serviceAccount"), fallback.unwrap_or("")];
    let name = names.into_iter().find(|n| !n.is_empty()).unwrap_or_default().to_owned();
    if !name.is_empty() {
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.into());
    }
}

/// The value of the priority classes every cluster has; `None` for other names.
pub(super) fn priority_of(class: &str) -> Option<i32> {
    match class {
        "" => Some(0),
        "system-cluster-critical" => Some(2_000_000_000),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    }
}

fn priority(spec: &mut Object) {
    if let Some(priority) = priority_of(meta::text(spec, "priorityClassName")) {
        default_to(spec, "priority", priority);
    }
    default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
}

fn tolerate_lost_node(spec: &mut Object, taint: &str) {
    let tolerates = |t: &Object| {
        let key = meta::text(t, "key");
        (key.is_empty() || key == taint) && matches!(meta::text(t, "effect"), "" | "NoExecute")
    };
    if meta::items(spec, "tolerations").any(tolerates) {
        return;
    }
    let toleration =
        json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NOT_READY_SECONDS});
    match spec.get_mut("tolerations") {
        Some(Value::Array(list)) => list.push(toleration),
        _ => {
            spec.insert("tolerations".into(), json!([toleration]));
        }
    }
}

/// On the host's network a container's port is the host's port.
fn host_ports(spec: &mut Object) {
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            for port in items_mut(container, "ports") {
                if let (None | Some(0), Some(number)) = (meta::int(port, "hostPort"), meta::int(port, "containerPort"))
                {
                    port.insert("hostPort".into(), number.into());
                }
            }
        }
    }
}

fn container(container: &mut Object) {
    let policy = pull_policy(meta::text(container, "image"));
    default_to(container, "imagePullPolicy", policy);
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    default_to(container, "resources", json!({}));
    for list in ["limits", "requests"] {
        if let Some(Value::Object(list)) = container.get_mut("resources").and_then(|r| r.get_mut(list)) {
            canonicalize_list(list);
        }
    }
    items_mut(container, "ports").for_each(|port| default_to(port, "protocol", "TCP"));
    items_mut(container, "env").for_each(environment_variable);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = container.get_mut(name) {
            default_number(probe, "timeoutSeconds", 1);
            default_number(probe, "periodSeconds", 10);
            default_number(probe, "successThreshold", 1);
            default_number(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(Value::Object(hook)) = container.get_mut("lifecycle").and_then(|l| l.get_mut(name)) {
            handler(hook);
        }
    }
}

/// `Always` for the tag `latest`, said or implied; `IfNotPresent` for what has another tag or a digest.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn environment_variable(variable: &mut Object) {
    let Some(Value::Object(from)) = variable.get_mut("valueFrom") else { return };
    if let Some(Value::Object(field)) = from.get_mut("fieldRef") {
        default_to(field, "apiVersion", "v1");
    }
    if let Some(Value::Object(resource)) = from.get_mut("resourceFieldRef") {
        divisor(resource);
    }
}

/// A divisor is written even if it was not given: `"0"`, which counts as 1.
fn divisor(resource: &mut Object) {
    default_to(resource, "divisor", "0");
    if let Some(divisor) = resource.get_mut("divisor") {
        canonicalize(divisor);
    }
}

/// The HTTP request of a probe or hook.
fn handler(handler: &mut Object) {
    if let Some(Value::Object(get)) = handler.get_mut("httpGet") {
        default_to(get, "path", "/");
        default_to(get, "scheme", "HTTP");
    }
    if let Some(Value::Object(grpc)) = handler.get_mut("grpc") {
        default_to(grpc, "service", "");
    }
}

/// A request that is not given is the limit.
fn requests_from_limits(container: &mut Object) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    let Some(limits) = meta::sub(resources, "limits").filter(|l| !l.is_empty()).cloned() else { return };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn volume(volume: &mut Object) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(Value::Object(source)) = volume.get_mut(name) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(Value::Object(source)) = volume.get_mut("hostPath") {
        default_to(source, "type", "");
    }
    if let Some(limit) = volume.get_mut("emptyDir").and_then(|e| e.get_mut("sizeLimit")) {
        canonicalize(limit);
    }
    if let Some(Value::Object(source)) = volume.get_mut("downwardAPI") {
        items_mut(source, "items").for_each(downward_file);
    }
    if let Some(Value::Object(projected)) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(Value::Object(downward)) = source.get_mut("downwardAPI") {
                items_mut(downward, "items").for_each(downward_file);
            }
            if let Some(Value::Object(token)) = source.get_mut("serviceAccountToken") {
                default_to(token, "expirationSeconds", 3600);
            }
        }
    }
}

fn downward_file(file: &mut Object) {
    if let Some(Value::Object(field)) = file.get_mut("fieldRef") {
        default_to(field, "apiVersion", "v1");
    }
    if let Some(Value::Object(resource)) = file.get_mut("resourceFieldRef") {
        divisor(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.9.1", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
