//! Questions about access: kinds that are answered and never stored.

use http::request::Parts as Head;
use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::kinds::status::Status;
use crate::kinds::{Object, meta};

use super::body;
use super::identity::{self, Attributes, User};
use super::query::Query;
use super::reply::{Body, Form, Style};

/// A kind that is only a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Review {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
}

const fn review(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Review {
    Review { group, version, plural, kind, namespaced: false }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// All of them.
pub(super) const ALL: [Review; 6] = [
    review(AUTHENTICATION, "v1", "selfsubjectreviews", "SelfSubjectReview"),
    // kubectl 1.27 and 1.28 know no newer one.
    review(AUTHENTICATION, "v1beta1", "selfsubjectreviews", "SelfSubjectReview"),
    Review { namespaced: true, ..review(AUTHORIZATION, "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview") },
    review(AUTHORIZATION, "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    review(AUTHORIZATION, "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    review(AUTHORIZATION, "v1", "subjectaccessreviews", "SubjectAccessReview"),
];

/// The review served at a path.
pub(super) fn find(group: &str, version: &str, plural: &str) -> Option<Review> {
    ALL.into_iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// Answers a review.
pub(super) async fn answer(
    review: &Review,
    user: &User,
    head: &Head,
    query: &Query,
    ns: &str,
    incoming: Incoming,
) -> Result<Response<Body>, Status> {
    if head.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let style = Style::of(&head.headers, query)?;
    if matches!(style.form, Form::Table | Form::Metadata) {
        // An answer that is no stored object has neither columns nor metadata.
        return Err(Status::not_acceptable("application/json,application/yaml"));
    }
    let bytes = body::read(&head.headers, incoming).await?;
    let mut object = body::decode(body::content_type(&head.headers), &bytes)?.object;
    let version = format!("{}/{}", review.group, review.version);
    let given = (meta::api_version(&object), meta::kind(&object));
    if !given.0.is_empty() && given != (version.as_str(), review.kind) {
        return Err(Status::bad_request(format!("expected {version} {}, not {} {}", review.kind, given.0, given.1)));
    }
    let others = matches!(review.kind, "SubjectAccessReview" | "LocalSubjectAccessReview");
    if others {
        let wanted = Attributes {
            verb: "create",
            group: review.group,
            resource: review.plural,
            namespace: ns,
            ..Attributes::default()
        };
        identity::authorize(user, &wanted)?;
    }
    let status = match review.kind {
        "SelfSubjectReview" => json!({ "userInfo": { "username": user.name, "groups": user.groups } }),
        "SelfSubjectRulesReview" => rules(user),
        _ if others => access(&subject(&object), &object),
        _ => access(user, &object),
    };
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), review.kind.into());
    meta::object_at_mut(&mut object, "/metadata");
    object.insert("status".into(), status);
    style.value(201, &object)
}

/// Whether `user` may do what the `spec` describes.
fn access(user: &User, object: &Object) -> Value {
    let text = |path: &str| meta::str_at(object, path);
    let wanted = Attributes {
        verb: if text("/spec/resourceAttributes/verb").is_empty() {
            text("/spec/nonResourceAttributes/verb")
        } else {
            text("/spec/resourceAttributes/verb")
        },
        group: text("/spec/resourceAttributes/group"),
        resource: text("/spec/resourceAttributes/resource"),
        subresource: text("/spec/resourceAttributes/subresource"),
        namespace: text("/spec/resourceAttributes/namespace"),
        name: text("/spec/resourceAttributes/name"),
        path: text("/spec/nonResourceAttributes/path"),
    };
    json!({ "allowed": identity::allowed(user, &wanted) })
}

/// The user a `SubjectAccessReview` is about.
fn subject(object: &Object) -> User {
    let groups = meta::list_at(object, "/spec/groups").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    User { name: meta::str_at(object, "/spec/user").to_owned(), groups }
}

fn rules(user: &User) -> Value {
    let all = identity::allowed(user, &Attributes::default());
    let (resources, paths) = match all {
        true => (
            json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
            json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }]),
        ),
        false => (json!([]), json!([])),
    };
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn access_is_of_the_right_user() {
        let admin = User { name: "a".into(), groups: vec!["system:masters".into()] };
        let jane = json!({"spec": {"user": "jane", "groups": ["devs"], "resourceAttributes": {"verb": "get"}}});
        let jane = jane.as_object().unwrap();
        assert_eq!(access(&admin, jane), json!({"allowed": true}));
        assert_eq!(access(&subject(jane), jane), json!({"allowed": false}));
        assert!(find(AUTHORIZATION, "v1", "selfsubjectaccessreviews").is_some());
        assert!(find(AUTHORIZATION, "v2", "selfsubjectaccessreviews").is_none());
    }
}
