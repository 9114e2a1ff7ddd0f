//! What nodes and pods use (`kubectl top`), asked of the nodes at that moment: a fleet that nobody looks at measures
//! and sends nothing.
//!
//! Left out are nodes that are not connected, and pods no container of which runs, as metrics-server leaves out those
//! it has no metrics of.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::StreamExt;
use http::Response;
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta, metrics};
use crate::link::stream::StreamRequest;
use crate::link::usage::{Amount, Usage};
use crate::registry::{List, ListOptions, Raw};

use super::PodStreams;
use super::reply::{Body, Form};
use super::request::Call;
use super::route::{Target, Verb};
use super::stream::log_body;

/// The kinds served here.
static KINDS: LazyLock<[Arc<Kind>; 2]> = LazyLock::new(|| metrics::kinds().map(Arc::new));
/// A node that takes longer is left out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes asked at the same time.
const AT_ONCE: usize = 64;
/// Longest answer of a node in bytes.
const MAX_USAGE: usize = 1 << 20;

/// All kinds that are measured.
pub(super) fn kinds() -> &'static [Arc<Kind>] {
    &*KINDS
}

/// The measured kind served at a path.
pub(super) fn kind(group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.plural == plural).cloned()
}

/// Whether a target is measured.
pub(super) fn is_measured(target: &Target) -> bool {
    KINDS.iter().any(|kind| Arc::ptr_eq(kind, &target.kind))
}

/// A node or pod whose usage is asked for.
#[derive(Deserialize)]
struct Subject {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    uid: String,
    #[serde(default)]
    labels: Object,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
}

impl Subject {
    /// The node to ask; empty: none has the pod.
    fn node(&self, kind: &Kind) -> &str {
        if kind.namespaced { &self.spec.node_name } else { &self.metadata.name }
    }
}

/// Measures and answers.
pub(super) async fn answer(call: Call, verb: Verb) -> Result<Response<Body>, Status> {
    let (registry, kind, target) = (&call.api.registry, &call.target.kind, &call.target);
    let measured = registry.kinds().by_plural("", "v1", &kind.plural).ok_or_else(Status::no_such_path)?;
    match verb {
        Verb::Get => {
            let absent = || Status::not_found(&kind.group, &kind.plural, &target.name);
            let found = registry.get_raw(&measured, &target.ns, &target.name);
            let raw = found.map_err(|status| if status.code == 404 { absent() } else { status })?;
            let object = measure(&call, vec![raw.parse()?]).await.pop().ok_or_else(absent)?;
            call.style.object(kind, 200, &object)
        }
        Verb::List => {
            // In one page: what is measured has no revision to go on at.
            let options = ListOptions { limit: 0, next: String::new(), exact: None, ..call.list_options()? };
            let listed = registry.list_slowly(&measured, &options).await?.items;
            let subjects = listed.iter().map(Raw::parse).collect::<Result<_, _>>()?;
            list(&call, measure(&call, subjects).await)
        }
        _ => Err(Status::method_not_allowed()),
    }
}

fn list(call: &Call, objects: Vec<Object>) -> Result<Response<Body>, Status> {
    let kind = &call.target.kind;
    if matches!(call.style.form, Form::Table | Form::Metadata) {
        let items = objects.iter().map(|object| Raw::of(kind, object)).collect::<Result<_, _>>()?;
        return call.style.list(kind.clone(), List { items, ..List::default() });
    }
    let document = json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": {}, "items": objects,
    });
    match document {
        Value::Object(document) => call.style.object(kind, 200, &document),
        _ => Err(Status::internal("a list is no object")),
    }
}

/// The metrics of all subjects that have some, in their order.
async fn measure(call: &Call, subjects: Vec<Subject>) -> Vec<Object> {
    let kind = &call.target.kind;
    let nodes: BTreeSet<&str> = subjects.iter().map(|s| s.node(kind)).filter(|node| !node.is_empty()).collect();
    // Collected: the compiler does not see that a stream of borrowed names may be sent to another thread.
    let questions: Vec<_> = nodes.into_iter().map(|node| ask(call.api.streams.clone(), node.to_owned())).collect();
    let answers = futures_util::stream::iter(questions).buffer_unordered(AT_ONCE);
    let usages: HashMap<String, Usage> = answers.filter_map(std::future::ready).collect().await;
    let now = Timestamp::now();
    subjects.iter().filter_map(|subject| object(kind, subject, usages.get(subject.node(kind))?, now)).collect()
}

/// The usage of a node, with its name, if it answers.
async fn ask(streams: Arc<dyn PodStreams>, node: String) -> Option<(String, Usage)> {
    let answer = timeout(PATIENCE, usage(&*streams, &node)).await;
    match answer.unwrap_or_else(|_| Err(Status::timeout("no answer"))) {
        Ok(usage) => Some((node, usage)),
        Err(status) => {
            tracing::debug!(node, %status, "a node does not say what it uses");
            None
        }
    }
}

async fn usage(streams: &dyn PodStreams, node: &str) -> Result<Usage, Status> {
    let body = log_body(streams.open(node, StreamRequest::Usage).await?).await?;
    let bytes = Limited::new(body, MAX_USAGE).collect().await.map_err(Status::internal)?.to_bytes();
    serde_json::from_slice(&bytes).map_err(Status::internal)
}

/// `NodeMetrics` or `PodMetrics`; `None` for a pod that does not run.
fn object(kind: &Kind, subject: &Subject, usage: &Usage, now: Timestamp) -> Option<Object> {
    let Metadata { name, namespace, uid, labels } = &subject.metadata;
    let time = meta::format_time(now);
    let mut object = json!({
        "kind": kind.kind, "apiVersion": kind.api_version(),
        "metadata": { "name": name, "creationTimestamp": time },
        "timestamp": time, "window": window(usage.window_ms),
    });
    if !labels.is_empty() {
        object["metadata"]["labels"] = Value::Object(labels.clone());
    }
    if kind.namespaced {
        object["metadata"]["namespace"] = namespace.as_str().into();
        let containers = usage.pods.get(uid)?;
        object["containers"] =
            containers.iter().map(|(name, used)| json!({ "name": name, "usage": resources(*used) })).collect();
    } else {
        object["usage"] = resources(usage.node);
    }
    object.as_object_mut().map(std::mem::take)
}

/// As quantities, in the units of metrics-server.
fn resources(used: Amount) -> Value {
    json!({ "cpu": format!("{}n", used.cpu), "memory": format!("{}Ki", used.memory / 1024) })
}

/// A `metav1.Duration`, as Go writes one.
fn window(milliseconds: u64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, (milliseconds % 60_000) as f64 / 1e3);
    if minutes == 0 { format!("{rest}s") } else { format!("{minutes}m{rest}s") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_durations() {
        for (milliseconds, expected) in
            [(0, "0s"), (1000, "1s"), (1002, "1.002s"), (60_000, "1m0s"), (75_500, "1m15.5s")]
        {
            assert_eq!(window(milliseconds), expected);
        }
    }

    #[test]
    fn objects_are_those_of_metrics_server() {
        let subject = |value: Value| serde_json::from_value::<Subject>(value).unwrap();
        let pod = subject(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}}, "spec": {"nodeName": "pi"},
        }));
        let node = subject(json!({"metadata": {"name": "pi", "uid": "v"}}));
        let amount = Amount { cpu: 5, memory: 2048 };
        let usage =
            Usage { window_ms: 1000, node: amount, pods: [("u".to_owned(), [("c".to_owned(), amount)].into())].into() };
        let [nodes, pods] = kinds() else { panic!() };
        assert_eq!((node.node(nodes), pod.node(pods)), ("pi", "pi"));
        let (now, time) = (Timestamp::UNIX_EPOCH, "1970-01-01T00:00:00Z");
        let used = json!({"cpu": "5n", "memory": "2Ki"});
        assert_eq!(
            Value::from(object(nodes, &node, &usage, now).unwrap()),
            json!({
                "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "timestamp": time, "window": "1s",
                "metadata": {"name": "pi", "creationTimestamp": time}, "usage": used,
            })
        );
        assert_eq!(
            Value::from(object(pods, &pod, &usage, now).unwrap()),
            json!({
                "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "timestamp": time, "window": "1s",
                "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}, "creationTimestamp": time},
                "containers": [{"name": "c", "usage": used}],
            })
        );
        assert!(object(pods, &node, &usage, now).is_none(), "it does not run");
    }
}
