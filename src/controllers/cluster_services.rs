//! The cluster's own Services: `default/kubernetes`, where pods reach the API, and `kube-system/kube-dns`, where they
//! find their name server. Made at the first start, and made again or put right whenever they are not as they should be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::cidr::Cidr;
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::registry::{Registry, WriteOptions};
use crate::store::Key;

use super::runner::{Change, Controller, Interest, Next};
use super::{Config, kind, still_there};

const NAME: &str = "cluster-services";
const API: (&str, &str) = ("default", "kubernetes");
const DNS: (&str, &str) = ("kube-system", "kube-dns");
const DNS_PORT: u16 = 53;

/// See the module.
pub struct ClusterServices {
    registry: Registry,
    services: Arc<Kind>,
    endpoints: Arc<Kind>,
    slices: Arc<Kind>,
    api: SocketAddr,
    cidr: Cidr,
    options: WriteOptions,
}

impl ClusterServices {
    /// The controller over a registry.
    pub fn new(registry: &Registry, config: &Config) -> Result<Self, Status> {
        Ok(Self {
            registry: registry.clone(),
            services: kind(registry, "services")?,
            endpoints: kind(registry, "endpoints")?,
            slices: kind(registry, "endpointslices.discovery.k8s.io")?,
            api: config.api,
            cidr: config.service_cidr,
            options: WriteOptions::by(NAME),
        })
    }

    async fn api(&self) -> Result<(), Status> {
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let port = json!({"name": "https", "port": 443, "protocol": "TCP", "targetPort": self.api.port()});
        self.service(API, &labels, 1, json!([port])).await?;
        let IpAddr::V4(address) = self.api.ip() else { return Ok(()) };
        let port = json!({"name": "https", "port": self.api.port(), "protocol": "TCP"});
        let subsets = json!([{"addresses": [{"ip": address}], "ports": [port]}]);
        let endpoints = json!({
            "metadata": {"name": API.1, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": subsets,
        });
        self.ensure(&self.endpoints, API.0, endpoints, &["/subsets"]).await?;
        let slice = json!({
            "metadata": {"name": API.1, "labels": {"kubernetes.io/service-name": API.1}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [port],
        });
        self.ensure(&self.slices, API.0, slice, &["/endpoints", "/ports"]).await
    }

    /// Without endpoints: every node answers for itself at this address.
    async fn dns(&self) -> Result<(), Status> {
        let labels = json!({
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
        });
        let port =
            |name, protocol| json!({"name": name, "port": DNS_PORT, "protocol": protocol, "targetPort": DNS_PORT});
        self.service(DNS, &labels, 10, json!([port("dns", "UDP"), port("dns-tcp", "TCP")])).await
    }

    async fn service(&self, (ns, name): (&str, &str), labels: &Value, at: u32, ports: Value) -> Result<(), Status> {
        let service = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"type": "ClusterIP", "clusterIP": self.cidr.host(at), "ports": ports},
        });
        self.ensure(&self.services, ns, service, &["/spec/ports"]).await
    }

    /// Makes the object where it is missing, and gives it the values at these paths where they differ.
    async fn ensure(&self, kind: &Kind, ns: &str, wanted: Value, paths: &[&str]) -> Result<(), Status> {
        let Value::Object(wanted) = wanted else { return Ok(()) };
        let name = meta::name(&wanted).to_owned();
        if still_there(self.registry.get_raw(kind, ns, &name))?.is_none() {
            return self.registry.create(kind, ns, wanted, &self.options).await.map(drop);
        }
        let mend = |object: &mut Object| {
            for path in paths {
                if let Some(value) = meta::pointer(&wanted, path) {
                    meta::set(object, path, value.clone());
                }
            }
            Ok(())
        };
        still_there(self.registry.modify(kind, ns, &name, None, &self.options, mend).await).map(drop)
    }
}

impl Controller for ClusterServices {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Namespaces are there from the first start: they call for what is missing.
    fn interest(&self) -> Interest {
        Interest::Resources(&["namespaces", "services", "endpoints", "endpointslices.discovery.k8s.io"])
    }

    fn keys(&self, change: &Change<'_>) -> Vec<Key> {
        let (ns, name) = (change.meta.namespace.as_str(), change.meta.name.as_str());
        let ours = [API, DNS].into_iter().find(|own| match change.resource() {
            "namespaces" => name == own.0,
            _ => (ns, name) == *own,
        });
        ours.map(|(ns, name)| Key::new("services", ns, name)).into_iter().collect()
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Next, Status>> {
        Box::pin(async move {
            let done = if &*key.name == API.1 { self.api().await } else { self.dns().await };
            done.map(|()| None)
        })
    }
}
