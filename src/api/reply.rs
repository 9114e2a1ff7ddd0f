//! How answers are written: JSON, YAML, tables or metadata only, compressed where it pays.

mod accept;
mod list;

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, VARY, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::registry::{List, Raw};

use super::query::Query;
use super::table::{self, Include};

pub(super) use accept::{Form, accepts};

/// The body of an answer. An error ends the connection: the client must not take half a list for a whole one.
pub(super) type Body = UnsyncBoxBody<Bytes, Status>;

/// Bodies from this size on are compressed, as in Kubernetes.
const COMPRESS_FROM: usize = 128 << 10;

/// How one request wants its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Which document.
    pub(super) form: Form,
    /// How much of the object goes with a table's row.
    pub(super) include: Include,
    /// Indented.
    pub(super) pretty: bool,
    /// Whether gzip is understood.
    pub(super) gzip: bool,
}

impl Style {
    /// Reads the headers and the query; 406 if nothing acceptable can be written.
    pub(super) fn of(headers: &HeaderMap, query: &Query) -> Result<Self, Status> {
        let form = accept::form(text(headers, ACCEPT.as_str()))?;
        let include =
            if form == Form::Table { Include::parse(query.get("includeObject"))? } else { Include::default() };
        Ok(Self { form, include, pretty: pretty(headers, query), gzip: understands_gzip(headers) })
    }

    /// The style of errors: JSON whatever was accepted.
    pub(super) fn plain(headers: &HeaderMap) -> Self {
        Self { form: Form::Json, include: Include::default(), pretty: false, gzip: understands_gzip(headers) }
    }

    /// An object that is parsed already.
    pub(super) fn object(&self, kind: &Kind, code: u16, object: &Object) -> Result<Response<Body>, Status> {
        match self.form {
            Form::Json => self.value(code, object),
            Form::Yaml => self.yaml(code, object),
            Form::Table | Form::Metadata => self.raw(kind, code, &Raw::of(kind, object)?),
        }
    }

    /// A stored object.
    pub(super) fn raw(&self, kind: &Kind, code: u16, raw: &Raw) -> Result<Response<Body>, Status> {
        match self.form {
            Form::Json if !self.pretty => Ok(self.bytes(code, raw.json())),
            Form::Json => self.value(code, &raw.object()?),
            Form::Yaml => self.yaml(code, &raw.object()?),
            Form::Metadata => {
                let mut out = Vec::new();
                raw.write_metadata_to(&mut out)?;
                Ok(self.bytes(code, out.into()))
            }
            Form::Table => {
                let revision = raw.revision.to_string();
                let mut out = self.table_head(kind, &json!({ "resourceVersion": revision }), true);
                table::row(kind, raw, self.include, Timestamp::now(), &mut out)?;
                out.extend_from_slice(b"]}");
                Ok(self.bytes(code, out.into()))
            }
        }
    }

    /// A list of stored objects.
    pub(super) fn list(&self, kind: std::sync::Arc<Kind>, list: List) -> Result<Response<Body>, Status> {
        if self.form == Form::Yaml || (self.form == Form::Json && self.pretty) {
            let items: Vec<Value> =
                list.items.iter().map(|r| r.object().map(Value::Object)).collect::<Result<_, _>>()?;
            let document = json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                "metadata": list_metadata(&list), "items": items,
            });
            return match self.form {
                Form::Yaml => self.yaml(200, &document),
                _ => self.value(200, &document),
            };
        }
        list::response(*self, kind, list)
    }

    /// Any serializable document as JSON.
    pub(super) fn value(&self, code: u16, value: &impl serde::Serialize) -> Result<Response<Body>, Status> {
        let text = if self.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
        Ok(self.bytes(code, text.map_err(Status::internal)?.into()))
    }

    fn yaml(&self, code: u16, value: &impl serde::Serialize) -> Result<Response<Body>, Status> {
        let text = serde_yaml::to_string(value).map_err(Status::internal)?;
        Ok(typed(code, "application/yaml", text.into()))
    }

    /// JSON bytes, compressed if large.
    pub(super) fn bytes(&self, code: u16, bytes: Bytes) -> Response<Body> {
        if !self.gzip || bytes.len() < COMPRESS_FROM {
            return typed(code, "application/json", bytes);
        }
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
            Ok(compressed) => {
                let mut response = typed(code, "application/json", compressed.into());
                compressed_headers(response.headers_mut());
                response
            }
            Err(_) => typed(code, "application/json", bytes),
        }
    }

    /// The beginning of a table up to its first row.
    pub(super) fn table_head(&self, kind: &Kind, metadata: &Value, with_columns: bool) -> Vec<u8> {
        let columns = if with_columns { table::columns(kind) } else { Value::Null };
        format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"columnDefinitions":{columns},"rows":["#
        )
        .into_bytes()
    }
}

/// `metadata` of a list.
fn list_metadata(list: &List) -> Value {
    let mut metadata = json!({ "resourceVersion": list.revision.to_string() });
    if let Some(next) = &list.next {
        metadata["continue"] = next.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// An error.
pub(super) fn failure(style: Style, status: &Status) -> Response<Body> {
    let mut response = style.bytes(status.code, status.to_value().to_string().into());
    if let Some(seconds) = status.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// `Status` `Success`, for example of a delete.
pub(super) fn success(details: Value) -> Value {
    let mut status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    if !details.is_null() {
        status["details"] = details;
    }
    status
}

/// The details of a successful delete.
pub(super) fn deleted(kind: &Kind, object: &Object) -> Value {
    let mut details = json!({ "name": meta::name(object), "kind": &*kind.plural, "uid": meta::uid(object) });
    if !kind.group.is_empty() {
        details["group"] = (*kind.group).into();
    }
    success(details)
}

/// Any bytes with their media type.
pub(super) fn typed(code: u16, media: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// A body of known length.
pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Adds `Warning: 299 - "TEXT"` headers.
pub(super) fn warn(headers: &mut HeaderMap, warnings: Vec<String>) {
    for text in warnings {
        let quoted: String = text.chars().filter(|c| !c.is_control()).flat_map(escape).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            headers.append(WARNING, value);
        }
    }
}

fn escape(c: char) -> impl Iterator<Item = char> {
    matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c])
}

fn compressed_headers(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn understands_gzip(headers: &HeaderMap) -> bool {
    text(headers, ACCEPT_ENCODING.as_str()).split(',').any(|part| part.split(';').next().unwrap_or("").trim() == "gzip")
}

/// Asked for, or a person's tool that did not ask otherwise.
fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if query.has("pretty") {
        return query.flag("pretty");
    }
    let agent = text(headers, USER_AGENT.as_str());
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|tool| agent.starts_with(tool))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let mut headers = HeaderMap::new();
        warn(&mut headers, vec![r#"unknown field "spec.x""#.into(), "two\nlines".into()]);
        let values: Vec<&str> = headers.get_all(WARNING).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(values, [r#"299 - "unknown field \"spec.x\"""#, r#"299 - "twolines""#]);
    }

    #[test]
    fn large_answers_are_compressed() {
        let style = Style { form: Form::Json, include: Include::None, pretty: false, gzip: true };
        let large = style.bytes(200, vec![b'x'; COMPRESS_FROM].into());
        assert_eq!(large.headers()[CONTENT_ENCODING], "gzip");
        assert!(style.bytes(200, vec![b'x'; 100].into()).headers().get(CONTENT_ENCODING).is_none());
    }

    #[test]
    fn people_get_indented_answers() {
        let mut headers = HeaderMap::new();
        assert!(!pretty(&headers, &Query::default()));
        headers.insert(USER_AGENT, "curl/8".parse().unwrap());
        assert!(pretty(&headers, &Query::default()));
        assert!(!pretty(&headers, &Query::parse("pretty=false")));
    }
}
