//! What holds for the hooks of every kind.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::table::KindTable;
use super::{Hooks, Object, scale};

/// An object with something everywhere hooks look.
fn sample() -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "b", "generateName": "a-", "labels": {"a": "b"}, "annotations": {"a": "b"},
            "finalizers": ["x/y"], "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1"}],
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:00Z", "generation": 1},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}},
            "containers": [{
                "name": "a", "image": "b", "ports": [{"containerPort": 1, "hostPort": 1, "name": "x"}],
                "env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"},
                    "resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}, "secretKeyRef": {"name": "a", "key": "b"}}}],
                "envFrom": [{"secretRef": {"name": "a"}, "prefix": "p"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}, "claims": [{"name": "a"}]},
                "livenessProbe": {"httpGet": {"port": "x", "httpHeaders": [{"name": "a"}]}, "exec": {"command": ["a"]}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                "volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "b"}],
                "securityContext": {"privileged": true, "capabilities": {"add": ["A"]}, "appArmorProfile": {"type": "Localhost"}},
            }],
            "initContainers": [{"name": "i", "image": "b", "restartPolicy": "Always"}],
            "volumes": [{"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "x"}}]}}]}},
                {"name": "s", "secret": {"secretName": "s", "items": [{"key": "a", "path": "b", "mode": 1}]}}],
            "securityContext": {"sysctls": [{"name": "a"}], "supplementalGroups": [1], "seccompProfile": {"type": "Localhost"}},
            "tolerations": [{"key": "a", "tolerationSeconds": 1}], "nodeSelector": {"a": "b"}, "hostNetwork": true,
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}], "matchFields": [{"key": "metadata.name"}]}]}}},
            "dnsConfig": {"nameservers": ["1.1.1.1", "2", "3", "4"], "searches": ["a"], "options": [{"name": "a"}]},
            "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a"]}], "schedulingGates": [{"name": "a"}],
            "taints": [{"key": "a", "effect": "NoSchedule"}], "finalizers": ["kubernetes"], "leaseDurationSeconds": 1,
            "type": "LoadBalancer", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "nodePort": 30080, "targetPort": "x", "protocol": "TCP"}], "externalIPs": ["192.0.2.1"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081,
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "1"},
            "loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]},
            "addresses": [{"type": "InternalIP", "address": "1.1.1.1"}], "podIPs": [{"ip": "1.1.1.1"}],
            "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1}}}],
            "containerStatuses": [{"state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}}]},
        "addressType": "IPv4", "ports": [{"port": 80, "name": "x"}],
        "endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}]}, "conditions": {"ready": true}}],
        "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}],
        "type": "kubernetes.io/tls", "data": {"a": "eA=="}, "stringData": {"b": "x"}, "binaryData": {"c": "eA=="},
        "immutable": true, "involvedObject": {"kind": "Pod", "name": "a"}, "series": {"count": 1},
        "firstTimestamp": "2026-01-01T00:00:00Z", "source": {"component": "a"}, "secrets": [{"name": "a"}],
    })
}

/// Every object that differs from `value` in one place, not deeper than `depth`, which has a value of another type there.
fn mutants(value: &Value, depth: usize) -> Vec<Value> {
    let mut all: Vec<Value> = [json!(null), json!("x"), json!({"x": [1]})].into();
    match value {
        Value::Object(members) if depth > 0 => {
            for (key, member) in members {
                for mutant in mutants(member, depth - 1) {
                    let mut copy = members.clone();
                    copy.insert(key.clone(), mutant);
                    all.push(Value::Object(copy));
                }
            }
        }
        Value::Array(items) if depth > 0 => {
            for (i, item) in items.iter().enumerate() {
                for mutant in mutants(item, depth - 1) {
                    let mut copy = items.clone();
                    copy[i] = mutant;
                    all.push(Value::Array(copy));
                }
            }
        }
        _ => {}
    }
    all
}

fn run(hooks: &dyn Hooks, object: &Object, old: &Object) -> Object {
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let mut new = object.clone();
    hooks.default(&mut new);
    hooks.prepare_update(&mut new, old);
    hooks.validate(&new);
    hooks.validate_update(&new, old);
    hooks.validate_update(old, &new);
    hooks.index(&new);
    hooks.grace(&new, None);
    hooks.selectable(&new, "status.phase");
    hooks.prepare_create(&mut new);
    assert_eq!(hooks.cells(object, now).len(), hooks.columns().len());
    scale::validate(&scale::from_object(&new));
    new
}

#[test]
fn no_shape_of_an_object_is_too_much() {
    let sample = sample();
    let (flat, deep) = (mutants(&sample, 3), mutants(&sample, 12));
    assert!(flat.len() > 200 && deep.len() > 500, "{} {}", flat.len(), deep.len());
    for kind in KindTable::builtin().all() {
        let old = run(kind.hooks, sample.as_object().unwrap(), &Object::new());
        // Only pods, and templates of pods, are looked into that deeply.
        let mutants = if kind.kind == "Pod" { &deep } else { &flat };
        for mutant in mutants.iter().filter_map(Value::as_object) {
            run(kind.hooks, mutant, &old);
        }
    }
}

#[test]
fn defaults_can_be_filled_in_twice() {
    for kind in KindTable::builtin().all() {
        let mut once = sample().as_object().unwrap().clone();
        kind.hooks.default(&mut once);
        let mut twice = once.clone();
        kind.hooks.default(&mut twice);
        assert_eq!(once, twice, "{}", kind.kind);
    }
}
