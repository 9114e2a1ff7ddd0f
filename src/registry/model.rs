//! What the field table does for writes: pruning and strict validation, patches, managed fields.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::patch::{json, merge, strategic};
use crate::kinds::status::{FieldError, Status};
use crate::kinds::{Kind, Object, Subresource, apply, fields, meta, scale, schema};

use super::{FieldValidation, Patch, PatchType, WriteOptions, identity};

/// How managed fields are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// By comparing what was with what is.
    Update,
    /// By what server-side apply has already written.
    Apply,
}

/// Brings an object into the form its kind has: fields that the kind does not have are dropped, with a warning or as an
/// error if `options.validation` says so; a value of the wrong type is 400.
pub(super) fn prune(kind: &Kind, object: &mut Object, options: &WriteOptions) -> Result<(), Status> {
    let refuse = |cause: String| Status::bad_request(schema::cannot_be_handled(&kind.kind, &kind.version, cause));
    let unknown = match fields::of(&kind.group, &kind.version, &kind.kind) {
        Some(ty) => schema::conform(ty, object),
        None => schema::conform_metadata(object),
    };
    let mut violations = options.duplicates.clone();
    violations.extend(unknown.map_err(|error| refuse(error.to_string()))?);
    match options.validation {
        FieldValidation::Strict if !violations.is_empty() => Err(refuse(schema::strict_text(&violations))),
        FieldValidation::Warn => {
            violations.into_iter().for_each(|text| options.warnings.add(text));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Records in `metadata.managedFields` who changed which fields. Volatile kinds are left out: heartbeats and events are
/// not worth the work.
pub(super) fn track(
    kind: &Kind,
    new: &mut Object,
    old: Option<&Object>,
    options: &WriteOptions,
    sub: Option<Subresource>,
    now: Timestamp,
) {
    let Some(ty) = fields::of(&kind.group, &kind.version, &kind.kind).filter(|_| !kind.volatile) else { return };
    let (version, time) = (kind.api_version(), meta::format_time(now));
    let writer = writer(options, &version, &time, sub);
    apply::update_manager(ty, old, new, &writer);
}

/// The object that server-side apply creates, or makes of the live one.
pub(super) fn applied(
    kind: &Kind,
    name: &str,
    live: Option<&Object>,
    sub: Option<Subresource>,
    patch: &Patch,
    options: &WriteOptions,
    now: Timestamp,
) -> Result<Object, Status> {
    let Some(ty) = fields::of(&kind.group, &kind.version, &kind.kind) else {
        return Err(Status::unsupported_media_type("application/json-patch+json, application/merge-patch+json"));
    };
    let mut document = document(patch)?;
    match meta::name(&document) {
        "" => meta::set(&mut document, "/metadata/name", name),
        given if given == name => {}
        given => return Err(identity::other_name(given, name)),
    }
    if live.is_none() && (!meta::uid(&document).is_empty() || !meta::resource_version(&document).is_empty()) {
        let why =
            "uid mismatch: the provided object specified uid or resourceVersion, and no existing object was found";
        return Err(Status::conflict(&kind.group, &kind.plural, name, why));
    }
    let (version, time) = (kind.api_version(), meta::format_time(now));
    let writer = writer(options, &version, &time, sub);
    apply::apply(ty, live, &document, &writer, options.force).map_err(|error| {
        let code = error.code();
        let text = error.to_string();
        match error {
            apply::Error::Conflicts(conflicts) => {
                let causes: Vec<Value> = conflicts.iter().map(apply::Conflict::cause).collect();
                Status { details: json!({ "causes": causes }), ..Status::new(409, "Conflict", text) }
            }
            _ if code == 400 => Status::bad_request(text),
            _ => Status::new(500, "InternalError", text),
        }
    })
}

fn writer<'a>(
    options: &'a WriteOptions,
    version: &'a str,
    time: &'a str,
    sub: Option<Subresource>,
) -> apply::Writer<'a> {
    apply::Writer {
        manager: &options.manager,
        api_version: version,
        subresource: sub.map_or("", Subresource::name),
        time,
    }
}

/// The patched object. For `/scale` the patch is of the `Scale`, and so is the result.
pub(super) fn patch(
    kind: &Kind,
    old: &Object,
    sub: Option<Subresource>,
    patch: &Patch,
    options: &WriteOptions,
    now: Timestamp,
) -> Result<(Object, Operation), Status> {
    let scaled = sub == Some(Subresource::Scale);
    let (base, ty) = match scaled {
        true => (scale::from_object(old), fields::of("autoscaling", "v1", "Scale")),
        false => (old.clone(), fields::of(&kind.group, &kind.version, &kind.kind)),
    };
    let name = meta::name(old);
    let invalid =
        |text: String| Status::invalid(&kind.group, &kind.kind, name, &[FieldError::invalid("patch", "", text)]);
    let patched = match (patch.kind, ty) {
        (PatchType::Json, _) => json::apply(base, &patch.body).map_err(|error| match error {
            json::Error::Decode(_) => Status::bad_request(error.to_string()),
            json::Error::TooMany(_) => Status::too_large(error.to_string()),
            json::Error::Apply(text) => invalid(text),
        })?,
        (PatchType::Merge, _) => {
            let mut object = base;
            merge::apply(&mut object, document(patch)?);
            object
        }
        (PatchType::Strategic, Some(ty)) => {
            strategic::apply(ty, base, document(patch)?).map_err(|error| match error.code() {
                422 => invalid(error.to_string()),
                _ => Status::bad_request(error.to_string()),
            })?
        }
        (PatchType::Strategic, None) => {
            let accepted = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
            return Err(Status::unsupported_media_type(accepted));
        }
        (PatchType::Apply, _) if scaled => {
            let accepted = "application/json-patch+json, application/merge-patch+json";
            return Err(Status::unsupported_media_type(accepted));
        }
        (PatchType::Apply, _) => {
            let name = meta::name(old);
            return Ok((applied(kind, name, Some(old), sub, patch, options, now)?, Operation::Apply));
        }
    };
    Ok((patched, Operation::Update))
}

fn document(patch: &Patch) -> Result<Object, Status> {
    match serde_json::from_slice(&patch.body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Status::bad_request("error decoding patch: must be an object")),
        Err(error) => Err(Status::bad_request(format!("error decoding patch: {error}"))),
    }
}
