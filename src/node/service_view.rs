//! The cluster's Services as this node sees them: as the server told, but for the readiness of its own pods, of which it
//! knows better and sooner, and alone while the server is away.
//!
//! What the server told is kept on disk, so that a node that reboots with no server in reach goes on serving.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, watch};

use super::engine::blocking;
use super::error::{At, Error, Result};
use crate::files;
use crate::link::message::{Peer, ToNode};
use crate::network::services::{Service, ServiceChange, ServiceName, Services};

/// Between a change of endpoints and the writing of it: a rolling update is one write.
const SETTLE: Duration = Duration::from_secs(5);
/// Between any other change of a Service, which somebody made by hand, and the writing of it: a manifest is one write.
const SOON: Duration = Duration::from_millis(100);
/// The longest a pod that is to end waits for Services to leave it alone.
const DRAIN: Duration = Duration::from_secs(1);
/// After no new connections come to a pod: time for the last of them.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// Below the node's directory.
const FILE: &str = "services.lz4";
/// The file's longest text in bytes, some ten times what 1,000 Services of 10 endpoints take.
const MAX_SIZE: usize = 16 << 20;

/// What the server told of Services and other nodes. Clones are the same view.
#[derive(Clone)]
pub(super) struct ServiceView {
    /// The Services as they are served here.
    pub(super) services: Services,
    /// As the server told.
    told: Services,
    /// Addresses of this node's pods, but for those that share the host's.
    own: Arc<Mutex<BTreeMap<IpAddr, OwnPod>>>,
    /// A change that is to be on disk soon.
    urgent: Arc<Notify>,
    /// The nodes of the pod network, this one included.
    pub(super) peers: Arc<watch::Sender<Vec<Peer>>>,
    /// The zone this node is in.
    pub(super) zone: Arc<watch::Sender<Option<String>>>,
    /// All Services were told at least once; kubelet starts no container before that either.
    known: Arc<watch::Sender<bool>>,
    path: PathBuf,
}

/// A pod of this node.
struct OwnPod {
    uid: String,
    ready: bool,
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
        let (services, told) = (Services::default(), Services::default());
        for service in all {
            told.put(service.clone());
            services.put(service);
        }
        let (peers, zone) = (Arc::new(watch::Sender::new(peers)), Arc::new(watch::Sender::new(zone)));
        let known = Arc::new(watch::Sender::new(known));
        Self { services, told, own: Arc::default(), urgent: Arc::default(), peers, zone, known, path }
    }

    /// A view of these Services that is kept nowhere, for tests.
    #[cfg(test)]
    pub(super) fn of(services: Services) -> Self {
        let known = Arc::new(watch::Sender::new(true));
        let (told, own, urgent) = (Services::default(), Arc::default(), Arc::default());
        Self { services, told, own, urgent, peers: Arc::default(), zone: Arc::default(), known, path: PathBuf::new() }
    }

    /// Takes in what the server says of them.
    pub(super) fn take(&self, message: ToNode) {
        match message {
            ToNode::Service(service) => self.service(service),
            ToNode::ServiceGone(name) => self.gone(&name),
            ToNode::Peers(peers) => replace(&self.peers, peers),
            ToNode::Peer(peer) => self.peer(&peer.name.clone(), Some(peer)),
            ToNode::PeerGone(name) => self.peer(&name, None),
            ToNode::Zone(zone) => replace(&self.zone, zone),
            ToNode::Complete { services, .. } => {
                let there: BTreeSet<&ServiceName> = services.iter().collect();
                let known = self.told.all().into_iter().map(|service| service.id());
                known.filter(|name| !there.contains(name)).for_each(|name| self.gone(&name));
                replace(&self.known, true);
            }
            ToNode::Welcome | ToNode::Pod(_) | ToNode::Known(_) | ToNode::Object(_) | ToNode::Remove { .. } => {}
        }
    }

    fn service(&self, service: Arc<Service>) {
        let known = self.told.get(&service.namespace, &service.name);
        let own = self.own();
        self.told.put(service.clone());
        self.services.put(with_own(service.clone(), &own));
        if known.is_none_or(|known| !known.differs_in_endpoints_only(&service)) {
            self.urgent.notify_one();
        }
    }

    fn gone(&self, name: &ServiceName) {
        self.told.remove(name);
        self.services.remove(name);
        self.urgent.notify_one();
    }

    /// Takes in whether a pod of this node, with addresses of its own, is ready.
    pub(super) fn own_pod(&self, uid: &str, addresses: &[IpAddr], ready: bool) {
        let mut own = self.own();
        let is_news = |address: &&IpAddr| own.get(address).is_none_or(|pod| pod.uid != uid || pod.ready != ready);
        let news: Vec<IpAddr> = addresses.iter().filter(is_news).copied().collect();
        if news.is_empty() {
            return;
        }
        own.extend(news.iter().map(|address| (*address, OwnPod { uid: uid.to_owned(), ready })));
        for service in self.told.all() {
            let mut endpoints = service.slices.iter().flat_map(|slice| &slice.endpoints);
            if endpoints.any(|endpoint| news.contains(&endpoint.address)) {
                self.services.put(with_own(service.clone(), &own));
            }
        }
    }

    /// Forgets a pod of this node that is no more; from then on what the server says of its address holds.
    pub(super) fn own_pod_gone(&self, uid: &str) {
        self.own().retain(|_, pod| pod.uid != uid);
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<IpAddr, OwnPod>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) async fn keep(&self, mut changes: Changes) {
        let mut keeper = Keeper { view: self, changed: false };
        loop {
            changes.next().await;
            keeper.changed = true;
            // Without any file a node that reboots alone could start nothing.
            if self.path.exists() {
                tokio::select! {
                    () = tokio::time::sleep(SETTLE) => {}
                    () = self.urgent.notified() => tokio::time::sleep(SOON).await,
                }
            }
            changes = Changes::of(self);
            // What is urgent until now is written now.
            let _ = self.urgent.notified().now_or_never();
            keeper.write().await;
        }
    }

    fn kept(&self) -> Option<Kept> {
        // Half of it would pass for all of it after a restart.
        let (peers, zone) = (self.peers.borrow().clone(), self.zone.borrow().clone());
        self.is_known().then(|| Kept { services: self.told.all(), peers, zone })
    }
}

/// A Service with its endpoints on this node as ready as they are.
fn with_own(mut service: Arc<Service>, own: &BTreeMap<IpAddr, OwnPod>) -> Arc<Service> {
    let known = |address: &IpAddr| own.get(address).map(|pod| pod.ready);
    let mut endpoints = service.slices.iter().flat_map(|slice| &slice.endpoints);
    let differs = endpoints
        .any(|e| known(&e.address).is_some_and(|ready| e.serving != ready || e.ready != (ready && !e.terminating)));
    if service.publish_not_ready || !differs {
        return service;
    }
    let slices = &mut Arc::make_mut(&mut service).slices;
    for endpoint in slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
        if let Some(ready) = known(&endpoint.address) {
            (endpoint.serving, endpoint.ready) = (ready, ready && !endpoint.terminating);
        }
    }
    service
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
pub(super) struct Changes {
    services: broadcast::Receiver<ServiceChange>,
    peers: watch::Receiver<Vec<Peer>>,
    zone: watch::Receiver<Option<String>>,
    known: watch::Receiver<bool>,
}

impl Changes {
    pub(super) fn of(view: &ServiceView) -> Self {
        Self {
            services: view.told.subscribe().1,
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

    /// Of the endpoints' pod.
    fn own() -> IpAddr {
        "10.42.0.7".parse().unwrap()
    }

    fn with_endpoint(name: &str, address: &str, ready: bool) -> Service {
        let (hostname, node, hints) = (None, None, None);
        let endpoint = Endpoint { address: own(), hostname, node, hints, ready, serving: true, terminating: !ready };
        let slices = vec![Slice { ports: Vec::new(), endpoints: vec![endpoint] }];
        Service { slices, ..Service::clone(&service(name, address)) }
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

        // What somebody changed is written soon, what comes of running pods later.
        for (change, pause) in
            [(service("b", "10.43.0.9"), SOON), (Arc::new(with_endpoint("b", "10.43.0.9", true)), SETTLE)]
        {
            std::fs::write(&file, "").unwrap();
            let changed = tokio::time::Instant::now();
            view.take(ToNode::Service(change));
            while std::fs::read(&file).unwrap().is_empty() {
                tokio::time::sleep(SOON / 10).await;
            }
            // Time stands still while the file is written, or nearly.
            assert!((pause..pause + SOON).contains(&changed.elapsed()), "{:?}", changed.elapsed());
        }

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
        let address = own();
        let took = async || {
            let began = tokio::time::Instant::now();
            view.drained(&[address]).await;
            began.elapsed()
        };
        let with = |ready: bool, publish_not_ready: bool| Service {
            publish_not_ready,
            ..with_endpoint("a", "10.43.0.1", ready)
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

    #[test]
    fn a_node_knows_best_whether_its_own_pods_are_ready() {
        let view = ServiceView::of(Services::default());
        let told = |ready| ToNode::Service(Arc::new(with_endpoint("a", "10.43.0.1", ready)));
        let seen = |name: &str| {
            let service = view.services.get("ns", name).unwrap();
            let endpoint = &service.slices[0].endpoints[0];
            (endpoint.ready, endpoint.serving)
        };
        view.take(told(true));
        assert_eq!(seen("a"), (true, true), "nothing is known of the pod yet");
        view.own_pod("u", &[own()], false);
        assert_eq!(seen("a"), (false, false));
        view.take(told(true));
        assert_eq!(seen("a"), (false, false), "the server does not know it yet");
        let also = Service { publish_not_ready: true, ..with_endpoint("b", "10.43.0.2", true) };
        view.take(ToNode::Service(Arc::new(also)));
        assert_eq!(seen("b"), (true, true), "whoever wants to hear of all pods does");
        view.own_pod("u", &[own()], true);
        assert_eq!(seen("a"), (true, true));
        view.take(told(false));
        assert_eq!(seen("a"), (false, true), "it is being deleted");
        // What is written down is what the server told.
        assert!(!view.kept().unwrap().services[0].slices[0].endpoints[0].ready);
        view.own_pod("u", &["10.42.0.9".parse().unwrap()], true);
        view.own_pod_gone("u");
        view.take(told(true));
        view.own_pod("v", &[own()], false);
        view.own_pod_gone("u");
        assert_eq!(seen("a"), (false, false), "another pod got the address");
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
