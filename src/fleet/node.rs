//! The Node object: made at a node's first report, brought up to date by the later ones.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Kinds, MANAGER, Member};
use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::link::message::NodeReport;
use crate::registry::{Registry, WriteOptions};

/// Labels a node has of itself. Any other is its owner's to give: a board that went over to somebody else must not draw
/// pods, and their Secrets, to itself.
const OWN_LABELS: [&str; 5] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
];

/// Applies a node's report to its object.
pub(super) async fn register(
    registry: &Registry,
    kinds: &Kinds,
    member: &Member,
    report: NodeReport,
) -> Result<(), Status> {
    let options = WriteOptions::by(MANAGER);
    let update = |node: &mut Object| {
        same(node, member)?;
        own(node, member, &report.labels);
        Ok(())
    };
    match registry.modify(&kinds.nodes, "", &member.name, None, &options, update).await {
        Err(status) if status.code == 404 && member.uid.is_none() => {
            let mut node = Object::new();
            meta::set(&mut node, "/apiVersion", "v1");
            meta::set(&mut node, "/kind", "Node");
            meta::set(&mut node, "/metadata/name", member.name.as_str());
            own(&mut node, member, &report.labels);
            registry.create(&kinds.nodes, "", node, &options).await?;
        }
        result => drop(result?),
    }
    let now = meta::format_time(Timestamp::now());
    let change = |node: &mut Object| {
        same(node, member)?;
        let old = node.get("status").cloned().unwrap_or(Value::Null);
        node.insert("status".to_owned(), merged(&old, &report.status, &now));
        Ok(())
    };
    registry.modify(&kinds.nodes, "", &member.name, Some(Subresource::Status), &options, change).await.map(drop)
}

/// Refuses the word of a node whose object has been removed and made anew.
fn same(node: &Object, member: &Member) -> Result<(), Status> {
    match &member.uid {
        Some(uid) if uid != meta::uid(node) => {
            Err(Status::conflict("", "nodes", &member.name, "it is another node's by now"))
        }
        _ => Ok(()),
    }
}

/// Labels and addresses the node has by itself; what others set stays.
fn own(node: &mut Object, member: &Member, labels: &Object) {
    for (key, value) in labels {
        let value = value.as_str().unwrap_or_default();
        let allowed = OWN_LABELS.contains(&key.as_str()) && (key != OWN_LABELS[0] || value == member.name);
        if member.uid.is_none() || allowed {
            meta::set_label(node, key, value);
        } else {
            tracing::warn!(node = member.name, label = key, value, "the node may not label itself with this");
        }
    }
    if meta::str_at(node, "/spec/podCIDR").is_empty() {
        meta::set(node, "/spec/podCIDR", member.pod_cidr.as_str());
        meta::set(node, "/spec/podCIDRs", json!([member.pod_cidr]));
    }
    if meta::str_at(node, "/spec/providerID").is_empty() {
        meta::set(node, "/spec/providerID", format!("umiak://{}", member.name));
    }
}

/// The report as a status: conditions keep the time of their last change, those of others stay.
fn merged(old: &Value, report: &Value, now: &str) -> Value {
    let mut status = old.as_object().cloned().unwrap_or_default();
    for (field, value) in report.as_object().into_iter().flatten() {
        status.insert(field.clone(), value.clone());
    }
    let list = |v: &Value| v.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, mut conditions) = (list(old), list(report));
    for condition in &mut conditions {
        let same = |o: &&Value| o["type"] == condition["type"] && o["status"] == condition["status"];
        let since = old.iter().find(same).and_then(|o| o["lastTransitionTime"].as_str()).unwrap_or(now).to_owned();
        condition["lastTransitionTime"] = json!(since);
        condition["lastHeartbeatTime"] = json!(now);
    }
    let others = old.iter().filter(|o| conditions.iter().all(|c| c["type"] != o["type"])).cloned();
    let conditions: Vec<Value> = others.collect::<Vec<_>>().into_iter().chain(conditions).collect();
    status.insert("conditions".to_owned(), Value::Array(conditions));
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_gives_itself_no_labels_of_weight() {
        let labels = json!({
            "kubernetes.io/arch": "arm64", "kubernetes.io/hostname": "other", "site": "vault",
            "node-role.kubernetes.io/control-plane": "true", "node-restriction.kubernetes.io/a": "b",
        });
        let labels = labels.as_object().cloned().unwrap_or_default();
        let mut member = Member { name: "pi".into(), pod_cidr: String::new(), uid: Some("1".into()) };
        let mut node = Object::new();
        own(&mut node, &member, &labels);
        assert_eq!(node["metadata"]["labels"], json!({"kubernetes.io/arch": "arm64"}));
        member.uid = None;
        own(&mut node, &member, &labels);
        assert_eq!(meta::labels(&node).map(Object::len), Some(5));
    }

    #[test]
    fn conditions_keep_their_times_and_their_neighbours() {
        let old = json!({"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "t0"},
            {"type": "DiskPressure", "status": "True", "lastTransitionTime": "t0"},
            {"type": "Foreign", "status": "True"},
        ], "volumesInUse": ["x"]});
        let report = json!({"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"},
        ]});
        let status = merged(&old, &report, "t1");
        assert_eq!(status["volumesInUse"], json!(["x"]));
        let times: Vec<_> = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| (c["type"].as_str().unwrap_or_default(), c["lastTransitionTime"].as_str().unwrap_or_default()))
            .collect();
        assert_eq!(times, [("Foreign", ""), ("Ready", "t0"), ("DiskPressure", "t1")]);
    }
}
