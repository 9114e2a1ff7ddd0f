//! Paths and their operations.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::types::{Dialect, reference};
use super::{Resource, gvk};
use crate::kinds::fields::{self, Type};

const JSON_TYPE: &str = "application/json";
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// One operation: HTTP method, discovery's verb and the action's name in the document.
const ITEM: [(&str, &str, &str); 4] =
    [("get", "get", "get"), ("put", "update", "put"), ("patch", "patch", "patch"), ("delete", "delete", "delete")];
const COLLECTION: [(&str, &str, &str); 3] =
    [("get", "list", "list"), ("post", "create", "post"), ("delete", "deletecollection", "deletecollection")];

/// Every path of a resource with its operations.
pub(super) fn of(resource: &Resource, dialect: Dialect) -> BTreeMap<String, Value> {
    let root = format!("/{}", resource.root());
    let base = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{root}/{}", resource.plural)
    };
    let writer = Writer { resource, dialect };
    let mut found = BTreeMap::new();
    found.insert(base.clone(), writer.item(&COLLECTION, resource.namespaced, false));
    found.insert(format!("{base}/{{name}}"), writer.item(&ITEM, resource.namespaced, true));
    if resource.namespaced {
        found.insert(format!("{root}/{}", resource.plural), writer.item(&COLLECTION[..1], false, false));
    }
    for name in resource.subresources {
        found.insert(format!("{base}/{{name}}/{name}"), writer.subresource(name));
    }
    found.retain(|_, item| item.as_object().is_some_and(|item| item.len() > 1));
    found
}

/// The type a subresource takes where that is not its parent's.
pub(super) fn subresource_type(name: &str) -> Option<&'static Type> {
    subresource_kind(name).and_then(|(group, kind)| fields::of(group, "v1", kind))
}

fn subresource_kind(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "scale" => Some(("autoscaling", "Scale")),
        "binding" => Some(("", "Binding")),
        "eviction" => Some(("policy", "Eviction")),
        "token" => Some(("authentication.k8s.io", "TokenRequest")),
        _ => None,
    }
}

/// What an operation is about.
struct Subject {
    id: Option<String>,
    gvk: Value,
}

struct Writer<'a> {
    resource: &'a Resource<'a>,
    dialect: Dialect,
}

impl Writer<'_> {
    fn item(&self, operations: &[(&str, &str, &str)], namespaced: bool, named: bool) -> Value {
        let id = self.resource.id();
        let mut item = self.parameters(namespaced, named);
        for (method, verb, action) in operations {
            if self.resource.verbs.contains(verb) {
                let id = if *verb == "list" { format!("{id}List") } else { id.clone() };
                let subject = Subject { id: Some(id), gvk: self.resource.gvk() };
                item.insert((*method).into(), self.operation(verb, action, &subject));
            }
        }
        item.into()
    }

    fn subresource(&self, name: &str) -> Value {
        let subject = match subresource_kind(name) {
            Some((group, kind)) => {
                Subject { id: subresource_type(name).map(|ty| ty.id.to_owned()), gvk: gvk(group, "v1", kind) }
            }
            None => Subject { id: Some(self.resource.id()), gvk: self.resource.gvk() },
        };
        let plain = Subject { id: None, gvk: self.resource.gvk() };
        let (methods, subject): (&[(&str, &str)], _) = match name {
            "binding" | "eviction" | "token" => (&[("post", "create")], subject),
            "finalize" => (&[("put", "update")], subject),
            "log" => (&[("get", "get")], plain),
            "exec" | "attach" | "portforward" | "proxy" => (&[("get", "connect"), ("post", "connect")], plain),
            _ => (&[("get", "get"), ("put", "update"), ("patch", "patch")], subject),
        };
        let mut item = self.parameters(self.resource.namespaced, true);
        for (method, verb) in methods {
            item.insert((*method).into(), self.operation(verb, method, &subject));
        }
        item.into()
    }

    /// Parameters in the path.
    fn parameters(&self, namespaced: bool, named: bool) -> Map<String, Value> {
        let names = [("namespace", namespaced), ("name", named)];
        let parameters: Vec<Value> = names
            .iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(name, _)| self.parameter(name, "path", "string"))
            .collect();
        Map::from_iter([("parameters".to_owned(), parameters.into())])
    }

    fn parameter(&self, name: &str, place: &str, ty: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place});
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.dialect {
            Dialect::V2 => parameter["type"] = ty.into(),
            Dialect::V3 => parameter["schema"] = json!({"type": ty}),
        }
        parameter
    }

    fn operation(&self, verb: &str, action: &str, subject: &Subject) -> Value {
        let queries: &[(&str, &str)] = match verb {
            "create" | "update" => &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")],
            "patch" => {
                &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")]
            }
            "delete" => &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")],
            "list" | "deletecollection" => &[
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ],
            _ => &[],
        };
        let mut parameters: Vec<Value> = queries.iter().map(|(name, ty)| self.parameter(name, "query", ty)).collect();
        let mut operation = json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": subject.gvk,
            "responses": {"200": self.response(verb, subject)},
        });
        if let Some((types, schema)) = self.body(verb, subject) {
            match self.dialect {
                Dialect::V2 => {
                    operation["consumes"] = json!(types);
                    parameters.push(json!({"name": "body", "in": "body", "schema": schema}));
                }
                Dialect::V3 => operation["requestBody"] = json!({"content": content(types, &schema)}),
            }
        }
        operation["parameters"] = parameters.into();
        operation
    }

    /// Content types and schema of a request's body.
    fn body(&self, verb: &str, subject: &Subject) -> Option<(&'static [&'static str], Value)> {
        match verb {
            "create" | "update" => Some((&[JSON_TYPE], reference(subject.id.as_ref()?, self.dialect))),
            // Strategic merge patches need merge keys, which custom resources do not have.
            "patch" if self.resource.schema.is_some() => Some((&PATCH_TYPES[..3], json!({"type": "object"}))),
            "patch" => Some((&PATCH_TYPES, json!({"type": "object"}))),
            "delete" | "deletecollection" => {
                let options = fields::of("", "v1", "DeleteOptions")?;
                Some((&[JSON_TYPE], reference(options.id, self.dialect)))
            }
            _ => None,
        }
    }

    fn response(&self, verb: &str, subject: &Subject) -> Value {
        let id = match verb {
            "delete" | "deletecollection" => fields::of("", "v1", "Status").map(|ty| ty.id),
            _ => subject.id.as_deref(),
        };
        let schema = match id {
            Some(id) => reference(id, self.dialect),
            None => json!({"type": "string"}),
        };
        match self.dialect {
            Dialect::V2 => json!({"description": "OK", "schema": schema}),
            Dialect::V3 => json!({"description": "OK", "content": content(&[JSON_TYPE], &schema)}),
        }
    }
}

fn content(types: &[&str], schema: &Value) -> Map<String, Value> {
    types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": schema}))).collect()
}
