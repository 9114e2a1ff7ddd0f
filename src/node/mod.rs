//! The node half: pod workers, volumes, environment, logs, statistics.
//!
//! [`run`] is all of it: it takes over what an earlier daemon left, asks the server for what the node should have, and
//! goes on with or without an answer.

mod agent;
mod check;
mod container;
mod disk;
mod downward;
mod engine;
mod env;
mod error;
mod events;
mod expand;
mod fd;
mod files;
mod info;
mod journal;
mod logs;
mod outbox;
mod pod;
mod probes;
mod resources;
mod service_env;
mod service_view;
mod services;
mod status;
mod streams;
mod usage;
mod view;
mod volumes;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

pub use error::{Error, Result};
pub use files::DnsConfig;
pub use view::{PodView, View};

use crate::cidr::Cidr;
use crate::config::ProxyBalance;
use crate::image::ImageStore;
use crate::inotify::{self, Watcher};
use crate::link::NodeEnd;
use crate::link::stream::StreamRequest;
use crate::network::overlay::Vxlan;
use crate::network::{Network, host_address};
use crate::runtime::Runtime;
use agent::Agent;
use disk::Pods;
use engine::{Real, blocking};
use info::{Identity, Machine};
use journal::Journal;
use outbox::Outbox;
use service_view::ServiceView;
use services::Site;
use usage::Meter;
use worker::{Left, Sandboxes, Shared};

/// Streams into pods at a time; more wait.
const MAX_STREAMS: usize = 256;
/// Between two looks at memory and disk. As kubelet lets a pressure pass after five minutes at the earliest, a value
/// around the limit costs the flash a write every so often at most.
const MEASURE: Duration = Duration::from_secs(300);

/// What a node needs to know of itself.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name in the cluster.
    pub name: String,
    /// Where it keeps its pods; made where it is missing.
    pub data_dir: PathBuf,
    /// The directory of the image store, watched for new images.
    pub images_dir: PathBuf,
    /// Its addresses, the most important first.
    pub addresses: Vec<IpAddr>,
    /// The first one is looked up again for each report: DHCP gives others in the course of time.
    pub follow_address: bool,
    /// Labels beside those every node has, for example `node-role.kubernetes.io/control-plane`.
    pub labels: BTreeMap<String, String>,
    /// Name resolution in pods.
    pub dns: DnsConfig,
    /// Cluster addresses of Services.
    pub service_cidr: Cidr,
    /// The tunnel to nodes of other network segments.
    pub vxlan: Vxlan,
    /// Shows what runs.
    pub view: View,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Cidr,
    /// How the Service proxy chooses among endpoints.
    pub proxy_balance: ProxyBalance,
}

/// Runs the node half until the link's carrier is gone for good. Dropping the future stops it; pods go on without it.
///
/// # Errors
/// Only what keeps it from starting: its own directory or the runtime's state cannot be read.
pub async fn run(
    config: NodeConfig,
    runtime: Runtime,
    images: Arc<ImageStore>,
    network: Arc<Network>,
    mut link: NodeEnd,
) -> Result<()> {
    let pods = Pods::open(&config.data_dir)?;
    let outbox = Outbox::new(config.view.clone());
    let image_changes = watch::Sender::new(0u64);
    let machine = Machine::measure(&config.data_dir);
    let engine = Real { runtime: runtime.clone(), images: images.clone(), network: network.clone() };
    let sandboxes = Sandboxes::default();
    let view = ServiceView::load(&config.data_dir).await;
    let (problem, mut route_problem) = watch::channel(None);
    let site = Site {
        view: view.clone(),
        node: config.name.clone(),
        addresses: config.addresses.clone(),
        service_cidr: config.service_cidr,
        cluster_cidr: config.cluster_cidr,
        proxy_balance: config.proxy_balance,
        pod_cidr: network.pod_cidr(),
        bridge: network.bridge().to_owned(),
        domain: config.dns.domain.clone(),
        vxlan: config.vxlan,
        problem,
        outbox: outbox.clone(),
    };
    let mut parts = JoinSet::new();
    parts.spawn(services::run(site));
    let shared = Arc::new(Shared {
        engine,
        outbox: outbox.clone(),
        images: image_changes.subscribe(),
        dns: config.dns.clone(),
        seccomp: config.data_dir.join("seccomp"),
        facts: machine.facts(&config.addresses),
        sandboxes: sandboxes.clone(),
        services: view,
    });
    let mut agent = Agent::new(shared, pods);
    take_over(&mut agent, &runtime, &network).await?;
    let (journal, unsent) = Journal::open(&config.data_dir)?;
    outbox.restore(unsent);
    outbox.hello();
    let mut watcher = Watcher::directory(&config.images_dir).map_err(|source| Error::File {
        op: "watch",
        path: config.images_dir.clone(),
        source,
    })?;
    let uplink = outbox.run(link.tx.clone(), link.underway.clone(), journal);
    tokio::pin!(uplink);
    let mut streams = JoinSet::new();
    let meter = Arc::new(Meter::new(sandboxes.clone()));
    let mut pressure = machine.pressure();
    let mut measure = tokio::time::interval(MEASURE);
    measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut uplink => return Ok(()),
            message = link.rx.recv() => match message {
                Some(message) => {
                    if agent.take(message).await {
                        pressure = report(&config, &outbox, &images, &network).await;
                    }
                }
                None => return Ok(()),
            },
            _ = measure.tick() => {
                let now = Machine::measure(&config.data_dir).pressure();
                if now != pressure {
                    pressure = report(&config, &outbox, &images, &network).await;
                }
            }
            Ok(()) = route_problem.changed() => {
                network.set_route_problem(route_problem.borrow_and_update().clone());
                pressure = report(&config, &outbox, &images, &network).await;
            }
            () = agent.reap() => {}
            Some(open) = link.streams.recv(), if streams.len() < MAX_STREAMS => {
                streams.spawn(streams::serve(place(&agent, &sandboxes, &open.request), meter.clone(), open));
            }
            Some(_) = streams.join_next() => {}
            names = watcher.next() => match names {
                Ok(names) if names.iter().any(|n| n == "index.json") => {
                    image_changes.send_modify(|n| *n += 1);
                    pressure = report(&config, &outbox, &images, &network).await;
                }
                Ok(_) => {}
                Err(source) => return Err(Error::File { op: "watch", path: config.images_dir, source }),
            },
        }
    }
}

/// Finds the sandboxes of an earlier daemon, gives each to its pod, and removes those of no pod.
async fn take_over(agent: &mut Agent<Real>, runtime: &Runtime, network: &Network) -> Result<()> {
    let adopted = runtime.adopt().await?;
    let mut left: HashMap<String, Left<crate::runtime::Sandbox>> = HashMap::new();
    let mut sandboxes = HashMap::new();
    for sandbox in adopted.live {
        sandboxes.insert(sandbox.uid().to_owned(), sandbox.clone());
        left.insert(sandbox.uid().to_owned(), Left::Live(sandbox));
    }
    for sandbox in adopted.dead {
        // One pod that cannot be cleaned up (its process hangs in the kernel) must not keep the others down.
        if let Err(error) = runtime.cleanup(&sandbox.uid).await {
            tracing::error!(pod = sandbox.uid, %error, "cannot clean up after a dead shim");
        }
        left.insert(sandbox.uid, Left::Dead(sandbox.exits));
    }
    agent.resume(left).await?;
    let known = agent.uids();
    for (uid, sandbox) in sandboxes.into_iter().filter(|(uid, _)| !known.contains(uid)) {
        tracing::warn!(pod = uid, "removing the sandbox of a pod this node does not know");
        if let Err(error) = sandbox.destroy().await {
            tracing::error!(pod = uid, %error, "cannot remove it");
        }
    }
    if let Err(error) = network.reconcile(&known).await {
        tracing::error!(%error, "cannot tidy up the pod network");
    }
    Ok(())
}

/// Where a stream leads to; nowhere if the pod is not of this node.
fn place(
    agent: &Agent<Real>,
    sandboxes: &Sandboxes<crate::runtime::Sandbox>,
    request: &StreamRequest,
) -> Option<streams::Place> {
    let uid = request.pod()?;
    let (dir, pod) = agent.pod(uid)?;
    let sandbox = sandboxes.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned();
    Some(streams::Place { pod: pod.name().to_owned(), dir, sandbox })
}

/// Reports the node as it is now; returns whether memory and disk run short.
async fn report(config: &NodeConfig, outbox: &Outbox, images: &Arc<ImageStore>, network: &Network) -> (bool, bool) {
    let store = images.clone();
    let listed = blocking("listing images", move || Ok(store.list()?)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot list the images");
        Vec::new()
    });
    let mut addresses = config.addresses.clone();
    if let (true, Some(first)) = (config.follow_address, addresses.first_mut()) {
        *first = host_address(network.bridge()).unwrap_or(*first);
    }
    let identity = Identity {
        name: &config.name,
        addresses: &addresses,
        labels: &config.labels,
        network_problem: network.problem(),
    };
    let machine = Machine::measure(&config.data_dir);
    outbox.node(info::report(&identity, &machine, listed));
    machine.pressure()
}

/// Removes every sandbox, mount, cgroup, interface and file of a node that does not run: of `data_dir`
/// ([`NodeConfig::data_dir`]) and the runtime's own. The pod network is [`Network::destroy`]'s.
///
/// # Errors
/// The first thing that could not be removed; calling it again goes on from there.
pub async fn reset(data_dir: &std::path::Path, runtime: &Runtime) -> Result<()> {
    runtime.destroy().await?;
    let root = data_dir.to_owned();
    blocking("removing the node's files", move || {
        for dir in Pods::open(&root)?.list()? {
            volumes::remove(&dir.volumes())?;
            dir.remove()?;
        }
        crate::files::remove_tree(&root).map_err(|source| Error::File { op: "remove", path: root, source })
    })
    .await
}
