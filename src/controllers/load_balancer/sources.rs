//! Where pools come from: the configuration, MetalLB's ConfigMap, and its objects where those kinds are defined.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::controllers::model::{Meta, or_default};
use crate::controllers::still_there;
use crate::events::{EventKind, EventRecorder, Reference};
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::pools::{AddressRange, Pool};
use crate::registry::{ListOptions, Registry};

use super::allocate::Pools;

/// Namespace and name of MetalLB's ConfigMap.
pub(super) const CONFIG_MAP: (&str, &str) = ("metallb-system", "config");
/// MetalLB's kinds, as they are served where its CRDs are installed.
pub(super) const POOLS: &str = "ipaddresspools.metallb.io";
/// See [`POOLS`].
pub(super) const ADVERTISEMENTS: &str = "l2advertisements.metallb.io";

/// Reads the pools and remembers the last good state of what is not readable now.
pub(super) struct Sources {
    configured: Vec<Pool>,
    reserved: Vec<AddressRange>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// The ConfigMap's last good pools.
    config_map: Vec<Pool>,
    /// The ConfigMap was readable, or absent, at some time.
    known: bool,
    /// What was said about which object, so that it is said once.
    said: BTreeMap<String, String>,
}

/// The document in the ConfigMap.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    address_pools: Vec<Pool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Custom {
    metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    spec: Map<String, Value>,
}

/// `spec` of an L2Advertisement.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Advertisement {
    ip_address_pools: Vec<String>,
    ip_address_pool_selectors: Vec<Object>,
}

impl Advertisement {
    fn covers(&self, pool: &Meta) -> bool {
        let all = self.ip_address_pools.is_empty() && self.ip_address_pool_selectors.is_empty();
        let selected = |s: &Object| LabelSelector::from_object(s).matches_labels(Some(&pool.labels));
        all || self.ip_address_pools.contains(&pool.name) || self.ip_address_pool_selectors.iter().any(selected)
    }
}

impl Sources {
    pub(super) fn new(configured: &[Pool], reserved: &[AddressRange]) -> Self {
        Self { configured: configured.to_vec(), reserved: reserved.to_vec(), last: Mutex::default() }
    }

    /// The pools as they are now. What cannot be used is told by an event on its object.
    pub(super) fn read(&self, registry: &Registry, events: &EventRecorder) -> Result<Pools, Status> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = BTreeMap::new();
        self.read_config_map(registry, &mut last, &mut problems)?;
        let mut pools = self.configured.clone();
        pools.extend(last.config_map.iter().cloned());
        let mut incomplete = !last.known;
        for (about, pool) in custom_pools(registry, &mut problems)? {
            match pool.and_then(|p| p.check(pools.iter(), &self.reserved).map(|()| p).map_err(|e| e.to_string())) {
                Ok(pool) => pools.push(pool),
                Err(problem) => {
                    incomplete = true;
                    problems.insert(about.uid.clone(), (about, problem));
                }
            }
        }
        last.tell(problems, events);
        Ok(Pools { pools, incomplete, namespaces: BTreeMap::new() })
    }

    fn read_config_map(&self, registry: &Registry, last: &mut Last, problems: &mut Problems) -> Result<(), Status> {
        let (namespace, name) = CONFIG_MAP;
        let kind = super::kind(registry, "configmaps")?;
        let Some(map) = still_there(registry.get(&kind, namespace, name))? else {
            (last.config_map, last.known) = (Vec::new(), true);
            return Ok(());
        };
        match self.parse(meta::str_at(&map, "/data/config")) {
            Ok(pools) => (last.config_map, last.known) = (pools, true),
            Err(problem) => {
                problems.insert(meta::uid(&map).to_owned(), (Reference::to(&map), problem));
            }
        }
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<Vec<Pool>, String> {
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        if text.trim().is_empty() {
            return Err("data.config is missing or empty".to_owned());
        }
        let document: Document =
            serde_yaml::from_str(text).map_err(|e| format!("data.config: {}", first_line(e.to_string())))?;
        let pools = document.address_pools;
        for (index, pool) in pools.iter().enumerate() {
            let others = self.configured.iter().chain(&pools[..index]);
            pool.check(others, &self.reserved).map_err(|e| format!("data.config: {e}"))?;
        }
        Ok(pools)
    }
}

/// What is wrong with which object, by its UID.
type Problems = BTreeMap<String, (Reference, String)>;

impl Last {
    fn tell(&mut self, problems: Problems, events: &EventRecorder) {
        self.said.retain(|uid, _| problems.contains_key(uid));
        for (uid, (about, problem)) in problems {
            if self.said.get(&uid) != Some(&problem) {
                tracing::warn!(object = about.name, kind = about.kind, problem, "load-balancer pool not usable");
                events.record(&about, EventKind::Warning, "InvalidConfiguration", problem.clone());
                self.said.insert(uid, problem);
            }
        }
    }
}

fn list(registry: &Registry, resource: &str) -> Result<Vec<(Reference, Custom)>, Status> {
    let Some(kind) = registry.kinds().by_resource(resource) else { return Ok(Vec::new()) };
    let objects: Vec<Custom> = registry.list_as(&kind, &ListOptions::default())?;
    Ok(objects.into_iter().map(|object| (reference(&kind, &object.metadata), object)).collect())
}

fn reference(kind: &Kind, meta: &Meta) -> Reference {
    Reference {
        api_version: kind.api_version(),
        kind: kind.kind.to_string(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        field_path: String::new(),
    }
}

type Found = Vec<(Reference, Result<Pool, String>)>;

/// Pools from objects. One that no L2Advertisement covers would be handed out but never reached, so it is left out.
fn custom_pools(registry: &Registry, problems: &mut Problems) -> Result<Found, Status> {
    let mut advertisements = Vec::new();
    for (about, object) in list(registry, ADVERTISEMENTS)? {
        match serde_json::from_value::<Advertisement>(Value::Object(object.spec)) {
            Ok(advertisement) => advertisements.push(advertisement),
            Err(error) => drop(problems.insert(about.uid.clone(), (about, format!("spec: {error}")))),
        }
    }
    let found = list(registry, POOLS)?.into_iter().map(|(about, object)| {
        let covered = advertisements.iter().any(|a| a.covers(&object.metadata));
        let pool = match covered {
            true => pool_of(object),
            false => Err("no L2Advertisement announces it".to_owned()),
        };
        (about, pool)
    });
    Ok(found.collect())
}

/// `spec` with `serviceAllocation` unfolded is the written form of a pool.
fn pool_of(object: Custom) -> Result<Pool, String> {
    let mut spec = object.spec;
    if let Some(Value::Object(allocation)) = spec.remove("serviceAllocation") {
        spec.extend(allocation);
    }
    spec.insert("name".to_owned(), json!(object.metadata.name));
    serde_json::from_value(Value::Object(spec)).map_err(|e| format!("spec: {e}"))
}
