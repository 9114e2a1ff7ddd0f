//! The downward API: fields of the pod and resources of its containers as text.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};

use super::error::{Error, Result};
use super::pod::{Desired, Facts};
use super::resources::{limit, milli, request, value};

/// The value of a `fieldRef`.
pub(super) fn field(pod: &Desired, facts: &Facts, path: &str) -> Result<String> {
    let metadata = &pod.pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(Error::config(format!("fieldPath {path:?} is not supported"))),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec();
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => joined(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => joined(&facts.pod_ips),
        _ => return Err(Error::config(format!("fieldPath {path:?} is not supported"))),
    })
}

fn first(addresses: &[IpAddr]) -> String {
    addresses.first().map(ToString::to_string).unwrap_or_default()
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `key="value"` lines, sorted, values escaped.
fn lines(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up. `own` is the container it is written in.
pub(super) fn resource(
    pod: &Desired,
    facts: &Facts,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => {
            Some(&pod.container(name).ok_or_else(|| Error::config(format!("container {name} not found")))?.spec)
        }
        None => own,
    };
    let container = container.ok_or_else(|| Error::config("resourceFieldRef names no container"))?;
    let unsupported = || Error::config(format!("unsupported container resource : {}", selector.resource));
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let set = match kind {
        "limits" => limit(container, name),
        "requests" => request(container, name),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref();
    let amount =
        |measure: fn(&k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64, unset: i64, unit: i64| {
            let value = set.map(measure).filter(|v| *v > 0).unwrap_or(if kind == "limits" { unset } else { 0 });
            let divisor = divisor.map(measure).filter(|d| *d > 0).unwrap_or(unit);
            (value / divisor + i64::from(value % divisor != 0)).to_string()
        };
    Ok(match name {
        "cpu" => amount(milli, facts.cpu_milli, 1000),
        "memory" => amount(value, facts.memory, 1),
        "ephemeral-storage" => amount(value, facts.storage, 1),
        _ if name.starts_with("hugepages-") => amount(value, 0, 1),
        _ => return Err(unsupported()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::desired;
    use super::*;

    fn facts() -> Facts {
        Facts {
            pod_ips: vec!["10.42.0.5".parse().unwrap()],
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            cpu_milli: 3500,
            memory: 1 << 30,
            storage: 1 << 33,
        }
    }

    #[test]
    fn fields() {
        let pod = desired(json!({"nodeName": "n1", "serviceAccountName": "sa"}), &[]);
        for (path, expected) in [
            ("metadata.name", Some("pod")),
            ("metadata.namespace", Some("ns")),
            ("metadata.uid", Some("u-1")),
            ("metadata.labels['app']", Some("web")),
            ("metadata.labels['none']", Some("")),
            ("metadata.labels", Some("app=\"web\"\ntier=\"a\\\"b\"")),
            ("metadata.annotations", Some("note=\"one\\ntwo\"")),
            ("spec.nodeName", Some("n1")),
            ("spec.serviceAccountName", Some("sa")),
            ("status.podIP", Some("10.42.0.5")),
            ("status.hostIPs", Some("192.0.2.1")),
            ("spec.other", None),
            ("spec.x['y']", None),
        ] {
            assert_eq!(field(&pod, &facts(), path).ok().as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn resources() {
        let limits = json!({"limits": {"memory": "64Mi", "cpu": "1500m"}, "requests": {"cpu": "250m"}});
        let pod = desired(json!({"containers": [{"name": "c", "resources": limits}, {"name": "d"}]}), &[]);
        for (container, resource_name, divisor, expected) in [
            ("c", "limits.cpu", "0", Some("2")),
            ("c", "limits.cpu", "1m", Some("1500")),
            ("c", "requests.cpu", "1m", Some("250")),
            ("c", "limits.memory", "1Mi", Some("64")),
            ("c", "requests.memory", "0", Some("67108864")),
            ("d", "limits.cpu", "0", Some("4")),
            ("d", "requests.cpu", "0", Some("0")),
            ("d", "limits.memory", "1Gi", Some("1")),
            ("x", "limits.cpu", "0", None),
            ("c", "limits.gpu", "0", None),
        ] {
            let selector = serde_json::from_value(
                json!({"containerName": container, "resource": resource_name, "divisor": divisor}),
            )
            .unwrap();
            let got = resource(&pod, &facts(), None, &selector).ok();
            assert_eq!(got.as_deref(), expected, "{container} {resource_name} {divisor}");
        }
    }
}
