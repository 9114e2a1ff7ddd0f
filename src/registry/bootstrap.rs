//! What every cluster has from its first start.

use serde_json::json;

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object};

use super::{Registry, WriteOptions, repair};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Repairs the Services; makes the namespaces and their default service accounts where they are missing.
pub(super) async fn run(registry: &Registry) -> Result<(), Status> {
    let kind = |plural: &str| {
        let kind = registry.kinds().by_plural("", "v1", plural);
        kind.ok_or_else(|| Status::internal(format!("no kind {plural}")))
    };
    let (namespaces, accounts) = (kind("namespaces")?, kind("serviceaccounts")?);
    repair::services(registry).await?;
    for namespace in NAMESPACES {
        make(registry, &namespaces, "", namespace).await?;
        make(registry, &accounts, namespace, "default").await?;
    }
    Ok(())
}

async fn make(registry: &Registry, kind: &Kind, ns: &str, name: &str) -> Result<(), Status> {
    if registry.get_raw(kind, ns, name).is_ok() {
        return Ok(());
    }
    let object = Object::from_iter([("metadata".to_owned(), json!({ "name": name }))]);
    match registry.create(kind, ns, object, &WriteOptions::by("umiak")).await {
        Err(status) if status.reason != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}
