//! Everything of the server that runs beside the API: controllers, scheduler, fleet, and the node half.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Error, nodes, until};
use crate::api;
use crate::config::{ServerConfig, broker_address};
use crate::daemon::board::{Board, BoardConfig};
use crate::daemon::{log_end, status};
use crate::fleet::members::{Cluster, Members};
use crate::fleet::{Fleet, Member, addresses};
use crate::image::ImageStore;
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::link::membership::cluster_id;
use crate::link::stream::{Stream, StreamRequest};
use crate::network::host_address;
use crate::node::View;
use crate::pki::{Ca, ServerTls};
use crate::registry::Registry;
use crate::{controllers, events, link, scheduler};

/// Between a failed look at the node and the next.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Everything that runs beside the API.
pub(super) struct Parts {
    tasks: JoinSet<&'static str>,
    fleet: Arc<Fleet>,
    members: Arc<Members>,
    /// Of the server's own node, if it has one.
    images: Option<Arc<ImageStore>>,
    registry: Registry,
    node: Option<String>,
}

impl Parts {
    pub(super) async fn start(
        config: &ServerConfig,
        registry: &Registry,
        ca: &Arc<Ca>,
        tls: &Arc<ServerTls>,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let mut tasks = JoinSet::new();
        let (events, writer) = events::recorder();
        spawn(&mut tasks, "the event writer", registry, |registry| async move { writer.run(&registry).await });
        let controllers = controllers::Config {
            ca: ca.certificate().to_owned(),
            pools: config.load_balancer_pools.clone(),
            api: SocketAddr::new(api_address(config), config.https_port),
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
        spawn(&mut tasks, "the fleet's view", registry, |_| async move { following.follow().await });
        let members = Members::new(fleet.clone(), ca.clone(), cluster(config));
        let watching = members.clone();
        spawn(&mut tasks, "the watch over nodes", registry, |_| async move { watching.watch_over().await });
        let serving = nodes::serve(config, members.clone(), ca, tls.clone()).await?;
        spawn(&mut tasks, "the link to nodes", registry, |_| serving);
        let board = match config.no_node {
            true => None,
            false => Some(own_node(config, &fleet, &mut tasks).await?),
        };
        let (images, view) = board.unzip();
        let (name, connected) = (own_name(config), fleet.clone());
        let cluster = cluster_id(&ca.fingerprint()?);
        let source = move || status::Status {
            role: "server".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            node: name.clone().unwrap_or_default(),
            cluster: cluster.clone(),
            link: None,
            connected: connected.connected_nodes(),
            pods: view.as_ref().map(|view| view.pods()).unwrap_or_default(),
        };
        let data_dir = config.data_dir.clone();
        spawn(&mut tasks, "the status", registry, |_| async move {
            status::serve(&data_dir, Arc::new(source)).await;
        });
        let node = own_name(config);
        Ok(Self { tasks, fleet, members, images, registry: registry.clone(), node })
    }

    pub(super) fn members(&self) -> Arc<Members> {
        self.members.clone()
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
            let Some(node) = node else { return };
            while let Err(status) = node_ready(&registry, &node).await {
                tracing::error!(%status, "wait for the node");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Ends every part. Pods go on.
    pub(super) async fn join(mut self) {
        self.tasks.shutdown().await;
        if let Some(Err(error)) = self.images.map(|images| images.close()) {
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

/// The name of the node on this machine, if there is one.
fn own_name(config: &ServerConfig) -> Option<String> {
    config.node_name.clone().filter(|_| !config.no_node)
}

fn cluster(config: &ServerConfig) -> Cluster {
    Cluster {
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        own_node: own_name(config),
        // The configuration was checked when it was read.
        broker: config.broker_url.as_deref().and_then(|url| broker_address(url).ok()),
    }
}

/// The address of this machine, where the configuration says it.
fn given_address(config: &ServerConfig) -> Option<IpAddr> {
    let given = !config.bind_address.is_unspecified() && !config.bind_address.is_loopback();
    given.then_some(config.bind_address)
}

/// Where pods reach the API: this machine's address, or the pods' gateway where it is alone or keeps the API to itself.
fn api_address(config: &ServerConfig) -> IpAddr {
    let found = || given_address(config).or_else(|| host_address(&config.bridge));
    let found = if config.bind_address.is_loopback() { None } else { found() };
    found.unwrap_or_else(|| gateway(config).into())
}

/// The pods' gateway on this machine.
pub(super) fn gateway(config: &ServerConfig) -> Ipv4Addr {
    addresses::first(config.cluster_cidr).host(1)
}

/// Starts the node half of this machine; returns its image store and what it shows.
async fn own_node(
    config: &ServerConfig,
    fleet: &Arc<Fleet>,
    tasks: &mut JoinSet<&'static str>,
) -> Result<(Arc<ImageStore>, View), Error> {
    let name = config.node_name.clone().unwrap_or_default();
    let pod_cidr = addresses::first(config.cluster_cidr);
    let board = Board::open(BoardConfig {
        data_dir: config.data_dir.clone(),
        name: name.clone(),
        address: given_address(config),
        labels: ["node-role.kubernetes.io/control-plane"].map(|label| (label.to_owned(), "true".to_owned())).into(),
        bridge: config.bridge.clone(),
        pod_cidr,
        service_cidr: config.service_cidr,
        cluster_cidr: config.cluster_cidr,
        vxlan: config.vxlan,
        proxy_balance: config.proxy_balance,
    })
    .await?;
    let parts = (board.images(), board.view());
    let (server_end, node_end) = link::local::pair();
    let member = Member { name, pod_cidr: pod_cidr.to_string(), uid: None };
    let serving = fleet.clone();
    tasks.spawn(async move {
        serving.serve(&member, server_end).await;
        "the fleet"
    });
    tasks.spawn(async move {
        board.run(node_end).await;
        "the node half"
    });
    Ok(parts)
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
