//! The OpenAPI documents: written when asked for, kept by clients under their `ETag`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, VARY};
use http::request::Parts as Head;
use http::{HeaderValue, Response};

use crate::kinds::openapi::{self, Resource};
use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::kinds::{Kind, Subresource};

use super::discovery::VERBS;
use super::query::Query;
use super::reply::{Body, Style, typed};
use super::reviews;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The document at a path under `/openapi/`.
pub(super) async fn answer(kinds: &KindTable, query: &Query, head: &Head) -> Result<Response<Body>, Status> {
    let kinds = kinds.all();
    let accept = head.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let gzip = Style::plain(&head.headers).gzip;
    let path = head.uri.path().trim_end_matches('/');
    match path.strip_prefix("/openapi/") {
        Some("v2") if accept.contains("spec.v2") && accept.contains("protobuf") && !accept.contains("json") => {
            Ok(typed(200, V2_PROTOBUF, openapi::v2_protobuf().into()))
        }
        Some("v2") => {
            let tag = with_resources(&kinds, openapi::v2_etag);
            document(head, gzip, false, tag, move || {
                Some(with_resources(&kinds, |all| openapi::v2_document(all, gzip)))
            })
            .await
        }
        Some("v3") => Ok(typed(200, "application/json", with_resources(&kinds, openapi::v3_index).to_string().into())),
        Some(path) => {
            let root = path.strip_prefix("v3/").ok_or_else(Status::no_such_path)?.to_owned();
            let tag = with_resources(&kinds, |all| openapi::v3_etag(all, &root)).ok_or_else(Status::no_such_path)?;
            // The hash in the URL changes with the document, so that it can be kept for ever.
            let forever = query.get("hash") == tag;
            document(head, gzip, forever, tag, move || {
                with_resources(&kinds, |all| openapi::v3_document(all, &root, gzip))
            })
            .await
        }
        None => Err(Status::no_such_path()),
    }
}

/// A document, or 304 if the client has it.
async fn document(
    head: &Head,
    gzip: bool,
    forever: bool,
    tag: String,
    write: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
) -> Result<Response<Body>, Status> {
    let tag = HeaderValue::from_str(&format!("\"{tag}\"")).map_err(Status::internal)?;
    let known = head.headers.get(IF_NONE_MATCH) == Some(&tag);
    let bytes = match known {
        true => Vec::new(),
        // Tens of milliseconds on a small board.
        false => {
            tokio::task::spawn_blocking(write).await.map_err(Status::internal)?.ok_or_else(Status::no_such_path)?
        }
    };
    let mut response = typed(if known { 304 } else { 200 }, "application/json", Bytes::from(bytes));
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if gzip && !known {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if forever {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    }
    Ok(response)
}

/// Calls `with` with everything served.
fn with_resources<T>(kinds: &[Arc<Kind>], with: impl FnOnce(&[Resource]) -> T) -> T {
    let names = |kind: &Kind| kind.subresources.iter().map(|s| Subresource::name(*s)).collect::<Vec<_>>();
    let subresources: Vec<Vec<&str>> = kinds.iter().map(|kind| names(kind)).collect();
    let stored = kinds.iter().zip(&subresources).map(|(kind, subresources)| Resource {
        group: &kind.group,
        version: &kind.version,
        kind: &kind.kind,
        plural: &kind.plural,
        namespaced: kind.namespaced,
        verbs: &VERBS,
        subresources,
        schema: None,
    });
    let asked = reviews::ALL.iter().map(|review| Resource {
        group: review.group,
        version: review.version,
        kind: review.kind,
        plural: review.plural,
        namespaced: review.namespaced,
        verbs: &["create"],
        subresources: &[],
        schema: None,
    });
    with(&stored.chain(asked).collect::<Vec<_>>())
}
