//! Rules of where a pod may run: node selector, tolerations, affinity, topology spread.

use serde_json::Value;

use crate::kinds::check::{Errors, all_invalid, each, join, one_of, present, required_one_of};
use crate::kinds::metadata::label_map;
use crate::kinds::status::FieldError;
use crate::kinds::unsupported::refuse_field;
use crate::kinds::workload::label_selector;
use crate::kinds::{Object, format, meta};

/// Everything about placement in a pod spec.
pub(super) fn placement(errors: &mut Errors, path: &str, spec: &Object) {
    label_map(errors, meta::sub(spec, "nodeSelector"), &join(path, "nodeSelector"));
    if let Some(affinity) = meta::sub(spec, "affinity") {
        self::affinity(errors, &join(path, "affinity"), affinity);
    }
    tolerations(errors, path, spec);
    for (path, constraint) in each(spec, path, "topologySpreadConstraints") {
        spread(errors, &path, constraint);
    }
}

fn spread(errors: &mut Errors, path: &str, constraint: &Object) {
    let skew = meta::int(constraint, "maxSkew").unwrap_or(0);
    if skew <= 0 {
        errors.push(FieldError::invalid(join(path, "maxSkew"), skew, "must be greater than zero"));
    }
    topology_key(errors, path, constraint);
    required_one_of(errors, path, constraint, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
    if meta::text(constraint, "whenUnsatisfiable") == "DoNotSchedule" {
        refuse_field(errors, &join(path, "whenUnsatisfiable"));
    } else if let Some(domains) = meta::int(constraint, "minDomains") {
        let when = meta::text(constraint, "whenUnsatisfiable");
        let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
        errors.push(FieldError::invalid(join(path, "minDomains"), domains, detail));
    }
    for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        one_of(errors, path, constraint, policy, &["Ignore", "Honor"]);
    }
    if let Some(selector) = meta::sub(constraint, "labelSelector") {
        label_selector(errors, &join(path, "labelSelector"), selector);
    }
}

fn topology_key(errors: &mut Errors, path: &str, object: &Object) {
    let (key, path) = (meta::text(object, "topologyKey"), join(path, "topologyKey"));
    if key.is_empty() {
        errors.push(FieldError::required(path, "can not be empty"));
    } else {
        all_invalid(errors, &path, key, format::qualified_name(key));
    }
}

/// `spec.tolerations`.
pub(super) fn tolerations(errors: &mut Errors, path: &str, spec: &Object) {
    for (path, toleration) in each(spec, path, "tolerations") {
        let (key, value) = (meta::text(toleration, "key"), meta::text(toleration, "value"));
        let (operator, effect) = (meta::text(toleration, "operator"), meta::text(toleration, "effect"));
        if !key.is_empty() {
            all_invalid(errors, &join(&path, "key"), key, format::qualified_name(key));
        }
        let at = join(&path, "operator");
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(at.as_str(), operator, detail));
        }
        if toleration.get("tolerationSeconds").is_some_and(Value::is_number) && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(join(&path, "effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => {
                let wrong = format::label_value(value);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(at, value, wrong.join(";")));
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(at, toleration.clone(), detail));
            }
            _ => errors.push(FieldError::not_supported(at, operator, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            one_of(errors, &path, toleration, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

fn affinity(errors: &mut Errors, path: &str, affinity: &Object) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = meta::sub(affinity, "nodeAffinity") {
        let path = join(path, "nodeAffinity");
        if let Some(required) = meta::sub(node, REQUIRED) {
            let path = join(&path, REQUIRED);
            if present(required, "nodeSelectorTerms").is_none() {
                let detail = "must have at least one node selector term";
                errors.push(FieldError::required(join(&path, "nodeSelectorTerms"), detail));
            }
            each(required, &path, "nodeSelectorTerms").for_each(|(path, term)| node_selector_term(errors, &path, term));
        }
        for (path, preferred) in each(node, &path, PREFERRED) {
            weight(errors, &path, preferred);
            if let Some(term) = meta::sub(preferred, "preference") {
                node_selector_term(errors, &join(&path, "preference"), term);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = meta::sub(affinity, kind) else { continue };
        let path = join(path, kind);
        if present(pods, REQUIRED).is_some() {
            refuse_field(errors, &join(&path, REQUIRED));
        }
        for (path, preferred) in each(pods, &path, PREFERRED) {
            weight(errors, &path, preferred);
            let (path, empty) = (join(&path, "podAffinityTerm"), Object::new());
            let term = meta::sub(preferred, "podAffinityTerm").unwrap_or(&empty);
            topology_key(errors, &path, term);
            if let Some(selector) = meta::sub(term, "labelSelector") {
                label_selector(errors, &join(&path, "labelSelector"), selector);
            }
        }
    }
}

fn weight(errors: &mut Errors, path: &str, preferred: &Object) {
    let weight = meta::int(preferred, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(join(path, "weight"), weight, "must be in the range 1-100"));
    }
}

fn node_selector_term(errors: &mut Errors, path: &str, term: &Object) {
    for (path, requirement) in each(term, path, "matchExpressions") {
        let key = meta::text(requirement, "key");
        all_invalid(errors, &join(&path, "key"), key, format::qualified_name(key));
        node_requirement(errors, &path, requirement);
    }
    for (path, requirement) in each(term, path, "matchFields") {
        let key = meta::text(requirement, "key");
        if key != "metadata.name" {
            let detail = "not a valid field selector key";
            errors.push(FieldError::invalid(join(&path, "key"), key, detail));
        }
        let values = requirement.get("values").and_then(Value::as_array).map_or(0, Vec::len);
        if !matches!(meta::text(requirement, "operator"), "In" | "NotIn") {
            let operator = meta::text(requirement, "operator");
            errors.push(FieldError::invalid(join(&path, "operator"), operator, "not a valid selector operator"));
        } else if values != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(join(&path, "values"), detail));
        }
    }
}

fn node_requirement(errors: &mut Errors, path: &str, requirement: &Object) {
    let values = requirement.get("values").and_then(Value::as_array).map_or(0, Vec::len);
    let at = join(path, "values");
    match (meta::text(requirement, "operator"), values) {
        ("In" | "NotIn", 0) => {
            errors.push(FieldError::required(at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        ("Exists" | "DoesNotExist", 1..) => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(at, detail));
        }
        ("Gt" | "Lt", 0 | 2..) => {
            errors.push(FieldError::required(at, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => {}
        (operator, _) => {
            errors.push(FieldError::invalid(join(path, "operator"), operator, "not a valid selector operator"));
        }
    }
}
