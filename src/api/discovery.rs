//! Discovery: which groups, versions and resources are served.

use std::collections::BTreeMap;

use http::header::{ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::kinds::{Kind, Subresource};

use super::reply::{Body, Style, accepts, typed};
use super::{metrics, reviews};

/// The verbs of every stored resource.
pub(super) const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One served version of a group.
struct GroupVersion {
    group: String,
    version: String,
    resources: Vec<Resource>,
}

/// One resource or subresource.
struct Resource {
    /// `pods` or `pods/log`.
    name: String,
    singular: String,
    namespaced: bool,
    /// Group, version and kind of what it takes and gives; group and version empty if they are the resource's own.
    kind: (String, String, String),
    verbs: Vec<&'static str>,
    short_names: Vec<String>,
    categories: Vec<String>,
}

/// The answer to a discovery path.
pub(super) fn answer(
    kinds: &KindTable,
    path: &str,
    accept: &str,
    style: Style,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let all = served(kinds);
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let aggregated = accepts(accept, "APIGroupDiscoveryList", "apidiscovery.k8s.io", &["v2", "v2beta1"]);
    match (segments.as_slice(), aggregated) {
        (["api"], Some(version)) => aggregate(all.iter().filter(|gv| gv.group.is_empty()), version, headers),
        (["apis"], Some(version)) => aggregate(all.iter().filter(|gv| !gv.group.is_empty()), version, headers),
        (["api"], None) => {
            let addresses = json!([{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }]);
            let document =
                json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses });
            style.value(200, &document)
        }
        (["apis"], None) => {
            let groups: Vec<Value> = groups(&all).into_iter().map(|(name, versions)| group(name, &versions)).collect();
            style.value(200, &json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        (["apis", name], _) => {
            let groups = groups(&all);
            let (name, versions) = groups.iter().find(|(n, _)| n == name).ok_or_else(Status::no_such_path)?;
            let mut document = group(name, versions);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            style.value(200, &document)
        }
        (["api", version], _) => resources(&all, "", version, style),
        (["apis", group, version], _) => resources(&all, group, version, style),
        ([""], _) => style.value(200, &json!({ "paths": paths(&all) })),
        _ => Err(Status::no_such_path()),
    }
}

/// Everything served: the kind table, what is measured, and the reviews, in the order of the table.
fn served(kinds: &KindTable) -> Vec<GroupVersion> {
    let mut all: Vec<GroupVersion> = Vec::new();
    let mut add = |group: &str, version: &str, resources: Vec<Resource>| match all
        .iter_mut()
        .find(|gv| gv.group == group && gv.version == version)
    {
        Some(gv) => gv.resources.extend(resources),
        None => all.push(GroupVersion { group: group.into(), version: version.into(), resources }),
    };
    for kind in kinds.all() {
        add(&kind.group, &kind.version, of_kind(&kind, &VERBS));
    }
    for kind in metrics::kinds() {
        add(&kind.group, &kind.version, of_kind(kind, &["get", "list"]));
    }
    for review in reviews::ALL {
        let resource = Resource {
            name: review.plural.into(),
            singular: review.kind.to_lowercase(),
            namespaced: review.namespaced,
            kind: (String::new(), String::new(), review.kind.into()),
            verbs: vec!["create"],
            short_names: Vec::new(),
            categories: Vec::new(),
        };
        add(review.group, review.version, vec![resource]);
    }
    all
}

/// A kind's resource and its subresources.
fn of_kind(kind: &Kind, verbs: &[&'static str]) -> Vec<Resource> {
    let own = || (String::new(), String::new(), kind.kind.to_string());
    let strings = |list: &[std::borrow::Cow<'static, str>]| list.iter().map(ToString::to_string).collect();
    let mut resources = vec![Resource {
        name: kind.plural.to_string(),
        singular: kind.singular.to_string(),
        namespaced: kind.namespaced,
        kind: own(),
        verbs: verbs.to_vec(),
        short_names: strings(&kind.short_names),
        categories: strings(&kind.categories),
    }];
    for sub in kind.subresources {
        let other = |group: &str, version: &str, kind: &str| (group.into(), version.into(), kind.into());
        let (document, verbs) = match sub {
            Subresource::Status => (own(), vec!["get", "patch", "update"]),
            Subresource::Scale => (other("autoscaling", "v1", "Scale"), vec!["get", "patch", "update"]),
            Subresource::Binding => (other("", "", "Binding"), vec!["create"]),
            Subresource::Eviction => (other("policy", "v1", "Eviction"), vec!["create"]),
            Subresource::Other("exec") => (other("", "", "PodExecOptions"), vec!["create", "get"]),
            Subresource::Other("attach") => (other("", "", "PodAttachOptions"), vec!["create", "get"]),
            Subresource::Other("portforward") => (other("", "", "PodPortForwardOptions"), vec!["create", "get"]),
            Subresource::Other("proxy") => (
                other("", "", &format!("{}ProxyOptions", kind.kind)),
                vec!["create", "delete", "get", "patch", "update"],
            ),
            Subresource::Other("log") => (own(), vec!["get"]),
            Subresource::Other("token") => (other("authentication.k8s.io", "v1", "TokenRequest"), vec!["create"]),
            Subresource::Other("finalize") => (own(), vec!["update"]),
            Subresource::Other(_) => (own(), vec!["get", "patch", "update"]),
        };
        resources.push(Resource {
            name: format!("{}/{}", kind.plural, sub.name()),
            singular: String::new(),
            namespaced: kind.namespaced,
            kind: document,
            verbs,
            short_names: Vec::new(),
            categories: Vec::new(),
        });
    }
    resources
}

/// Named groups with their versions, in order.
fn groups(all: &[GroupVersion]) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for gv in all.iter().filter(|gv| !gv.group.is_empty()) {
        match groups.iter_mut().find(|(name, _)| *name == gv.group) {
            Some((_, versions)) => versions.push(&gv.version),
            None => groups.push((&gv.group, vec![&gv.version])),
        }
    }
    groups
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({ "groupVersion": format!("{name}/{v}"), "version": v });
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({ "name": name, "versions": all, "preferredVersion": all.first() })
}

/// `APIResourceList` of a group and version.
fn resources(all: &[GroupVersion], group: &str, version: &str, style: Style) -> Result<Response<Body>, Status> {
    let found = all.iter().find(|gv| gv.group == group && gv.version == version).ok_or_else(Status::no_such_path)?;
    let list: Vec<Value> = found.resources.iter().map(Resource::plain).collect();
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let document = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": list });
    style.value(200, &document)
}

impl Resource {
    /// As in `APIResourceList`.
    fn plain(&self) -> Value {
        let (group, version, kind) = &self.kind;
        let mut value = json!({
            "name": self.name, "singularName": self.singular, "namespaced": self.namespaced, "kind": kind,
            "verbs": self.verbs,
        });
        optional(&mut value, "group", group);
        optional(&mut value, "version", version);
        self.names(&mut value);
        value
    }

    /// As in `APIGroupDiscoveryList`, with the subresources that follow it.
    fn aggregated(&self, subresources: &[&Resource]) -> Value {
        let mut value = json!({
            "resource": self.name, "responseKind": self.response_kind(), "verbs": self.verbs,
            "scope": if self.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": self.singular,
        });
        self.names(&mut value);
        let subresources: Vec<Value> = subresources
            .iter()
            .map(|sub| {
                let name = sub.name.split_once('/').map_or("", |(_, name)| name);
                json!({ "subresource": name, "responseKind": sub.response_kind(), "verbs": sub.verbs })
            })
            .collect();
        if !subresources.is_empty() {
            value["subresources"] = subresources.into();
        }
        value
    }

    fn response_kind(&self) -> Value {
        let (group, version, kind) = &self.kind;
        json!({ "group": group, "version": version, "kind": kind })
    }

    fn names(&self, value: &mut Value) {
        if !self.short_names.is_empty() {
            value["shortNames"] = self.short_names.clone().into();
        }
        if !self.categories.is_empty() {
            value["categories"] = self.categories.clone().into();
        }
    }
}

fn optional(value: &mut Value, key: &str, text: &str) {
    if !text.is_empty() {
        value[key] = text.into();
    }
}

/// `APIGroupDiscoveryList`, with an `ETag`, so that clients fetch it once.
fn aggregate<'a>(
    all: impl Iterator<Item = &'a GroupVersion>,
    version: &'static str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let mut order: Vec<&str> = Vec::new();
    let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for gv in all {
        let is_sub = |r: &&Resource| r.name.contains('/');
        let resources: Vec<Value> = gv
            .resources
            .iter()
            .filter(|r| !is_sub(r))
            .map(|r| {
                let prefix = format!("{}/", r.name);
                let subs: Vec<&Resource> = gv.resources.iter().filter(|s| s.name.starts_with(&prefix)).collect();
                r.aggregated(&subs)
            })
            .collect();
        if !groups.contains_key(gv.group.as_str()) {
            order.push(&gv.group);
        }
        let entry = json!({ "version": gv.version, "freshness": "Current", "resources": resources });
        groups.entry(&gv.group).or_default().push(entry);
    }
    let items: Vec<Value> = order
        .into_iter()
        .map(|name| json!({ "metadata": { "name": name, "creationTimestamp": null }, "versions": groups.remove(name) }))
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    });
    let text = document.to_string();
    let tag = tag(text.as_bytes());
    let media = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let known = headers.get(IF_NONE_MATCH).is_some_and(|v| *v == tag);
    let mut response = if known { typed(304, media, Default::default()) } else { typed(200, media, text.into()) };
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(value) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, value);
    }
    Ok(response)
}

/// A strong entity tag of a document.
fn tag(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    let hex: String = hash.as_ref().iter().take(16).map(|b| format!("{b:02X}")).collect();
    format!("\"{hex}\"")
}

fn paths(all: &[GroupVersion]) -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(String::from).to_vec();
    for (name, versions) in groups(all) {
        paths.push(format!("/apis/{name}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{name}/{v}")));
    }
    paths.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from));
    paths
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::query::Query;
    use http_body_util::BodyExt;

    async fn get(path: &str, accept: &str) -> Value {
        let style = Style::of(&HeaderMap::new(), &Query::default()).unwrap();
        let response = answer(&KindTable::builtin(), path, accept, style, &HeaderMap::new()).unwrap();
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn both_forms_know_the_same_resources() {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let aggregated = get("/apis", accept).await;
        assert_eq!(aggregated["kind"], "APIGroupDiscoveryList");
        let apps = aggregated["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let plain = get("/apis/apps/v1", "").await;
        for resource in apps["versions"][0]["resources"].as_array().unwrap() {
            let name = resource["resource"].as_str().unwrap();
            let list = plain["resources"].as_array().unwrap();
            let same = list.iter().find(|r| r["name"] == name).unwrap();
            assert_eq!(same["verbs"], resource["verbs"]);
            for sub in resource["subresources"].as_array().into_iter().flatten() {
                let name = format!("{name}/{}", sub["subresource"].as_str().unwrap());
                assert!(list.iter().any(|r| r["name"] == name.as_str()), "{name}");
            }
        }
        let groups = get("/apis", "").await;
        assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "authorization.k8s.io"));
        assert_eq!(get("/apis/apps", "").await["preferredVersion"]["groupVersion"], "apps/v1");
        assert_eq!(get("/api", "").await["versions"], json!(["v1"]));
    }

    #[test]
    fn a_known_document_is_not_sent_again() {
        let all = served(&KindTable::builtin());
        let mut headers = HeaderMap::new();
        let first = aggregate(all.iter(), "v2", &headers).unwrap();
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(aggregate(all.iter(), "v2", &headers).unwrap().status(), 304);
    }
}
