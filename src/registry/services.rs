//! What only one Service of the cluster can have: cluster addresses and node ports.
//!
//! Who has what is told by the index of the stored Services ([`Slot::index`]), so there is nothing to keep beside them
//! and nothing to rebuild after a crash. Only what writes under way are about to take is kept here.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cidr::Cidr;
use crate::kinds::service::{self, HEADLESS, Slot};
use crate::kinds::status::{FieldError, Status};
use crate::kinds::{Kind, Object, meta};
use crate::store::{Key, Store};

use super::error;

/// Ports that Services may have on every node.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Of those, how many from the first on are left to people who ask for a certain one.
const STATIC_PORTS: u32 = 86;
/// Services with a place of their own in the network: namespace, name, position of the address.
pub(super) const FIXED: [(&str, &str, u32); 2] = [("default", "kubernetes", 1), ("kube-system", "kube-dns", 10)];

const TAKEN: &str = "provided port is already allocated";

/// Gives out what is there once.
pub(super) struct Allocator {
    cidr: Cidr,
    taking: Arc<Mutex<Vec<(Slot, Key)>>>,
}

/// What a write is about to take. Goes with the last clone, when the write is done or has failed: from then on the
/// index tells.
#[derive(Clone, Default)]
pub(super) struct Claim(Option<Arc<Taken>>);

struct Taken {
    taking: Arc<Mutex<Vec<(Slot, Key)>>>,
    slots: Vec<Slot>,
    key: Key,
}

impl Claim {
    /// Whether nothing is taken.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in &self.slots {
            if let Some(at) = taking.iter().position(|(s, key)| s == slot && *key == self.key) {
                taking.swap_remove(at);
            }
        }
    }
}

/// Whether a kind is that of Services.
pub(super) fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

impl Allocator {
    pub(super) fn new(cidr: Cidr) -> Self {
        Self { cidr, taking: Arc::default() }
    }

    /// The address a Service with a place of its own has.
    pub(super) fn fixed(&self, namespace: &str, name: &str) -> Option<Ipv4Addr> {
        FIXED.iter().find(|(ns, n, _)| (*ns, *n) == (namespace, name)).map(|(.., at)| self.cidr.host(*at))
    }

    /// Whether an address may be had by Services without a place of their own.
    pub(super) fn covers(&self, address: Ipv4Addr) -> bool {
        is_usable(self.cidr, address) && FIXED.iter().all(|(.., at)| self.cidr.host(*at) != address)
    }

    /// Fills in the addresses and ports that a Service is to have, as `pkg/registry/core/service/storage` does. What
    /// `old` has it keeps. Whatever is malformed is left to the rules.
    ///
    /// # Errors
    /// 422 where somebody else has what is asked for, or nobody can; 500 where nothing is left.
    pub(super) fn allocate(
        &self,
        store: &Store,
        key: &Key,
        service: &mut Object,
        old: Option<&Object>,
    ) -> Result<Claim, Status> {
        let held: BTreeSet<String> =
            old.map(|old| slots(old).map(Slot::index).collect::<BTreeSet<_>>()).unwrap_or_default();
        let name = meta::name(service).to_owned();
        let taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut round = Round { cidr: self.cidr, store, key, held, taking: &taking, taken: Vec::new() };
        let spec = meta::child(service, "spec");
        let done = round.address(spec).and_then(|()| round.node_ports(spec)).and_then(|()| round.health_check(spec));
        let slots = round.taken;
        done.map_err(|failure| match failure {
            Failure::Field(field) => Status::invalid("", "Service", &name, &[*field]),
            Failure::Exhausted(what) => Status::internal(format!("failed to allocate a {what}: range is full")),
            Failure::Store(status) => status,
        })?;
        if slots.is_empty() {
            return Ok(Claim::default());
        }
        let mut taking = taking;
        taking.extend(slots.iter().map(|slot| (*slot, key.clone())));
        Ok(Claim(Some(Arc::new(Taken { taking: self.taking.clone(), slots, key: key.clone() }))))
    }
}

/// Everything a Service has.
fn slots(service: &Object) -> impl Iterator<Item = Slot> {
    let addresses = service::cluster_ips(service).map(Slot::Address);
    addresses.chain(service::node_ports(service).into_iter().map(Slot::NodePort))
}

enum Failure {
    Field(Box<FieldError>),
    Exhausted(&'static str),
    Store(Status),
}

impl Failure {
    fn field(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::Field(Box::new(FieldError::invalid(path, value, detail)))
    }
}

/// One allocation.
struct Round<'a> {
    cidr: Cidr,
    store: &'a Store,
    key: &'a Key,
    /// Index keys of what the Service has already.
    held: BTreeSet<String>,
    taking: &'a [(Slot, Key)],
    taken: Vec<Slot>,
}

impl Round<'_> {
    fn holds(&self, slot: Slot) -> bool {
        self.held.contains(&slot.index()) || self.taken.contains(&slot)
    }

    /// Takes what nobody else has; returns whether it was free.
    fn take(&mut self, slot: Slot) -> Result<bool, Failure> {
        if let Slot::Address(address) = slot
            && FIXED.iter().any(|(ns, name, at)| {
                self.cidr.host(*at) == address && (*ns, *name) != (&*self.key.namespace, &*self.key.name)
            })
        {
            return Ok(false);
        }
        if self.taking.iter().any(|(s, key)| *s == slot && key != self.key) {
            return Ok(false);
        }
        let holders = self.store.find(&self.key.resource, &slot.index());
        let holders = holders.map_err(|e| Failure::Store(error::status(&self.key.resource, e)))?;
        let free = holders.iter().all(|record| record.key == *self.key);
        if free {
            self.taken.push(slot);
        }
        Ok(free)
    }

    /// Takes any free one: of `first` by chance, else of `last`.
    fn pick(
        &mut self,
        slot: impl Fn(u32) -> Slot,
        first: Range<u32>,
        last: Range<u32>,
    ) -> Result<Option<Slot>, Failure> {
        let count = first.end.saturating_sub(first.start);
        let begin = if count > 0 { random() % count } else { 0 };
        let by_chance = (0..count).map(|i| first.start + (begin + i) % count);
        for n in by_chance.chain(last) {
            let slot = slot(n);
            if !self.holds(slot) && self.take(slot)? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    fn address(&mut self, spec: &mut Object) -> Result<(), Failure> {
        let kind = meta::text(spec, "type");
        if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") || meta::text(spec, "clusterIP") == HEADLESS {
            return Ok(());
        }
        let list = meta::list_at(spec, "/clusterIPs").to_vec();
        if list.is_empty() && !spec.contains_key("clusterIP") {
            let reserved = static_addresses(self.cidr);
            let (cidr, end) = (self.cidr, self.cidr.size() - 1);
            let slot = self.pick(|n| Slot::Address(cidr.host(n)), reserved..end, 1..reserved)?;
            let Some(Slot::Address(address)) = slot else { return Err(Failure::Exhausted("serviceIP")) };
            spec.insert("clusterIP".into(), address.to_string().into());
            spec.insert("clusterIPs".into(), json!([address.to_string()]));
            return Ok(());
        }
        for address in list.iter().filter_map(|ip| ip.as_str()?.parse::<Ipv4Addr>().ok()) {
            let slot = Slot::Address(address);
            if self.holds(slot) {
                continue;
            }
            let refuse = |why: String| {
                Failure::field("spec.clusterIPs", list.clone(), format!("failed to allocate IP {address}: {why}"))
            };
            if !is_usable(self.cidr, address) {
                let cidr = self.cidr;
                return Err(refuse(format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs is {cidr}"
                )));
            }
            if !self.take(slot)? {
                return Err(refuse("provided IP is already allocated".to_owned()));
            }
        }
        Ok(())
    }

    /// Ports of the same number (TCP and UDP) share a node port.
    fn node_ports(&mut self, spec: &mut Object) -> Result<(), Failure> {
        if !matches!(meta::text(spec, "type"), "NodePort" | "LoadBalancer") {
            return Ok(());
        }
        let mut shared: HashMap<i64, u16> = HashMap::new();
        for (i, port) in meta::items(spec, "ports").enumerate() {
            let Some(number) = meta::int(port, "nodePort") else { continue };
            let taken = self.request(&format!("spec.ports[{i}].nodePort"), number)?;
            shared.entry(meta::int(port, "port").unwrap_or(0)).or_insert(taken);
        }
        if !service::allocates_node_ports(spec) {
            return Ok(());
        }
        for port in meta::items_mut(spec, "ports").filter(|port| !port.contains_key("nodePort")) {
            let number = meta::int(port, "port").unwrap_or(0);
            let node_port = match shared.get(&number) {
                Some(node_port) => *node_port,
                None => self.any_port()?,
            };
            shared.insert(number, node_port);
            port.insert("nodePort".into(), node_port.into());
        }
        Ok(())
    }

    fn health_check(&mut self, spec: &mut Object) -> Result<(), Failure> {
        if !service::needs_health_check(spec) {
            return Ok(());
        }
        let path = "spec.healthCheckNodePort";
        match meta::int(spec, "healthCheckNodePort") {
            None => {
                let port = self.any_port()?;
                spec.insert("healthCheckNodePort".into(), port.into());
            }
            Some(number) if meta::items(spec, "ports").any(|p| meta::int(p, "nodePort") == Some(number)) => {
                return Err(Failure::field(path, number, TAKEN));
            }
            Some(number) => drop(self.request(path, number)?),
        }
        Ok(())
    }

    /// A certain node port.
    fn request(&mut self, path: &str, number: i64) -> Result<u16, Failure> {
        let port = u16::try_from(number).unwrap_or_default();
        let slot = Slot::NodePort(port);
        if self.holds(slot) {
            return Ok(port);
        }
        if !NODE_PORTS.contains(&port) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            let range = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
            return Err(Failure::field(path, number, range));
        }
        if !self.take(slot)? {
            return Err(Failure::field(path, number, TAKEN));
        }
        Ok(port)
    }

    fn any_port(&mut self) -> Result<u16, Failure> {
        let (first, end) = (u32::from(*NODE_PORTS.start()), u32::from(*NODE_PORTS.end()) + 1);
        let slot = |n| Slot::NodePort(u16::try_from(n).unwrap_or_default());
        match self.pick(slot, first + STATIC_PORTS..end, first..first + STATIC_PORTS)? {
            Some(Slot::NodePort(port)) => Ok(port),
            _ => Err(Failure::Exhausted("nodePort")),
        }
    }
}

/// Neither outside of the range nor its first or last one.
fn is_usable(cidr: Cidr, address: Ipv4Addr) -> bool {
    cidr.index(address).is_some_and(|i| i > 0 && i + 1 < cidr.size())
}

/// Where the addresses that are given out by chance begin: a sixteenth of the range, 16 to 256, is left to people who
/// ask for a certain one. A small range has no such part.
fn static_addresses(cidr: Cidr) -> u32 {
    let usable = cidr.size() - 2;
    if usable < 16 { 1 } else { (usable / 16).clamp(16, 256) + 1 }
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

#[cfg(test)]
mod tests;
