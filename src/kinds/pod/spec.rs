//! Rules of pod specs and pod templates (`pkg/apis/core/validation`).

use crate::kinds::check::{
    Errors, Unique, all_invalid, each, each_str, join, one_of, present, required, required_one_of,
};
use crate::kinds::metadata::{annotations, labels};
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::{self, Part, refuse_field};
use crate::kinds::{Object, format, meta};

use super::{containers, defaults, placement, security, volumes};

/// What a pod spec belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum In {
    Pod,
    Template,
}

/// The rules of `spec` of a pod.
pub(super) fn pod(errors: &mut Errors, object: &Object) {
    let empty = Object::new();
    let spec = meta::sub(object, "spec").unwrap_or(&empty);
    pod_spec(errors, "spec", spec, In::Pod);
    priority(errors, spec);
    for (key, value) in meta::annotations(object).into_iter().flatten() {
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/")
            && value.as_str().is_some_and(|v| v.starts_with("localhost/"))
        {
            refuse_field(errors, &format!("metadata.annotations[{key}]"));
        }
    }
}

/// The rules of a pod template under `path`, for example `spec.template`.
pub fn template(errors: &mut Errors, path: &str, template: &Object) {
    let empty = Object::new();
    let metadata = meta::sub(template, "metadata").unwrap_or(&empty);
    labels(errors, metadata, &join(path, "metadata.labels"));
    annotations(errors, metadata, &join(path, "metadata.annotations"));
    pod_spec(errors, &join(path, "spec"), meta::sub(template, "spec").unwrap_or(&empty), In::Template);
}

fn pod_spec(errors: &mut Errors, path: &str, spec: &Object, place: In) {
    unsupported::refuse(errors, path, Part::PodSpec, spec);
    let names = volumes::volumes(errors, path, spec);
    containers::containers(errors, path, spec, &names);
    containers::host_ports(errors, path, spec, place == In::Pod);
    required_one_of(errors, path, spec, "restartPolicy", &["Always", "OnFailure", "Never"]);
    required_one_of(errors, path, spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    dns_config(errors, path, spec);
    security::pod(errors, path, spec);
    placement::placement(errors, path, spec);
    for (key, rule) in [
        ("serviceAccountName", format::dns_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", format::dns_subdomain),
        ("hostname", format::dns_label),
        ("subdomain", format::dns_label),
        ("priorityClassName", format::dns_subdomain),
    ] {
        let value = meta::text(spec, key);
        if !value.is_empty() {
            all_invalid(errors, &join(path, key), value, rule(value));
        }
    }
    if let Some(seconds) = meta::int(spec, "activeDeadlineSeconds") {
        let wrong = format::in_range(seconds, 1, i64::from(i32::MAX));
        all_invalid(errors, &join(path, "activeDeadlineSeconds"), seconds, wrong);
    }
    host_aliases(errors, path, spec);
    gates(errors, path, spec);
    one_of(errors, path, spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    if let Some(os) = meta::sub(spec, "os") {
        let path = join(path, "os");
        required_one_of(errors, &path, os, "name", &["linux", "windows"]);
        if meta::text(os, "name") == "windows" {
            refuse_field(errors, &join(&path, "name"));
        }
    }
}

/// Priority is computed from the class; a client cannot choose another number.
fn priority(errors: &mut Errors, spec: &Object) {
    let class = meta::text(spec, "priorityClassName");
    let Some(computed) = defaults::priority_of(class) else {
        let detail = format!("no PriorityClass with name {class} was found");
        errors.push(FieldError::forbidden("spec.priorityClassName", detail));
        return;
    };
    if let Some(given) = meta::int(spec, "priority").filter(|p| *p != i64::from(computed)) {
        let detail = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {computed} from the given PriorityClass name"
        );
        errors.push(FieldError::forbidden("spec.priority", detail));
    }
}

fn dns_config(errors: &mut Errors, path: &str, spec: &Object) {
    const MOST_SERVERS: usize = 3;
    const MOST_SEARCHES: usize = 32;
    const MOST_SEARCH_CHARACTERS: usize = 2048;
    let none = meta::text(spec, "dnsPolicy") == "None";
    let path = join(path, "dnsConfig");
    let Some(config) = meta::sub(spec, "dnsConfig") else {
        if none {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        return;
    };
    let servers: Vec<_> = each_str(config, &path, "nameservers").collect();
    if none && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(join(&path, "nameservers"), detail));
    }
    if servers.len() > MOST_SERVERS {
        let detail = format!("must not have more than {MOST_SERVERS} nameservers");
        errors.push(FieldError::invalid(join(&path, "nameservers"), config["nameservers"].clone(), detail));
    }
    for (path, server) in servers {
        all_invalid(errors, &path, server, format::ip_address(server));
    }
    let searches: Vec<_> = each_str(config, &path, "searches").collect();
    let length: usize = searches.iter().map(|(_, s)| s.len() + 1).sum();
    let list_path = join(&path, "searches");
    if searches.len() > MOST_SEARCHES {
        let detail = format!("must not have more than {MOST_SEARCHES} search paths");
        errors.push(FieldError::invalid(list_path.as_str(), config["searches"].clone(), detail));
    }
    if length > MOST_SEARCH_CHARACTERS + 1 {
        let detail = format!(
            "must not have more than {MOST_SEARCH_CHARACTERS} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(list_path, config["searches"].clone(), detail));
    }
    for (path, search) in searches {
        if search != "." {
            let name = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
            all_invalid(errors, &path, search, format::dns_subdomain(&name));
        }
    }
    for (path, option) in each(config, &path, "options") {
        if meta::text(option, "name").is_empty() {
            errors.push(FieldError::required(join(&path, "name"), "must not be empty"));
        }
    }
}

fn host_aliases(errors: &mut Errors, path: &str, spec: &Object) {
    for (path, alias) in each(spec, path, "hostAliases") {
        if let Some(address) = required(errors, &path, alias, "ip") {
            all_invalid(errors, &join(&path, "ip"), address, format::ip_address(address));
        }
        for (_, name) in each_str(alias, &path, "hostnames") {
            all_invalid(errors, &join(&path, "hostnames"), name, format::dns_subdomain(name));
        }
    }
}

/// Readiness and scheduling gates.
fn gates(errors: &mut Errors, path: &str, spec: &Object) {
    for (path, gate) in each(spec, path, "readinessGates") {
        let kind = meta::text(gate, "conditionType");
        all_invalid(errors, &join(&path, "conditionType"), kind, format::qualified_name(kind));
    }
    let mut names = Unique::default();
    for (path, gate) in each(spec, path, "schedulingGates") {
        let name = meta::text(gate, "name");
        all_invalid(errors, &path, name, format::qualified_name(name));
        names.note(errors, &path, name.to_owned());
    }
    if present(spec, "schedulingGates").is_some() && !meta::text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(join(path, "nodeName"), detail));
    }
}

/// What may change in the spec of a pod that exists: images, a shorter deadline, more tolerations, fewer scheduling
/// gates (and while there are some, a narrower node selector), and a negative termination grace period to 1.
pub(super) fn update(errors: &mut Errors, new: &Object, old: &Object) {
    let empty = Object::new();
    let (new, old) = (meta::sub(new, "spec").unwrap_or(&empty), meta::sub(old, "spec").unwrap_or(&empty));
    deadline(errors, new, old);
    if present(old, "tolerations").is_some() || present(new, "tolerations").is_some() {
        more_tolerations(errors, new, old);
    }
    let mut allowed = new.clone();
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        keep(&mut allowed, old, key);
    }
    fewer_gates(errors, new, old);
    if present(old, "schedulingGates").is_some() && narrower(new, old) {
        keep(&mut allowed, old, "nodeSelector");
    }
    if meta::int(old, "terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && meta::int(new, "terminationGracePeriodSeconds") == Some(1)
    {
        keep(&mut allowed, old, "terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        let images: Vec<_> = meta::items(old, list).map(|c| c.get("image").cloned()).collect();
        for (container, image) in meta::items_mut(&mut allowed, list).zip(images) {
            if let Some(image) = image {
                container.insert("image".into(), image);
            }
        }
    }
    let mut keys: Vec<&String> = allowed.keys().chain(old.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.retain(|k| !crate::kinds::check::same(allowed.get(*k), old.get(*k)));
    if !keys.is_empty() {
        let changed: Vec<String> = keys.iter().map(|k| format!("spec.{k}")).collect();
        let detail = format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\nchanged: {}",
            changed.join(", ")
        );
        errors.push(FieldError::forbidden("spec", detail));
    }
}

/// Scheduling gates may only be removed.
fn fewer_gates(errors: &mut Errors, new: &Object, old: &Object) {
    let known: Vec<&str> = meta::items(old, "schedulingGates").map(|g| meta::text(g, "name")).collect();
    for (path, gate) in each(new, "spec", "schedulingGates") {
        let name = meta::text(gate, "name");
        if !known.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(path, detail));
        }
    }
}

/// Whether the new node selector asks for all the old one asks for.
fn narrower(new: &Object, old: &Object) -> bool {
    let mut wanted = meta::sub(old, "nodeSelector").into_iter().flatten();
    wanted.all(|(key, value)| meta::sub(new, "nodeSelector").and_then(|n| n.get(key)) == Some(value))
}

fn keep(new: &mut Object, old: &Object, key: &str) {
    match old.get(key) {
        Some(value) => new.insert(key.into(), value.clone()),
        None => new.remove(key),
    };
}

fn deadline(errors: &mut Errors, new: &Object, old: &Object) {
    let path = "spec.activeDeadlineSeconds";
    match (meta::int(new, "activeDeadlineSeconds"), meta::int(old, "activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            let detail = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(path, new, detail));
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, serde_json::Value::Null, detail));
        }
        _ => {}
    }
}

/// Old tolerations stay, but for their `tolerationSeconds`; new ones may come.
fn more_tolerations(errors: &mut Errors, new: &Object, old: &Object) {
    let without_seconds = |t: &Object| {
        let mut t = t.clone();
        t.remove("tolerationSeconds");
        serde_json::Value::Object(t)
    };
    let kept: Vec<_> = meta::items(new, "tolerations").map(without_seconds).collect();
    if !meta::items(old, "tolerations").map(without_seconds).all(|t| kept.contains(&t)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
}
