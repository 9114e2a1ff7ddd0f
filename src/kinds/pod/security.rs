//! Rules of the security contexts of pods and containers.

use serde_json::Value;

use crate::kinds::check::{Errors, Unique, each, id, join, one_of, required, required_one_of};
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part, refuse_field};
use crate::kinds::{Object, format, meta};

/// `spec.securityContext` and the host namespaces.
pub(super) fn pod(errors: &mut Errors, path: &str, spec: &Object) {
    if meta::flag(spec, "shareProcessNamespace") && meta::flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(join(path, "shareProcessNamespace"), true, detail));
    }
    let Some(context) = meta::sub(spec, "securityContext") else { return };
    let path = &join(path, "securityContext");
    unsupported::refuse(errors, path, Part::PodSecurity, context);
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(errors, path, context, key);
    }
    let groups = context.get("supplementalGroups").and_then(Value::as_array).into_iter().flatten();
    for (i, group) in groups.enumerate() {
        let group = group.as_i64().unwrap_or(-1);
        let wrong = format::in_range(group, 0, i64::from(i32::MAX));
        crate::kinds::check::all_invalid(errors, &format!("{path}.supplementalGroups[{i}]"), group, wrong);
    }
    one_of(errors, path, context, "fsGroupChangePolicy", &["OnRootMismatch", "Always"]);
    one_of(errors, path, context, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    sysctls(errors, path, context);
    profiles(errors, path, context);
}

/// A container's `securityContext`.
pub(super) fn container(errors: &mut Errors, path: &str, container: &Object) {
    let Some(context) = meta::sub(container, "securityContext") else { return };
    let path = &join(path, "securityContext");
    unsupported::refuse(errors, path, Part::ContainerSecurity, context);
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, path, context, key);
    }
    one_of(errors, path, context, "procMount", &["Default", "Unmasked"]);
    if meta::text(context, "procMount") == "Unmasked" {
        refuse_field(errors, &join(path, "procMount"));
    }
    profiles(errors, path, context);
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        let conflict = |what: &str| {
            let detail = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            FieldError::invalid(path.as_str(), context.clone(), detail)
        };
        if meta::flag(context, "privileged") {
            errors.push(conflict("`privileged` to true"));
        }
        let added = meta::list_at(context, "/capabilities/add").iter().filter_map(Value::as_str);
        if added.into_iter().any(|c| c == "CAP_SYS_ADMIN") {
            errors.push(conflict("`capabilities.Add` CAP_SYS_ADMIN"));
        }
    }
}

fn sysctls(errors: &mut Errors, path: &str, context: &Object) {
    const RE: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut names = Unique::default();
    for (path, sysctl) in each(context, path, "sysctls") {
        let Some(name) = required(errors, &path, sysctl, "name") else { continue };
        let path = join(&path, "name");
        if !is_sysctl(name) {
            let detail = format!("must have at most 253 characters and match regex ^({RE}[\\./])*{RE}$");
            errors.push(FieldError::invalid(path, name, detail));
        } else {
            names.note(errors, &path, name.replace('/', "."));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b);
    let part = |p: &str| {
        let bytes = p.as_bytes();
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

/// Seccomp and AppArmor profiles.
fn profiles(errors: &mut Errors, path: &str, context: &Object) {
    for (key, name) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let Some(profile) = meta::sub(context, key) else { continue };
        let path = join(path, key);
        required_one_of(errors, &path, profile, "type", &["Localhost", "RuntimeDefault", "Unconfined"]);
        let (local, file) = (meta::text(profile, "type") == "Localhost", meta::text(profile, "localhostProfile"));
        if local && key == "appArmorProfile" {
            refuse_field(errors, &join(&path, "type"));
            continue;
        }
        let path = join(&path, "localhostProfile");
        if local && file.is_empty() {
            errors.push(FieldError::required(path, format!("must be set when {name} type is Localhost")));
        } else if !local && !file.is_empty() {
            errors.push(FieldError::invalid(path, file, format!("can only be set when {name} type is Localhost")));
        } else if file.starts_with('/') {
            errors.push(FieldError::invalid(path, file, "must be a relative path"));
        } else if file.split('/').any(|step| step == "..") {
            errors.push(FieldError::invalid(path, file, "must not contain '..'"));
        }
    }
}
