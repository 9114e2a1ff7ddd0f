//! What the node says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::pod::Facts;
use crate::image::ImageSummary;
use crate::kinds::Object;
use crate::link::message::NodeReport;
use crate::runtime::host::Disk;

/// Pods a node takes.
const PODS: u32 = 110;
/// Images that are reported; as many as kubelet reports.
const IMAGES: usize = 50;
/// Less memory than this (bytes) is pressure.
const LOW_MEMORY: u64 = 100 << 20;
/// The Kubernetes version whose behaviour this node has.
const KUBELET_VERSION: &str = "v1.35.0+umiak";

/// Sizes of this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    cpus: usize,
    memory: u64,
    memory_available: u64,
    disk: Disk,
}

impl Machine {
    /// Measures; `data` lies on the disk that counts.
    pub(super) fn measure(data: &Path) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| -> u64 {
            let line = meminfo.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kib("MemTotal:") * 1024,
            memory_available: kib("MemAvailable:") * 1024,
            disk: Disk::below(data).unwrap_or(Disk { size: 0, free: 0 }),
        }
    }

    /// Whether memory and disk run short.
    pub(super) fn pressure(&self) -> (bool, bool) {
        (self.memory_available < LOW_MEMORY, self.disk.is_low())
    }

    /// The node's part of what pods can learn.
    pub(super) fn facts(&self, addresses: &[IpAddr]) -> Facts {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Facts {
            pod_ips: Vec::new(),
            host_ips: addresses.to_vec(),
            cpu_milli: signed(self.cpus as u64 * 1000),
            memory: signed(self.memory),
            storage: signed(self.disk.size),
        }
    }
}

/// The parts of a report that are not measured.
pub(super) struct Identity<'a> {
    /// Node name.
    pub(super) name: &'a str,
    /// Addresses, the most important first.
    pub(super) addresses: &'a [IpAddr],
    /// Labels of the operator.
    pub(super) labels: &'a BTreeMap<String, String>,
    /// Why pods do not reach the outside, if they do not.
    pub(super) network_problem: Option<String>,
}

/// The node's report.
pub(super) fn report(identity: &Identity<'_>, machine: &Machine, images: Vec<ImageSummary>) -> NodeReport {
    let mut labels = Object::new();
    for (key, value) in identity.labels {
        labels.insert(key.clone(), json!(value));
    }
    for (key, value) in [
        ("kubernetes.io/hostname", identity.name),
        ("kubernetes.io/arch", arch()),
        ("kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch()),
        ("beta.kubernetes.io/os", "linux"),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    let mut addresses: Vec<Value> =
        identity.addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    addresses.push(json!({"type": "Hostname", "address": identity.name}));
    let sizes = json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory / 1024),
        "ephemeral-storage": format!("{}Ki", machine.disk.size / 1024),
        "pods": PODS.to_string(),
    });
    let status = json!({
        "capacity": sizes,
        "allocatable": sizes,
        "conditions": conditions(machine, identity.network_problem.as_deref()),
        "addresses": addresses,
        "nodeInfo": node_info(),
        "images": image_list(images),
    });
    NodeReport { labels, status }
}

fn conditions(machine: &Machine, network_problem: Option<&str>) -> Value {
    let (low_memory, low_disk) = machine.pressure();
    let condition = |kind: &str, is: bool, reason: &str, message: &str| json!({"type": kind, "status": if is { "True" } else { "False" }, "reason": reason, "message": message});
    let pressure = |kind: &str, is: bool, what: &str, words: &str| {
        let (reason, message) = match is {
            true => (format!("KubeletHasInsufficient{what}"), format!("kubelet has insufficient {words} available")),
            false => (format!("KubeletHasSufficient{what}"), format!("kubelet has sufficient {words} available")),
        };
        condition(kind, is, &reason, &message)
    };
    let network = match network_problem {
        Some(problem) => condition("NetworkUnavailable", false, "PodsCannotReachOutside", problem),
        None => condition("NetworkUnavailable", false, "NetworkIsUp", "the pod network is up"),
    };
    json!([
        network,
        pressure("MemoryPressure", low_memory, "Memory", "memory"),
        condition(
            "DiskPressure",
            low_disk,
            if low_disk { "KubeletHasDiskPressure" } else { "KubeletHasNoDiskPressure" },
            if low_disk { "kubelet has disk pressure" } else { "kubelet has no disk pressure" }
        ),
        pressure("PIDPressure", false, "PID", "PID"),
        condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ])
}

/// The architecture as Go and Kubernetes name it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

fn node_info() -> Value {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    let machine_id = first_line("/etc/machine-id");
    let uuid = Some(first_line("/sys/class/dmi/id/product_uuid")).filter(|u| !u.is_empty());
    json!({
        "machineID": machine_id,
        "systemUUID": uuid.unwrap_or_else(|| machine_id.clone()),
        "bootID": first_line("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": first_line("/proc/sys/kernel/osrelease"),
        "osImage": os,
        "containerRuntimeVersion": concat!("umiak://", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": KUBELET_VERSION,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": arch(),
    })
}

fn image_list(mut images: Vec<ImageSummary>) -> Value {
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    let names = |image: &ImageSummary| [image.repo_digests.as_slice(), image.repo_tags.as_slice()].concat();
    images.iter().take(IMAGES).map(|i| json!({"names": names(i), "sizeBytes": i.size})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_complete() {
        let machine =
            Machine { cpus: 4, memory: 1 << 30, memory_available: 1 << 20, disk: Disk { size: 1000, free: 500 } };
        let labels = [("site".to_owned(), "roof".to_owned())].into();
        let addresses = [IpAddr::from([192, 0, 2, 1])];
        let identity = Identity { name: "pi", addresses: &addresses, labels: &labels, network_problem: None };
        let report = report(&identity, &machine, Vec::new());
        assert_eq!(report.labels["kubernetes.io/hostname"], "pi");
        assert_eq!(report.labels["site"], "roof");
        assert_eq!(report.status["capacity"]["memory"], "1048576Ki");
        let status_of = |kind: &str| {
            let list = report.status["conditions"].as_array().cloned().unwrap_or_default();
            list.into_iter().find(|c| c["type"] == kind).map(|c| c["status"].clone())
        };
        for (kind, expected) in [("Ready", "True"), ("MemoryPressure", "True"), ("DiskPressure", "False")] {
            assert_eq!(status_of(kind), Some(json!(expected)), "{kind}");
        }
        assert!(!report.status["nodeInfo"]["kernelVersion"].to_string().is_empty());
        assert!(Machine::measure(Path::new("/")).disk.size > 0);
    }
}
