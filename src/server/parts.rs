//! Everything of the server that runs beside the API: controllers, scheduler, fleet, and the node half.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Error, cgroup_root, keep, until};
use crate::api;
use crate::cidr::Cidr;
use crate::config::ServerConfig;
use crate::fleet::{Fleet, Member};
use crate::image::ImageStore;
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::link::stream::{Stream, StreamRequest};
use crate::network::{Network, NetworkConfig};
use crate::node::{self, DnsConfig, NodeConfig};
use crate::pki::Ca;
use crate::registry::Registry;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::{controllers, events, link, scheduler};

/// The bridge's name and the range of its addresses, below the data directory.
const NETWORK: &str = "server/network";
/// Of the bridge and the pods' interfaces, bytes.
const MTU: u32 = 1500;
/// Between a failed look at the node and the next.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Everything that runs beside the API.
pub(super) struct Parts {
    tasks: JoinSet<&'static str>,
    fleet: Arc<Fleet>,
    images: Arc<ImageStore>,
    registry: Registry,
    node: String,
}

impl Parts {
    pub(super) async fn start(
        config: &ServerConfig,
        registry: &Registry,
        ca: &Ca,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let name = config.node_name.clone().unwrap_or_default();
        let mut tasks = JoinSet::new();
        let (events, writer) = events::recorder();
        spawn(&mut tasks, "the event writer", registry, |registry| async move { writer.run(&registry).await });
        let controllers = controllers::Config {
            ca: ca.certificate().to_owned(),
            pools: config.load_balancer_pools.clone(),
            api: SocketAddr::new(node_address(config), config.https_port),
            service_cidr: config.service_cidr,
            reserved: vec![config.cluster_cidr.into(), config.service_cidr.into()],
        };
        let (recorder, stop) = (events.clone(), stopped.clone());
        spawn(&mut tasks, "the controllers", registry, |registry| async move {
            log_end("controllers", controllers::run(&registry, &recorder, &controllers, until(stop)).await);
        });
        let recorder = events.clone();
        spawn(&mut tasks, "the scheduler", registry, |registry| async move {
            log_end("scheduler", scheduler::run(&registry, &recorder, until(stopped)).await);
        });
        let fleet = Fleet::new(registry.clone(), events).map_err(Error::Bootstrap)?;
        let following = fleet.clone();
        tasks.spawn(async move {
            following.follow_services().await;
            "the Services"
        });
        let (server_end, node_end) = link::local::pair();
        let member = Member { name: name.clone(), pod_cidr: node_cidr(config).to_string(), uid: None };
        let serving = fleet.clone();
        tasks.spawn(async move {
            serving.serve(member, server_end).await;
            "the fleet"
        });
        let images = images(&config.data_dir).await?;
        let runtime = Runtime::new(runtime_config(&config.data_dir)?)?;
        let network = network_config(config);
        record_network(&config.data_dir, &network)?;
        let network = Arc::new(Network::open(network).await?);
        let node = NodeConfig {
            name: name.clone(),
            data_dir: config.data_dir.join("node"),
            images_dir: config.data_dir.join("images"),
            addresses: vec![node_address(config)],
            labels: ["node-role.kubernetes.io/control-plane"].map(|label| (label.to_owned(), "true".to_owned())).into(),
            dns: DnsConfig { servers: vec![dns_address(config).into()], domain: "cluster.local".into() },
            service_cidr: config.service_cidr,
        };
        let store = images.clone();
        tasks.spawn(async move {
            log_end("node", node::run(node, runtime, store, network, node_end).await);
            "the node half"
        });
        Ok(Self { tasks, fleet, images, registry: registry.clone(), node: name })
    }

    pub(super) fn streams(&self) -> Arc<dyn api::PodStreams> {
        Arc::new(Streams(self.fleet.clone()))
    }

    /// Resolves to the name of the first part that ends.
    pub(super) async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(error)) => {
                tracing::error!(%error, "a part broke off");
                "a part"
            }
            None => std::future::pending().await,
        }
    }

    /// Resolves once the node has reported to this process and is Ready.
    pub(super) fn ready(&self) -> impl Future<Output = ()> + use<> {
        let (registry, node) = (self.registry.clone(), self.node.clone());
        async move {
            while let Err(status) = node_ready(&registry, &node).await {
                tracing::error!(%status, "wait for the node");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Ends every part. Pods go on.
    pub(super) async fn join(mut self) {
        self.tasks.shutdown().await;
        if let Err(error) = self.images.close() {
            tracing::warn!(%error, "close the image store");
        }
    }
}

fn spawn<F: Future<Output = ()> + Send + 'static>(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    registry: &Registry,
    part: impl FnOnce(Registry) -> F,
) {
    let part = part(registry.clone());
    tasks.spawn(async move {
        part.await;
        name
    });
}

fn log_end<E: std::fmt::Display>(part: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(%error, part, "stopped");
    }
}

/// The lease is made, in memory only, when the node has registered with this process; the condition is the node's word.
async fn node_ready(registry: &Registry, node: &str) -> Result<(), Status> {
    let kind = |resource: &str| registry.kinds().by_resource(resource).ok_or_else(Status::no_such_path);
    let (leases, nodes) = (kind("leases.coordination.k8s.io")?, kind("nodes")?);
    let mut lease_changes = registry.watch(&leases, Some("kube-node-lease"), None)?;
    let mut node_changes = registry.watch(&nodes, None, None)?;
    loop {
        let ready = registry.get(&leases, "kube-node-lease", node).is_ok()
            && registry.get(&nodes, "", node).is_ok_and(|node| {
                meta::condition(&node, "Ready").is_some_and(|c| c.get("status").is_some_and(|s| s == "True"))
            });
        if ready {
            return Ok(());
        }
        tokio::select! {
            event = lease_changes.next() => event.map(drop)?,
            event = node_changes.next() => event.map(drop)?,
        }
    }
}

/// Opens streams through the fleet.
struct Streams(Arc<Fleet>);

impl api::PodStreams for Streams {
    fn open<'a>(&'a self, node: &'a str, request: StreamRequest) -> api::BoxFuture<'a, Result<Stream, Status>> {
        Box::pin(self.0.open(node, request))
    }
}

/// Opens the image store, makes the demonstration image and takes up what the operator left to import.
async fn images(data_dir: &Path) -> Result<Arc<ImageStore>, Error> {
    let directory = data_dir.join("images");
    let work = move || {
        let store = ImageStore::open(&directory)?;
        store.ensure_demo()?;
        for (path, result) in store.import_directory(&directory.join("import")) {
            match result {
                Ok(names) => tracing::info!(archive = %path.display(), images = names.len(), "imported"),
                Err(error) => tracing::error!(%error, "import at start"),
            }
        }
        Ok(Arc::new(store))
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Ended("opening the image store"))?
}

pub(super) fn runtime_config(data_dir: &Path) -> Result<RuntimeConfig, Error> {
    let exe = std::env::current_exe().map_err(|source| Error::DataDir { path: "/proc/self/exe".into(), source })?;
    Ok(RuntimeConfig { state_dir: data_dir.join("node/runtime"), cgroup_root: cgroup_root(data_dir), exe })
}

/// Each node takes a /24 of the cluster's range; this one the first.
fn node_cidr(config: &ServerConfig) -> Cidr {
    Cidr::new(config.cluster_cidr.network(), 24)
}

/// Where every node's name server answers.
fn dns_address(config: &ServerConfig) -> Ipv4Addr {
    config.service_cidr.host(10)
}

fn network_config(config: &ServerConfig) -> NetworkConfig {
    let state_dir = config.data_dir.join("node/network");
    NetworkConfig { bridge: config.bridge.clone(), pod_cidr: node_cidr(config), state_dir, mtu: MTU }
}

/// Notes which bridge is ours, so that a reset finds it without the configuration of the day.
fn record_network(data_dir: &Path, config: &NetworkConfig) -> Result<(), Error> {
    let text = format!("{} {}\n", config.bridge, config.pod_cidr);
    keep(data_dir.join(NETWORK), &text)
}

pub(super) fn recorded_network(data_dir: &Path) -> Option<NetworkConfig> {
    let text = fs::read_to_string(data_dir.join(NETWORK)).ok()?;
    let (bridge, cidr) = text.trim().split_once(' ')?;
    let state_dir = data_dir.join("node/network");
    Some(NetworkConfig { bridge: bridge.into(), pod_cidr: cidr.parse().ok()?, state_dir, mtu: MTU })
}

/// The address that packets to the outside would leave from, or the bridge's where there is no way out.
fn node_address(config: &ServerConfig) -> IpAddr {
    if !config.bind_address.is_unspecified() && !config.bind_address.is_loopback() {
        return config.bind_address;
    }
    // Connecting a datagram socket sends nothing; the kernel only picks the route. 192.0.2.0/24 is never a real host.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).map(|()| socket))
        .and_then(|socket| socket.local_addr());
    outward.map_or_else(|_| node_cidr(config).host(1).into(), |address| address.ip())
}
