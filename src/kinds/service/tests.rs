#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

/// A new Service with this spec, as it is before anything is allocated.
fn service(spec: Value) -> Object {
    let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    let mut object = object.as_object().unwrap().clone();
    Service.default(&mut object);
    Service.prepare_create(&mut object);
    object
}

/// The spec that a client's `spec` becomes in place of `old`.
fn changed(old: &Object, spec: Value) -> Object {
    let mut new = old.clone();
    new.insert("spec".into(), spec);
    Service.default(&mut new);
    Service.prepare_update(&mut new, old);
    new
}

fn texts(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn http() -> Value {
    json!([{"port": 80}])
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let object = service(json!({"selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 0}], "clusterIP": ""}));
    assert_eq!(
        object["spec"],
        json!({
            "type": "ClusterIP", "selector": {"a": "b"}, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        })
    );
    assert_eq!(object["status"], json!({"loadBalancer": {}}));
    let spec = |spec: Value| service(spec)["spec"].clone();
    let affine = spec(json!({"sessionAffinity": "ClientIP", "ports": http()}));
    assert_eq!(affine["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
    let balanced = spec(json!({"type": "LoadBalancer", "ports": http()}));
    assert_eq!(balanced["allocateLoadBalancerNodePorts"], true);
    assert_eq!(balanced["externalTrafficPolicy"], "Cluster");
    assert_eq!(spec(json!({"ports": http(), "externalIPs": ["192.0.2.1"]}))["externalTrafficPolicy"], "Cluster");
    let name = spec(json!({"type": "ExternalName", "externalName": "example.com"}));
    assert_eq!(name, json!({"type": "ExternalName", "externalName": "example.com", "sessionAffinity": "None"}));
    assert_eq!(spec(json!({"clusterIP": "None"}))["clusterIPs"], json!(["None"]));
}

#[test]
fn rules_of_new_services() {
    let cases = [
        (json!({"ports": http()}), ""),
        (json!({"clusterIP": "None"}), ""),
        (json!({"ports": http(), "ipFamilyPolicy": "PreferDualStack"}), ""),
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80}, {"port": 80, "name": "A"}]}),
            "spec.ports[0].name: Required value; spec.ports[1].name: Invalid value: \"A\": a lowercase RFC 1123 label \
             must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric \
             character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'); \
             spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "SCTP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"SCTP\": supported values: \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"port": 0, "targetPort": "x_"}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive; spec.ports[0].targetPort: \
             Invalid value: \"x_\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30080}, {"name": "b", "port": 2, "nodePort": 30080}]}),
            "spec.ports[1].nodePort: Duplicate value: 30080",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": http()}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            json!({"ports": http(), "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster; spec.ipFamilyPolicy: Invalid \
             value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ports": http(), "clusterIP": "fd00::1"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
        ),
        (
            json!({"ports": http(), "clusterIPs": ["10.43.0.9"]}),
            "spec.clusterIPs: Invalid value: [\"10.43.0.9\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"ports": http(), "externalIPs": ["127.0.0.1", "fd00::1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
             ::1/128); spec.externalIPs[1]: Forbidden: not supported by umiak",
        ),
        (
            json!({"type": "Pool", "ports": http()}),
            "spec.type: Unsupported value: \"Pool\": supported values: \"ClusterIP\", \"ExternalName\", \
             \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({"type": "ExternalName", "clusterIP": "10.43.0.9"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services; spec.externalName: Required value",
        ),
        (
            json!({"ports": http(), "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less \
             than 86400",
        ),
        (
            json!({"ports": http(), "loadBalancerSourceRanges": ["10.0.0.0/8"], "loadBalancerClass": "a/b",
                   "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'; \
             spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'; \
             spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services; \
             spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and \
             `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 10250}], "loadBalancerSourceRanges": ["10.0.0.0/33"]}),
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet; \
             spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, (e.g. \
             10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            json!({"ports": http(), "internalTrafficPolicy": "Near", "trafficDistribution": "Far"}),
            "spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"; \
             spec.trafficDistribution: Unsupported value: \"Far\": supported values: \"PreferClose\", \
             \"PreferSameNode\", \"PreferSameZone\"",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(texts(&Service.validate(&service(spec.clone()))), expected, "{spec}");
    }
    let mut named = service(json!({"ports": http()}));
    meta::set(&mut named, "/metadata/name", "1st");
    assert!(texts(&Service.validate(&named)).starts_with("metadata.name: Invalid value: \"1st\": a DNS-1035 label"));
}

#[test]
fn what_was_allocated_stays_with_a_client_that_does_not_mention_it() {
    let old = service(json!({
        "type": "NodePort", "clusterIP": "10.43.7.7",
        "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}],
    }));
    let new =
        changed(&old, json!({"type": "NodePort", "ports": [{"name": "b", "port": 90}, {"name": "c", "port": 91}]}));
    assert_eq!(meta::str_at(&new, "/spec/clusterIPs/0"), "10.43.7.7");
    assert_eq!(meta::int_at(&new, "/spec/ports/0/nodePort"), Some(30002));
    assert_eq!(meta::int_at(&new, "/spec/ports/1/nodePort"), None);
    assert_eq!(texts(&Service.validate_update(&new, &old)), "");
    // A port of its own is not given away twice.
    let new = changed(
        &old,
        json!({"type": "NodePort", "ports": [{"name": "b", "port": 90}, {"name": "c", "port": 91, "nodePort": 30002}]}),
    );
    assert_eq!(meta::int_at(&new, "/spec/ports/0/nodePort"), None);
}

#[test]
fn a_type_takes_its_fields_with_it() {
    let ports = json!([{"port": 80, "targetPort": 80, "protocol": "TCP"}]);
    let mut old = service(json!({
        "type": "LoadBalancer", "clusterIP": "10.43.7.7", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30009,
        "loadBalancerClass": "a/b", "ports": [{"port": 80, "nodePort": 30001}],
    }));
    meta::set(&mut old, "/status/loadBalancer/ingress", json!([{"ip": "192.0.2.1"}]));
    let with_type = |kind: &str| {
        let mut spec = old["spec"].clone();
        spec["type"] = kind.into();
        if kind == "ExternalName" {
            spec["externalName"] = "example.com".into();
        }
        let new = changed(&old, spec);
        assert_eq!(texts(&Service.validate_update(&new, &old)), "");
        assert_eq!(texts(&Service.validate(&new)), "");
        assert_eq!(new["status"], json!({"loadBalancer": {}}));
        new["spec"].clone()
    };
    assert_eq!(
        with_type("ClusterIP"),
        json!({"type": "ClusterIP", "clusterIP": "10.43.7.7", "clusterIPs": ["10.43.7.7"], "ipFamilies": ["IPv4"],
               "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "ports": ports})
    );
    assert_eq!(
        with_type("ExternalName"),
        json!({"type": "ExternalName", "externalName": "example.com", "internalTrafficPolicy": "Cluster",
               "sessionAffinity": "None", "ports": ports})
    );
    let node_port = with_type("NodePort");
    assert_eq!(node_port["externalTrafficPolicy"], "Local");
    assert_eq!(node_port["ports"][0]["nodePort"], 30001);
    assert!(node_port.get("healthCheckNodePort").is_none());
}

#[test]
fn addresses_are_for_life() {
    let old = service(json!({"clusterIP": "10.43.7.7", "ports": http()}));
    let error = |spec: Value| texts(&Service.validate_update(&changed(&old, spec), &old));
    assert_eq!(error(json!({"ports": http()})), "");
    let other = "spec.clusterIPs[0]: Invalid value: [\"10.43.7.8\"]: may not change once set";
    assert_eq!(error(json!({"clusterIP": "10.43.7.8", "clusterIPs": ["10.43.7.7"], "ports": http()})), other);
    assert_eq!(error(json!({"clusterIP": "10.43.7.8", "ports": http()})), other);
    assert_eq!(
        error(json!({"clusterIP": "None", "ports": http()})),
        "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"
    );
    let name = changed(&old, json!({"type": "ExternalName", "externalName": "example.com"}));
    let headless = changed(&name, json!({"clusterIP": "None"}));
    assert_eq!(texts(&Service.validate_update(&headless, &name)), "");
    assert_eq!(meta::str_at(&headless, "/spec/clusterIPs/0"), "None");
}

#[test]
fn what_a_service_holds() {
    let object = service(json!({
        "type": "LoadBalancer", "clusterIP": "10.43.7.7", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30009,
        "ports": [{"name": "a", "port": 53, "nodePort": 30001}, {"name": "b", "port": 53, "nodePort": 30001, "protocol": "UDP"}],
    }));
    assert_eq!(Service.index(&object), ["ip:10.43.7.7", "port:30001", "port:30009"]);
    assert!(Service.index(&service(json!({"clusterIP": "None"}))).is_empty());
}

#[test]
fn cells() {
    let row = |object: &Object| Service.cells(object, Timestamp::UNIX_EPOCH);
    let object = service(json!({
        "type": "NodePort", "clusterIP": "10.43.7.7", "selector": {"b": "2", "a": "1"},
        "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81}],
    }));
    let cells = row(&object);
    assert_eq!(
        [&cells[..4], &cells[5..]].concat(),
        [json!("NodePort"), json!("10.43.7.7"), json!("<none>"), json!("80:30001/TCP,81/TCP"), json!("a=1,b=2")]
    );
    let mut balanced = service(json!({"type": "LoadBalancer", "ports": http()}));
    assert_eq!(row(&balanced)[1..3], [json!("<none>"), json!("<pending>")]);
    meta::set(&mut balanced, "/status/loadBalancer/ingress", json!([{"ip": "192.0.2.2"}, {"hostname": "a.b"}]));
    meta::set(&mut balanced, "/spec/externalIPs", json!(["192.0.2.9"]));
    assert_eq!(row(&balanced)[2], json!("192.0.2.2,a.b,192.0.2.9"));
    let name = service(json!({"type": "ExternalName", "externalName": "example.com"}));
    assert_eq!(row(&name)[1..4], [json!("<none>"), json!("example.com"), json!("<none>")]);
}
