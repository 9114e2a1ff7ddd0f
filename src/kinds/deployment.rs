//! Deployments.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Errors, immutable, not_negative, same};
use super::duration::age;
use super::meta::{child, default_to};
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::workload::{self, count};
use super::{Column, Hooks, Object, format, meta};

/// The hooks of Deployments.
pub struct Deployment;

impl Hooks for Deployment {
    fn default(&self, object: &mut Object) {
        let spec = child(object, "spec");
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        let strategy = child(spec, "strategy");
        default_to(strategy, "type", "RollingUpdate");
        if meta::text(strategy, "type") == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", "25%");
            default_to(rolling, "maxSurge", "25%");
        }
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Object) {
        meta::set_generation(object, 1);
        object.insert("status".into(), json!({}));
    }

    /// The generation counts changes of annotations too: the controller copies them to its ReplicaSets.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
        metadata::count_generation(new, old);
        let annotations = |o| meta::pointer(o, "/metadata/annotations");
        if !same(annotations(new), annotations(old)) {
            meta::set_generation(new, meta::generation(old) + 1);
        }
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let empty = Object::new();
        let spec = meta::sub(object, "spec").unwrap_or(&empty);
        not_negative(&mut errors, "spec", spec, "replicas");
        workload::validate(&mut errors, spec, "Deployment");
        strategy(&mut errors, spec);
        for key in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            not_negative(&mut errors, "spec", spec, key);
        }
        let ready = meta::int(spec, "minReadySeconds").unwrap_or(0);
        if let Some(deadline) = meta::int(spec, "progressDeadlineSeconds").filter(|d| *d <= ready) {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        let selector = |o| meta::pointer(o, "/spec/selector");
        immutable(&mut errors, "spec.selector", selector(new), selector(old));
        errors
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Ready", kind: "string", format: "", priority: 0 },
            Column { name: "Up-to-date", kind: "string", format: "", priority: 0 },
            Column { name: "Available", kind: "string", format: "", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
            Column { name: "Containers", kind: "string", format: "", priority: 1 },
            Column { name: "Images", kind: "string", format: "", priority: 1 },
            Column { name: "Selector", kind: "string", format: "", priority: 1 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let ready = format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"));
        let mut cells = vec![
            json!(ready),
            json!(count(object, "/status/updatedReplicas")),
            json!(count(object, "/status/availableReplicas")),
            json!(age(object, now)),
        ];
        cells.extend(workload::wide_cells(object));
        cells
    }
}

fn strategy(errors: &mut Errors, spec: &Object) {
    let empty = Object::new();
    let strategy = meta::sub(spec, "strategy").unwrap_or(&empty);
    let rolling = meta::sub(strategy, "rollingUpdate");
    match (meta::text(strategy, "type"), rolling) {
        ("Recreate", Some(_)) => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
        }
        ("Recreate", None) => {}
        ("RollingUpdate", Some(rolling)) => rolling_update(errors, rolling),
        ("RollingUpdate", None) => {
            let detail = "this should be defaulted and never be nil";
            errors.push(FieldError::required("spec.strategy.rollingUpdate", detail));
        }
        (other, _) => {
            errors.push(FieldError::not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Object) {
    let mut amounts = Vec::new();
    for key in ["maxUnavailable", "maxSurge"] {
        let path = format!("spec.strategy.rollingUpdate.{key}");
        let value = rolling.get(key).cloned().unwrap_or(json!(0));
        match amount(&value) {
            Ok(amount) => amounts.push(amount),
            Err(detail) => errors.push(FieldError::invalid(path.as_str(), value.clone(), detail)),
        }
        if key == "maxUnavailable"
            && value.as_str().and_then(|v| v.strip_suffix('%')?.parse::<u64>().ok()).is_some_and(|p| p > 100)
        {
            errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
        }
    }
    if amounts == [0, 0] {
        let value = rolling.get("maxUnavailable").cloned().unwrap_or(json!(0));
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid("spec.strategy.rollingUpdate.maxUnavailable", value, detail));
    }
}

/// The number of a count or percentage.
fn amount(value: &Value) -> Result<i64, &'static str> {
    const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                           '93%', regex used for validation is '[0-9]+%')";
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%').ok_or(PERCENT)?;
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(PERCENT);
            }
            digits.parse().map_err(|_| PERCENT)
        }
        number => match number.as_i64() {
            Some(number) if number >= 0 => Ok(number),
            _ => Err("must be greater than or equal to 0"),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn deployment(change: impl FnOnce(&mut Object)) -> Object {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "nginx:1.7.9", "ports": [{"containerPort": 80}]}]},
                },
            },
        })
        .as_object()
        .unwrap()
        .clone();
        change(&mut object);
        Deployment.default(&mut object);
        object
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let object = deployment(|o| drop(meta::remove(o, "/spec/replicas")));
        let mut again = object.clone();
        Deployment.default(&mut again);
        assert_eq!(object, again);
        assert_eq!(
            object["spec"],
            json!({
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                        "schedulerName": "default-scheduler", "securityContext": {},
                        "containers": [{
                            "name": "web", "image": "nginx:1.7.9", "imagePullPolicy": "IfNotPresent", "resources": {},
                            "ports": [{"containerPort": 80, "protocol": "TCP"}],
                            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                        }],
                    },
                },
            })
        );
    }

    #[test]
    fn rules() {
        type Change = fn(&mut Object);
        let cases: [(Change, &[&str]); 9] = [
            (|_| (), &[]),
            (
                |o| meta::set(o, "/spec/replicas", -1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |o| meta::set(o, "/spec/template/metadata/labels", json!({"app": "other"})),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
                ],
            ),
            (|o| drop(meta::remove(o, "/spec/selector")), &["spec.selector: Required value"]),
            (
                |o| meta::set(o, "/spec/selector", json!({})),
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                |o| meta::set(o, "/spec/strategy", json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}})),
                &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
            ),
            (
                |o| meta::set(o, "/spec/strategy/rollingUpdate", json!({"maxSurge": 0, "maxUnavailable": "0%"})),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                |o| meta::set(o, "/spec/template/spec/restartPolicy", "Never"),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            ),
            (
                |o| meta::set(o, "/spec/minReadySeconds", 600),
                &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
            ),
        ];
        for (change, expected) in cases {
            let texts: Vec<String> = Deployment.validate(&deployment(change)).iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn the_selector_stays() {
        let old = deployment(|_| ());
        let new = deployment(|o| meta::set(o, "/spec/selector/matchLabels/app", "other"));
        let texts: Vec<String> = Deployment.validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable"]);
    }

    #[test]
    fn generation_counts_changes_of_spec_and_annotations() {
        let mut old = deployment(|_| ());
        Deployment.prepare_create(&mut old);
        assert_eq!(meta::generation(&old), 1);
        meta::set(&mut old, "/status/replicas", 3);
        for (path, generation) in
            [("/metadata/labels/x", 1), ("/status/replicas", 1), ("/metadata/annotations/x", 2), ("/spec/paused", 2)]
        {
            let mut new = old.clone();
            meta::set(&mut new, path, "y");
            Deployment.prepare_update(&mut new, &old);
            assert_eq!(meta::generation(&new), generation, "{path}");
            assert_eq!(new["status"], old["status"]);
        }
    }

    #[test]
    fn table() {
        let mut object = deployment(|o| meta::set(o, "/metadata/creationTimestamp", "2026-01-01T00:00:00Z"));
        meta::set(&mut object, "/status", json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}));
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let cells = Deployment.cells(&object, now);
        assert_eq!(Value::from(cells), json!(["2/3", 3, 1, "5m", "web", "nginx:1.7.9", "app=web"]));
    }
}
