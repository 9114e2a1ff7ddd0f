//! The OpenAPI documents.

use http::Response;
use http::request::Parts as Head;

use crate::kinds::status::Status;
use crate::kinds::table::KindTable;

use super::query::Query;
use super::reply::Body;

/// The documents as last asked for.
#[derive(Default)]
pub(super) struct Documents {}

impl Documents {
    /// The document at a path under `/openapi/`.
    pub(super) fn answer(&self, kinds: &KindTable, path: &str, query: &Query, head: &Head) -> Result<Response<Body>, Status> {
        Err(Status::no_such_path())
    }
}
