//! What a path means.

use std::sync::Arc;

use http::Method;

use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::kinds::{Kind, Subresource};

use super::metrics;
use super::query::{Query, decode};

/// A resource named by a path.
#[derive(Clone)]
pub(super) struct Target {
    /// Its kind.
    pub(super) kind: Arc<Kind>,
    /// Namespace; empty for cluster scope and for a list over all namespaces.
    pub(super) ns: String,
    /// Name; empty for the collection.
    pub(super) name: String,
    /// Subresource.
    pub(super) sub: Option<Subresource>,
}

impl Target {
    /// The namespace of a list or watch.
    pub(super) fn scope(&self) -> Option<&str> {
        (!self.ns.is_empty()).then_some(self.ns.as_str())
    }

    /// The subresource's name, empty for the object itself.
    pub(super) fn sub_name(&self) -> &'static str {
        self.sub.map_or("", Subresource::name)
    }
}

/// What is asked of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// Its name in RBAC rules and discovery.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Whether it changes something.
    pub(super) fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// The parts of `/api/v1/…` or `/apis/GROUP/VERSION/…`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) ns: String,
    pub(super) name: String,
    pub(super) sub: String,
    /// What comes after the subresource (`proxy/PATH`).
    pub(super) rest: String,
}

/// Takes a path apart; `None` if it names no resource.
pub(super) fn split(path: &str) -> Option<Parts> {
    let mut segments = path.strip_prefix('/')?.trim_end_matches('/').split('/').map(|s| decode(s, false));
    let group = match segments.next()?.as_str() {
        "api" => String::new(),
        "apis" => segments.next().filter(|group| !group.is_empty())?,
        _ => return None,
    };
    let version = segments.next()?;
    let rest: Vec<String> = segments.collect();
    let (ns, rest) = match rest.as_slice() {
        // `namespaces/X`, `namespaces/X/status` and `namespaces/X/finalize` are the namespace itself.
        [first, ns, after @ ..]
            if first == "namespaces" && !after.is_empty() && !["status", "finalize"].contains(&after[0].as_str()) =>
        {
            (ns.clone(), after)
        }
        all => (String::new(), all),
    };
    let at = |i: usize| rest.get(i).cloned().unwrap_or_default();
    let parts = Parts {
        group,
        version,
        plural: at(0),
        ns,
        name: at(1),
        sub: at(2),
        rest: rest.get(3..).unwrap_or_default().join("/"),
    };
    (!parts.plural.is_empty()).then_some(parts)
}

/// The resource and verb of a request.
///
/// # Errors
/// 404 for what is not served, 405 for a verb that makes no sense there.
pub(super) fn resolve(
    kinds: &KindTable,
    parts: Parts,
    method: &Method,
    query: &Query,
) -> Result<(Target, Verb), Status> {
    let Parts { group, version, plural, ns, name, sub, rest } = parts;
    let kind = kinds.by_plural(&group, &version, &plural).or_else(|| metrics::kind(&group, &version, &plural));
    let kind = kind.ok_or_else(Status::no_such_path)?;
    let sub = match sub.as_str() {
        "" => None,
        text => Some(*kind.subresources.iter().find(|s| s.name() == text).ok_or_else(Status::no_such_path)?),
    };
    let misplaced = (!kind.namespaced && !ns.is_empty()) || (kind.namespaced && ns.is_empty() && !name.is_empty());
    // Only a proxied request goes on after its subresource.
    if misplaced || (!rest.is_empty() && sub != Some(Subresource::Other("proxy"))) {
        return Err(Status::no_such_path());
    }
    let watch = query.flag("watch");
    let verb = match (method, name.is_empty()) {
        (&Method::GET, _) if watch && sub.is_none() => Verb::Watch,
        (&Method::GET | &Method::HEAD, true) => Verb::List,
        (&Method::GET | &Method::HEAD, false) => Verb::Get,
        (&Method::POST, true) if kind.namespaced && ns.is_empty() => return Err(Status::method_not_allowed()),
        (&Method::POST, true) => Verb::Create,
        (&Method::POST, false) if sub.is_some() => Verb::Create,
        (&Method::PUT, false) => Verb::Update,
        (&Method::PATCH, false) => Verb::Patch,
        (&Method::DELETE, false) => Verb::Delete,
        (&Method::DELETE, true) => Verb::DeleteCollection,
        _ => return Err(Status::method_not_allowed()),
    };
    Ok((Target { kind, ns, name, sub }, verb))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let cases = [
            ("/api/v1/pods", ["", "v1", "pods", "", "", ""]),
            ("/api/v1/namespaces", ["", "v1", "namespaces", "", "", ""]),
            ("/api/v1/namespaces/a", ["", "v1", "namespaces", "", "a", ""]),
            ("/api/v1/namespaces/a/status", ["", "v1", "namespaces", "", "a", "status"]),
            ("/api/v1/namespaces/a/finalize", ["", "v1", "namespaces", "", "a", "finalize"]),
            ("/api/v1/namespaces/a/pods/", ["", "v1", "pods", "a", "", ""]),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", ["apps", "v1", "deployments", "a", "b", "scale"]),
            ("/apis/x.io/v1/widgets/a%3Ab", ["x.io", "v1", "widgets", "", "a:b", ""]),
        ];
        for (path, expected) in cases {
            let p = split(path).unwrap();
            assert_eq!([p.group, p.version, p.plural, p.ns, p.name, p.sub], expected.map(String::from), "{path}");
        }
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version"] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn methods_become_verbs() {
        let kinds = KindTable::builtin();
        let verb = |method: &str, path: &str, query: &str| {
            resolve(&kinds, split(path).unwrap(), &method.parse().unwrap(), &Query::parse(query))
                .map(|(_, verb)| verb.name())
                .map_err(|status| status.code)
        };
        let pods = "/api/v1/namespaces/a/pods";
        for (method, path, query, expected) in [
            ("GET", pods, "", Ok("list")),
            ("GET", pods, "watch=1", Ok("watch")),
            ("GET", "/api/v1/namespaces/a/pods/b", "", Ok("get")),
            ("POST", pods, "", Ok("create")),
            ("POST", "/api/v1/namespaces/a/pods/b/binding", "", Ok("create")),
            ("PUT", "/api/v1/namespaces/a/pods/b/status", "", Ok("update")),
            ("PATCH", "/api/v1/nodes/b", "", Ok("patch")),
            ("DELETE", pods, "", Ok("deletecollection")),
            ("POST", "/api/v1/pods", "", Err(405)),
            ("PUT", pods, "", Err(405)),
            ("GET", "/api/v1/pods/b", "", Err(404)),
            ("GET", "/api/v1/namespaces/a/nodes", "", Err(404)),
            ("GET", "/api/v1/gadgets", "", Err(404)),
            ("GET", "/api/v1/namespaces/a/services/http:b:80/proxy/x/y", "watch=1", Ok("get")),
            ("POST", "/api/v1/namespaces/a/pods/b/proxy/", "", Ok("create")),
            ("GET", "/api/v1/namespaces/a/pods/b/status/x", "", Err(404)),
            ("GET", "/api/v1/namespaces/a/pods/b/nothing", "", Err(404)),
            ("GET", "/api/v2/pods", "", Err(404)),
        ] {
            assert_eq!(verb(method, path, query), expected, "{method} {path}");
        }
    }
}
