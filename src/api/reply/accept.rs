//! The `Accept` header.

use crate::kinds::status::Status;

/// Documents an object or list can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Form {
    /// The object as JSON.
    Json,
    /// The object as YAML.
    Yaml,
    /// `meta.k8s.io` `Table`.
    Table,
    /// `PartialObjectMetadata` or its list.
    Metadata,
}

const SERVED: &str = "application/json, application/yaml";

/// The first acceptable form; no header means JSON. Protobuf is never written, so it is passed over.
pub(in crate::api) fn form(accept: &str) -> Result<Form, Status> {
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    clauses(accept).find_map(|clause| one(&clause)).ok_or_else(|| Status::not_acceptable(SERVED))
}

/// Whether a clause of the header names this document, such as `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`,
/// before any clause that means plain JSON.
pub(in crate::api) fn accepts(
    accept: &str,
    document: &str,
    group: &str,
    versions: &[&'static str],
) -> Option<&'static str> {
    for clause in clauses(accept) {
        if clause.json && clause.document.is_empty() {
            return None;
        }
        let version = versions.iter().find(|v| **v == clause.version);
        if clause.json && clause.document == document && clause.group == group && version.is_some() {
            return version.copied();
        }
    }
    None
}

#[derive(Default)]
struct Clause<'a> {
    json: bool,
    yaml: bool,
    document: &'a str,
    version: &'a str,
    group: &'a str,
}

fn clauses(accept: &str) -> impl Iterator<Item = Clause<'_>> {
    accept.split(',').map(|text| {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut clause = Clause {
            json: matches!(media, "application/json" | "application/*" | "*/*"),
            yaml: media == "application/yaml",
            ..Clause::default()
        };
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => clause.document = value,
                Some(("v", value)) => clause.version = value,
                Some(("g", value)) => clause.group = value,
                _ => {}
            }
        }
        clause
    })
}

fn one(clause: &Clause) -> Option<Form> {
    let served = clause.group == "meta.k8s.io" && matches!(clause.version, "v1" | "v1beta1");
    match (clause.json, clause.yaml, clause.document) {
        (true, _, "") => Some(Form::Json),
        (_, true, "") => Some(Form::Yaml),
        (true, _, "Table") if served => Some(Form::Table),
        (true, _, "PartialObjectMetadata" | "PartialObjectMetadataList") if served => Some(Form::Metadata),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_acceptable_form_wins() {
        for (accept, expected) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            ("application/yaml", Some(Form::Yaml)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Json)),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Some(Form::Json)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Metadata)),
            ("application/json;as=Thing;g=meta.k8s.io;v=v1", None),
        ] {
            assert_eq!(form(accept).ok(), expected, "{accept}");
        }
        assert_eq!(form("text/html").unwrap_err().code, 406);
    }

    #[test]
    fn other_documents_are_asked_for_by_name() {
        let of = |accept: &str| accepts(accept, "APIGroupDiscoveryList", "apidiscovery.k8s.io", &["v2", "v2beta1"]);
        let clause = |v: &str| format!("application/json;g=apidiscovery.k8s.io;v={v};as=APIGroupDiscoveryList");
        assert_eq!(of(&format!("{},{},application/json", clause("v2"), clause("v2beta1"))), Some("v2"));
        assert_eq!(of(&format!("{},application/json", clause("v2beta1"))), Some("v2beta1"));
        assert_eq!(of(&format!("application/json,{}", clause("v2"))), None);
        assert_eq!(of("application/json"), None);
        assert_eq!(of(&clause("v3")), None);
    }
}
