//! JSON patch, RFC 6902 (`application/json-patch+json`), within the API server's limits.

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use crate::kinds::schema::{MAX_DEPTH, depth};

/// Operations a patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// Bytes of JSON that the `copy` operations of a patch may add up to: without a bound a small patch fills the memory.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Why a patch cannot be applied.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The body is not a JSON patch (400 BadRequest).
    #[error("error decoding patch: {0}")]
    Decode(String),
    /// More than [`MAX_OPERATIONS`] (413 RequestEntityTooLarge).
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooMany(usize),
    /// An operation does not fit the object, failed tests among them (422 Invalid).
    #[error("{0}")]
    Apply(String),
}

/// Applies the patch in `body`; the object is only whole again on success.
///
/// # Errors
/// See [`Error`].
pub fn apply(object: Map<String, Value>, body: &[u8]) -> Result<Map<String, Value>, Error> {
    let operations: Vec<PatchOperation> =
        serde_json::from_slice(body).map_err(|error| Error::Decode(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooMany(operations.len()));
    }
    let mut document = Value::Object(object);
    let mut copied = 0;
    for operation in &operations {
        if let PatchOperation::Copy(copy) = operation {
            copied += document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > MAX_COPIED_BYTES {
                return Err(Error::Apply(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                )));
            }
        }
        check_depth(operation, &document)?;
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation))
            .map_err(|error| Error::Apply(explain(operation, &error.kind.to_string())))?;
    }
    match document {
        Value::Object(object) => Ok(object),
        _ => Err(Error::Apply("the patched document is not an object".into())),
    }
}

/// Operations must not build what is too deep to be read again: copies of the document into itself would.
fn check_depth(operation: &PatchOperation, document: &Value) -> Result<(), Error> {
    let value = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Copy(copy) => document.pointer(copy.from.as_str()),
        PatchOperation::Move(moved) => document.pointer(moved.from.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    if operation.path().count() + value.map_or(0, depth) > MAX_DEPTH {
        return Err(Error::Apply(explain(operation, "exceeded max depth")));
    }
    Ok(())
}

fn explain(operation: &PatchOperation, cause: &str) -> String {
    let path = operation.path();
    match operation {
        PatchOperation::Test(_) => format!("testing value {path} failed: {cause}"),
        PatchOperation::Add(_) => format!("add operation does not apply: {path}: {cause}"),
        PatchOperation::Remove(_) => format!("remove operation does not apply: {path}: {cause}"),
        PatchOperation::Replace(_) => format!("replace operation does not apply: {path}: {cause}"),
        PatchOperation::Move(_) => format!("move operation does not apply: {path}: {cause}"),
        PatchOperation::Copy(_) => format!("copy operation does not apply: {path}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn run(object: Value, patch: Value) -> Result<Value, Error> {
        apply(object.as_object().unwrap().clone(), patch.to_string().as_bytes()).map(Value::from)
    }

    #[test]
    fn operations() {
        for (patch, want) in [
            (json!([]), json!({"a": {"b": [1, 2]}})),
            (json!([{"op": "add", "path": "/c", "value": 1}]), json!({"a": {"b": [1, 2]}, "c": 1})),
            (json!([{"op": "add", "path": "/a/b/-", "value": 3}]), json!({"a": {"b": [1, 2, 3]}})),
            (json!([{"op": "add", "path": "/a/b/0", "value": 0}]), json!({"a": {"b": [0, 1, 2]}})),
            (json!([{"op": "add", "path": "/a/x~1y", "value": 0}]), json!({"a": {"b": [1, 2], "x/y": 0}})),
            (json!([{"op": "remove", "path": "/a/b"}]), json!({"a": {}})),
            (json!([{"op": "replace", "path": "/a", "value": null}]), json!({"a": null})),
            (json!([{"op": "test", "path": "/a/b/1", "value": 2}]), json!({"a": {"b": [1, 2]}})),
            (json!([{"op": "move", "from": "/a/b", "path": "/d"}]), json!({"a": {}, "d": [1, 2]})),
            (json!([{"op": "copy", "from": "/a/b/0", "path": "/d"}]), json!({"a": {"b": [1, 2]}, "d": 1})),
        ] {
            assert_eq!(run(json!({"a": {"b": [1, 2]}}), patch.clone()), Ok(want), "{patch}");
        }
    }

    #[test]
    fn operations_that_do_not_apply() {
        for (patch, want) in [
            (json!([{"op": "test", "path": "/a", "value": 2}]), "testing value /a failed"),
            (json!([{"op": "remove", "path": "/x"}]), "remove operation does not apply: /x"),
            (json!([{"op": "replace", "path": "/x", "value": 1}]), "replace operation does not apply: /x"),
            (json!([{"op": "add", "path": "/x/y", "value": 1}]), "add operation does not apply: /x/y"),
            (json!([{"op": "copy", "from": "/x", "path": "/y"}]), "copy operation does not apply: /y"),
            (json!([{"op": "move", "from": "/x", "path": "/y"}]), "move operation does not apply: /y"),
            (json!([{"op": "replace", "path": "", "value": 1}]), "the patched document is not an object"),
        ] {
            let Err(Error::Apply(text)) = run(json!({"a": 1}), patch.clone()) else { panic!("{patch} applied") };
            assert!(text.starts_with(want), "{text}");
        }
        assert!(matches!(run(json!({}), json!({"op": "add"})), Err(Error::Decode(_))));
        assert!(matches!(run(json!({}), json!([{"op": "frob", "path": "/a"}])), Err(Error::Decode(_))));
    }

    #[test]
    fn patches_are_bounded() {
        let many = vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1];
        assert_eq!(run(json!({"a": 1}), many.into()), Err(Error::TooMany(MAX_OPERATIONS + 1)));
        let doubling: Vec<Value> = (0..64).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})).collect();
        let Err(Error::Apply(text)) = run(json!({"a": ["0123456789"]}), doubling.into()) else { panic!("applied") };
        assert!(text.starts_with("Unable to complete the copy"), "{text}");
        let nesting: Vec<Value> = (0..200).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/b"})).collect();
        let Err(Error::Apply(text)) = run(json!({"a": {}}), nesting.into()) else { panic!("applied") };
        assert_eq!(text, "copy operation does not apply: /a/b: exceeded max depth");
    }
}
