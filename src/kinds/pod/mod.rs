//! Pods.

pub mod cells;
pub mod containers;
pub mod defaults;
mod placement;
mod probes;
pub mod qos;
mod references;
mod security;
pub mod spec;
mod volumes;

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of pods.
pub struct Pod;

impl Hooks for Pod {
    fn default(&self, object: &mut Object) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        meta::set_generation(object, 1);
        let class = qos::qos_class(object);
        let mut status = json!({"phase": "Pending", "qosClass": class});
        if !meta::list_at(object, "/spec/schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastTransitionTime": meta::format_time(Timestamp::now()),
            }]);
        }
        object.insert("status".into(), status);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        metadata::keep_status(new, old);
        metadata::count_generation(new, old);
    }

    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        spec::pod(&mut errors, object);
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        // A pod stored by an earlier version may lack defaults that `new` has by now.
        let mut old = old.clone();
        defaults::pod(&mut old);
        spec::update(&mut errors, new, &old);
        errors
    }

    fn columns(&self) -> &'static [Column] {
        cells::COLUMNS
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        cells::cells(object, now)
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        let path = match field {
            "spec.nodeName" => "/spec/nodeName",
            "spec.restartPolicy" => "/spec/restartPolicy",
            "spec.schedulerName" => "/spec/schedulerName",
            "spec.serviceAccountName" => "/spec/serviceAccountName",
            "spec.hostNetwork" => return Some(meta::bool_at(object, "/spec/hostNetwork").to_string()),
            "status.phase" => "/status/phase",
            "status.podIP" => "/status/podIP",
            "status.podIPs" => "/status/podIPs/0/ip",
            "status.nominatedNodeName" => "/status/nominatedNodeName",
            _ => return None,
        };
        Some(meta::str_at(object, path).to_owned())
    }

    fn index(&self, object: &Object) -> Vec<String> {
        match meta::str_at(object, "/spec/nodeName") {
            "" => Vec::new(),
            node => vec![format!("node:{node}")],
        }
    }

    /// A pod that no node has, or that has ended, goes at once; else its own period unless the client says otherwise.
    fn grace(&self, object: &Object, requested: Option<i64>) -> Option<i64> {
        let unscheduled = meta::str_at(object, "/spec/nodeName").is_empty();
        if unscheduled || matches!(meta::str_at(object, "/status/phase"), "Failed" | "Succeeded") {
            return None;
        }
        let own = meta::int_at(object, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
        match requested.unwrap_or(own) {
            0 => None,
            // A negative period counts as one second.
            seconds => Some(seconds.max(1)),
        }
    }
}
