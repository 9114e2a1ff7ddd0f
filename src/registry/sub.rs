//! What each subresource may change.

use serde_json::json;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, Subresource, meta, metadata};

/// Makes of `new` what a write through the subresource leaves of it.
pub(super) fn prepare(kind: &Kind, sub: Option<Subresource>, new: &mut Object, old: &Object) {
    match sub {
        Some(Subresource::Status) => metadata::keep_all_but_status(new, old),
        Some(Subresource::Other("finalize")) => only(new, old, &["/spec/finalizers"]),
        Some(Subresource::Other("ephemeralcontainers")) => only(new, old, &["/spec/ephemeralContainers"]),
        Some(Subresource::Other("approval")) => only(new, old, &["/status/conditions"]),
        _ => kind.hooks.prepare_update(new, old),
    }
}

/// Keeps everything as it was but the values at some paths.
fn only(new: &mut Object, old: &Object, paths: &[&str]) {
    let mut object = old.clone();
    for path in paths {
        match meta::pointer(new, path) {
            Some(value) => meta::set(&mut object, path, value.clone()),
            None => drop(meta::remove(&mut object, path)),
        }
    }
    *new = object;
}
