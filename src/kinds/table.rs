//! The kind table: which resources are served, in discovery order.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::config_map::ConfigMap;
use super::deployment::Deployment;
use super::endpoint_slice::EndpointSlice;
use super::endpoints::Endpoints;
use super::event::Event;
use super::lease::Lease;
use super::namespace::Namespace;
use super::node::Node;
use super::pod::Pod;
use super::replica_set::ReplicaSet;
use super::replication_controller::ReplicationController;
use super::secret::Secret;
use super::service::Service;
use super::service_account::ServiceAccount;
use super::status::qualified;
use super::{Hooks, Kind, Subresource};

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: the name of the resource in store keys and texts.
    pub fn resource(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// Whether the table begins with a column `Name`; not where the kind has one of its own further on.
    pub fn leads_with_name(&self) -> bool {
        self.hooks.columns().iter().all(|c| c.name != "Name")
    }

    /// Whether `subresource` is served beside the object.
    pub fn serves(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}

impl Subresource {
    /// Its name in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Other(name) => name,
        }
    }
}

/// All served kinds. Shared by every part of the server; custom kinds come and go while it runs.
pub struct KindTable {
    kinds: RwLock<Vec<Arc<Kind>>>,
    changed: watch::Sender<()>,
}

impl Default for KindTable {
    fn default() -> Self {
        Self::builtin()
    }
}

impl KindTable {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        Self { kinds: RwLock::new(rows().into_iter().map(Arc::new).collect()), changed: watch::Sender::new(()) }
    }

    /// The kind served under `/apis/GROUP/VERSION/…/PLURAL` (`group` is empty for `/api/v1`).
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.find(|k| k.group == group && k.version == version && k.plural == plural)
    }

    /// The kind of an object with this group, version and `kind`.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.find(|k| k.group == group && k.version == version && k.kind == kind)
    }

    /// The kind of an object with this `apiVersion` (`v1`, `apps/v1`) and `kind`.
    pub fn by_api_version(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.by_kind(group, version, kind)
    }

    /// The kind stored under a resource name such as `pods` or `deployments.apps`; the first version if several.
    pub fn by_resource(&self, resource: &str) -> Option<Arc<Kind>> {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.find(|k| k.plural == plural && k.group == group)
    }

    /// All kinds in discovery order, as they are now.
    pub fn all(&self) -> Vec<Arc<Kind>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a kind after the others of its group and version, or replaces the one of the same resource and version.
    pub fn insert(&self, kind: Kind) -> Arc<Kind> {
        let kind = Arc::new(kind);
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        let same_version = |k: &Kind| k.group == kind.group && k.version == kind.version;
        if let Some(old) = kinds.iter_mut().find(|k| same_version(k) && k.plural == kind.plural) {
            *old = kind.clone();
        } else {
            let end = kinds.iter().rposition(|k| same_version(k)).map_or(kinds.len(), |i| i + 1);
            kinds.insert(end, kind.clone());
        }
        drop(kinds);
        self.changed.send_replace(());
        kind
    }

    /// Removes every version of a resource such as `widgets.example.com`; returns whether there was one.
    pub fn remove(&self, resource: &str) -> bool {
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        let before = kinds.len();
        kinds.retain(|k| k.resource() != resource);
        let removed = kinds.len() != before;
        drop(kinds);
        self.changed.send_if_modified(|()| removed);
        removed
    }

    /// Hears of every [`KindTable::insert`] and [`KindTable::remove`] from now on.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn find(&self, test: impl Fn(&Kind) -> bool) -> Option<Arc<Kind>> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().find(|k| test(k)).cloned()
    }
}

use Subresource::{Binding, Eviction, Other, Scale, Status};

/// The built-in kinds: groups in the order of Kubernetes' discovery, resources by name.
fn rows() -> Vec<Kind> {
    let core = |kind, plural, hooks: &'static dyn Hooks| Kind::new(("", "v1"), kind, plural, hooks);
    let apps = |kind, plural, hooks: &'static dyn Hooks| Kind::new(("apps", "v1"), kind, plural, hooks).in_all();
    vec![
        core("ConfigMap", "configmaps", &ConfigMap).short("cm"),
        core("Endpoints", "endpoints", &Endpoints).short("ep"),
        core("Event", "events", &Event).short("ev").volatile(),
        core("Namespace", "namespaces", &Namespace).short("ns").cluster().sub(&[Other("finalize"), Status]),
        core("Node", "nodes", &Node).short("no").cluster().sub(&[Status]),
        core("Pod", "pods", &Pod).short("po").in_all().sub(&[
            Other("attach"),
            Binding,
            Eviction,
            Other("exec"),
            Other("log"),
            Other("portforward"),
            Other("proxy"),
            Status,
        ]),
        core("ReplicationController", "replicationcontrollers", &ReplicationController)
            .short("rc")
            .in_all()
            .sub(&[Scale, Status]),
        core("Secret", "secrets", &Secret),
        core("ServiceAccount", "serviceaccounts", &ServiceAccount).short("sa"),
        core("Service", "services", &Service).short("svc").in_all().sub(&[Other("proxy"), Status]),
        apps("Deployment", "deployments", &Deployment).short("deploy").sub(&[Scale, Status]),
        apps("ReplicaSet", "replicasets", &ReplicaSet).short("rs").sub(&[Scale, Status]),
        Kind::new(("coordination.k8s.io", "v1"), "Lease", "leases", &Lease).volatile(),
        Kind::new(("discovery.k8s.io", "v1"), "EndpointSlice", "endpointslices", &EndpointSlice),
    ]
}

/// How rows are written: a namespaced kind without subresources, short names or categories, and what differs.
impl Kind {
    pub(super) fn new(
        (group, version): (&'static str, &'static str),
        kind: &'static str,
        plural: &'static str,
        hooks: &'static dyn Hooks,
    ) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: Cow::Owned(kind.to_ascii_lowercase()),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            subresources: &[],
            volatile: false,
            hooks,
        }
    }

    fn short(mut self, name: &'static str) -> Self {
        self.short_names.push(name.into());
        self
    }

    fn in_all(mut self) -> Self {
        self.categories.push("all".into());
        self
    }

    pub(super) fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    fn sub(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_are_found_by_every_name() {
        let table = KindTable::builtin();
        let deployment = table.by_plural("apps", "v1", "deployments").unwrap();
        assert_eq!(deployment.api_version(), "apps/v1");
        assert_eq!(deployment.singular, "deployment");
        assert_eq!(table.by_kind("apps", "v1", "Deployment").unwrap().plural, "deployments");
        assert_eq!(table.by_resource("deployments.apps").unwrap().kind, "Deployment");
        assert_eq!(table.by_resource("leases.coordination.k8s.io").unwrap().kind, "Lease");
        assert_eq!(table.by_api_version("v1", "Pod").unwrap().resource(), "pods");
        assert!(table.by_plural("", "v1", "deployments").is_none());
        assert!(deployment.leads_with_name());
        assert!(!table.by_resource("events").unwrap().leads_with_name());
        assert!(table.by_plural("apps", "v1beta1", "deployments").is_none());
    }

    #[test]
    fn custom_kinds_come_and_go() {
        let table = KindTable::builtin();
        let before = table.all().len();
        let mut widget = (*table.by_kind("apps", "v1", "ReplicaSet").unwrap()).clone();
        widget.kind = "Widget".into();
        widget.plural = Cow::Owned("widgets".to_owned());
        table.insert(widget.clone());
        table.insert(widget);
        let all = table.all();
        assert_eq!(all.len(), before + 1);
        let at = all.iter().position(|k| k.kind == "Widget").unwrap();
        assert_eq!(all[at - 1].kind, "ReplicaSet");
        assert!(table.remove("widgets.apps"));
        assert!(!table.remove("widgets.apps"));
        assert_eq!(table.all().len(), before);
    }
}
