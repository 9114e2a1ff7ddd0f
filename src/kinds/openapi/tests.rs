#![allow(clippy::unwrap_used)]

use std::io::Read;

use super::*;

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn resource(group: &'static str, kind: &'static str, plural: &'static str) -> Resource<'static> {
    Resource {
        group,
        version: "v1",
        kind,
        plural,
        namespaced: true,
        verbs: VERBS,
        subresources: &["status"],
        schema: None,
    }
}

fn served() -> Vec<Resource<'static>> {
    vec![
        Resource { subresources: &["status", "binding", "eviction", "log", "exec"], ..resource("", "Pod", "pods") },
        Resource { namespaced: false, ..resource("", "Node", "nodes") },
        Resource { subresources: &["status", "scale"], ..resource("apps", "Deployment", "deployments") },
        Resource {
            verbs: &["create"],
            subresources: &[],
            ..resource("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews")
        },
    ]
}

fn v3(served: &[Resource], root: &str) -> Value {
    serde_json::from_slice(&v3_document(served, root, false).unwrap()).unwrap()
}

/// Every `$ref` below a value.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn the_index_names_every_group_version() {
    let index = v3_index(&served());
    let paths: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["api/v1", "apis/apps/v1", "apis/authorization.k8s.io/v1"]);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={}", v3_etag(&served(), "apis/apps/v1").unwrap()));
    assert_eq!((v3_etag(&served(), "apis/x/v1"), v3_document(&served(), "apis/x/v1", true)), (None, None));
}

#[test]
fn hashes_change_with_what_is_served() {
    let mut other = served();
    other[2].subresources = &[];
    assert_ne!(v3_etag(&served(), "apis/apps/v1"), v3_etag(&other, "apis/apps/v1"));
    assert_eq!(v3_etag(&served(), "api/v1"), v3_etag(&other, "api/v1"));
    assert_ne!(v2_etag(&served()), v2_etag(&other));
}

#[test]
fn every_reference_has_its_definition() {
    for (document, definitions) in [
        (v3(&served(), "api/v1"), "/components/schemas"),
        (v3(&served(), "apis/apps/v1"), "/components/schemas"),
        (serde_json::from_slice(&v2_document(&served(), false)).unwrap(), "/definitions"),
    ] {
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(pointer.starts_with(definitions) && document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

#[test]
fn patches_are_described_as_kubectl_looks_for_them() {
    let document = v3(&served(), "apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(
        paths,
        [
            "/apis/apps/v1/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status",
        ]
    );
    let reviews = v3(&served(), "apis/authorization.k8s.io/v1");
    let paths: Vec<&String> = reviews["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/apis/authorization.k8s.io/v1/namespaces/{namespace}/subjectaccessreviews"]);
}

#[test]
fn definitions_have_merge_keys() {
    let document = v3(&served(), "api/v1");
    let schemas = &document["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(
        spec["properties"]["volumes"],
        json!({
            "type": "array", "items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.Volume"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-strategy": "merge,retainKeys", "x-kubernetes-patch-merge-key": "name",
        })
    );
    assert_eq!(spec["required"], json!(["containers"]));
    assert_eq!(spec["properties"]["nodeSelector"]["x-kubernetes-map-type"], "atomic");
    assert!(schemas["io.k8s.api.core.v1.Volume"]["properties"]["emptyDir"].is_object());
    assert_eq!(schemas["io.k8s.api.core.v1.PodList"]["properties"]["items"]["type"], "array");
}

#[test]
fn custom_resources_bring_their_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    let custom = [Resource { schema: Some(&schema), ..resource("stable.example.com", "CronTab", "crontabs") }];
    let document = v3(&custom, "apis/stable.example.com/v1");
    let definition = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(definition["properties"]["spec"]["properties"]["size"], json!({"type": "integer"}));
    assert!(definition["properties"]["metadata"]["$ref"].is_string());
    let patch = &document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
}

#[test]
fn documents_are_compressed() {
    let plain = v3_document(&served(), "api/v1", false).unwrap();
    let packed = v3_document(&served(), "api/v1", true).unwrap();
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    assert!(packed.len() * 5 < plain.len());
}

#[test]
fn the_protobuf_document_is_well_formed() {
    assert_eq!(v2_protobuf(), b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.35.0\x42\x00\x4a\x00");
}
