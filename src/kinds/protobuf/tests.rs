#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

fn bytes(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [&varint(field << 3 | 2), &varint(content.len() as u64), content].concat()
}

fn nested(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, parts.concat())
}

fn envelope(api_version: &str, kind: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let unknown = [
        nested(1, &[bytes(1, api_version), bytes(2, kind)]),
        nested(2, parts),
        // What Go always writes, empty or not.
        bytes(3, ""),
        bytes(4, ""),
    ];
    [MAGIC.to_vec(), unknown.concat()].concat()
}

fn decoded(api_version: &str, kind: &str, parts: &[Vec<u8>]) -> Value {
    decode(&envelope(api_version, kind, parts)).unwrap().into()
}

#[test]
fn a_pod_with_embedded_structs() {
    let container = nested(
        2,
        &[
            bytes(1, "web"),
            bytes(2, "nginx"),
            bytes(3, "sh"),
            bytes(3, ""),
            nested(6, &[bytes(1, ""), number(2, 0), number(3, 80), bytes(4, "TCP"), bytes(5, "")]),
            // env: valueFrom.configMapKeyRef embeds its name's struct
            nested(
                7,
                &[bytes(1, "A"), bytes(2, ""), nested(3, &[nested(3, &[nested(1, &[bytes(1, "cm")]), bytes(2, "k")])])],
            ),
            nested(8, &[nested(1, &[bytes(1, "cpu"), nested(2, &[bytes(1, "1000m")])])]),
            // livenessProbe embeds its handler
            nested(
                10,
                &[
                    nested(1, &[nested(2, &[bytes(1, "/"), nested(2, &[number(1, 0), number(2, 8080)])])]),
                    number(2, 0),
                    number(4, 5),
                ],
            ),
            number(18, 0),
        ],
    );
    let volume = nested(1, &[bytes(1, "tmp"), nested(2, &[nested(2, &[bytes(1, "")])])]);
    let spec = nested(2, &[volume, container, bytes(3, "Always"), number(4, 0), number(11, 0), nested(14, &[])]);
    let metadata =
        nested(1, &[bytes(1, "p"), bytes(3, ""), nested(8, &[]), nested(11, &[bytes(1, "app"), bytes(2, "web")])]);
    let status = nested(3, &[bytes(1, ""), bytes(3, "")]);
    assert_eq!(
        decoded("v1", "Pod", &[metadata, spec, status]),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"app": "web"}},
            "spec": {
                "containers": [{
                    "name": "web", "image": "nginx", "command": ["sh", ""],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
                    "resources": {"limits": {"cpu": "1"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 5},
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 0,
                "securityContext": {},
            },
        })
    );
}

#[test]
fn special_types() {
    let time = |seconds, nanos| [number(1, seconds), number(2, nanos)].concat();
    for (api_version, kind, part, want) in [
        ("v1", "Secret", nested(2, &[bytes(1, "k"), bytes(2, [0, 255])]), json!({"data": {"k": "AP8="}})),
        ("v1", "Secret", nested(2, &[bytes(1, "k")]), json!({"data": {"k": ""}})),
        ("v1", "ConfigMap", nested(2, &[]), json!({"data": {"": ""}})),
        (
            "coordination.k8s.io/v1",
            "Lease",
            nested(2, &[bytes(3, time(1_700_000_000, 1_500))]),
            json!({"spec": {"acquireTime": "2023-11-14T22:13:20.000001Z"}}),
        ),
        (
            "v1",
            "Pod",
            nested(1, &[bytes(9, time(-1, 0))]),
            json!({"metadata": {"deletionTimestamp": "1969-12-31T23:59:59Z"}}),
        ),
        ("v1", "Pod", nested(1, &[bytes(9, "")]), json!({})),
        (
            "v1",
            "Service",
            nested(2, &[nested(1, &[number(3, 80), nested(4, &[number(1, 1), number(2, 0), bytes(3, "web")])])]),
            json!({"spec": {"ports": [{"port": 80, "targetPort": "web"}]}}),
        ),
        (
            "v1",
            "Service",
            nested(2, &[nested(1, &[number(3, 80), nested(4, &[number(1, 0), number(2, 0), bytes(3, "")])])]),
            json!({"spec": {"ports": [{"port": 80}]}}),
        ),
        ("apps/v1", "ControllerRevision", nested(2, &[bytes(1, br#"{"a":1}"#)]), json!({"data": {"a": 1}})),
        ("v1", "Pod", nested(2, &[number(5, -1)]), json!({"spec": {"activeDeadlineSeconds": -1}})),
        ("v1", "DeleteOptions", number(1, 0), json!({"gracePeriodSeconds": 0})),
        ("v1", "DeleteOptions", bytes(4, "Background"), json!({"propagationPolicy": "Background"})),
        (
            "authentication.k8s.io/v1",
            "TokenReview",
            nested(3, &[nested(2, &[nested(4, &[bytes(1, "x"), nested(2, &[bytes(1, "a"), bytes(1, "b")])])])]),
            json!({"status": {"user": {"extra": {"x": ["a", "b"]}}}}),
        ),
        (
            "batch/v1",
            "Job",
            nested(2, &[number(1, 2), nested(4, &[])]),
            json!({"spec": {"parallelism": 2, "selector": {}}}),
        ),
    ] {
        let mut got = decoded(api_version, kind, &[part]);
        got.as_object_mut()
            .unwrap()
            .retain(|key, value| !matches!(key.as_str(), "apiVersion" | "kind") && *value != json!({}));
        assert_eq!(got, want, "{api_version} {kind}");
    }
}

#[test]
fn schemas_of_custom_resources() {
    let string = || bytes(5, "string");
    let schema = nested(
        1,
        &[
            bytes(5, "object"),
            nested(9, &[]),
            nested(24, &[nested(1, &[string()])]),
            nested(29, &[bytes(1, "open"), nested(2, &[nested(30, &[number(1, 1)])])]),
            nested(29, &[bytes(1, "typed"), nested(2, &[nested(30, &[number(1, 1), nested(2, &[string()])])])]),
            nested(32, &[bytes(1, "d"), nested(2, &[bytes(2, "x")])]),
            nested(8, &[bytes(1, "[1]")]),
        ],
    );
    // field 9, `maximum`, is a 64-bit float: as a message it is malformed
    let version =
        |schema: Vec<u8>| nested(2, &[nested(7, &[bytes(1, "v1"), number(2, 1), number(3, 1), bytes(4, schema)])]);
    let body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[version(schema)]);
    assert_eq!(decode(&body), Err(Error::WireType { field: "maximum", wire: 2 }));
    let schema = nested(
        1,
        &[
            bytes(5, "object"),
            nested(24, &[nested(1, &[string()])]),
            nested(29, &[bytes(1, "open"), nested(2, &[nested(30, &[number(1, 1)])])]),
            nested(29, &[bytes(1, "typed"), nested(2, &[nested(30, &[number(1, 1), nested(2, &[string()])])])]),
            nested(32, &[bytes(1, "d"), nested(2, &[bytes(2, "x")])]),
            nested(8, &[bytes(1, "[1]")]),
        ],
    );
    let got = decoded("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[version(schema)]);
    assert_eq!(
        got["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
        json!({
            "type": "object", "items": {"type": "string"}, "default": [1], "dependencies": {"d": ["x"]},
            "properties": {"open": {"additionalProperties": true}, "typed": {"additionalProperties": {"type": "string"}}},
        })
    );
}

#[test]
fn malformed_bodies_are_refused() {
    let pod = |parts: &[Vec<u8>]| envelope("v1", "Pod", parts);
    let raw = |content: &[u8]| envelope("apps/v1", "ControllerRevision", &[nested(2, &[bytes(1, content)])]);
    for (body, want) in [
        (b"{}".to_vec(), Error::NoMagic),
        (b"k8s\0\x0a".to_vec(), Error::Truncated),
        (b"k8s\0\x0a\x05\x01".to_vec(), Error::Truncated),
        (b"k8s\0\x0b".to_vec(), Error::Tag(11)),
        (b"k8s\0\x00".to_vec(), Error::Tag(0)),
        ([MAGIC.as_slice(), &[0x80; 12]].concat(), Error::Overflow),
        (envelope("v1", "Nope", &[]), Error::Unregistered { api_version: "v1".into(), kind: "Nope".into() }),
        ([&MAGIC[..], &bytes(3, "gzip")].concat(), Error::Encoding("gzip".into())),
        (pod(&[number(2, 1)]), Error::WireType { field: "spec", wire: 0 }),
        (pod(&[nested(1, &[bytes(1, [0xff])])]), Error::Utf8("name")),
        (pod(&[nested(1, &[nested(9, &[number(1, i64::MAX)])])]), Error::Value("deletionTimestamp")),
        (raw(b"{"), Error::Value("data")),
    ] {
        assert_eq!(decode(&body), Err(want));
    }
}

#[test]
fn depth_is_bounded() {
    let mut schema = bytes(5, "string");
    for _ in 0..20_000 {
        schema = bytes(28, schema);
    }
    let version = nested(2, &[nested(7, &[bytes(4, bytes(1, schema))])]);
    assert_eq!(decode(&envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[version])), Err(Error::Depth));
    let mut inner = envelope("apps/v1", "ControllerRevision", &[]);
    for _ in 0..2_000 {
        inner = envelope("apps/v1", "ControllerRevision", &[nested(2, &[bytes(1, inner)])]);
    }
    assert_eq!(decode(&inner), Err(Error::Depth));
}

#[test]
fn hostile_bytes_never_panic() {
    let good = envelope(
        "v1",
        "Pod",
        &[
            nested(1, &[bytes(1, "p"), nested(9, &[number(1, 1)])]),
            nested(
                2,
                &[nested(
                    2,
                    &[bytes(1, "c"), nested(8, &[nested(1, &[bytes(1, "cpu"), nested(2, &[bytes(1, "1")])])])],
                )],
            ),
        ],
    );
    for end in 0..good.len() {
        drop(decode(&good[..end]));
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[end] = byte;
            drop(decode(&bad));
        }
    }
}

#[test]
fn an_object_may_be_json_within_the_envelope() {
    let body = [MAGIC.to_vec(), bytes(2, r#"{"kind":"X"}"#), bytes(4, "application/json")].concat();
    assert_eq!(Value::from(decode(&body).unwrap()), json!({"kind": "X"}));
}

#[test]
fn a_service_and_its_slice() {
    // Go writes what is no pointer even where it is empty.
    let port = nested(
        1,
        &[bytes(1, ""), bytes(2, "TCP"), number(3, 80), nested(4, &[number(1, 1), bytes(3, "web")]), number(5, 0)],
    );
    let affinity = nested(14, &[nested(1, &[number(1, 60)])]);
    let spec = [
        port,
        nested(2, &[bytes(1, "app"), bytes(2, "web")]),
        bytes(3, ""),
        bytes(4, "NodePort"),
        number(12, 0),
        number(13, 0),
        affinity,
        bytes(17, "SingleStack"),
        bytes(18, "10.43.0.9"),
        number(20, 0),
    ];
    let service =
        decoded("v1", "Service", &[nested(1, &[bytes(1, "web")]), nested(2, &spec), nested(3, &[nested(1, &[])])]);
    assert_eq!(
        service["spec"],
        json!({
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": "web"}], "selector": {"app": "web"},
            "type": "NodePort", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ipFamilyPolicy": "SingleStack", "clusterIPs": ["10.43.0.9"], "allocateLoadBalancerNodePorts": false,
        })
    );
    let endpoint = [
        bytes(1, "10.42.0.7"),
        nested(2, &[number(1, 1), number(3, 0)]),
        bytes(3, "a"),
        nested(8, &[nested(1, &[bytes(1, "z")])]),
    ];
    let port = nested(3, &[bytes(1, ""), bytes(2, "UDP"), number(3, 53)]);
    let slice = [nested(1, &[bytes(1, "web-x")]), nested(2, &endpoint), port, bytes(4, "IPv4")];
    let slice = decoded("discovery.k8s.io/v1", "EndpointSlice", &slice);
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(slice["ports"], json!([{"name": "", "port": 53, "protocol": "UDP"}]));
    assert_eq!(
        slice["endpoints"],
        json!([{"addresses": ["10.42.0.7"], "conditions": {"ready": true, "terminating": false}, "hostname": "a",
                "hints": {"forZones": [{"name": "z"}]}}])
    );
}
