//! API errors: `metav1.Status` as every Kubernetes client reads it.

use std::fmt;

use serde_json::{Value, json};

/// One violated rule of one field, worded as `k8s.io/apimachinery/pkg/util/validation/field` words it.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Which rule.
    pub cause: Cause,
    /// Path of the field, for example `spec.containers[0].name`.
    pub field: String,
    /// The offending value; not shown for every cause.
    pub value: Value,
    /// What is wrong, or the list of what is supported.
    pub detail: String,
}

/// The kinds of field errors with their `reason` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `FieldValueRequired`
    Required,
    /// `FieldValueInvalid`
    Invalid,
    /// `FieldValueForbidden`
    Forbidden,
    /// `FieldValueDuplicate`
    Duplicate,
    /// `FieldValueNotSupported`
    NotSupported,
    /// `FieldValueNotFound`
    NotFound,
    /// `FieldValueTooLong`
    TooLong,
    /// `FieldValueTooMany`
    TooMany,
    /// `FieldValueTypeInvalid`
    TypeInvalid,
}

impl FieldError {
    /// An error of any cause.
    pub fn new(cause: Cause, field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { cause, field: field.into(), value: value.into(), detail: detail.into() }
    }

    /// `FIELD: Required value: DETAIL`
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Cause::Required, field, Value::Null, detail)
    }

    /// `FIELD: Invalid value: VALUE: DETAIL`
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(Cause::Invalid, field, value, detail)
    }

    /// `FIELD: Forbidden: DETAIL`
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Cause::Forbidden, field, Value::Null, detail)
    }

    /// `FIELD: Duplicate value: VALUE`
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(Cause::Duplicate, field, value, "")
    }

    /// `FIELD: Unsupported value: VALUE: supported values: "A", "B"`
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(Cause::NotSupported, field, value, detail)
    }

    /// The message without the field's path.
    pub fn body(&self) -> String {
        let (words, shows_value) = match self.cause {
            Cause::Required => ("Required value", false),
            Cause::Invalid => ("Invalid value", true),
            Cause::Forbidden => ("Forbidden", false),
            Cause::Duplicate => ("Duplicate value", true),
            Cause::NotSupported => ("Unsupported value", true),
            Cause::NotFound => ("Not found", true),
            Cause::TooLong => ("Too long", false),
            Cause::TooMany => ("Too many", true),
            Cause::TypeInvalid => ("Invalid value", true),
        };
        let mut text = words.to_owned();
        if shows_value {
            text.push_str(": ");
            text.push_str(&self.value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    fn reason(&self) -> &'static str {
        match self.cause {
            Cause::Required => "FieldValueRequired",
            Cause::Invalid => "FieldValueInvalid",
            Cause::Forbidden => "FieldValueForbidden",
            Cause::Duplicate => "FieldValueDuplicate",
            Cause::NotSupported => "FieldValueNotSupported",
            Cause::NotFound => "FieldValueNotFound",
            Cause::TooLong => "FieldValueTooLong",
            Cause::TooMany => "FieldValueTooMany",
            Cause::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A failure as the API reports it. The constructors give code, reason and text as the Kubernetes API server does
/// (`k8s.io/apimachinery/pkg/api/errors`).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, for example `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details`: name, group, kind, causes, `retryAfterSeconds`; null where there are none.
    pub details: Value,
}

/// `plural` or `plural.group`, as error texts name a resource.
pub fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

impl Status {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    fn about(mut self, group: &str, plural: &str, name: &str) -> Self {
        self.details = json!({ "name": name, "group": group, "kind": plural });
        if let Some(map) = self.details.as_object_mut() {
            map.retain(|_, v| v.as_str() != Some(""));
        }
        self
    }

    /// 404 for an object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(plural, group));
        Self::new(404, "NotFound", message).about(group, plural, name)
    }

    /// 404 for a path nothing is served at.
    pub fn no_such_path() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        // Empty, not absent: kubectl looks into it to tell a missing path from a missing object.
        status.details = json!({});
        status
    }

    /// 409 on create.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(plural, group));
        Self::new(409, "AlreadyExists", message).about(group, plural, name)
    }

    /// 409 on update, `why` as the text after `Operation cannot be fulfilled on …:`.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(plural, group));
        Self::new(409, "Conflict", message).about(group, plural, name)
    }

    /// 409 because the object changed since it was read.
    pub fn stale(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// 422 listing every violated rule. `kind` is the CamelCase kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let message = format!("{} {name:?} is invalid: {list}", qualified(kind, group));
        let mut status = Self::new(422, "Invalid", message).about(group, kind, name);
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({ "reason": e.reason(), "message": e.body(), "field": e.field })).collect();
        if let Some(map) = status.details.as_object_mut() {
            map.insert("causes".into(), Value::Array(causes));
        }
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 for an object.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", qualified(plural, group));
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 410: the resource version is older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413; `why` as the text after `Request entity too large:`.
    pub fn too_large(why: impl std::fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 429 with `Retry-After`.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details = json!({ "retryAfterSeconds": retry_after_seconds });
        status
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// The `metav1.Status` document.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(map), false) = (value.as_object_mut(), self.details.is_null()) {
            map.insert("details".into(), self.details.clone());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_kubernetes() {
        let one = Status::invalid("apps", "Deployment", "web", &[FieldError::required("spec.selector", "")]);
        assert_eq!(one.message, r#"Deployment.apps "web" is invalid: spec.selector: Required value"#);
        let errors = [
            FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
            FieldError::not_supported("spec.restartPolicy", "No", &["Always", "OnFailure", "Never"]),
        ];
        assert_eq!(
            Status::invalid("", "Pod", "a", &errors).message,
            "Pod \"a\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, \
             spec.restartPolicy: Unsupported value: \"No\": supported values: \"Always\", \"OnFailure\", \"Never\"]"
        );
        assert_eq!(Status::not_found("apps", "deployments", "x").message, "deployments.apps \"x\" not found");
    }
}
