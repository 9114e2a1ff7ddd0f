//! Quality of service and deletion.

use super::*;

#[test]
fn quality_of_service() {
    let class = |resources: Value| {
        let mut pod = parse(MANIFESTS[0]);
        meta::pointer_mut(&mut pod, "/spec/containers/0").unwrap()["resources"] = resources;
        Pod.default(&mut pod);
        qos::qos_class(&pod)
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"limits": {"cpu": 1, "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(class(json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"memory": "1Gi"}})), "Burstable");
    assert_eq!(class(json!({"requests": {"cpu": 0}})), "BestEffort");
}

#[test]
fn grace_periods() {
    let grace = |node: &str, phase: &str, own: i64, requested| {
        let mut pod = pod(MANIFESTS[0]);
        meta::set(&mut pod, "/spec/nodeName", node);
        meta::set(&mut pod, "/status/phase", phase);
        meta::set(&mut pod, "/spec/terminationGracePeriodSeconds", own);
        Pod.grace(&pod, requested)
    };
    assert_eq!(grace("", "Pending", 30, None), None);
    assert_eq!(grace("pi3", "Succeeded", 30, Some(10)), None);
    assert_eq!(grace("pi3", "Running", 30, None), Some(30));
    assert_eq!(grace("pi3", "Running", 0, None), None);
    assert_eq!(grace("pi3", "Running", 30, Some(5)), Some(5));
    assert_eq!(grace("pi3", "Running", 30, Some(0)), None);
    assert_eq!(grace("pi3", "Running", -7, None), Some(1));
}
