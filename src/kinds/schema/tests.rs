#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn run(group: &str, kind: &str, object: Value) -> (Value, Result<Vec<String>, String>) {
    let mut object = object.as_object().unwrap().clone();
    let ty = fields::of(group, "v1", kind).unwrap();
    let result = conform(ty, &mut object).map_err(|error| error.to_string());
    (object.into(), result)
}

#[test]
fn unknown_fields_are_named_and_dropped() {
    let (object, unknown) = run(
        "apps",
        "Deployment",
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "bogus": 1,
            "metadata": {"name": "x", "annotations": {"any": "key"}, "Labels": {}},
            "spec": {"replica": 2, "replicas": 2, "template": {"spec": {"containers": [
                {"name": "a", "resources": {"limits": {"foo.com/bar": "1"}}},
                {"name": "b", "imagee": "x", "livenessProbe": {"httpGet": {"port": 80}, "httpget": {}}},
            ]}}},
        }),
    );
    assert_eq!(
        unknown.unwrap(),
        [
            r#"unknown field "bogus""#,
            r#"unknown field "metadata.Labels""#,
            r#"unknown field "spec.replica""#,
            r#"unknown field "spec.template.spec.containers[1].imagee""#,
            r#"unknown field "spec.template.spec.containers[1].livenessProbe.httpget""#,
        ]
    );
    assert_eq!(
        object,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "x", "annotations": {"any": "key"}},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [
                {"name": "a", "resources": {"limits": {"foo.com/bar": "1"}}},
                {"name": "b", "livenessProbe": {"httpGet": {"port": 80}}},
            ]}}},
        })
    );
}

#[test]
fn type_errors_are_worded_as_go_does() {
    let pod = |spec: Value| json!({"spec": {"containers": [spec]}});
    for (group, kind, object, want) in [
        (
            "apps",
            "Deployment",
            json!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            json!({"spec": {"replicas": 3_000_000_000u32}}),
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            json!({"spec": []}),
            "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            "",
            "Pod",
            pod(json!({"env": [{"name": "A", "value": 1}]})),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            "",
            "Pod",
            pod(json!({"command": "sh"})),
            "json: cannot unmarshal string into Go struct field Container.spec.containers.command of type []string",
        ),
        (
            "",
            "Pod",
            pod(json!({"ports": {}})),
            "json: cannot unmarshal object into Go struct field Container.spec.containers.ports of type []v1.ContainerPort",
        ),
        (
            "",
            "Pod",
            pod(json!("x")),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type v1.Container",
        ),
        (
            "",
            "Pod",
            pod(json!({"imagePullPolicy": 1})),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            "",
            "Pod",
            json!({"metadata": {"labels": {"a": true}}}),
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            "",
            "Pod",
            json!({"metadata": {"labels": "a"}}),
            "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            "",
            "Pod",
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
        ),
        (
            "",
            "Pod",
            pod(json!({"resources": {"limits": {"memory": "64MB"}}})),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "",
            "Pod",
            pod(json!({"livenessProbe": {"httpGet": {"port": true}}})),
            "json: cannot unmarshal bool into Go value of type int32",
        ),
        ("", "Secret", json!({"data": {"a": "%"}}), "illegal base64 data at input byte 0"),
        (
            "",
            "Secret",
            json!({"data": {"a": 1}}),
            "json: cannot unmarshal number into Go struct field Secret.data of type []uint8",
        ),
    ] {
        assert_eq!(run(group, kind, object).1, Err(want.to_owned()));
    }
}

#[test]
fn values_get_the_form_go_gives_them() {
    let container = |value: Value| json!({"spec": {"containers": [value]}});
    for (group, kind, object, want) in [
        (
            "",
            "Pod",
            container(json!({"resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"cpu": 0.5}}})),
            container(json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}})),
        ),
        (
            "",
            "Pod",
            container(
                json!({"env": [{"name": "A", "value": ""}], "args": [], "command": [""], "stdin": false, "livenessProbe": null}),
            ),
            container(json!({"env": [{"name": "A"}], "command": [""]})),
        ),
        (
            "",
            "Pod",
            container(json!({"resources": {}, "securityContext": {"runAsUser": 0, "privileged": false}})),
            container(json!({"resources": {}, "securityContext": {"runAsUser": 0, "privileged": false}})),
        ),
        (
            "",
            "Pod",
            json!({"metadata": {"labels": {}, "annotations": {"a": null}, "creationTimestamp": "2024-01-02T03:04:05.678+02:00"}}),
            json!({"metadata": {"annotations": {"a": ""}, "creationTimestamp": "2024-01-02T01:04:05Z"}}),
        ),
        (
            "",
            "Secret",
            json!({"data": {"a": "YQ==\n"}, "stringData": {"b": "c"}}),
            json!({"data": {"a": "YQ=="}, "stringData": {"b": "c"}}),
        ),
        (
            "coordination.k8s.io",
            "Lease",
            json!({"spec": {"renewTime": "2024-01-02T03:04:05Z", "leaseDurationSeconds": 15.0}}),
            json!({"spec": {"renewTime": "2024-01-02T03:04:05.000000Z", "leaseDurationSeconds": 15}}),
        ),
        (
            "apps",
            "Deployment",
            json!({"spec": {"replicas": 0, "paused": false, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}}}),
            json!({"spec": {"replicas": 0, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}}}),
        ),
        (
            "apps",
            "ControllerRevision",
            json!({"data": {"any": null}, "revision": 0}),
            json!({"data": {"any": null}, "revision": 0}),
        ),
    ] {
        assert_eq!(run(group, kind, object), (want, Ok(vec![])), "{kind}");
    }
}

#[test]
fn times_are_rfc_3339() {
    for (text, want) in [
        ("2024-01-02T03:04:05Z", Some("2024-01-02T03:04:05Z")),
        ("2024-01-02T03:04:05.9-01:00", Some("2024-01-02T04:04:05Z")),
        ("2024-01-02 03:04:05Z", None),
        ("2024-01-02T03:04Z", None),
        ("2024-01-02T03:04:05", None),
        ("2024-13-02T03:04:05Z", None),
        ("2024-01-02T03:04:05Z[UTC]", None),
        ("", None),
    ] {
        let mut value = Value::from(text);
        let got = value::time(&mut value, false).ok().map(|()| value.as_str().unwrap().to_owned());
        assert_eq!(got.as_deref(), want, "{text}");
    }
}

#[test]
fn schemas_of_custom_resources() {
    let schema = |schema: Value| json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    let good = schema(json!({
        "type": "object", "additionalProperties": false, "items": [{"type": "string"}], "default": {"any": 1},
        "properties": {"a": {"additionalProperties": {"type": "string"}, "dependencies": {"x": ["y"]}}},
        "x-kubernetes-preserve-unknown-fields": true, "maximum": 1.5,
    }));
    let mut want = good.clone();
    let (got, unknown) = run("apiextensions.k8s.io", "CustomResourceDefinition", good);
    assert_eq!(unknown, Ok(vec![]));
    assert_eq!(got, want.take());
    let (_, unknown) =
        run("apiextensions.k8s.io", "CustomResourceDefinition", schema(json!({"properties": {"a": {"typo": 1}}})));
    assert_eq!(unknown.unwrap(), [r#"unknown field "spec.versions[0].schema.openAPIV3Schema.properties.a.typo""#]);
}

#[test]
fn metadata_of_custom_resources() {
    let mut object = json!({"metadata": {"name": "x", "foo": 1}, "spec": {"any": null}}).as_object().unwrap().clone();
    assert_eq!(conform_metadata(&mut object).unwrap(), [r#"unknown field "metadata.foo""#]);
    assert_eq!(Value::from(object), json!({"metadata": {"name": "x"}, "spec": {"any": null}}));
    let mut bad = json!({"metadata": 1}).as_object().unwrap().clone();
    assert!(conform_metadata(&mut bad).is_err());
}

#[test]
fn depth_is_bounded() {
    let nested = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let revision = |levels| json!({"data": nested(levels)}).as_object().unwrap().clone();
    let ty = fields::of("apps", "v1", "ControllerRevision").unwrap();
    for (levels, fits) in [(MAX_DEPTH - 1, true), (MAX_DEPTH, false)] {
        assert_eq!(conform(ty, &mut revision(levels)).is_ok(), fits);
        assert_eq!(conform_metadata(&mut revision(levels)).is_ok(), fits);
    }
}

#[test]
fn texts_of_answers() {
    let cause = strict_text(&[r#"unknown field "a""#.into(), r#"duplicate field "b""#.into()]);
    assert_eq!(
        cannot_be_handled("Deployment", "v1", cause),
        r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "a", duplicate field "b""#
    );
}
