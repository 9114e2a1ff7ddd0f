//! Rules of volumes.

use std::collections::HashSet;

use serde_json::Value;

use crate::kinds::check::{Errors, Unique, all_invalid, each, formatted, join, one_of, required};
use crate::kinds::quantity::Quantity;
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part, refuse_field};
use crate::kinds::{Object, format, meta};

use super::references;

/// Checks `spec.volumes`; returns their names.
pub(super) fn volumes(errors: &mut Errors, path: &str, spec: &Object) -> HashSet<String> {
    let mut names = Unique::default();
    let mut found = HashSet::new();
    for (path, volume) in each(spec, path, "volumes") {
        formatted(errors, &path, volume, "name", format::dns_label);
        let name = meta::text(volume, "name");
        if !name.is_empty() {
            names.note(errors, &join(&path, "name"), name.to_owned());
            found.insert(name.to_owned());
        }
        source(errors, &path, volume);
    }
    found
}

/// Exactly one source, well formed and supported.
fn source(errors: &mut Errors, path: &str, volume: &Object) {
    unsupported::refuse(errors, path, Part::Volume, volume);
    let mut given = volume.iter().filter(|(key, value)| *key != "name" && !value.is_null());
    let Some((kind, source)) = given.next() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for (extra, _) in given {
        errors.push(FieldError::forbidden(join(path, extra), "may not specify more than 1 volume type"));
    }
    let path = join(path, kind);
    let Some(source) = source.as_object() else { return };
    match kind.as_str() {
        "emptyDir" => empty_dir(errors, &path, source),
        "hostPath" => host_path(errors, &path, source),
        "secret" => {
            required(errors, &path, source, "secretName");
            files(errors, &path, source, &mut None);
        }
        "configMap" => {
            required(errors, &path, source, "name");
            files(errors, &path, source, &mut None);
        }
        "downwardAPI" => {
            mode(errors, &path, source, "defaultMode");
            downward_files(errors, &path, source, &mut None);
        }
        "projected" => projected(errors, &path, source),
        // The unsupported ones have their error already.
        _ => {}
    }
}

fn empty_dir(errors: &mut Errors, path: &str, source: &Object) {
    let medium = meta::text(source, "medium");
    if medium.starts_with("HugePages") {
        refuse_field(errors, &join(path, "medium"));
    } else if !matches!(medium, "" | "Memory") {
        errors.push(FieldError::not_supported(join(path, "medium"), medium, &["", "Memory"]));
    }
    let Some(limit) = source.get("sizeLimit").filter(|l| !l.is_null()) else { return };
    if !Quantity::from_json(limit).is_ok_and(|l| !l.is_negative()) {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(join(path, "sizeLimit"), detail));
    } else if medium.is_empty() {
        // Only a tmpfs can hold its limit; on disk nothing would keep the volume from growing past it.
        refuse_field(errors, &join(path, "sizeLimit"));
    }
}

fn host_path(errors: &mut Errors, path: &str, source: &Object) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if let Some(host) = required(errors, path, source, "path")
        && host.split('/').any(|step| step == "..")
    {
        errors.push(FieldError::invalid(join(path, "path"), host, "must not contain '..'"));
    }
    one_of(errors, path, source, "type", &TYPES);
}

fn mode(errors: &mut Errors, path: &str, object: &Object, key: &str) {
    if let Some(mode) = meta::int(object, key)
        && !(0..=0o777).contains(&mode)
    {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(join(path, key), mode, detail));
    }
}

/// The paths a projected volume's sources have taken so far; `None` where conflicts do not matter.
type Taken = Option<HashSet<String>>;

/// `items` of a ConfigMap or Secret.
fn files(errors: &mut Errors, path: &str, source: &Object, taken: &mut Taken) {
    mode(errors, path, source, "defaultMode");
    for (path, item) in each(source, path, "items") {
        required(errors, &path, item, "key");
        file(errors, &path, item, taken);
    }
}

fn downward_files(errors: &mut Errors, path: &str, source: &Object, taken: &mut Taken) {
    for (path, item) in each(source, path, "items") {
        file(errors, &path, item, taken);
        match (meta::sub(item, "fieldRef"), meta::sub(item, "resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", detail));
            }
            (Some(field), None) => {
                references::field(errors, &join(&path, "fieldRef"), field, &references::VOLUME_FIELDS);
            }
            (None, Some(resource)) => {
                let path = join(&path, "resourceFieldRef");
                required(errors, &path, resource, "containerName");
                references::resource(errors, &path, resource);
            }
            (None, None) => {
                let detail = "one of fieldRef and resourceFieldRef is required";
                errors.push(FieldError::required(path, detail));
            }
        }
    }
}

/// Path and mode of one file.
fn file(errors: &mut Errors, path: &str, item: &Object, taken: &mut Taken) {
    if let Some(name) = required(errors, path, item, "path") {
        let at = join(path, "path");
        relative(errors, &at, name);
        if name.starts_with("..") && !name.starts_with("../") && name != ".." {
            errors.push(FieldError::invalid(at.as_str(), name, "must not start with '..'"));
        }
        if let Some(taken) = taken
            && !taken.insert(name.to_owned())
        {
            errors.push(FieldError::invalid(at, name, "conflicting duplicate paths"));
        }
    }
    mode(errors, path, item, "mode");
}

/// A path below the place it is used in.
pub(super) fn relative(errors: &mut Errors, path: &str, value: &str) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|step| step == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

fn projected(errors: &mut Errors, path: &str, projected: &Object) {
    mode(errors, path, projected, "defaultMode");
    let mut taken = Some(HashSet::new());
    for (path, source) in each(projected, path, "sources") {
        unsupported::refuse(errors, &path, Part::Projection, source);
        let mut given = source.iter().filter(|(_, value)| value.is_object());
        let Some((kind, first)) = given.next() else {
            errors.push(FieldError::required(path, "must specify a projection source"));
            continue;
        };
        for (extra, _) in given {
            let detail = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(join(&path, extra), detail));
        }
        let path = join(&path, kind);
        let Some(first) = first.as_object() else { continue };
        match kind.as_str() {
            "secret" | "configMap" => {
                formatted(errors, &path, first, "name", format::dns_subdomain);
                files(errors, &path, first, &mut taken);
            }
            "downwardAPI" => downward_files(errors, &path, first, &mut taken),
            _ => {}
        }
    }
}

/// The mounts of a container. `volumes` are the names of the pod's volumes.
pub(super) fn mounts(errors: &mut Errors, path: &str, container: &Object, volumes: &HashSet<String>) {
    let mut places = HashSet::new();
    for (path, mount) in each(container, path, "volumeMounts") {
        if let Some(name) = required(errors, &path, mount, "name")
            && !volumes.contains(name)
        {
            let cause = crate::kinds::status::Cause::NotFound;
            errors.push(FieldError::new(cause, join(&path, "name"), name, ""));
        }
        if let Some(place) = required(errors, &path, mount, "mountPath")
            && !places.insert(place)
        {
            errors.push(FieldError::invalid(join(&path, "mountPath"), place, "must be unique"));
        }
        let (sub, expression) = (meta::text(mount, "subPath"), meta::text(mount, "subPathExpr"));
        relative(errors, &join(&path, "subPath"), sub);
        relative(errors, &join(&path, "subPathExpr"), expression);
        if !sub.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(join(&path, "subPathExpr"), expression, detail));
        }
        one_of(errors, &path, mount, "recursiveReadOnly", &["Disabled", "Enabled", "IfPossible"]);
        if matches!(meta::text(mount, "recursiveReadOnly"), "Enabled" | "IfPossible") && !meta::flag(mount, "readOnly")
        {
            let detail = "may only be specified when readOnly is true";
            errors.push(FieldError::forbidden(join(&path, "recursiveReadOnly"), detail));
        }
        one_of(errors, &path, mount, "mountPropagation", &["Bidirectional", "HostToContainer", "None"]);
        let privileged = meta::pointer(container, "/securityContext/privileged").and_then(Value::as_bool);
        if meta::text(mount, "mountPropagation") == "Bidirectional" && privileged != Some(true) {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(join(&path, "mountPropagation"), detail));
        }
    }
}

/// The name of a ConfigMap or Secret in `object.name`.
pub(super) fn reference_name(errors: &mut Errors, path: &str, object: &Object) {
    if let Some(name) = required(errors, path, object, "name") {
        all_invalid(errors, &join(path, "name"), name, format::dns_subdomain(name));
    }
}
