//! Who asks, and whether they may.

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

use crate::kinds::status::{Status, qualified};
use crate::pki::node::Subject;

/// Whoever is in this group may do everything.
const MASTERS: &str = "system:masters";

/// An authenticated user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
}

/// The user of a verified client certificate: common name and organizations of its subject.
pub(super) fn of(certificates: Option<&[CertificateDer<'_>]>) -> Option<User> {
    let subject = Subject::of(certificates?.first()?)?;
    let mut user = User { name: subject.common_name, groups: subject.organizations };
    user.groups.push("system:authenticated".into());
    (!user.name.is_empty()).then_some(user)
}

/// Whom the user wants to be for this request (`kubectl --as`), if anybody else.
///
/// # Errors
/// 403 for who may not; 400 for what is not supported, and for groups of nobody.
pub(super) fn impersonated(user: &User, headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |value: &HeaderValue| {
        let named = value.to_str().map(str::to_owned);
        named.map_err(|_| Status::bad_request("a header for impersonation is not readable text"))
    };
    let name = headers.get("impersonate-user").map(text).transpose()?.unwrap_or_default();
    let mut groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect::<Result<_, _>>()?;
    let other =
        |name: &&HeaderName| name.as_str() == "impersonate-uid" || name.as_str().starts_with("impersonate-extra-");
    if let Some(header) = headers.keys().find(other) {
        return Err(Status::bad_request(format!("the header {header} is not supported by umiak")));
    }
    if name.is_empty() {
        return match groups.is_empty() {
            true => Ok(None),
            false => Err(Status::bad_request(format!("requested groups {groups:?} without impersonating a user"))),
        };
    }
    authorize(user, &Attributes { verb: "impersonate", resource: "users", name: &name, ..Attributes::default() })?;
    if name != "system:anonymous" && !groups.iter().any(|g| g == "system:authenticated") {
        groups.push("system:authenticated".into());
    }
    Ok(Some(User { name, groups }))
}

/// What a request wants to do, in the terms of RBAC.
#[derive(Debug, Default)]
pub(super) struct Attributes<'a> {
    /// `get`, `list`, `create`, …
    pub(super) verb: &'a str,
    /// API group of the resource.
    pub(super) group: &'a str,
    /// Plural resource name; empty for a path that is no resource.
    pub(super) resource: &'a str,
    /// Subresource or empty.
    pub(super) subresource: &'a str,
    /// Namespace or empty.
    pub(super) namespace: &'a str,
    /// Object name or empty.
    pub(super) name: &'a str,
    /// The path of the request.
    pub(super) path: &'a str,
}

/// What every authenticated user may read: `system:discovery` and `system:public-info-viewer` of Kubernetes' default roles.
const DISCOVERY: [&str; 7] = ["/api", "/apis", "/openapi", "/healthz", "/livez", "/readyz", "/version"];
/// What every authenticated user may ask about itself: `system:basic-user`.
const SELF_REVIEWS: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

/// Whether `user` may do it.
pub(super) fn allowed(user: &User, wanted: &Attributes) -> bool {
    let below =
        |root: &str| wanted.path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    user.groups.iter().any(|g| g == MASTERS)
        || (wanted.resource.is_empty() && wanted.verb == "get" && DISCOVERY.iter().any(|root| below(root)))
        || (wanted.verb == "create" && SELF_REVIEWS.contains(&wanted.resource))
}

/// 403 in Kubernetes' words if `user` may not do it.
pub(super) fn authorize(user: &User, wanted: &Attributes) -> Result<(), Status> {
    if allowed(user, wanted) {
        return Ok(());
    }
    let (verb, name) = (wanted.verb, &user.name);
    if wanted.resource.is_empty() {
        let message = format!("forbidden: User {name:?} cannot {verb} path {:?}", wanted.path);
        return Err(Status::new(403, "Forbidden", message));
    }
    let resource = match wanted.subresource {
        "" => wanted.resource.to_owned(),
        sub => format!("{}/{sub}", wanted.resource),
    };
    let scope = match wanted.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!("User {name:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", wanted.group);
    let mut status = Status::forbidden(wanted.group, wanted.resource, wanted.name, &why);
    if wanted.name.is_empty() {
        status.message = format!("{} is forbidden: {why}", qualified(wanted.resource, wanted.group));
    }
    Err(status)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn certificate(name: &str, groups: &[&str]) -> CertificateDer<'static> {
        let mut subject = DistinguishedName::new();
        for group in groups {
            subject.push(DnType::OrganizationName, *group);
        }
        subject.push(DnType::CommonName, name);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_subject_is_the_user() {
        let long = "x".repeat(200);
        for (name, groups) in [("admin", vec!["system:masters"]), (long.as_str(), vec![]), ("a:ü", vec!["b"])] {
            let user = of(Some(&[certificate(name, &groups)])).unwrap();
            assert_eq!(user.name, name);
            assert_eq!(user.groups[..groups.len()], groups);
        }
        assert_eq!(of(None), None);
        assert_eq!(of(Some(&[CertificateDer::from(vec![1, 2, 3])])), None);
        assert_eq!(of(Some(&[certificate("", &["system:masters"])])), None);
    }

    #[test]
    fn only_masters_may_be_somebody_else() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
        };
        let (admin, jane) = (user("admin", &[MASTERS]), user("jane", &["system:authenticated"]));
        let cases = [
            (&admin, &[][..], Ok(None)),
            (&admin, &[("impersonate-user", "bob")], Ok(Some(user("bob", &["system:authenticated"])))),
            (
                &admin,
                &[("impersonate-user", "bob"), ("impersonate-group", "dev")],
                Ok(Some(user("bob", &["dev", "system:authenticated"]))),
            ),
            (&admin, &[("impersonate-group", "dev")], Err(400)),
            (&admin, &[("impersonate-user", "bob"), ("impersonate-uid", "1")], Err(400)),
            (&jane, &[("impersonate-user", "admin"), ("impersonate-group", MASTERS)], Err(403)),
            (&jane, &[], Ok(None)),
        ];
        for (who, wanted, expected) in cases {
            let headers = wanted.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
            assert_eq!(impersonated(who, &headers).map_err(|s| s.code), expected, "{wanted:?}");
        }
    }

    #[test]
    fn refusals_say_what_is_missing() {
        let user = User { name: "jane".into(), groups: vec!["system:authenticated".into()] };
        let pods = Attributes { verb: "list", resource: "pods", namespace: "default", ..Attributes::default() };
        let scale = Attributes {
            verb: "update",
            group: "apps",
            resource: "deployments",
            subresource: "scale",
            name: "web",
            ..Attributes::default()
        };
        let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
        for (wanted, message) in [
            (
                pods,
                r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                scale,
                r#"deployments.apps "web" is forbidden: User "jane" cannot update resource "deployments/scale" in API group "apps" at the cluster scope"#,
            ),
            (path, r#"forbidden: User "jane" cannot get path "/metrics""#),
        ] {
            let status = authorize(&user, &wanted).unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (403, message));
        }
        let master = User { groups: vec![MASTERS.into()], ..user };
        assert!(authorize(&master, &Attributes::default()).is_ok());
    }
}
