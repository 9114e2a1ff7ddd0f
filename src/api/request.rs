//! The way of one request through the server.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, USER_AGENT};
use http::request::Parts as Head;
use http::{Method, Response};
use hyper::Request;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::kinds::Kind;
use crate::kinds::status::{FieldError, Status};
use crate::registry::{FieldValidation, WriteOptions};

use super::identity::{self, Attributes, User};
use super::query::Query;
use super::reply::{self, Body, Style};
use super::route::{self, Target, Verb};
use super::{Api, discovery, health, openapi, proxy, reviews};

/// Longest time until an answer begins. Watches and streams begin at once and are not bounded by it; who is behind a
/// proxied request may take as long as the client waits.
const REQUEST: Duration = Duration::from_secs(60);
/// Longest name of a field manager in bytes.
const MAX_MANAGER: usize = 128;

/// A request for a resource, authenticated and authorized.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) user: Arc<User>,
    pub(super) target: Target,
    pub(super) query: Query,
    pub(super) head: Head,
    pub(super) style: Style,
}

impl Api {
    /// Answers a request of a user, or of nobody known.
    pub(super) async fn handle(self: Arc<Self>, user: Option<Arc<User>>, request: Request<Incoming>) -> Response<Body> {
        let plain = Style::plain(request.headers());
        let patience = if proxy::is_path(request.uri().path()) { Duration::MAX } else { REQUEST };
        // Boxed: what carries the answer is as large as what makes it, and lives as long as a watch does.
        let answer = timeout(patience, Box::pin(self.answer(user, request))).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Status::timeout("request did not complete within the allowed duration of 60 seconds"))
        });
        answer.unwrap_or_else(|status| reply::failure(plain, &status))
    }

    async fn answer(
        self: Arc<Self>,
        user: Option<Arc<User>>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        if let Some(response) = health::answer(self.registry.store(), head.uri.path(), &query) {
            return Ok(response);
        }
        let user = user.ok_or_else(Status::unauthorized)?;
        let user = identity::impersonated(&user, &head.headers)?.map_or(user, Arc::new);
        let Some(parts) = route::split(head.uri.path()) else { return self.document(&user, &head, &query).await };
        if let Some(review) = reviews::find(&parts.group, &parts.version, &parts.plural) {
            return reviews::answer(&review, &user, &head, &query, &parts.ns, body).await;
        }
        let (target, verb) = route::resolve(self.registry.kinds(), parts, &head.method, &query)?;
        identity::authorize(&user, &attributes(&target, verb, head.uri.path()))?;
        let streams = super::pods::is_stream(&target) || proxy::is_proxy(&target);
        let _permit = match verb {
            Verb::Watch => None,
            _ if streams => None,
            verb => Some(self.limits.request(verb.mutates())?),
        };
        let style = if streams { Style::plain(&head.headers) } else { Style::of(&head.headers, &query)? };
        let deprecation = deprecation(&target.kind);
        let call = Call { api: self.clone(), user, target, query, head, style };
        let mut response = call.run(verb, body).await?;
        reply::warn(response.headers_mut(), deprecation.map(str::to_owned).into_iter().collect());
        Ok(response)
    }

    /// What is served beside resources: discovery, OpenAPI.
    async fn document(&self, user: &User, head: &Head, query: &Query) -> Result<Response<Body>, Status> {
        let path = head.uri.path();
        identity::authorize(user, &Attributes { verb: "get", path, ..Attributes::default() })?;
        if head.method != Method::GET && head.method != Method::HEAD {
            return Err(Status::method_not_allowed());
        }
        let accept = head.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if path.starts_with("/openapi/") {
            return openapi::answer(self.registry.kinds(), query, head).await;
        }
        let mut style = Style::plain(&head.headers);
        style.pretty = Style::of(&head.headers, query).is_ok_and(|style| style.pretty);
        discovery::answer(self.registry.kinds(), path, accept, style, &head.headers)
    }
}

/// What clients of a kind are warned of.
fn deprecation(kind: &Kind) -> Option<&'static str> {
    let is_endpoints = kind.group.is_empty() && kind.plural == "endpoints";
    is_endpoints.then_some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
}

fn attributes<'a>(target: &'a Target, verb: Verb, path: &'a str) -> Attributes<'a> {
    Attributes {
        verb: verb.name(),
        group: &target.kind.group,
        resource: &target.kind.plural,
        subresource: target.sub_name(),
        namespace: &target.ns,
        name: &target.name,
        path,
    }
}

impl Call {
    /// The options of a write; `document` names the options in errors, such as `CreateOptions`.
    pub(super) fn write_options(&self, document: &str) -> Result<WriteOptions, Status> {
        let invalid = |errors: &[FieldError]| Status::invalid("meta.k8s.io", document, "", errors);
        let manager = match self.query.get("fieldManager") {
            "" => agent(self.head.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default()),
            name => name.to_owned(),
        };
        if manager.len() > MAX_MANAGER {
            let detail = format!("may not be more than {MAX_MANAGER} bytes");
            return Err(invalid(&[FieldError::new(crate::kinds::status::Cause::TooLong, "fieldManager", "", detail)]));
        }
        let validation = match self.query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let supported = ["Ignore", "Warn", "Strict"];
                return Err(invalid(&[FieldError::not_supported("fieldValidation", other, &supported)]));
            }
        };
        Ok(WriteOptions {
            manager,
            dry_run: dry_run(self.query.all("dryRun")).map_err(|e| invalid(&[e]))?,
            validation,
            force: self.query.flag("force"),
            user: self.user.name.clone(),
            ..WriteOptions::default()
        })
    }
}

/// Reads `dryRun`: absent, or `All`.
pub(super) fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, FieldError> {
    let mut dry = false;
    for value in values.filter(|v| !v.is_empty()) {
        if value != "All" {
            return Err(FieldError::not_supported("dryRun", value, &["All"]));
        }
        dry = true;
    }
    Ok(dry)
}

/// The field manager of a client that names none: its user agent up to the first slash.
fn agent(text: &str) -> String {
    let name = text.split('/').next().unwrap_or_default();
    let end = (0..=name.len().min(MAX_MANAGER)).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dry_run_is_all_or_nothing() {
        for (values, expected) in [(vec![], Some(false)), (vec!["All"], Some(true)), (vec!["All", "x"], None)] {
            assert_eq!(dry_run(values.into_iter()).ok(), expected);
        }
    }

    #[test]
    fn agents_name_managers() {
        assert_eq!(agent("kubectl/v1.33.0 (linux/arm64)"), "kubectl");
        assert_eq!(agent(""), "");
        assert_eq!(agent(&"ü".repeat(200)).len(), 128);
    }
}
