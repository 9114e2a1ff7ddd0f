//! What the store costs: `cargo bench --bench store`. 10,000 pods of about 3.5 KB of JSON; random updates.
//!
//! Bytes an update are what the kernel was asked to write (`/proc/self/io`), log and checkpoints included; run it on
//! the medium that matters (`TMPDIR`), a tmpfs counts nothing.

use std::{error::Error, fs, time::Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use umiak::store::{Durability, Expect, Key, Options, Store, Write};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const OBJECTS: usize = 10_000;
const UPDATES: usize = 5_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let directory = tempfile::tempdir()?;
    let options = || Options { ring_bytes: 2 << 20, ..Options::new(directory.path().join("store.db")) };
    let store = Store::open(options())?;
    for start in (0..OBJECTS).step_by(100) {
        store.commit((start..start + 100).map(|i| write(i, 0, Expect::Absent)).collect()).await?;
    }
    println!("{:<44}{:>12}", "bytes of JSON an object", pod(1, 1).len());
    println!("{:<44}{:>12}", "bytes of the file an object", file_size(directory.path())? / OBJECTS as u64);
    for group in [1, 10, 100] {
        updates(&store, group).await?;
    }
    reads(&store)?;
    store.close().await?;
    drop(store);
    // SAFETY: it gives free memory back to the system and touches nothing else.
    unsafe { libc::malloc_trim(0) };
    let memory = resident()?;
    let start = Instant::now();
    let store = Store::open(options())?;
    println!("{:<44}{:>12.1}", "ms to open", start.elapsed().as_secs_f64() * 1e3);
    println!("{:<44}{:>12}", "KB of memory for index and SQLite", resident()?.saturating_sub(memory));
    Ok(store.close().await?)
}

async fn updates(store: &Store, group: usize) -> Result {
    let (start, before) = (Instant::now(), written()?);
    let mut random = Random(group as u64);
    for round in 0..UPDATES / group {
        let one = |_| store.commit(vec![write(random.next(), round, Expect::Present)]);
        try_join_all((0..group).map(one)).await?;
    }
    let (took, bytes) = (start.elapsed().as_secs_f64(), written()? - before);
    println!("{:<44}{:>12.0}", format!("updates/s, {group} callers"), UPDATES as f64 / took);
    println!("{:<44}{:>12}", format!("bytes written an update, {group} callers"), bytes / UPDATES as u64);
    Ok(())
}

fn reads(store: &Store) -> Result {
    let mut random = Random(7);
    let start = Instant::now();
    for _ in 0..OBJECTS {
        store.get(&key(random.next()))?.ok_or("an object is missing")?;
    }
    println!("{:<44}{:>12.0}", "gets/s", OBJECTS as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    let found = store.list("pods", None, None, 0)?.records.len();
    println!("{:<44}{:>12.1}", format!("ms to list {found}"), start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn key(i: usize) -> Key {
    Key::new("pods", format!("namespace-{}", i % 10), format!("web-5d4f8c7b9-{i:05}"))
}

fn write(i: usize, version: usize, expect: Expect) -> Write {
    let index = vec![format!("node:node-{}", i % 50)];
    Write { key: key(i), expect, data: Some(pod(i, version)), index, durability: Durability::Durable }
}

/// A pod as the API stores it: names, times, addresses and digests differ, field names do not.
fn pod(i: usize, version: usize) -> Bytes {
    let hash = |salt: usize| (i * 31 + version * 17 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let uid = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        hash(1) >> 32,
        hash(2) >> 48,
        i % 4096,
        i % 4096,
        hash(3) >> 16
    );
    let digest = format!("{:016x}{:016x}{:016x}{:016x}", hash(4), hash(5), hash(6), hash(7));
    let minute = version % 60;
    let conditions: Vec<String> = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|t| format!(r#"{{"lastProbeTime":null,"lastTransitionTime":"2026-03-04T05:{minute:02}:06Z","status":"True","type":"{t}"}}"#))
        .into();
    let fields: Vec<String> = ["ContainersReady", "Initialized", "PodScheduled", "Ready"]
        .map(|t| format!(r#""k:{{\"type\":\"{t}\"}}":{{".":{{}},"f:lastProbeTime":{{}},"f:lastTransitionTime":{{}},"f:status":{{}},"f:type":{{}}}}"#))
        .into();
    let text = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"creationTimestamp":"2026-03-04T05:06:07Z","generateName":"web-5d4f8c7b9-","labels":{{"app":"web","pod-template-hash":"5d4f8c7b9"}},"managedFields":[{{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:generateName":{{}},"f:labels":{{".":{{}},"f:app":{{}},"f:pod-template-hash":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"{uid}\"}}":{{}}}}}},"f:spec":{{"f:containers":{{"k:{{\"name\":\"nginx\"}}":{{".":{{}},"f:image":{{}},"f:imagePullPolicy":{{}},"f:name":{{}},"f:resources":{{}},"f:terminationMessagePath":{{}},"f:terminationMessagePolicy":{{}}}}}},"f:dnsPolicy":{{}},"f:restartPolicy":{{}},"f:schedulerName":{{}},"f:terminationGracePeriodSeconds":{{}}}}}},"manager":"kube-controller-manager","operation":"Update","time":"2026-03-04T05:06:07Z"}},{{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{{"f:status":{{"f:conditions":{{{fields}}},"f:containerStatuses":{{}},"f:hostIP":{{}},"f:phase":{{}},"f:podIP":{{}},"f:startTime":{{}}}}}},"manager":"umiak","operation":"Update","subresource":"status","time":"2026-03-04T05:{minute:02}:06Z"}}],"name":"web-5d4f8c7b9-{i:05}","namespace":"namespace-{ns}","ownerReferences":[{{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web-5d4f8c7b9","uid":"6c1d8a2e-11aa-4b5c-8d7e-0123456789ab"}}],"uid":"{uid}"}},"spec":{{"containers":[{{"image":"nginx:1.27","imagePullPolicy":"IfNotPresent","name":"nginx","ports":[{{"containerPort":80,"protocol":"TCP"}}],"resources":{{"limits":{{"memory":"128Mi"}}}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}}],"dnsPolicy":"ClusterFirst","enableServiceLinks":true,"nodeName":"node-{node}","restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{{}},"serviceAccountName":"default","terminationGracePeriodSeconds":30}},"status":{{"conditions":[{conditions}],"containerStatuses":[{{"containerID":"umiak://{digest}","image":"docker.io/library/nginx:1.27","imageID":"docker.io/library/nginx@sha256:{digest}","lastState":{{}},"name":"nginx","ready":true,"restartCount":{version},"started":true,"state":{{"running":{{"startedAt":"2026-03-04T05:{minute:02}:06Z"}}}}}}],"hostIP":"192.168.7.{node}","phase":"Running","podIP":"10.42.{node}.{low}","qosClass":"Burstable","startTime":"2026-03-04T05:{minute:02}:06Z"}}}}"#,
        ns = i % 10,
        node = i % 50,
        low = i % 250,
        conditions = conditions.join(","),
        fields = fields.join(","),
    );
    text.into()
}

/// A linear congruential generator over the objects: no dependency, the same run every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % OBJECTS
    }
}

fn written() -> Result<u64> {
    proc_value("/proc/self/io", "write_bytes:")
}

fn resident() -> Result<u64> {
    proc_value("/proc/self/status", "VmRSS:")
}

fn proc_value(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).ok_or(format!("{path} has no {name}"))?;
    Ok(line.split_whitespace().next().ok_or("no value")?.parse()?)
}

fn file_size(directory: &std::path::Path) -> Result<u64> {
    Ok(fs::metadata(directory.join("store.db"))?.len())
}
