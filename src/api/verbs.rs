//! The verbs on resources.

use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::kinds::status::{FieldError, Status};
use crate::kinds::{Kind, Object, Subresource, meta, scale};
use crate::registry::{DeleteOptions, Deleted, ListOptions, Patch, PatchType, Propagation, WriteOptions};

use super::body;
use super::reply::{self, Body};
use super::request::{Call, dry_run};
use super::route::Verb;
use super::{metrics, pods, proxy, subresource, watch};

/// Kinds whose delete is answered with the last state of the object; others answer `Success`.
const DELETE_RETURNS_OBJECT: [&str; 6] =
    ["Pod", "Service", "ServiceAccount", "PersistentVolume", "PersistentVolumeClaim", "ResourceQuota"];

impl Call {
    /// Does what is asked and answers.
    pub(super) async fn run(self, verb: Verb, body: Incoming) -> Result<Response<Body>, Status> {
        if pods::is_stream(&self.target) {
            return pods::answer(self, verb).await;
        }
        if proxy::is_proxy(&self.target) {
            return proxy::answer(self, body).await;
        }
        if metrics::is_measured(&self.target) {
            return metrics::answer(self, verb).await;
        }
        match verb {
            Verb::Get => self.get(),
            Verb::List => self.list().await,
            Verb::Watch => watch::answer(&self).await,
            Verb::Create => self.create(body).await,
            Verb::Update => self.update(body).await,
            Verb::Patch => self.patch(body).await,
            Verb::Delete => self.delete(body).await,
            Verb::DeleteCollection => self.delete_collection(body).await,
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.target.kind
    }

    fn get(&self) -> Result<Response<Body>, Status> {
        let raw = self.api.registry.get_raw(self.kind(), &self.target.ns, &self.target.name)?;
        match self.target.sub {
            None | Some(Subresource::Status) => self.style.raw(self.kind(), 200, &raw),
            Some(Subresource::Scale) => self.style.value(200, &scale::from_object(&raw.object()?)),
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn list(&self) -> Result<Response<Body>, Status> {
        let list = self.api.registry.list_slowly(self.kind(), &self.list_options()?).await?;
        self.style.list(self.target.kind.clone(), list)
    }

    async fn create(self, body: Incoming) -> Result<Response<Body>, Status> {
        let (object, options) = self.object(body, "CreateOptions").await?;
        if self.target.sub.is_some() {
            return subresource::create(&self, object, &options).await;
        }
        let created = self.api.registry.create(self.kind(), &self.target.ns, object, &options).await?;
        self.written(201, &created, &options)
    }

    async fn update(self, body: Incoming) -> Result<Response<Body>, Status> {
        let (mut object, options) = self.object(body, "UpdateOptions").await?;
        if meta::name(&object).is_empty() {
            meta::set(&mut object, "/metadata/name", self.target.name.as_str());
        }
        if self.target.sub == Some(Subresource::Scale) {
            subresource::check_scale(&mut object)?;
        }
        let (ns, name, sub) = (&self.target.ns, &self.target.name, self.target.sub);
        let updated = self.api.registry.update(self.kind(), ns, name, sub, object, &options).await?;
        self.written(200, &updated, &options)
    }

    async fn patch(self, body: Incoming) -> Result<Response<Body>, Status> {
        let options = self.write_options("PatchOptions")?;
        let media = body::content_type(&self.head.headers);
        let kind = patch_type(media)?;
        let mut bytes = body::read(&self.head.headers, body).await?;
        if kind == PatchType::Apply {
            if self.query.get("fieldManager").is_empty() {
                let error = FieldError::required("fieldManager", "is required for apply patch");
                return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
            }
            if !bytes.trim_ascii_start().starts_with(b"{") {
                bytes = Value::Object(body::yaml(&bytes)?).to_string().into();
            }
        } else if self.query.has("force") {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let patch = Patch { kind, body: bytes };
        let (ns, name, sub) = (&self.target.ns, &self.target.name, self.target.sub);
        let (object, created) = self.api.registry.patch(self.kind(), ns, name, sub, patch, &options).await?;
        self.written(if created { 201 } else { 200 }, &object, &options)
    }

    async fn delete(self, body: Incoming) -> Result<Response<Body>, Status> {
        if self.target.sub.is_some() {
            return Err(Status::method_not_allowed());
        }
        let options = self.delete_options(body).await?;
        let (ns, name) = (&self.target.ns, &self.target.name);
        match self.api.registry.delete(self.kind(), ns, name, &options).await? {
            Deleted::Pending(object) => {
                let code = if options.propagation == Some(Propagation::Foreground) { 202 } else { 200 };
                self.style.object(self.kind(), code, &object)
            }
            Deleted::Gone(object) if DELETE_RETURNS_OBJECT.contains(&&*self.kind().kind) => {
                self.style.object(self.kind(), 200, &object)
            }
            Deleted::Gone(object) => self.style.value(200, &reply::deleted(self.kind(), &object)),
        }
    }

    async fn delete_collection(self, body: Incoming) -> Result<Response<Body>, Status> {
        let options = self.delete_options(body).await?;
        let list = self.api.registry.delete_collection(self.kind(), &self.list_options()?, &options).await?;
        self.style.list(self.target.kind.clone(), list)
    }

    /// The object a client sent and the options of its write.
    async fn object(&self, body: Incoming, document: &str) -> Result<(Object, WriteOptions), Status> {
        let mut options = self.write_options(document)?;
        let bytes = body::read(&self.head.headers, body).await?;
        let decoded = body::decode(body::content_type(&self.head.headers), &bytes)?;
        options.duplicates = decoded.duplicates;
        Ok((decoded.object, options))
    }

    /// The answer to a write: the object (or its scale) and the warnings.
    fn written(&self, code: u16, object: &Object, options: &WriteOptions) -> Result<Response<Body>, Status> {
        let mut response = match self.target.sub {
            Some(Subresource::Scale) => self.style.value(code, &scale::from_object(object))?,
            _ => self.style.object(self.kind(), code, object)?,
        };
        reply::warn(response.headers_mut(), options.warnings.take());
        Ok(response)
    }

    /// The options of a list.
    pub(super) fn list_options(&self) -> Result<ListOptions, Status> {
        let exact = list_revision(&self.query, self.api.registry.revision())?;
        let mut fields = self.query.get("fieldSelector").to_owned();
        if !self.target.name.is_empty() {
            // A watch of one object by its path.
            fields = format!("metadata.name={}{}{fields}", self.target.name, if fields.is_empty() { "" } else { "," });
        }
        Ok(ListOptions {
            namespace: self.target.scope().map(str::to_owned),
            labels: self.query.get("labelSelector").to_owned(),
            fields,
            limit: self.query.number::<usize>("limit")?.unwrap_or(0),
            next: self.query.get("continue").to_owned(),
            exact,
        })
    }

    async fn delete_options(&self, body: Incoming) -> Result<DeleteOptions, Status> {
        let bytes: Bytes = body::read(&self.head.headers, body).await?;
        let object = delete_body(&self.head.headers, &bytes)?;
        let query = &self.query;
        let text = |key: &str| match query.get(key) {
            "" => meta::str_at(&object, &format!("/{key}")),
            value => value,
        };
        let invalid = |e: FieldError| Status::invalid("meta.k8s.io", "DeleteOptions", "", &[e]);
        let precondition = |key: &str| object.get("preconditions")?.get(key)?.as_str().map(str::to_owned);
        let orphan = object.get("orphanDependents").and_then(Value::as_bool);
        let orphan = orphan.or(query.has("orphanDependents").then(|| query.flag("orphanDependents")));
        let propagation = match (text("propagationPolicy"), orphan) {
            ("", None) => None,
            ("", Some(true)) | ("Orphan", None) => Some(Propagation::Orphan),
            ("", Some(false)) | ("Background", None) => Some(Propagation::Background),
            ("Foreground", None) => Some(Propagation::Foreground),
            (policy, Some(_)) => {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                return Err(invalid(FieldError::invalid("propagationPolicy", policy, detail)));
            }
            (other, None) => {
                let supported = ["Foreground", "Background", "Orphan"];
                return Err(invalid(FieldError::not_supported("propagationPolicy", other, &supported)));
            }
        };
        let listed = object.get("dryRun").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        Ok(DeleteOptions {
            grace: match query.number::<i64>("gracePeriodSeconds")? {
                Some(seconds) => Some(seconds),
                None => object.get("gracePeriodSeconds").and_then(Value::as_i64),
            },
            preconditions: crate::registry::Preconditions {
                uid: precondition("uid"),
                revision: precondition("resourceVersion"),
            },
            propagation,
            dry_run: dry_run(listed.chain(query.all("dryRun"))).map_err(invalid)?,
            user: self.user.name.clone(),
        })
    }
}

/// The `DeleteOptions` in a body, empty if there is none.
pub(super) fn delete_body(headers: &HeaderMap, bytes: &[u8]) -> Result<Object, Status> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Object::new());
    }
    let object = body::decode(body::content_type(headers), bytes)?.object;
    match meta::kind(&object) {
        "" | "DeleteOptions" => Ok(object),
        other => Err(Status::bad_request(format!("the body of a delete must be DeleteOptions, not {other}"))),
    }
}

/// Reads `resourceVersion` and `resourceVersionMatch` of a list: the revision it must show exactly, if any.
fn list_revision(query: &crate::api::query::Query, current: u64) -> Result<Option<u64>, Status> {
    let (version, matching, next) =
        (query.get("resourceVersion"), query.get("resourceVersionMatch"), query.get("continue"));
    let forbidden = |detail: &str| {
        let error = FieldError::forbidden("resourceVersionMatch", detail);
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
    };
    if !matching.is_empty() && !query.flag("watch") {
        if !next.is_empty() {
            return forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        if version.is_empty() {
            return forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
    }
    if !["", "Exact", "NotOlderThan"].contains(&matching) {
        let error = FieldError::not_supported("resourceVersionMatch", matching, &["Exact", "NotOlderThan", ""]);
        return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    }
    let wanted = revision(version)?;
    if wanted > current {
        return Err(crate::registry::future_revision(wanted, current));
    }
    let limited = query.number::<usize>("limit")?.is_some_and(|limit| limit > 0);
    let exact = wanted > 0 && next.is_empty() && (matching == "Exact" || (matching.is_empty() && limited));
    if matching == "Exact" && wanted == 0 {
        return forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    Ok(exact.then_some(wanted))
}

/// A resource version as a number, 0 if absent.
pub(super) fn revision(text: &str) -> Result<u64, Status> {
    match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| Status::bad_request(format!("invalid resource version {text:?}"))),
    }
}

fn patch_type(media: &str) -> Result<PatchType, Status> {
    match media {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        _ => Err(Status::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
             application/apply-patch+yaml",
        )),
    }
}

/// `Status` `Success` of something without details.
pub(super) fn done() -> Value {
    reply::success(json!(null))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::query::Query;

    #[test]
    fn list_revisions() {
        for (query, expected) in [
            ("", Ok(None)),
            ("resourceVersion=0", Ok(None)),
            ("resourceVersion=5", Ok(None)),
            ("resourceVersion=5&limit=10", Ok(Some(5))),
            ("resourceVersion=5&resourceVersionMatch=Exact", Ok(Some(5))),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan&limit=3", Ok(None)),
            ("resourceVersion=11", Err(504)),
            ("resourceVersion=x", Err(400)),
            ("resourceVersionMatch=Exact", Err(422)),
            ("resourceVersion=0&resourceVersionMatch=Exact", Err(422)),
            ("resourceVersion=1&resourceVersionMatch=Newer", Err(422)),
            ("resourceVersion=1&resourceVersionMatch=Exact&continue=x", Err(422)),
        ] {
            assert_eq!(list_revision(&Query::parse(query), 10).map_err(|s| s.code), expected, "{query}");
        }
    }

    #[test]
    fn patch_types_are_known() {
        assert_eq!(patch_type("application/merge-patch+json").unwrap(), PatchType::Merge);
        assert_eq!(patch_type("application/json").unwrap_err().code, 415);
    }
}
