//! What works from the cluster's Services on a node: the proxy, the name server, the announcer, routes to other nodes.
//!
//! The view they share is kept on disk, so that a node that reboots with no server in reach goes on serving.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::engine::blocking;
use super::error::{At, Error, Result};
use super::outbox::Outbox;
use crate::cidr::Cidr;
use crate::config::ProxyBalance;
use crate::files;
use crate::link::message::{AddressNews, AddressReport, Peer, ToNode};
use crate::network::addresses::LocalAddresses;
use crate::network::arp::News;
use crate::network::lan::{self, Notice};
use crate::network::overlay::Vxlan;
use crate::network::routes::{self, RouteConfig};
use crate::network::services::{Service, ServiceChange, ServiceName, Services};
use crate::network::{dns, proxy};

/// Between a change of the view and the writing of it: a rolling update is one write.
const SETTLE: Duration = Duration::from_secs(5);
/// The longest a pod that is to end waits for Services to leave it alone.
const DRAIN: Duration = Duration::from_secs(1);
/// After no new connections come to a pod: time for the last of them.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// Below the node's directory.
const FILE: &str = "services.lz4";
/// The file's longest text in bytes, some ten times what 1,000 Services of 10 endpoints take.
const MAX_SIZE: usize = 16 << 20;

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

/// What the server told of Services and other nodes. Clones are the same view.
#[derive(Clone)]
pub(super) struct ServiceView {
    /// The Services.
    pub(super) services: Services,
    /// The nodes of the pod network, this one included.
    pub(super) peers: Arc<watch::Sender<Vec<Peer>>>,
    /// The zone this node is in.
    pub(super) zone: Arc<watch::Sender<Option<String>>>,
    /// All Services were told at least once; kubelet starts no container before that either.
    known: Arc<watch::Sender<bool>>,
    path: PathBuf,
}

/// The view as it is on disk.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    services: Vec<Arc<Service>>,
    peers: Vec<Peer>,
    zone: Option<String>,
}

impl ServiceView {
    /// The view as it was kept in the node's directory. One that cannot be read is told anew by the server.
    pub(super) async fn load(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let from = path.clone();
        let kept = match blocking("reading the Services", move || read(&from)).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "starting without the Services known before");
                None
            }
        };
        let known = kept.is_some();
        let Kept { services: all, peers, zone } = kept.unwrap_or_default();
        let services = Services::default();
        all.into_iter().for_each(|service| services.put(service));
        let (peers, zone) = (Arc::new(watch::Sender::new(peers)), Arc::new(watch::Sender::new(zone)));
        Self { services, peers, zone, known: Arc::new(watch::Sender::new(known)), path }
    }

    /// A view of these Services that is kept nowhere, for tests.
    #[cfg(test)]
    pub(super) fn of(services: Services) -> Self {
        let known = Arc::new(watch::Sender::new(true));
        Self { services, peers: Arc::default(), zone: Arc::default(), known, path: PathBuf::new() }
    }

    /// Takes in what the server says of them.
    pub(super) fn take(&self, message: ToNode) {
        match message {
            ToNode::Service(service) => self.services.put(service),
            ToNode::ServiceGone(name) => self.services.remove(&name),
            ToNode::Peers(peers) => replace(&self.peers, peers),
            ToNode::Peer(peer) => self.peer(&peer.name.clone(), Some(peer)),
            ToNode::PeerGone(name) => self.peer(&name, None),
            ToNode::Zone(zone) => replace(&self.zone, zone),
            ToNode::Complete { services, .. } => {
                self.services.retain(&services);
                replace(&self.known, true);
            }
            ToNode::Pod(_) | ToNode::Known(_) | ToNode::Object(_) | ToNode::Remove { .. } => {}
        }
    }

    fn peer(&self, name: &str, now: Option<Peer>) {
        let mut all = self.peers.borrow().clone();
        let place = all.partition_point(|p| p.name.as_str() < name);
        let known = all.get(place).is_some_and(|p| p.name == name);
        all.splice(place..place + usize::from(known), now);
        replace(&self.peers, all);
    }

    /// Waits until all Services were told once, to this daemon or an earlier one.
    pub(super) async fn known(&self) {
        // The sender is this view's own.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Whether [`ServiceView::known`] would wait no longer.
    pub(super) fn is_known(&self) -> bool {
        *self.known.borrow()
    }

    /// Waits until no Service gives new connections to these addresses of a pod that is to end, and what is under way
    /// has had a moment to end; [`DRAIN`] at most. Returns at once if no Service does.
    pub(super) async fn drained(&self, addresses: &[IpAddr]) {
        let chosen = |service: &Service| {
            let mut endpoints = service.slices.iter().flat_map(|slice| &slice.endpoints);
            !service.publish_not_ready && endpoints.any(|e| e.ready && addresses.contains(&e.address))
        };
        let choosing = |all: Vec<Arc<Service>>| -> BTreeSet<ServiceName> {
            all.iter().filter(|s| chosen(s)).map(|s| s.id()).collect()
        };
        let (all, mut changes) = self.services.subscribe();
        let mut left = choosing(all);
        if left.is_empty() {
            return;
        }
        let over = async {
            while !left.is_empty() {
                match changes.recv().await {
                    Ok(ServiceChange::Put(service)) if chosen(&service) => drop(left.insert(service.id())),
                    Ok(ServiceChange::Put(service) | ServiceChange::Gone(service)) => drop(left.remove(&service.id())),
                    Err(RecvError::Lagged(_)) => left = choosing(self.services.all()),
                    Err(RecvError::Closed) => return,
                }
            }
        };
        // Too late is better than never: the server may have lost sight of the Service.
        let _ = tokio::time::timeout(DRAIN, over).await;
        tokio::time::sleep(UNDER_WAY).await;
    }

    /// Keeps the view on disk, a while after it changed; never ends. A change that was not yet written when the future
    /// is dropped is written then.
    async fn keep(&self, mut changes: Changes) {
        let mut keeper = Keeper { view: self, changed: false };
        loop {
            changes.next().await;
            keeper.changed = true;
            // Without any file a node that reboots alone could start nothing.
            if self.path.exists() {
                tokio::time::sleep(SETTLE).await;
            }
            changes = Changes::of(self);
            keeper.write().await;
        }
    }

    fn kept(&self) -> Option<Kept> {
        // Half of it would pass for all of it after a restart.
        let (peers, zone) = (self.peers.borrow().clone(), self.zone.borrow().clone());
        self.is_known().then(|| Kept { services: self.services.all(), peers, zone })
    }
}

/// Sets a value; those who follow it hear of it only if it is another one.
fn replace<T: PartialEq>(place: &watch::Sender<T>, value: T) {
    place.send_if_modified(|old| {
        let other = *old != value;
        *old = value;
        other
    });
}

/// Changes of a view from a moment on.
struct Changes {
    services: broadcast::Receiver<ServiceChange>,
    peers: watch::Receiver<Vec<Peer>>,
    zone: watch::Receiver<Option<String>>,
    known: watch::Receiver<bool>,
}

impl Changes {
    fn of(view: &ServiceView) -> Self {
        Self {
            services: view.services.subscribe().1,
            peers: view.peers.subscribe(),
            zone: view.zone.subscribe(),
            known: view.known.subscribe(),
        }
    }

    async fn next(&mut self) {
        // The view lives as long as whoever waits here, so none of them ends; to have fallen behind is a change too.
        tokio::select! {
            _ = self.services.recv() => {}
            _ = self.peers.changed() => {}
            _ = self.zone.changed() => {}
            _ = self.known.changed() => {}
        }
    }
}

struct Keeper<'a> {
    view: &'a ServiceView,
    changed: bool,
}

impl Keeper<'_> {
    async fn write(&mut self) {
        self.changed = false;
        let Some(kept) = self.view.kept() else { return };
        let path = self.view.path.clone();
        if let Err(error) = blocking("keeping the Services", move || write(&path, &kept)).await {
            // They go on being served; only a restart without the server would not know them.
            tracing::error!(%error, "cannot keep the Services");
        }
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        if let (true, Some(kept)) = (self.changed, self.view.kept())
            && let Err(error) = write(&self.view.path, &kept)
        {
            tracing::error!(%error, "cannot keep the Services");
        }
    }
}

/// `None`: nothing was kept.
fn read(path: &Path) -> Result<Option<Kept>> {
    let damaged = |reason: String| Error::State { path: path.to_owned(), reason };
    let packed = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.at("read", path)?,
    };
    let (size, packed) = packed.split_first_chunk().ok_or_else(|| damaged("it is too short".to_owned()))?;
    let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
    if size > MAX_SIZE {
        return Err(damaged(format!("it claims to be {size} bytes long")));
    }
    let text = lz4_flex::block::decompress(packed, size).map_err(|e| damaged(e.to_string()))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(e.to_string()))
}

fn write(path: &Path, kept: &Kept) -> Result<()> {
    let text = serde_json::to_vec(kept).map_err(io::Error::from).at("write", path)?;
    let size = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    files::replace(path, &[&size[..], &lz4_flex::block::compress(&text)].concat()).at("write", path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::services::{Endpoint, Slice};

    fn service(name: &str, address: &str) -> Arc<Service> {
        let cluster_ips = vec![address.parse().unwrap()];
        Arc::new(Service { namespace: "ns".into(), name: name.into(), cluster_ips, ..Service::default() })
    }

    fn names(view: &ServiceView) -> Vec<String> {
        view.services.all().iter().map(|s| s.name.clone()).collect()
    }

    fn complete(names: &[&str]) -> ToNode {
        let name = |n: &&str| ServiceName { namespace: "ns".into(), name: (*n).into() };
        ToNode::Complete { pods: Vec::new(), services: names.iter().map(name).collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_view_is_kept_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let view = ServiceView::load(dir.path()).await;
        let file = dir.path().join(FILE);
        let keeping = view.clone();
        let changes = Changes::of(&view);
        let keep = tokio::spawn(async move { keeping.keep(changes).await });
        view.take(ToNode::Service(service("a", "10.43.0.1")));
        view.take(ToNode::Service(service("b", "10.43.0.2")));
        tokio::time::sleep(SETTLE * 3).await;
        assert!(!file.exists(), "not all Services are known yet");
        view.take(ToNode::Zone(Some("east".into())));
        view.take(complete(&["b"]));
        view.known().await;
        while !file.exists() {
            tokio::time::sleep(SETTLE).await;
        }
        let again = ServiceView::load(dir.path()).await;
        assert_eq!((names(&again), again.zone.borrow().as_deref()), (vec!["b".to_owned()], Some("east")));
        again.known().await;

        // Nothing new, nothing written.
        std::fs::remove_file(&file).unwrap();
        view.take(ToNode::Service(service("b", "10.43.0.2")));
        view.take(complete(&["b"]));
        tokio::time::sleep(SETTLE * 3).await;
        assert!(!file.exists());

        // What is new is written when the node stops, whenever that is.
        view.take(ToNode::Service(service("c", "10.43.0.3")));
        tokio::time::sleep(SETTLE / 5).await;
        keep.abort();
        assert!(keep.await.unwrap_err().is_cancelled());
        assert_eq!(names(&ServiceView::load(dir.path()).await), ["b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_ends_when_no_service_chooses_it_any_more() {
        let view = ServiceView::of(Services::default());
        let address: IpAddr = "10.42.0.7".parse().unwrap();
        let took = async || {
            let began = tokio::time::Instant::now();
            view.drained(&[address]).await;
            began.elapsed()
        };
        let with = move |ready: bool, publish_not_ready: bool| {
            let endpoint = Endpoint {
                address,
                hostname: None,
                node: None,
                hints: None,
                ready,
                serving: true,
                terminating: !ready,
            };
            let slices = vec![Slice { ports: Vec::new(), endpoints: vec![endpoint] }];
            Service { slices, publish_not_ready, ..Service::clone(&service("a", "10.43.0.1")) }
        };
        assert_eq!(took().await, Duration::ZERO);
        view.services.put(with(true, true));
        assert_eq!(took().await, Duration::ZERO);
        view.services.put(with(true, false));
        assert_eq!(took().await, DRAIN + UNDER_WAY);
        let later = view.clone();
        let change = tokio::spawn(async move {
            tokio::time::sleep(DRAIN / 4).await;
            later.services.put(with(false, false));
        });
        assert_eq!(took().await, DRAIN / 4 + UNDER_WAY);
        change.await.unwrap();
        assert_eq!(took().await, Duration::ZERO);
    }

    #[tokio::test]
    async fn a_damaged_file_is_as_good_as_none() {
        for bytes in [&b"abc"[..], b"\xff\xff\xff\xff", b"\x08\0\0\0garbage"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE), bytes).unwrap();
            let view = ServiceView::load(dir.path()).await;
            assert!(view.services.all().is_empty() && !view.is_known());
        }
    }
}
