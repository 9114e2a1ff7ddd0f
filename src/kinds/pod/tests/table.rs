//! What `kubectl get pods` shows.

use super::*;

/// The cells Ready, Status, Restarts of a pod with one container, an init container and a sidecar.
fn row(metadata: Value, status: Value) -> (String, String, String) {
    let mut pod = pod(MANIFESTS[1]);
    pod["metadata"] = metadata;
    pod["status"] = status;
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let cells = Pod.cells(&pod, now);
    assert_eq!(cells.len(), Pod.columns().len());
    let text = |i: usize| cells[i].as_str().unwrap().to_owned();
    (text(0), text(1), text(2))
}

#[test]
fn table() {
    let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}, "restartCount": 0});
    let done = json!({"name": "install", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "restartCount": 1,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}}});
    let sidecar =
        json!({"name": "sidecar", "state": {"running": {}}, "started": true, "ready": true, "restartCount": 0});
    let running = json!({"name": "nginx", "state": {"running": {}}, "ready": true, "restartCount": 2,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
    let initialized = json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]);
    let inits = json!([done, sidecar]);
    let cases = [
        (json!({"phase": "Pending"}), ("0/2", "Pending", "0")),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("PodInitializing")], "containerStatuses": [waiting("PodInitializing")]}),
            ("0/2", "Init:0/2", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("ImagePullBackOff")]}),
            ("0/2", "Init:ImagePullBackOff", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "install", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}, "restartCount": 1}]}),
            ("0/2", "Init:Error", "1"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "install", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            ("0/2", "Init:Signal:9", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": inits, "containerStatuses": [waiting("ContainerCreating")]}),
            ("1/2", "ContainerCreating", "0"),
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [running], "conditions": initialized}),
            ("2/2", "Running", "2 (5m ago)"),
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [{"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ("1/2", "CrashLoopBackOff", "4"),
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            ("0/2", "Error", "0"),
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            ("0/2", "ExitCode:3", "0"),
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            ("0/2", "Completed", "0"),
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), ("0/2", "Evicted", "0")),
    ];
    for (status, (ready, reason, restarts)) in cases {
        let row = row(json!({"name": "a"}), status.clone());
        assert_eq!((row.0.as_str(), row.1.as_str(), row.2.as_str()), (ready, reason, restarts), "{status}");
    }
    let deleting = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(row(deleting.clone(), json!({"phase": "Running"})).1, "Terminating");
    assert_eq!(row(deleting.clone(), json!({"phase": "Running", "reason": "NodeLost"})).1, "Unknown");
    assert_eq!(row(deleting, json!({"phase": "Succeeded"})).1, "Succeeded");
}

#[test]
fn wide_table_and_index() {
    let mut pod = pod(MANIFESTS[0]);
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    assert_eq!(Value::from(Pod.cells(&pod, now)[4..].to_vec()), json!(["<none>", "<none>", "<none>", "<none>"]));
    assert!(Pod.index(&pod).is_empty());
    meta::set(&mut pod, "/spec/nodeName", "pi3");
    meta::set(&mut pod, "/status/podIP", "10.42.0.7");
    assert_eq!(Value::from(Pod.cells(&pod, now)[4..6].to_vec()), json!(["10.42.0.7", "pi3"]));
    assert_eq!(Pod.index(&pod), ["node:pi3"]);
    assert_eq!(Pod.selectable(&pod, "spec.nodeName").as_deref(), Some("pi3"));
    assert_eq!(Pod.selectable(&pod, "spec.hostNetwork").as_deref(), Some("false"));
}
