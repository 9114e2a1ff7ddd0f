//! What a node says of its pods, applied to their objects.

use serde_json::Value;

use super::{Kinds, MANAGER, Member};
use crate::cidr::Cidr;
use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::link::message::{AddressNews, AddressReport, EventReport, PodName, PodReport};
use crate::registry::{DeleteOptions, Preconditions, Registry, WriteOptions};

/// Fields of a pod's status that a node owns: absent from its report means absent.
const OWNED: [&str; 14] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "resources",
];

/// Characters of a text that a node sends about something it does not own.
const MAX_MESSAGE: usize = 1024;

/// Whether the object is this very pod and lives on this node.
fn is(pod: &Object, name: &PodName, node: &str) -> bool {
    meta::uid(pod) == name.uid && meta::str_at(pod, "/spec/nodeName") == node
}

/// Not an error: the pod is gone or another one by now; the node learns that as a change of what it should have.
fn unless_gone<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Err(status) if matches!(status.code, 404 | 409) => Ok(()),
        result => result.map(drop),
    }
}

/// Applies a status.
pub(super) async fn status(
    registry: &Registry,
    kinds: &Kinds,
    member: &Member,
    report: PodReport,
) -> Result<(), Status> {
    let name = &report.pod;
    let change = |pod: &mut Object| {
        if !is(pod, name, &member.name) {
            return Err(Status::conflict("", "pods", &name.name, "it is another pod"));
        }
        let hosted = meta::bool_at(pod, "/spec/hostNetwork");
        if let Some(foreign) = foreign_address(member, hosted, &report.status) {
            let why = format!("{foreign} is no pod address of node {:?}", member.name);
            return Err(Status::forbidden("", "pods", &name.name, &why));
        }
        merge(pod, &report.status);
        Ok(())
    };
    let options = WriteOptions::by(MANAGER);
    let status = Some(Subresource::Status);
    unless_gone(registry.modify(&kinds.pods, &name.namespace, &name.name, status, &options, change).await)
}

/// An address in a member's report that is not one of its pods': traffic to Services would go there.
fn foreign_address(member: &Member, hosted: bool, report: &Value) -> Option<String> {
    let range = member.pod_cidr.parse::<Cidr>().ok().filter(|_| member.uid.is_some() && !hosted)?;
    let listed = report.get("podIPs").and_then(Value::as_array).into_iter().flatten();
    let all = report.get("podIP").into_iter().chain(listed.filter_map(|entry| entry.get("ip")));
    let foreign = |text: &&str| !text.is_empty() && !text.parse().is_ok_and(|address| range.contains(address));
    all.map(|value| value.as_str().unwrap_or("?")).find(foreign).map(str::to_owned)
}

fn merge(pod: &mut Object, report: &Value) {
    let old = pod.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
    let ended = |s: &Value| matches!(s.as_str(), Some("Succeeded" | "Failed"));
    let over = old.get("phase").is_some_and(ended);
    let mut status = old.clone();
    for field in OWNED {
        match report.get(field) {
            // A pod that has ended does not come back to life.
            Some(phase) if field == "phase" && over && !ended(phase) => {}
            Some(value) => drop(status.insert(field.to_owned(), value.clone())),
            None if over && (field == "reason" || field == "message") => {}
            None => drop(status.remove(field)),
        }
    }
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut reported = list(report.get("conditions"));
    let mut conditions = list(old.get("conditions"));
    for condition in &mut reported {
        // A node that was restarted does not know since when.
        let same = conditions.iter().find(|c| c["type"] == condition["type"] && c["status"] == condition["status"]);
        if let Some(since) = same.and_then(|c| c.get("lastTransitionTime")) {
            condition["lastTransitionTime"] = since.clone();
        }
    }
    conditions.retain(|c| reported.iter().all(|r| r["type"] != c["type"]));
    conditions.extend(reported);
    status.insert("conditions".to_owned(), Value::Array(conditions));
    pod.insert("status".to_owned(), Value::Object(status));
}

/// Removes the object of a pod of which nothing is left, if it was to be deleted.
pub(super) async fn gone(registry: &Registry, kinds: &Kinds, node: &str, name: PodName) -> Result<(), Status> {
    match registry.get(&kinds.pods, &name.namespace, &name.name) {
        Ok(pod) if is(&pod, &name, node) && meta::is_deleting(&pod) => {}
        Ok(_) => return Ok(()),
        Err(status) => return unless_gone::<()>(Err(status)),
    }
    let options = DeleteOptions {
        preconditions: Preconditions { uid: Some(name.uid.clone()), revision: None },
        user: format!("system:node:{node}"),
        ..DeleteOptions::now()
    };
    unless_gone(registry.delete(&kinds.pods, &name.namespace, &name.name, &options).await)
}

/// Records an event about one of the node's pods as its kubelet. One about any other pod is dropped: it is gone by now,
/// or was never this node's.
pub(super) fn event(
    registry: &Registry,
    kinds: &Kinds,
    events: &EventRecorder,
    node: &str,
    event: EventReport,
) -> Result<(), Status> {
    match registry.get(&kinds.pods, &event.pod.namespace, &event.pod.name) {
        Ok(pod) if is(&pod, &event.pod, node) => {}
        Err(status) if status.code != 404 => return Err(status),
        _ => return Ok(()),
    }
    let about = Reference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: event.pod.namespace,
        name: event.pod.name,
        uid: event.pod.uid,
        field_path: event.field_path,
    };
    let kind = if event.warning { EventKind::Warning } else { EventKind::Normal };
    events.of(MANAGER, node).record(&about, kind, &event.reason, event.message);
    Ok(())
}

/// Records what a node saw of an address of a Service. Every node may: every node knows of every Service.
pub(super) fn address(
    registry: &Registry,
    kinds: &Kinds,
    events: &EventRecorder,
    node: &str,
    report: AddressReport,
) -> Result<(), Status> {
    let AddressReport { service: name, uid, news, message } = report;
    let service = match registry.get(&kinds.services, &name.namespace, &name.name) {
        Ok(service) if meta::uid(&service) == uid => service,
        Err(status) if status.code != 404 => return Err(status),
        _ => return Ok(()),
    };
    let (kind, reason) = match news {
        AddressNews::Announced => (EventKind::Normal, "nodeAssigned"),
        AddressNews::Released => (EventKind::Normal, "nodeUnassigned"),
        AddressNews::Conflict => (EventKind::Warning, "AddressConflict"),
        AddressNews::Unserved => (EventKind::Warning, "FailedToListen"),
        AddressNews::Served => (EventKind::Normal, "Listening"),
    };
    let message = message.chars().take(MAX_MESSAGE).collect::<String>();
    let component = match news {
        AddressNews::Unserved | AddressNews::Served => "service-proxy",
        AddressNews::Announced | AddressNews::Released | AddressNews::Conflict => "address-announcer",
    };
    events.of(component, node).record(&Reference::to(&service), kind, reason, message);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_reports_only_addresses_of_its_own() {
        let mut member = Member { name: "pi".into(), pod_cidr: "10.42.3.0/24".into(), uid: Some("1".into()) };
        for (report, hosted, foreign) in [
            (json!({}), false, None),
            (json!({"podIP": "10.42.3.7", "podIPs": [{"ip": "10.42.3.7"}]}), false, None),
            (json!({"podIP": "10.42.4.7"}), false, Some("10.42.4.7")),
            (json!({"podIP": "10.42.3.7", "podIPs": [{"ip": "192.0.2.1"}]}), false, Some("192.0.2.1")),
            (json!({"podIP": "2001:db8::1"}), false, Some("2001:db8::1")),
            (json!({"podIP": 7}), false, Some("?")),
            (json!({"podIP": "192.0.2.1"}), true, None),
        ] {
            assert_eq!(foreign_address(&member, hosted, &report).as_deref(), foreign, "{report}");
        }
        member.uid = None;
        assert_eq!(foreign_address(&member, false, &json!({"podIP": "192.0.2.1"})), None);
    }

    #[test]
    fn statuses_merge() {
        let mut pod = json!({"status": {
            "phase": "Pending", "nominatedNodeName": "n", "message": "old",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
        }})
        .as_object()
        .unwrap()
        .clone();
        let report = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        merge(&mut pod, &report);
        let expected = json!({
            "phase": "Running", "nominatedNodeName": "n",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        });
        assert_eq!(pod["status"], expected);
        merge(&mut pod, &json!({"phase": "Failed", "reason": "Evicted"}));
        merge(&mut pod, &json!({"phase": "Running"}));
        assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("Evicted")));
    }
}
