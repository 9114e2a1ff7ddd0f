//! What works from the cluster's Services on a node: the proxy, the name server, the announcer, routes to other nodes.

use std::net::IpAddr;

use tokio::sync::watch;

use super::outbox::Outbox;
use super::service_view::{Changes, ServiceView};
use crate::cidr::Cidr;
use crate::config::ProxyBalance;
use crate::link::message::{AddressNews, AddressReport};
use crate::network::addresses::LocalAddresses;
use crate::network::arp::News;
use crate::network::lan::{self, Notice};
use crate::network::overlay::Vxlan;
use crate::network::routes::{self, RouteConfig};
use crate::network::services::Services;
use crate::network::{dns, proxy};

/// What a part that works from Services is told. Cheap to clone.
#[derive(Clone)]
pub(super) struct Site {
    /// The Services and the other nodes.
    pub(super) view: ServiceView,
    /// The node's name.
    pub(super) node: String,
    /// The node's addresses, the most important first.
    pub(super) addresses: Vec<IpAddr>,
    /// Cluster addresses.
    pub(super) service_cidr: Cidr,
    /// Addresses of all pods of the cluster.
    pub(super) cluster_cidr: Cidr,
    /// How the proxy chooses among endpoints.
    pub(super) proxy_balance: ProxyBalance,
    /// Addresses of this node's pods.
    pub(super) pod_cidr: Cidr,
    /// The pod bridge; its address is the first one of `pod_cidr`.
    pub(super) bridge: String,
    /// For example `cluster.local`.
    pub(super) domain: String,
    /// The tunnel to nodes of other segments.
    pub(super) vxlan: Vxlan,
    /// What keeps pods of other nodes from being reached.
    pub(super) problem: watch::Sender<Option<String>>,
    /// Where events go.
    pub(super) outbox: Outbox,
}

/// Runs everything that works from Services; never ends. What cannot run says so in the log and leaves the others alone.
pub(super) fn run(site: Site) -> impl Future<Output = ()> + Send {
    // From the call on no change is missed, however late the future is polled.
    let changes = Changes::of(&site.view);
    async move {
        let Site { view, service_cidr, cluster_cidr, domain, .. } = &site;
        let names = dns::Config::new(domain, *service_cidr, *cluster_cidr);
        tokio::join!(
            view.keep(changes),
            name_server(view.services.clone(), names, *service_cidr),
            proxy(&site),
            route(&site),
            announce(&site),
        );
    }
}

/// Ways to the pods of other nodes.
async fn route(site: &Site) {
    let Site { view, node, pod_cidr, bridge, vxlan, problem, .. } = site;
    let config = RouteConfig { node: node.clone(), pod_cidr: *pod_cidr, bridge: bridge.clone(), vxlan: *vxlan };
    routes::run(config, view.peers.subscribe(), problem.clone()).await;
}

/// Load-balancer addresses on the local network.
async fn announce(site: &Site) {
    let Site { view, node, bridge, outbox, .. } = site;
    let tell = |notice| outbox.address(address_report(notice));
    lan::run(node, bridge, &view.services, view.peers.subscribe(), tell).await;
}

/// Clients of Services.
async fn proxy(site: &Site) {
    let address = site.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let config = proxy::Config {
        node: site.node.clone(),
        node_address: address.unwrap_or(site.pod_cidr.host(1)),
        bridge: site.bridge.clone(),
        cluster_cidr: site.cluster_cidr,
        pod_cidr: site.pod_cidr,
        service_cidr: site.service_cidr,
        balance: site.proxy_balance,
    };
    let tell = |notice: proxy::Notice| {
        let news = if notice.listening { AddressNews::Served } else { AddressNews::Unserved };
        let (service, uid) = (notice.service.id(), notice.service.uid.clone());
        site.outbox.address(AddressReport { service, uid, news, message: notice.message });
    };
    if let Err(error) = proxy::run(config, site.view.services.clone(), site.view.zone.subscribe(), tell).await {
        tracing::error!(%error, "this node does not serve Services");
    }
}

fn address_report(notice: Notice) -> AddressReport {
    let Notice { service, news, message, .. } = notice;
    let news = match news {
        News::Taken => AddressNews::Announced,
        News::Yielded(_) => AddressNews::Released,
        News::InUse(_) | News::Contested(_) | News::GivenUp(_) => AddressNews::Conflict,
    };
    AddressReport { service: service.id(), uid: service.uid.clone(), news, message }
}

/// The name server, at an address of a range that is made local first.
async fn name_server(services: Services, config: dns::Config, range: Cidr) {
    let local = async { LocalAddresses::open()?.ensure_local_range(range).await };
    if let Err(error) = local.await {
        tracing::error!(%error, %range, "cluster addresses cannot be made local");
    }
    dns::run(services, config).await;
}
