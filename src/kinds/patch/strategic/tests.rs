#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::kinds::fields;

fn run(group: &str, kind: &str, object: Value, patch: Value) -> Result<Value, Error> {
    let ty = fields::of(group, "v1", kind).unwrap();
    apply(ty, object.as_object().unwrap().clone(), patch.as_object().unwrap().clone()).map(Value::from)
}

fn pod(spec: Value) -> Value {
    json!({"spec": spec})
}

#[track_caller]
fn check(kind: &str, object: Value, patch: Value, want: Value) {
    assert_eq!(run("", kind, object.clone(), patch.clone()).as_ref(), Ok(&want), "{object} + {patch}");
}

#[test]
fn objects_merge_and_null_removes() {
    for (object, patch, want) in [
        (json!({}), json!({"metadata": {"labels": {"a": "b"}}}), json!({"metadata": {"labels": {"a": "b"}}})),
        (
            json!({"metadata": {"labels": {"a": "b", "c": "d"}}}),
            json!({"metadata": {"labels": {"a": null, "e": null, "f": "g"}}}),
            json!({"metadata": {"labels": {"c": "d", "f": "g"}}}),
        ),
        (json!({"metadata": {"labels": {"a": "b"}}}), json!({"metadata": {"labels": null}}), json!({"metadata": {}})),
        // nulls never come from the patch into the object
        (json!({}), json!({"spec": {"affinity": {"nodeAffinity": null}}}), json!({"spec": {"affinity": {}}})),
        (
            pod(json!({"nodeSelector": {"a": "b"}})),
            pod(json!({"nodeSelector": {"c": "d"}})),
            pod(json!({"nodeSelector": {"a": "b", "c": "d"}})),
        ),
        // what the table does not know merges as plain JSON
        (json!({"x": {"y": [1], "z": 1}}), json!({"x": {"y": [2]}}), json!({"x": {"y": [2], "z": 1}})),
    ] {
        check("Pod", object, patch, want);
    }
}

#[test]
fn lists_of_objects_merge_by_key() {
    let live = json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]});
    for (patch, want) in [
        (
            json!({"containers": [{"name": "a", "image": "3"}]}),
            json!({"containers": [{"name": "a", "image": "3", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]}),
        ),
        (
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}]}),
            json!({"containers": [
                {"name": "a", "image": "1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
                {"name": "b", "image": "2"},
            ]}),
        ),
        // a new element comes first, as upstream has it
        (
            json!({"containers": [{"name": "c", "image": "4", "command": null}]}),
            json!({"containers": [{"name": "c", "image": "4"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]}),
        ),
        (
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "2"}]}),
        ),
        (json!({"containers": [{"name": "zz", "$patch": "delete"}]}), live.clone()),
        (
            json!({"containers": [{"$patch": "replace"}, {"name": "n", "image": "5"}]}),
            json!({"containers": [{"name": "n", "image": "5"}]}),
        ),
        (json!({"containers": [{"$patch": "replace"}]}), json!({"containers": []})),
        (json!({"containers": []}), live.clone()),
        (json!({"containers": null}), json!({})),
    ] {
        check("Pod", pod(live.clone()), pod(patch), pod(want));
    }
}

#[test]
fn lists_without_merge_replace() {
    let toleration = |key: &str| json!({"tolerations": [{"key": key}]});
    check("Pod", pod(toleration("a")), pod(toleration("b")), pod(toleration("b")));
    let args = |args: Value| pod(json!({"containers": [{"name": "a", "args": args}]}));
    check("Pod", args(json!(["1", "2"])), args(json!(["3"])), args(json!(["3"])));
}

#[test]
fn keys_that_are_not_names() {
    let service = |ports: Value| json!({"spec": {"ports": ports}});
    check(
        "Service",
        service(json!([{"port": 80, "nodePort": 30001}, {"port": 443, "nodePort": 30002}])),
        service(json!([{"port": 80, "targetPort": 8080}])),
        service(json!([{"port": 80, "nodePort": 30001, "targetPort": 8080}, {"port": 443, "nodePort": 30002}])),
    );
    let condition = |items: Value| json!({"status": {"conditions": items}});
    check(
        "Node",
        condition(
            json!([{"type": "Ready", "status": "False", "reason": "x"}, {"type": "DiskPressure", "status": "False"}]),
        ),
        condition(json!([{"type": "Ready", "status": "True"}])),
        condition(
            json!([{"type": "Ready", "status": "True", "reason": "x"}, {"type": "DiskPressure", "status": "False"}]),
        ),
    );
}

#[test]
fn lists_of_scalars() {
    let finalizers = |items: Value| json!({"metadata": {"finalizers": items}});
    for (live, patch, want) in [
        (finalizers(json!(["a", "b"])), finalizers(json!(["b", "c"])), finalizers(json!(["a", "b", "c"]))),
        (finalizers(json!(["a", "a"])), finalizers(json!([])), finalizers(json!(["a"]))),
        (
            finalizers(json!(["a", "b", "c"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b", "x"]}}),
            finalizers(json!(["a", "c"])),
        ),
        (
            json!({"metadata": {}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}}),
            json!({"metadata": {}}),
        ),
        (
            finalizers(json!(["a", "b", "c"])),
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "d", "a"], "finalizers": ["d"], "$deleteFromPrimitiveList/finalizers": ["b"]}}),
            finalizers(json!(["c", "d", "a"])),
        ),
    ] {
        check("Pod", live, patch, want);
    }
}

#[test]
fn maps_are_replaced_or_emptied() {
    for (live, patch, want) in [
        (json!({"a": "b"}), json!({"$patch": "replace", "c": "d", "e": null}), json!({"c": "d"})),
        (json!({"a": "b"}), json!({"$patch": "delete"}), json!({})),
    ] {
        check(
            "Pod",
            pod(json!({"nodeSelector": live})),
            pod(json!({"nodeSelector": patch})),
            pod(json!({"nodeSelector": want})),
        );
    }
    // nothing to delete: the directive leaves no trace
    check("Pod", json!({}), pod(json!({"nodeSelector": {"$patch": "delete"}})), json!({"spec": {}}));
    check("Pod", json!({"a": 1}), json!({"$patch": "replace", "kind": "Pod"}), json!({"kind": "Pod"}));
}

#[test]
fn retain_keys_clears_the_rest() {
    let live = json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": {"path": "/x"}}]});
    check(
        "Pod",
        pod(live),
        pod(json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/y"}}]})),
        pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/y"}}, {"name": "w", "hostPath": {"path": "/x"}}]})),
    );
    let strategy = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": null, "type": "Recreate"}}});
    assert_eq!(run("apps", "Deployment", strategy, patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
    let new = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(run("apps", "Deployment", json!({}), new), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
}

#[test]
fn element_order_is_that_of_the_directive() {
    let names = |names: &str| -> Value {
        names.split_terminator(',').map(|name| json!({"name": name})).collect::<Vec<_>>().into()
    };
    for (live, order, patch, want) in [
        ("a,b,c", "c,b,a", None, "c,b,a"),
        ("a,b,c", "c,a", None, "b,c,a"),
        ("a,b,c", "a,d,b,c", Some("d"), "a,d,b,c"),
        ("1,2,3", "3,n,1", Some("n"), "2,3,n,1"),
        ("", "b,a", Some("b,a"), "b,a"),
        ("x,a,y,b,z", "b,a", None, "x,y,b,a,z"),
    ] {
        let mut change = json!({"$setElementOrder/containers": names(order)});
        if let Some(patch) = patch {
            change["containers"] = names(patch);
        }
        let live = if live.is_empty() { json!({}) } else { json!({"containers": names(live)}) };
        check("Pod", pod(live), pod(change), pod(json!({"containers": names(want)})));
    }
    check(
        "Pod",
        pod(json!({"containers": names("a,b,c")})),
        pod(json!({"$setElementOrder/containers": names("c,a"), "containers": [{"name": "b", "$patch": "delete"}]})),
        pod(json!({"containers": names("c,a")})),
    );
    check("Pod", pod(json!({})), pod(json!({"$setElementOrder/containers": []})), pod(json!({})));
}

/// What kubectl sends for a changed image, port and dropped variable of a Deployment.
#[test]
fn a_patch_of_kubectl_apply() {
    let live = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{
        "name": "web", "image": "nginx:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "terminationMessagePath": "/dev/termination-log",
    }]}}}});
    let patch = json!({
        "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "web"}],
            "containers": [{
                "name": "web", "image": "nginx:2",
                "$setElementOrder/env": [{"name": "C"}, {"name": "A"}],
                "env": [{"name": "C", "value": "3"}, {"$patch": "delete", "name": "B"}],
                "$setElementOrder/ports": [{"containerPort": 8080}],
                "ports": [{"containerPort": 8080}, {"$patch": "delete", "containerPort": 80}],
            }],
        }}},
    });
    assert_eq!(
        run("apps", "Deployment", live, patch),
        Ok(json!({
            "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{
                "name": "web", "image": "nginx:2", "ports": [{"containerPort": 8080}],
                "env": [{"name": "C", "value": "3"}, {"name": "A", "value": "1"}],
                "terminationMessagePath": "/dev/termination-log",
            }]}}},
        }))
    );
}

#[test]
fn bad_patches_are_refused() {
    let live = || json!({"metadata": {"finalizers": ["a"]}, "spec": {"containers": [{"name": "a"}]}});
    let text = |patch: Value| run("", "Pod", live(), patch).unwrap_err().to_string();
    for (patch, want) in [
        (json!({"$patch": "merge"}), r#"unknown patch type: "merge" in map: {}"#),
        (
            pod(json!({"containers": [{"image": "x"}]})),
            r#"map: {"image":"x"} does not contain declared merge key: name"#,
        ),
        (
            pod(json!({"containers": [{"$patch": "delete"}]})),
            r#"map: {"$patch":"delete"} does not contain declared merge key: name"#,
        ),
        (
            pod(json!({"containers": [{"name": "a", "$patch": "frob"}]})),
            r#"unknown patch type: "frob" in map: {"$patch":"frob","name":"a"}"#,
        ),
        (pod(json!({"containers": ["a"]})), r#"list element types are not identical: "a""#),
        (pod(json!({"$setElementOrder/containers": "a"})), "invalid patch format of setElementOrder list"),
        (
            pod(json!({"$setElementOrder/containers": [], "containers": "a"})),
            "invalid patch format of setElementOrder list",
        ),
        (pod(json!({"$retainKeys": "a"})), "invalid patch format of retainKeys"),
        (pod(json!({"$retainKeys": ["a"], "hostNetwork": true})), "invalid patch format of retainKeys"),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), "invalid patch format of primitive list"),
    ] {
        assert_eq!(text(patch), want);
    }
    let mismatch = pod(json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}));
    assert!(text(mismatch).starts_with("The order in patch list:"));
    let lists = json!({"metadata": {"finalizers": [["a"]]}});
    assert!(run("", "Pod", lists.clone(), lists).is_err_and(|error| error.code() == 422));
}
