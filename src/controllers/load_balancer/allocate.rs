//! Which Service gets which address: a pure function of the pools and all Services at once.
//!
//! What a Service has it keeps for as long as that fits; so the Services' own status is all the memory there is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::Value;

use crate::controllers::model::{Annotations, Meta, or_default};
use crate::kinds::Object;
use crate::kinds::selector::LabelSelector;
use crate::pools::Pool;

/// Services with the same text here may share an address.
const SHARING: [&str; 2] = ["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
const WISHED_ADDRESS: [&str; 2] = ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
const WISHED_POOL: [&str; 2] = ["metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// Of a Service, what matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    /// `metadata`
    pub(super) metadata: Meta,
    /// `spec`
    pub(super) spec: Spec,
    /// `status`
    #[serde(deserialize_with = "or_default")]
    pub(super) status: ServiceStatus,
}

/// `spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    /// `type`
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// `loadBalancerIP`
    #[serde(rename = "loadBalancerIP", deserialize_with = "or_default")]
    pub(super) load_balancer_ip: String,
    /// `loadBalancerClass`
    pub(super) load_balancer_class: Option<String>,
    /// `externalTrafficPolicy`
    #[serde(deserialize_with = "or_default")]
    pub(super) external_traffic_policy: String,
    /// `selector`
    #[serde(deserialize_with = "or_default")]
    pub(super) selector: Object,
    /// `ports`
    #[serde(deserialize_with = "or_default")]
    pub(super) ports: Vec<Port>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    /// `protocol`
    pub(super) protocol: String,
    /// `port`
    pub(super) port: i64,
}

/// `status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceStatus {
    /// `loadBalancer`
    #[serde(deserialize_with = "or_default")]
    pub(super) load_balancer: LoadBalancer,
}

/// `status.loadBalancer`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoadBalancer {
    /// `ingress`
    #[serde(deserialize_with = "or_default")]
    pub(super) ingress: Vec<Value>,
}

/// What becomes of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is nobody's business here: another type, or another load balancer's class.
    NotOurs,
    /// Its type needs no address: one it has goes.
    NotNeeded,
    /// It has this address, and had it before.
    Kept(Ipv4Addr),
    /// It gets this address.
    Assigned(Ipv4Addr),
    /// It gets none, and why; one it has goes.
    Pending(String),
    /// It keeps what it has, because a source of pools cannot be read now.
    Unknown,
}

/// The pools there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Pools {
    /// All of them, names and addresses disjoint.
    pub(super) pools: Vec<Pool>,
    /// Some source of pools was never readable: an address of no pool may be from there.
    pub(super) incomplete: bool,
    /// Labels of the namespaces, if a pool asks for them.
    pub(super) namespaces: BTreeMap<String, Object>,
}

/// Who has an address.
struct Holder<'a> {
    key: Option<&'a str>,
    /// Where traffic goes where that matters: two Services of one address must not disagree on which node has it.
    local_to: Option<&'a Object>,
    ports: &'a [Port],
}

type Taken<'a> = BTreeMap<Ipv4Addr, Vec<Holder<'a>>>;

/// Settles all Services, in their order. Those that have an address keep it before others get one, the older first.
pub(super) fn settle(pools: &Pools, services: &[Service]) -> Vec<Outcome> {
    let mut order: Vec<usize> = (0..services.len()).collect();
    let age = |s: &Service| (s.metadata.creation_timestamp, s.metadata.namespace.clone(), s.metadata.name.clone());
    order.sort_by_cached_key(|i| (services[*i].held().is_none(), age(&services[*i])));
    let mut outcomes = vec![Outcome::NotOurs; services.len()];
    let mut taken = Taken::new();
    let mut waiting = Vec::new();
    for index in order {
        let service = &services[index];
        if !service.is_ours() {
            continue;
        }
        if service.spec.kind != "LoadBalancer" {
            outcomes[index] = Outcome::NotNeeded;
            continue;
        }
        match service.held() {
            Some(address) if may_keep(pools, service, address, &taken) => {
                take(&mut taken, address, service);
                outcomes[index] = Outcome::Kept(address);
            }
            Some(address) if pools.incomplete && !pools.pools.iter().any(|p| p.contains(address)) => {
                take(&mut taken, address, service);
                outcomes[index] = Outcome::Unknown;
            }
            _ => waiting.push(index),
        }
    }
    for index in waiting {
        let service = &services[index];
        outcomes[index] = match allocate(pools, service, &taken) {
            Ok(address) => {
                take(&mut taken, address, service);
                Outcome::Assigned(address)
            }
            Err(reason) => Outcome::Pending(reason),
        };
    }
    outcomes
}

fn take<'a>(taken: &mut Taken<'a>, address: Ipv4Addr, service: &'a Service) {
    taken.entry(address).or_default().push(service.holder());
}

fn may_keep(pools: &Pools, service: &Service, address: Ipv4Addr, taken: &Taken<'_>) -> bool {
    let Ok(wish) = service.wish() else { return false };
    let wished = wish.address.is_none_or(|wished| wished == address);
    let named = wish.address.is_some() || wish.pool.is_some();
    let pool = pools.pools.iter().find(|p| p.contains(address));
    wished
        && pool.is_some_and(|p| {
            (named || p.auto_assign) && wish.pool.is_none_or(|name| name == p.name) && pools.serves(p, service)
        })
        && clash(service, taken.get(&address)).is_none()
}

/// An address for a Service that has none, or why there is none.
fn allocate(pools: &Pools, service: &Service, taken: &Taken<'_>) -> Result<Ipv4Addr, String> {
    let wish = service.wish()?;
    if let Some(name) = wish.pool
        && !pools.pools.iter().any(|p| p.name == name)
    {
        return Err(format!("there is no pool {name:?}"));
    }
    if let Some(address) = wish.address {
        let pool = pools.pools.iter().find(|p| p.contains(address));
        let pool = pool.ok_or_else(|| format!("{address} is in no pool"))?;
        if let Some(name) = wish.pool.filter(|name| *name != pool.name) {
            return Err(format!("{address} is not in pool {name:?}"));
        }
        if !pools.serves(pool, service) {
            return Err(format!("pool {:?} is not for this Service", pool.name));
        }
        return match clash(service, taken.get(&address)) {
            None => Ok(address),
            Some(why) => Err(format!("{address} {why}")),
        };
    }
    let mut fitting: Vec<&Pool> = pools.pools.iter().filter(|p| pools.serves(p, service)).collect();
    match wish.pool {
        Some(name) => fitting.retain(|p| p.name == name),
        None => fitting.retain(|p| p.auto_assign),
    }
    if fitting.is_empty() {
        return Err(match (pools.pools.is_empty(), wish.pool) {
            (true, _) => "no pool of load-balancer addresses is configured".to_owned(),
            (false, Some(name)) => format!("pool {name:?} is not for this Service"),
            (false, None) => "no pool is for this Service".to_owned(),
        });
    }
    fitting.sort_by_key(|p| p.priority.wrapping_sub(1));
    let in_use = |address: Ipv4Addr| fitting.iter().any(|p| p.contains(address));
    let mut shared = taken.iter().filter(|(address, _)| service.sharing_key().is_some() && in_use(**address));
    if let Some((address, _)) = shared.find(|(_, holders)| clash(service, Some(holders)).is_none()) {
        return Ok(*address);
    }
    let free = fitting.iter().find_map(|p| p.iter().find(|address| !taken.contains_key(address)));
    free.ok_or_else(|| {
        let names: Vec<&str> = fitting.iter().map(|p| p.name.as_str()).collect();
        format!("no free address in {}", names.join(", "))
    })
}

/// Why a Service cannot have an address beside those who have it.
fn clash(service: &Service, holders: Option<&Vec<Holder<'_>>>) -> Option<&'static str> {
    let new = service.holder();
    holders.into_iter().flatten().find_map(|old| match () {
        () if old.key.is_none() || old.key != new.key => Some("is in use by another Service"),
        () if old.ports.iter().any(|port| new.ports.contains(port)) => {
            Some("is shared, but another Service has one of its ports")
        }
        () if old.local_to != new.local_to => Some("is shared by Services of another externalTrafficPolicy"),
        () => None,
    })
}

/// What a Service asks for.
struct Wish<'a> {
    address: Option<Ipv4Addr>,
    pool: Option<&'a str>,
}

fn annotation<'a>(annotations: &'a Annotations, names: [&str; 2]) -> Option<&'a str> {
    names.into_iter().find_map(|name| annotations.get(name)).map(|text| text.trim()).filter(|text| !text.is_empty())
}

impl Service {
    /// No other load balancer was asked for.
    fn is_ours(&self) -> bool {
        self.spec.load_balancer_class.is_none()
    }

    /// The address it has.
    pub(super) fn held(&self) -> Option<Ipv4Addr> {
        match self.status.load_balancer.ingress.as_slice() {
            [only] => only.get("ip")?.as_str()?.parse().ok(),
            _ => None,
        }
    }

    fn sharing_key(&self) -> Option<&str> {
        annotation(&self.metadata.annotations, SHARING)
    }

    fn holder(&self) -> Holder<'_> {
        let is_local = self.spec.external_traffic_policy == "Local";
        Holder { key: self.sharing_key(), local_to: is_local.then_some(&self.spec.selector), ports: &self.spec.ports }
    }

    fn wish(&self) -> Result<Wish<'_>, String> {
        let pool = annotation(&self.metadata.annotations, WISHED_POOL);
        let listed = annotation(&self.metadata.annotations, WISHED_ADDRESS);
        let field = Some(self.spec.load_balancer_ip.as_str()).filter(|text| !text.is_empty());
        let (name, text) = match (listed, field) {
            (Some(_), Some(_)) => {
                return Err(format!("both spec.loadBalancerIP and the annotation {} are set", WISHED_ADDRESS[0]));
            }
            (Some(text), None) => (WISHED_ADDRESS[0], text),
            (None, Some(text)) => ("spec.loadBalancerIP", text),
            (None, None) => return Ok(Wish { address: None, pool }),
        };
        let address = text.parse().map_err(|_| format!("{name}: {text:?} is not one IPv4 address"))?;
        Ok(Wish { address: Some(address), pool })
    }
}

impl Pools {
    /// Whether a pool is for a Service.
    fn serves(&self, pool: &Pool, service: &Service) -> bool {
        let namespace = &service.metadata.namespace;
        let fits =
            |selector: &Object, labels: Option<&Object>| LabelSelector::from_object(selector).matches_labels(labels);
        let labels = self.namespaces.get(namespace);
        let everywhere = pool.namespaces.is_empty() && pool.namespace_selectors.is_empty();
        let here = everywhere
            || pool.namespaces.contains(namespace)
            || pool.namespace_selectors.iter().any(|s| fits(s, labels));
        let chosen = pool.service_selectors.is_empty()
            || pool.service_selectors.iter().any(|s| fits(s, Some(&service.metadata.labels)));
        here && chosen
    }
}

#[cfg(test)]
mod tests;
