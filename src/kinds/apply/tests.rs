#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

const TIME: &str = "2024-01-01T00:00:00Z";

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "apps/v1", subresource: "", time: TIME }
}

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

fn deployment_type() -> &'static Type {
    fields::of("apps", "v1", "Deployment").unwrap()
}

fn deployment(spec: Value) -> Object {
    object(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "d"}, "spec": spec}),
    )
}

/// `MANAGER/OPERATION` to its fields.
fn owners(object: &Object) -> Value {
    let entries = managed_fields(object).as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let name = format!("{}/{}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap());
            (name, entry["fieldsV1"].clone())
        })
        .collect::<Map<_, _>>()
        .into()
}

fn run(live: Option<&Object>, spec: Value, manager: &str, force: bool) -> Result<Object, Error> {
    apply(deployment_type(), live, &deployment(spec), &writer(manager), force)
}

#[test]
fn creating_records_what_was_set() {
    let mut created = deployment(json!({
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{
            "name": "c", "image": "i", "args": ["x"], "resources": {}, "ports": [{"containerPort": 80}],
            "securityContext": {"privileged": true},
        }]}},
    }));
    created["metadata"]["labels"] = json!({"a": "b"});
    created["metadata"]["uid"] = json!("u");
    update_manager(deployment_type(), None, &mut created, &writer("kubectl-create"));
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": TIME, "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {
                    "f:replicas": {}, "f:selector": {},
                    "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                    "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:args": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                        "f:securityContext": {".": {}, "f:privileged": {}},
                    }}}},
                },
            },
        }])
    );
}

#[test]
fn updates_move_ownership() {
    let mut first = deployment(json!({"replicas": 1, "paused": true}));
    update_manager(deployment_type(), None, &mut first, &writer("a"));
    let mut second = first.clone();
    second["spec"] = json!({"replicas": 2, "minReadySeconds": 5});
    // Clients that know nothing of managed fields leave them out.
    second["metadata"].as_object_mut().unwrap().remove("managedFields");
    update_manager(deployment_type(), Some(&first), &mut second, &writer("b"));
    // `paused` went, `replicas` changed hands: nothing is left to the first
    assert_eq!(owners(&second), json!({"b/Update": {"f:spec": {"f:replicas": {}, "f:minReadySeconds": {}}}}));
}

#[test]
fn an_update_without_a_difference_changes_no_entry() {
    let mut first = deployment(json!({"replicas": 1}));
    update_manager(deployment_type(), None, &mut first, &writer("a"));
    let mut second = first.clone();
    update_manager(
        deployment_type(),
        Some(&first),
        &mut second,
        &Writer { time: "2025-01-01T00:00:00Z", ..writer("b") },
    );
    assert_eq!(second, first);
    // What only the system sets is nobody's.
    second["metadata"]["resourceVersion"] = json!("7");
    let before = first;
    update_manager(deployment_type(), Some(&before), &mut second, &writer("b"));
    assert_eq!(owners(&second), owners(&before));
}

#[test]
fn clients_may_edit_and_reset_entries() {
    let mut first = deployment(json!({"replicas": 1}));
    update_manager(deployment_type(), None, &mut first, &writer("a"));
    let mut edited = first.clone();
    edited["metadata"]["managedFields"][0]["manager"] = json!("z");
    update_manager(deployment_type(), Some(&first), &mut edited, &writer("b"));
    assert_eq!(owners(&edited), json!({"z/Update": {"f:spec": {"f:replicas": {}}}}));
    // not through a subresource
    edited["metadata"]["managedFields"][0]["manager"] = json!("y");
    update_manager(deployment_type(), Some(&first), &mut edited, &Writer { subresource: "status", ..writer("b") });
    assert_eq!(owners(&edited), owners(&first));
    let mut reset = first.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update_manager(deployment_type(), Some(&first), &mut reset, &writer("b"));
    assert_eq!(owners(&reset), json!({}));
    // an object without entries gets none by an update
    let untracked = deployment(json!({"replicas": 1}));
    let mut changed = deployment(json!({"replicas": 2}));
    update_manager(deployment_type(), Some(&untracked), &mut changed, &writer("b"));
    assert_eq!(owners(&changed), json!({}));
    // malformed entries are replaced by those of the live object
    for bad in [
        json!([{"operation": "Frob"}]),
        json!([1]),
        json!("x"),
        json!([{"manager": "a", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": 1}]),
    ] {
        let mut broken = first.clone();
        broken["metadata"]["managedFields"] = bad;
        broken["spec"]["paused"] = json!(true);
        update_manager(deployment_type(), Some(&first), &mut broken, &writer("b"));
        assert_eq!(
            owners(&broken),
            json!({"a/Update": {"f:spec": {"f:replicas": {}}}, "b/Update": {"f:spec": {"f:paused": {}}}})
        );
    }
}

#[test]
fn subresources_have_entries_of_their_own() {
    let mut first = deployment(json!({"replicas": 1}));
    update_manager(deployment_type(), None, &mut first, &writer("m"));
    let mut second = first.clone();
    second.insert("status".into(), json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]}));
    update_manager(deployment_type(), Some(&first), &mut second, &Writer { subresource: "status", ..writer("m") });
    let entries = second["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        entries[1]["fieldsV1"],
        json!({"f:status": {"f:replicas": {}, "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}})
    );
}

#[test]
fn old_updaters_are_merged() {
    let mut live = deployment(json!({"replicas": 0}));
    update_manager(deployment_type(), None, &mut live, &writer("m00"));
    for at in 1..=12 {
        let mut next = live.clone();
        next["metadata"]["annotations"][format!("a{at}")] = json!("x");
        let time = format!("2024-01-01T00:00:{at:02}Z");
        update_manager(
            deployment_type(),
            Some(&live),
            &mut next,
            &Writer { time: &time, ..writer(&format!("m{at:02}")) },
        );
        live = next;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), managers::MAX_UPDATERS);
    assert_eq!(
        (&entries[0]["manager"], &entries[0]["time"]),
        (&json!("ancient-changes"), &json!("2024-01-01T00:00:03Z"))
    );
    assert_eq!(
        entries[0]["fieldsV1"],
        json!({"f:spec": {"f:replicas": {}}, "f:metadata": {"f:annotations": {".": {}, "f:a1": {}, "f:a2": {}, "f:a3": {}}}})
    );
}

#[test]
fn applying_creates_merges_and_removes() {
    let first = run(None, json!({"replicas": 3, "paused": true, "selector": {"matchLabels": {"a": "b"}}}), "me", false)
        .unwrap();
    assert_eq!(owners(&first), json!({"me/Apply": {"f:spec": {"f:replicas": {}, "f:paused": {}, "f:selector": {}}}}));
    // what is no longer applied goes
    let second =
        run(Some(&first), json!({"replicas": 4, "selector": {"matchLabels": {"a": "b"}}}), "me", false).unwrap();
    assert_eq!(second["spec"], json!({"replicas": 4, "selector": {"matchLabels": {"a": "b"}}}));
    // the same again changes nothing, time included
    let again = apply(
        deployment_type(),
        Some(&second),
        &deployment(json!({"replicas": 4, "selector": {"matchLabels": {"a": "b"}}})),
        &Writer { time: "2030-01-01T00:00:00Z", ..writer("me") },
        false,
    );
    assert_eq!(again.unwrap(), second);
}

#[test]
fn applying_does_not_reach_beyond_its_part() {
    let mut config = deployment(json!({"replicas": 1}));
    config.insert("status".into(), json!({"replicas": 7}));
    let created = apply(deployment_type(), None, &config, &writer("me"), false).unwrap();
    assert_eq!(created.get("status"), None);
    assert_eq!(owners(&created), json!({"me/Apply": {"f:spec": {"f:replicas": {}}}}));
    let status = Writer { subresource: "status", ..writer("me") };
    config["spec"] = json!({"replicas": 9});
    let done = apply(deployment_type(), Some(&created), &config, &status, false).unwrap();
    assert_eq!((&done["spec"], &done["status"]), (&json!({"replicas": 1}), &json!({"replicas": 7})));
    assert_eq!(done["metadata"]["managedFields"][1]["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn conflicts_name_managers_and_fields() {
    let mut live = deployment(
        json!({"replicas": 1, "paused": true, "template": {"spec": {"containers": [{"name": "c", "image": "a"}]}}}),
    );
    update_manager(deployment_type(), None, &mut live, &writer("kubectl-client-side-apply"));
    let text = |spec: Value| run(Some(&live), spec, "me", false).unwrap_err().to_string();
    assert_eq!(
        text(json!({"replicas": 2})),
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas"#
    );
    assert_eq!(
        text(json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}})),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n\
         - .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image"
    );
    let Err(Error::Conflicts(conflicts)) = run(Some(&live), json!({"replicas": 2}), "me", false) else { panic!() };
    assert_eq!(
        conflicts[0].cause(),
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-client-side-apply\" using apps/v1", "field": ".spec.replicas"})
    );
    // the same value is shared
    let shared = run(Some(&live), json!({"replicas": 1}), "me", false).unwrap();
    assert_eq!(owners(&shared)["me/Apply"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owners(&shared)["kubectl-client-side-apply/Update"]["f:spec"]["f:replicas"], json!({}));
    // force takes it over
    let forced = run(Some(&live), json!({"replicas": 2}), "me", true).unwrap();
    assert_eq!(owners(&forced)["kubectl-client-side-apply/Update"]["f:spec"].get("f:replicas"), None);
    assert_eq!(forced["spec"]["replicas"], 2);
    // a subresource's manager is told as such
    let mut scaled = shared.clone();
    scaled["spec"]["replicas"] = json!(5);
    update_manager(deployment_type(), Some(&shared), &mut scaled, &Writer { subresource: "scale", ..writer("hpa") });
    assert_eq!(
        run(Some(&scaled), json!({"replicas": 1}), "me", false).unwrap_err().to_string(),
        r#"Apply failed with 1 conflict: conflict with "hpa" with subresource "scale" using apps/v1: .spec.replicas"#
    );
}

#[test]
fn shared_fields_stay_until_the_last_owner_leaves() {
    let first = run(None, json!({"replicas": 3, "minReadySeconds": 1}), "a", false).unwrap();
    let both = run(Some(&first), json!({"replicas": 3}), "b", false).unwrap();
    let a_left = run(Some(&both), json!({"minReadySeconds": 1}), "a", false).unwrap();
    assert_eq!(a_left["spec"], json!({"replicas": 3, "minReadySeconds": 1}));
    assert_eq!(
        owners(&a_left),
        json!({"a/Apply": {"f:spec": {"f:minReadySeconds": {}}}, "b/Apply": {"f:spec": {"f:replicas": {}}}})
    );
    let none = run(Some(&a_left), json!({}), "b", false).unwrap();
    assert_eq!(none["spec"], json!({"minReadySeconds": 1}));
    assert_eq!(owners(&none), json!({"a/Apply": {"f:spec": {"f:minReadySeconds": {}}}, "b/Apply": {"f:spec": {}}}));
}

#[test]
fn lists_merge_by_their_keys() {
    let containers = |list: Value| json!({"template": {"spec": {"containers": list}}});
    let first = run(
        None,
        containers(json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}])),
        "me",
        false,
    )
    .unwrap();
    let mut injected = first.clone();
    injected["spec"]["template"]["spec"]["containers"] = json!([{"name": "side", "image": "9"}, {"name": "a", "image": "1", "args": ["x"], "tty": true}, {"name": "b", "image": "2"}]);
    update_manager(deployment_type(), Some(&first), &mut injected, &writer("injector"));
    let second = run(
        Some(&injected),
        containers(json!([{"name": "c", "image": "3"}, {"name": "a", "image": "1", "args": ["y", "z"]}])),
        "me",
        false,
    )
    .unwrap();
    assert_eq!(
        second["spec"]["template"]["spec"]["containers"],
        json!([{"name": "side", "image": "9"}, {"name": "c", "image": "3"}, {"name": "a", "image": "1", "args": ["y", "z"], "tty": true}])
    );
    // An element goes with its owner, even if another manager has a field in it.
    let third = run(Some(&second), containers(json!([{"name": "c", "image": "3"}])), "me", false).unwrap();
    assert_eq!(
        third["spec"]["template"]["spec"]["containers"],
        json!([{"name": "side", "image": "9"}, {"name": "c", "image": "3"}])
    );
}

#[test]
fn order_of_merged_lists() {
    let env = |names: &str| -> Value {
        names.split_terminator(',').map(|name| json!({"name": name})).collect::<Vec<_>>().into()
    };
    let place = fields::of("", "v1", "Pod").map(Place::Root).unwrap();
    let place = place.child("spec").child("containers").element().child("env");
    for (live, applied, want) in [
        ("a,b,c", "a,b,c", "a,b,c"),
        ("a,b,c", "c,b,a", "c,b,a"),
        ("a,b,c", "d", "a,b,c,d"),
        ("a,b,c", "d,b", "a,d,b,c"),
        ("a,b,c", "b,a", "b,c,a"),
        ("", "b,a", "b,a"),
        ("a,x,b", "b,n,a", "x,b,n,a"),
        ("a,b", "", "a,b"),
    ] {
        assert_eq!(merge::merge(place, &env(live), &env(applied)), env(want), "{live} + {applied}");
    }
}

#[test]
fn sets_and_maps() {
    let meta = |metadata: Value| object(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}));
    let run = |live: Option<&Object>, metadata: Value, manager: &str| {
        apply(deployment_type(), live, &meta(metadata), &writer(manager), false).unwrap()
    };
    let first = run(None, json!({"name": "x", "labels": {"a": "1", "b": "2"}, "finalizers": ["f/1"]}), "a");
    let second = run(Some(&first), json!({"name": "x", "labels": {"c": "3"}, "finalizers": ["f/2"]}), "b");
    assert_eq!(second["metadata"]["labels"], json!({"a": "1", "b": "2", "c": "3"}));
    assert_eq!(second["metadata"]["finalizers"], json!(["f/1", "f/2"]));
    assert_eq!(
        owners(&second)["b/Apply"],
        json!({"f:metadata": {"f:labels": {"f:c": {}}, "f:finalizers": {"v:\"f/2\"": {}}}})
    );
    let third = run(Some(&second), json!({"name": "x", "labels": {"a": "1"}}), "a");
    assert_eq!(third["metadata"]["labels"], json!({"a": "1", "c": "3"}));
    assert_eq!(third["metadata"]["finalizers"], json!(["f/2"]));
    // the last label takes the map along
    let fourth = run(Some(&run(Some(&third), json!({"name": "x"}), "b")), json!({"name": "x"}), "a");
    assert_eq!(fourth["metadata"].get("labels"), None);
}

#[test]
fn quantities_and_defaults_do_not_conflict() {
    let containers = |cpu: Value, port: Value| json!({"template": {"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": cpu}}, "ports": [port]}]}}});
    let first = run(None, containers(json!("1000m"), json!({"containerPort": 80})), "a", false).unwrap();
    let mut defaulted = first.clone();
    defaulted["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
    let second = run(Some(&defaulted), containers(json!(1), json!({"containerPort": 80})), "b", false).unwrap();
    assert_eq!(second["spec"], defaulted["spec"]);
}

/// `kubectl apply --server-side` on an object that `kubectl apply` made.
#[test]
fn kubectl_moves_from_client_side_apply() {
    let config = deployment(json!({"replicas": 1, "paused": true}));
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: Value::from(config).to_string()});
    update_manager(deployment_type(), None, &mut live, &writer("kubectl-client-side-apply"));
    // its own fields change hands without force
    let moved = run(Some(&live), json!({"replicas": 2, "paused": true}), "kubectl", false).unwrap();
    assert_eq!(moved["spec"]["replicas"], 2);
    let annotation = moved["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert!(annotation.ends_with("}\n") && annotation.contains("\"replicas\":2"));
    // what someone else changed since is a conflict
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    update_manager(deployment_type(), Some(&live), &mut scaled, &writer("kubectl-scale"));
    assert_eq!(
        run(Some(&scaled), json!({"replicas": 2, "paused": true}), "kubectl", false).unwrap_err().to_string(),
        r#"Apply failed with 1 conflict: conflict with "kubectl-scale" using apps/v1: .spec.replicas"#
    );
    // other managers get no such favour
    assert!(run(Some(&live), json!({"replicas": 2}), "helm", false).is_err());
    // the second patch kubectl sends, for the annotation alone
    let annotation = object(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "d", "annotations": {LAST_APPLIED: annotation}}}),
    );
    let done = apply(deployment_type(), Some(&moved), &annotation, &writer("kubectl-last-applied"), false).unwrap();
    assert!(owners(&done).get("kubectl-last-applied/Apply").is_some());
}

#[test]
fn live_objects_without_entries_belong_to_nobody_known() {
    let live = deployment(json!({"replicas": 1}));
    let text = run(Some(&live), json!({"replicas": 2}), "me", false).unwrap_err().to_string();
    assert_eq!(
        text,
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using apps/v1: .spec.replicas"#
    );
    let done = run(Some(&live), json!({"replicas": 1}), "me", false).unwrap();
    assert_eq!(owners(&done)["before-first-apply/Update"], json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn custom_resources_have_free_fields() {
    let ty = fields::partial_object();
    let cr =
        |spec: Value| object(json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": spec}));
    let writer = |manager| Writer { api_version: "x.io/v1", ..writer(manager) };
    let first = apply(ty, None, &cr(json!({"a": {"b": 1, "l": [1]}, "n": 1})), &writer("a"), false).unwrap();
    assert_eq!(owners(&first), json!({"a/Apply": {"f:spec": {"f:a": {"f:b": {}, "f:l": {}}, "f:n": {}}}}));
    let second = apply(ty, Some(&first), &cr(json!({"a": {"c": 2}})), &writer("b"), false).unwrap();
    let third = apply(ty, Some(&second), &cr(json!({"n": 1})), &writer("a"), false).unwrap();
    assert_eq!(third["spec"], json!({"a": {"c": 2}, "n": 1}));
    let conflict = apply(ty, Some(&third), &cr(json!({"a": {"c": 3}})), &writer("a"), false).unwrap_err().to_string();
    assert_eq!(conflict, r#"Apply failed with 1 conflict: conflict with "b": .spec.a.c"#);
}

#[test]
fn configurations_that_do_not_fit() {
    let containers = |list: Value| json!({"template": {"spec": {"containers": list}}});
    let prefix = "failed to create typed patch object (d/web; apps/v1, Kind=Deployment): ";
    for (spec, want) in [
        (json!({"foo": 1}), ".spec.foo: field not declared in schema"),
        (
            containers(json!([{"name": "a"}, {"name": "a"}])),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            containers(json!([{"image": "a"}])),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            json!({"a": 1, "b": 1}),
            "errors:\n  .spec.a: field not declared in schema\n  .spec.b: field not declared in schema",
        ),
        (containers(json!({})), ".spec.template.spec.containers: expected list, got &{map}"),
    ] {
        let error = run(None, spec, "me", false).unwrap_err();
        assert_eq!((error.code(), error.to_string()), (500, format!("{prefix}{want}")));
    }
    assert_eq!(run(None, json!({"replicas": "x"}), "me", false).unwrap_err().code(), 400);
    let mut config = deployment(json!({}));
    config["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(apply(deployment_type(), None, &config, &writer("me"), false), Err(Error::ManagedFields));
    let mut live = deployment(json!({}));
    live["metadata"]["managedFields"] = json!([{"operation": "x"}]);
    assert_eq!(run(Some(&live), json!({}), "me", false), Err(Error::LiveManagedFields));
}

#[test]
fn duplicates_in_live_lists_are_borne() {
    let env = |list: Value| json!({"template": {"spec": {"containers": [{"name": "a", "env": list}]}}});
    let mut live = deployment(env(json!([{"name": "X", "value": "1"}, {"name": "X", "value": "2"}])));
    update_manager(deployment_type(), None, &mut live, &writer("a"));
    assert_eq!(
        owners(&live)["a/Update"]["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:env"],
        json!({".": {}, "k:{\"name\":\"X\"}": {}})
    );
    let mut single = live.clone();
    single["spec"] = deployment(env(json!([{"name": "X", "value": "2"}])))["spec"].take();
    update_manager(deployment_type(), Some(&live), &mut single, &writer("b"));
    assert_eq!(
        owners(&single)["b/Update"]["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:env"],
        json!({"k:{\"name\":\"X\"}": {".": {}, "f:name": {}, "f:value": {}}})
    );
}
