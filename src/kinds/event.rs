//! Events (`v1`).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::since;
use super::metadata::{self, Scope};
use super::status::FieldError;
use super::{Column, Hooks, Object, format, meta};

/// The hooks of Events.
pub struct Event;

impl Hooks for Event {
    fn validate(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, Scope::Namespaced, format::dns_subdomain);
        let (own, about) = (meta::namespace(object), meta::str_at(object, "/involvedObject/namespace"));
        // Events about objects without namespace live in `default`.
        if about != own && !(about.is_empty() && matches!(own, "" | "default")) {
            let detail = "does not match event.namespace";
            errors.push(FieldError::invalid("involvedObject.namespace", about, detail));
        }
        if !meta::text(object, "eventTime").is_empty() {
            for key in ["reportingComponent", "reportingInstance", "action", "reason"] {
                if meta::text(object, key).is_empty() {
                    let field = if key == "reportingComponent" { "reportingController" } else { key };
                    errors.push(FieldError::required(field, ""));
                }
            }
            if !matches!(meta::text(object, "type"), "Normal" | "Warning") {
                errors.push(FieldError::invalid("type", meta::text(object, "type"), ""));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        metadata::validate_update(new, old)
    }

    fn columns(&self) -> &'static [Column] {
        &[
            Column { name: "Last Seen", kind: "string", format: "", priority: 0 },
            Column { name: "Type", kind: "string", format: "", priority: 0 },
            Column { name: "Reason", kind: "string", format: "", priority: 0 },
            Column { name: "Object", kind: "string", format: "", priority: 0 },
            Column { name: "Subobject", kind: "string", format: "", priority: 1 },
            Column { name: "Source", kind: "string", format: "", priority: 1 },
            Column { name: "Message", kind: "string", format: "", priority: 0 },
            Column { name: "First Seen", kind: "string", format: "", priority: 1 },
            Column { name: "Count", kind: "string", format: "", priority: 1 },
            Column { name: "Name", kind: "string", format: "", priority: 1 },
        ]
    }

    fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let first = meta::time_at(object, "/firstTimestamp").or_else(|| meta::time_at(object, "/eventTime"));
        let (last, count) = match meta::sub(object, "series") {
            Some(series) => (meta::time_at(series, "/lastObservedTime"), meta::int(series, "count").unwrap_or(0)),
            None => {
                let last = meta::time_at(object, "/lastTimestamp").or(first);
                (last, meta::int(object, "count").filter(|c| *c != 0).unwrap_or(1))
            }
        };
        let about = meta::str_at(object, "/involvedObject/kind").to_ascii_lowercase();
        let about = match meta::str_at(object, "/involvedObject/name") {
            "" => about,
            name => format!("{about}/{name}"),
        };
        vec![
            json!(since(last, now)),
            json!(meta::text(object, "type")),
            json!(meta::text(object, "reason")),
            json!(about),
            json!(meta::str_at(object, "/involvedObject/fieldPath")),
            json!(source(object)),
            json!(meta::text(object, "message").trim()),
            json!(since(first, now)),
            json!(count),
            json!(meta::name(object)),
        ]
    }

    fn selectable(&self, object: &Object, field: &str) -> Option<String> {
        let path = match field {
            "involvedObject.kind" => "/involvedObject/kind",
            "involvedObject.namespace" => "/involvedObject/namespace",
            "involvedObject.name" => "/involvedObject/name",
            "involvedObject.uid" => "/involvedObject/uid",
            "involvedObject.apiVersion" => "/involvedObject/apiVersion",
            "involvedObject.resourceVersion" => "/involvedObject/resourceVersion",
            "involvedObject.fieldPath" => "/involvedObject/fieldPath",
            "reason" => "/reason",
            "reportingComponent" => "/reportingComponent",
            "type" => "/type",
            "source" => {
                let component = meta::str_at(object, "/source/component");
                let component = if component.is_empty() { meta::text(object, "reportingComponent") } else { component };
                return Some(component.to_owned());
            }
            _ => return None,
        };
        Some(meta::str_at(object, path).to_owned())
    }
}

/// Who reported it, and where: `umiak, pi3`.
fn source(event: &Object) -> String {
    let either = |a: &str, b: &str| match meta::str_at(event, a) {
        "" => meta::text(event, b).to_owned(),
        text => text.to_owned(),
    };
    let (component, host) =
        (either("/source/component", "reportingComponent"), either("/source/host", "reportingInstance"));
    if host.is_empty() { component } else { format!("{component}, {host}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn table_and_fields() {
        let event = json!({
            "metadata": {"name": "web.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "web", "namespace": "default", "fieldPath": "spec.containers{web}"},
            "type": "Warning", "reason": "BackOff", "message": "Back-off restarting\n", "count": 3,
            "source": {"component": "kubelet", "host": "pi3"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:00Z",
        });
        let event = event.as_object().unwrap();
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(
            Value::from(Event.cells(event, now)),
            json!([
                "60s",
                "Warning",
                "BackOff",
                "pod/web",
                "spec.containers{web}",
                "kubelet, pi3",
                "Back-off restarting",
                "5m",
                3,
                "web.1"
            ])
        );
        assert_eq!(Event.selectable(event, "source").as_deref(), Some("kubelet"));
        assert_eq!(Event.selectable(event, "involvedObject.name").as_deref(), Some("web"));
        assert_eq!(Event.selectable(event, "message"), None);
        assert!(Event.validate(event).is_empty());
    }

    #[test]
    fn an_event_lives_where_its_object_does() {
        for (own, about, valid) in
            [("default", "", true), ("a", "a", true), ("a", "", false), ("a", "b", false), ("default", "b", false)]
        {
            let event = json!({"metadata": {"name": "e", "namespace": own}, "involvedObject": {"namespace": about}});
            assert_eq!(Event.validate(event.as_object().unwrap()).is_empty(), valid, "{own} {about}");
        }
    }
}
