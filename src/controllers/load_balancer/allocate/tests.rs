#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn pools(list: Value) -> Pools {
    let pools: Vec<Pool> = serde_json::from_value(list).unwrap();
    Pools { pools, ..Pools::default() }
}

fn service(name: &str, spec: Value) -> Service {
    let mut spec = spec;
    if spec.get("type").is_none() {
        spec["type"] = json!("LoadBalancer");
    }
    let annotations = spec["annotations"].take();
    let held = spec["held"].take();
    let labels = spec["labels"].take();
    let ingress = if held.is_null() { json!([]) } else { json!([{"ip": held}]) };
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"protocol": "TCP", "port": 80}]);
    }
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "annotations": annotations, "labels": if labels.is_null() { json!({}) } else { labels }},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
    .unwrap()
}

fn shown(outcomes: Vec<Outcome>) -> Vec<String> {
    let show = |outcome| match outcome {
        Outcome::NotOurs => "not ours".to_owned(),
        Outcome::NotNeeded => "not needed".to_owned(),
        Outcome::Kept(address) => format!("kept {address}"),
        Outcome::Assigned(address) => format!("got {address}"),
        Outcome::Pending(reason) => reason,
        Outcome::Unknown => "unknown".to_owned(),
    };
    outcomes.into_iter().map(show).collect()
}

#[test]
fn addresses_are_handed_out_in_order_and_kept() {
    let pools = pools(json!([{"name": "a", "addresses": ["10.0.0.1-10.0.0.3"]}]));
    let services = [
        service("a", json!({})),
        service("b", json!({"held": "10.0.0.1"})),
        service("c", json!({"type": "ClusterIP", "held": "10.0.0.2"})),
        service("d", json!({"loadBalancerClass": "x.io/y", "held": "10.0.0.3"})),
        service("e", json!({})),
        service("f", json!({})),
    ];
    let expected = ["got 10.0.0.2", "kept 10.0.0.1", "not needed", "not ours", "got 10.0.0.3", "no free address in a"];
    assert_eq!(shown(settle(&pools, &services)), expected);
}

#[test]
fn the_older_keeps_an_address_that_two_have() {
    let pools = pools(json!([{"name": "a", "addresses": ["10.0.0.1-10.0.0.3"]}]));
    let mut services = [service("a", json!({"held": "10.0.0.2"})), service("b", json!({"held": "10.0.0.2"}))];
    services[0].metadata.creation_timestamp = Some("2026-01-02T00:00:00Z".parse().unwrap());
    services[1].metadata.creation_timestamp = Some("2026-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(shown(settle(&pools, &services)), ["got 10.0.0.1", "kept 10.0.0.2"]);
}

#[test]
fn wishes() {
    let mut pools = pools(json!([
        {"name": "a", "addresses": ["10.0.0.1-10.0.0.9"], "priority": 2},
        {"name": "hand", "addresses": ["10.0.1.1"], "auto-assign": false},
        {"name": "first", "addresses": ["10.0.2.1"], "priority": 1, "service-selectors": [{"matchLabels": {"vip": "yes"}}]},
        {"name": "prod", "addresses": ["10.0.3.1"], "namespaces": ["prod"]},
        {"name": "team", "addresses": ["10.0.4.1"], "autoAssign": false,
         "namespaceSelectors": [{"matchLabels": {"team": "x"}}]},
    ]));
    let at = |name: &str, value: &str| json!({"annotations": {name: value}});
    let old = "metallb.universe.tf/loadBalancerIPs";
    for (what, spec, expected) in [
        ("field", json!({"loadBalancerIP": "10.0.0.7"}), "got 10.0.0.7"),
        ("annotation", at("metallb.io/loadBalancerIPs", "10.0.0.7"), "got 10.0.0.7"),
        ("old annotation", at(old, "10.0.0.7"), "got 10.0.0.7"),
        ("outside", json!({"loadBalancerIP": "10.9.9.9"}), "10.9.9.9 is in no pool"),
        (
            "two",
            at(old, "10.0.0.7,10.0.0.8"),
            "metallb.io/loadBalancerIPs: \"10.0.0.7,10.0.0.8\" is not one IPv4 address",
        ),
        ("six", json!({"loadBalancerIP": "fd00::1"}), "spec.loadBalancerIP: \"fd00::1\" is not one IPv4 address"),
        (
            "both",
            json!({"loadBalancerIP": "10.0.0.7", "annotations": {old: "10.0.0.7"}}),
            "both spec.loadBalancerIP and the annotation metallb.io/loadBalancerIPs are set",
        ),
        ("by hand", at("metallb.io/address-pool", "hand"), "got 10.0.1.1"),
        ("by hand, address", json!({"loadBalancerIP": "10.0.1.1"}), "got 10.0.1.1"),
        ("old pool", at("metallb.universe.tf/address-pool", "hand"), "got 10.0.1.1"),
        ("no pool", at("metallb.io/address-pool", "nope"), "there is no pool \"nope\""),
        ("other namespace", at("metallb.io/address-pool", "prod"), "pool \"prod\" is not for this Service"),
        ("namespace labels", at("metallb.io/address-pool", "team"), "got 10.0.4.1"),
        ("priority and labels", json!({"labels": {"vip": "yes"}}), "got 10.0.2.1"),
        (
            "not in that pool",
            json!({"loadBalancerIP": "10.0.0.7", "annotations": {"metallb.io/address-pool": "hand"}}),
            "10.0.0.7 is not in pool \"hand\"",
        ),
        ("another wish than what it has", json!({"held": "10.0.0.2", "loadBalancerIP": "10.0.0.7"}), "got 10.0.0.7"),
        ("what it has is gone", json!({"held": "10.7.0.2"}), "got 10.0.0.1"),
        ("has one it did not ask for", json!({"held": "10.0.1.1"}), "got 10.0.0.1"),
    ] {
        pools.namespaces.insert("default".into(), json!({"team": "x"}).as_object().unwrap().clone());
        assert_eq!(shown(settle(&pools, &[service("s", spec)])), [expected], "{what}");
    }
    let none = Pools::default();
    let expected = ["no pool of load-balancer addresses is configured"];
    assert_eq!(shown(settle(&none, &[service("s", json!({}))])), expected);
}

#[test]
fn what_may_be_from_an_unreadable_source_is_kept() {
    let mut pools = pools(json!([{"name": "a", "addresses": ["10.0.0.1-10.0.0.3"]}]));
    pools.incomplete = true;
    let services = [service("a", json!({"held": "10.9.0.1"})), service("b", json!({}))];
    assert_eq!(shown(settle(&pools, &services)), ["unknown", "got 10.0.0.1"]);
}

#[test]
fn sharing() {
    let key = "metallb.universe.tf/allow-shared-ip";
    let shared = |port: u16, policy: &str, app: &str, held: Value| {
        json!({"annotations": {key: "k"}, "ports": [{"protocol": "TCP", "port": port}], "held": held,
               "externalTrafficPolicy": policy, "selector": {"app": app}})
    };
    let pools = pools(json!([{"name": "a", "addresses": ["10.0.0.1-10.0.0.9"]}]));
    let none = Value::Null;
    for (what, second, expected) in [
        ("other port", shared(81, "Cluster", "b", none.clone()), "got 10.0.0.2"),
        ("same port", shared(80, "Cluster", "b", none.clone()), "got 10.0.0.1"),
        ("other policy", shared(81, "Local", "a", none.clone()), "got 10.0.0.1"),
        ("kept", shared(81, "Cluster", "b", json!("10.0.0.2")), "kept 10.0.0.2"),
        (
            "asked for without the key",
            json!({"loadBalancerIP": "10.0.0.2", "ports": [{"protocol": "TCP", "port": 81}]}),
            "10.0.0.2 is in use by another Service",
        ),
    ] {
        let first = service("a", shared(80, "Cluster", "a", json!("10.0.0.2")));
        assert_eq!(shown(settle(&pools, &[first, service("b", second)])), ["kept 10.0.0.2", expected], "{what}");
    }
    let local = service("a", shared(80, "Local", "a", json!("10.0.0.2")));
    let alike = service("b", shared(81, "Local", "a", none.clone()));
    let other = service("c", shared(82, "Local", "c", none));
    let expected = ["kept 10.0.0.2", "got 10.0.0.2", "got 10.0.0.1"];
    assert_eq!(shown(settle(&pools, &[local, alike, other])), expected);
}
