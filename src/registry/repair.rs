//! What is put right at the start: Services whose addresses or ports are not theirs, because the network of Services is
//! another one than it was, or because somebody edited the database.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use serde_json::json;

use crate::kinds::service::{self, Slot};
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::store::{Durability, Expect};

use super::services::Allocator;
use super::write::Call;
use super::{ListOptions, Registry, WriteOptions};

/// Gives every Service an address of the network, and of two with the same one the younger another; node ports
/// likewise.
pub(super) async fn services(registry: &Registry) -> Result<(), Status> {
    let Some(kind) = registry.kinds().by_plural("", "v1", "services") else { return Ok(()) };
    let allocator = &registry.inner.services;
    let page = registry.list(&kind, &ListOptions::default())?;
    let readable =
        |raw: &super::Raw| raw.object().inspect_err(|status| tracing::error!(%status, "repair Services")).ok();
    let mut all: Vec<Object> = page.items.iter().filter_map(readable).collect();
    all.sort_by_cached_key(|s| {
        let fixed = allocator.fixed(meta::namespace(s), meta::name(s)).is_some();
        (!fixed, meta::created(s), meta::resource_version(s).parse::<u64>().unwrap_or_default())
    });
    let mut seen = HashSet::new();
    for old in all {
        let mut new = old.clone();
        address(allocator, &mut new, &mut seen);
        node_ports(&mut new, &mut seen);
        if new == old {
            continue;
        }
        let (ns, name) = (meta::namespace(&old), meta::name(&old));
        match write(registry, &kind, &old, &mut new).await {
            Ok(()) => {
                let addresses: Vec<_> = service::cluster_ips(&new).collect();
                let ports = service::node_ports(&new);
                tracing::warn!(ns, name, ?addresses, ?ports, "this Service had what is not its own: given another");
                seen.extend(addresses.into_iter().map(Slot::Address));
                seen.extend(ports.into_iter().map(Slot::NodePort));
            }
            Err(status) => tracing::error!(ns, name, %status, "this Service has what is not its own"),
        }
    }
    Ok(())
}

/// Fills in what was taken away, and stores the Service.
async fn write(registry: &Registry, kind: &Kind, old: &Object, new: &mut Object) -> Result<(), Status> {
    let options = WriteOptions::by("umiak");
    let call = Call::new(registry, kind, meta::namespace(old), &options);
    let kept = new.clone();
    let claim = call.allocate(new, Some(&kept))?;
    call.store(new, Expect::Revision(super::write::revision(old)?), Durability::Durable, claim).await
}

fn address(allocator: &Allocator, service: &mut Object, seen: &mut HashSet<Slot>) {
    let fixed = allocator.fixed(meta::namespace(service), meta::name(service));
    let addresses: Vec<Ipv4Addr> = service::cluster_ips(service).collect();
    let [first, ..] = addresses[..] else { return };
    let proper = match fixed {
        Some(fixed) => fixed == first,
        None => allocator.covers(first),
    };
    if proper && seen.insert(Slot::Address(first)) {
        return;
    }
    let spec = meta::child(service, "spec");
    match fixed {
        Some(fixed) => {
            spec.insert("clusterIP".into(), fixed.to_string().into());
            spec.insert("clusterIPs".into(), json!([fixed.to_string()]));
        }
        None => {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
    }
}

fn node_ports(service: &mut Object, seen: &mut HashSet<Slot>) {
    let lost: Vec<u16> =
        service::node_ports(service).into_iter().filter(|port| !seen.insert(Slot::NodePort(*port))).collect();
    let is_lost = |number: Option<i64>| number.is_some_and(|n| lost.iter().any(|port| i64::from(*port) == n));
    let spec = meta::child(service, "spec");
    for port in meta::items_mut(spec, "ports") {
        if is_lost(meta::int(port, "nodePort")) {
            port.remove("nodePort");
        }
    }
    if is_lost(meta::int(spec, "healthCheckNodePort")) {
        spec.remove("healthCheckNodePort");
    }
}
