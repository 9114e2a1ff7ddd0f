//! What Deployments, ReplicaSets and their like share: selector, template, table cells.

use serde_json::{Value, json};

use super::check::{Errors, all_invalid, each, each_str, join};
use super::metadata::label_map;
use super::selector::LabelSelector;
use super::status::FieldError;
use super::{Object, format, meta, pod};

/// Sets the defaults of `spec.template`.
pub fn default_template(spec: &mut Object) {
    pod::defaults::template(meta::child(spec, "template"));
}

/// The rules of `spec.selector` and `spec.template` of a controller whose pods are restarted for ever. `kind` is named in
/// texts.
pub fn validate(errors: &mut Errors, spec: &Object, kind: &str) {
    let empty = Object::new();
    let template = meta::sub(spec, "template").unwrap_or(&empty);
    match meta::sub(spec, "selector") {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(object) => {
            label_selector(errors, "spec.selector", object);
            let selector = LabelSelector::from_object(object);
            if selector.is_empty() {
                let detail = format!("empty selector is invalid for {}", kind.to_ascii_lowercase());
                errors.push(FieldError::invalid("spec.selector", object.clone(), detail));
            } else {
                matches_template(errors, &selector, template);
            }
        }
    }
    rest(errors, template, kind);
}

/// [`validate`] for a selector that is a plain map of labels.
pub fn validate_mapped(errors: &mut Errors, spec: &Object, kind: &str) {
    let empty = Object::new();
    let template = meta::sub(spec, "template").unwrap_or(&empty);
    let selector = meta::sub(spec, "selector").unwrap_or(&empty);
    if selector.is_empty() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        label_map(errors, Some(selector), "spec.selector");
        matches_template(errors, &LabelSelector::from_map(selector), template);
    }
    rest(errors, template, kind);
}

fn matches_template(errors: &mut Errors, selector: &LabelSelector, template: &Object) {
    let labels = meta::labels(template);
    if !selector.matches_labels(labels) {
        let labels = labels.cloned().unwrap_or_default();
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
}

/// The rules of a template whose pods are restarted for ever.
fn rest(errors: &mut Errors, template: &Object, kind: &str) {
    pod::spec::template(errors, "spec.template", template);
    let policy = meta::str_at(template, "/spec/restartPolicy");
    if !matches!(policy, "" | "Always") {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if meta::pointer(template, "/spec/activeDeadlineSeconds").is_some_and(|v| !v.is_null()) {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", detail));
    }
}

/// The rules of a label selector in object form.
pub fn label_selector(errors: &mut Errors, path: &str, selector: &Object) {
    label_map(errors, meta::sub(selector, "matchLabels"), &join(path, "matchLabels"));
    for (path, expression) in each(selector, path, "matchExpressions") {
        let values: Vec<_> = each_str(expression, &path, "values").collect();
        match (meta::text(expression, "operator"), values.is_empty()) {
            ("In" | "NotIn", true) => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(join(&path, "values"), detail));
            }
            ("Exists" | "DoesNotExist", false) => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(join(&path, "values"), detail));
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            (operator, _) => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(join(&path, "operator"), operator, detail));
            }
        }
        let key = meta::text(expression, "key");
        all_invalid(errors, &join(&path, "key"), key, format::qualified_name(key));
        for (path, value) in values {
            all_invalid(errors, &path, value, format::label_value(value));
        }
    }
}

/// The cells `Containers`, `Images`, `Selector` of the wide table.
pub fn wide_cells(object: &Object) -> [Value; 3] {
    let containers = meta::list_at(object, "/spec/template/spec/containers");
    let column = |key| {
        let texts: Vec<&str> = containers.iter().filter_map(|c| c.get(key)?.as_str()).collect();
        json!(texts.join(","))
    };
    let selector = meta::object_at(object, "/spec/selector").map(LabelSelector::of_spec).unwrap_or_default();
    let selector = if selector.is_empty() { "<none>".to_owned() } else { selector.to_string() };
    [column("name"), column("image"), json!(selector)]
}

/// The integer at a path for a table, 0 if there is none.
pub fn count(object: &Object, path: &str) -> i64 {
    meta::int_at(object, path).unwrap_or(0)
}
