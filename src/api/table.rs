//! `meta.k8s.io` tables: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::status::Status;
use crate::kinds::{Kind, meta};
use crate::registry::Raw;

/// How much of the object goes with each row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the query parameter; empty means metadata.
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Status::bad_request(format!(
                "unrecognized includeObject value {other:?}: supported values: \"None\", \"Metadata\", \"Object\""
            ))),
        }
    }
}

/// The column definitions of a kind.
pub(super) fn columns(kind: &Kind) -> Value {
    let column = |name: &str, ty: &str, format: &str, priority: u8| json!({ "name": name, "type": ty, "format": format, "description": name, "priority": priority });
    let rest = kind.hooks.columns().iter().map(|c| column(c.name, c.kind, c.format, c.priority));
    let name = kind.leads_with_name().then(|| column("Name", "string", "name", 0));
    name.into_iter().chain(rest).collect()
}

/// Appends one row.
pub(super) fn row(kind: &Kind, raw: &Raw, include: Include, now: Timestamp, out: &mut Vec<u8>) -> Result<(), Status> {
    let object = raw.object()?;
    let mut cells: Vec<Value> = kind.leads_with_name().then(|| meta::name(&object).into()).into_iter().collect();
    cells.extend(kind.hooks.cells(&object, now));
    out.extend_from_slice(br#"{"cells":"#);
    out.extend_from_slice(Value::from(cells).to_string().as_bytes());
    match include {
        Include::None => out.extend_from_slice(br#","object":null"#),
        Include::Metadata => {
            out.extend_from_slice(br#","object":"#);
            raw.write_metadata_to(out)?;
        }
        Include::Object => {
            out.extend_from_slice(br#","object":"#);
            raw.write_to(out);
        }
    }
    out.push(b'}');
    Ok(())
}
