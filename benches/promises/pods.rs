//! From `kubectl apply` to a running process, and what a pod itself costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::common::{self, Cluster, leaks, run_with_input};
use crate::table;

const STARTS: usize = 50;
const COST_PODS: usize = 20;

pub fn measure(cluster: &Cluster) {
    starts(cluster);
    cost(cluster);
}

/// A pod whose process makes the file `HOST/NAME` first of all.
pub fn manifest(name: &str, host: &Path, probes: &str) -> String {
    let host = host.display();
    format!(
        // Without the dashes kubectl takes it for JSON.
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{bench: b}}}}, spec: {{ \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, imagePullPolicy: Never, {probes} \
         command: [sh, -c, 'touch /h/$NAME; exec httpd -f -p 80'], env: [{{name: NAME, value: {name}}}], \
         volumeMounts: [{{name: h, mountPath: /h}}]}}], volumes: [{{name: h, hostPath: {{path: {host}}}}}]}}}}"
    )
}

/// A directory of the host for the pods' files.
pub fn host_dir(cluster: &Cluster) -> PathBuf {
    let host = cluster.dir.path().join("h");
    fs::create_dir_all(&host).unwrap();
    host
}

fn starts(cluster: &Cluster) {
    let host = host_dir(cluster);
    let (mut total, mut kubectl) = (Vec::new(), Vec::new());
    for n in 0..STARTS {
        let name = format!("s{n}");
        let manifest = manifest(&name, &host, "");
        let began = SystemTime::now();
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &manifest);
        kubectl.push(began.elapsed().unwrap_or_default().as_secs_f64() * 1e3);
        let file = host.join(&name);
        let limit = Instant::now() + common::PATIENCE;
        while !file.exists() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        let made = fs::metadata(&file).unwrap().modified().unwrap();
        total.push(made.duration_since(began).unwrap_or_default().as_secs_f64() * 1e3);
    }
    let how = "median of 50, image present, kubectl's own time included";
    table::at_most("kubectl apply → the pod's process runs", "ms", 200.0, table::median(total), how);
    table::plain(
        "of which kubectl itself",
        "ms",
        table::median(kubectl),
        "median of 50, start to end of `kubectl apply`",
    );
    cluster.k("delete pods -l bench=b --wait=true");
}

fn cost(cluster: &Cluster) {
    let host = host_dir(cluster);
    for n in 0..COST_PODS {
        let manifest = manifest(&format!("c{n}"), &host, "");
        run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &manifest);
    }
    cluster.wait_ready("-l bench=b");
    std::thread::sleep(Duration::from_secs(2));
    let charges: Vec<f64> = leaks::cgroups(&cluster.data_dir())
        .iter()
        .flat_map(|root| fs::read_dir(root).unwrap().flatten())
        .filter_map(|pod| charge(&pod.path().join("shim")))
        .collect();
    assert_eq!(charges.len(), COST_PODS, "a shim's charge is missing");
    let mean = charges.iter().sum::<f64>() / charges.len() as f64 / 1e6;
    table::at_most("a pod's own cost", "MB", 1.0, mean, "mean charge of 20 shims' cgroups, kernel memory included");
    cluster.k("delete pods -l bench=b --wait=true");
}

/// Bytes of memory a cgroup is charged with; `None` outside the memory hierarchy.
fn charge(cgroup: &Path) -> Option<f64> {
    let read = |name| fs::read_to_string(cgroup.join(name)).ok()?.trim().parse().ok();
    read("memory.usage_in_bytes").or_else(|| read("memory.current"))
}
