//! Failures of the store as the API reports them.

use serde_json::json;

use crate::kinds::status::Status;
use crate::store::Error;

/// The API error for a failed operation on a resource such as `deployments.apps`.
pub(super) fn status(resource: &str, error: Error) -> Status {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    match error {
        Error::Conflict { key, .. } => Status::stale(group, plural, &key.name),
        Error::Exists(key) => Status::already_exists(group, plural, &key.name),
        Error::NotFound(key) => Status::not_found(group, plural, &key.name),
        Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        Error::Future { requested, current } => too_large(requested, current),
        Error::Full { .. } => Status::new(507, "InsufficientStorage", error.to_string()),
        Error::Invalid { .. } => Status::too_large(error.to_string()),
        Error::Closed => Status::unavailable("the server is shutting down"),
        other => Status::internal(other),
    }
}

/// 504: a resource version this server has not reached.
pub fn too_large(requested: u64, current: u64) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {requested}, current: {current}"));
    status.details = json!({
        "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
        "retryAfterSeconds": 1,
    });
    status
}
