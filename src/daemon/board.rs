//! The node half of a board and what it stands on: images, runtime, pod network. The same in the server and in an agent.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Error, cgroup_root, keep, log_end};
use crate::cidr::Cidr;
use crate::config::ProxyBalance;
use crate::image::ImageStore;
use crate::link::NodeEnd;
use crate::network::overlay::Vxlan;
use crate::network::{Network, NetworkConfig, host_address};
use crate::node::{self, DnsConfig, NodeConfig};
use crate::runtime::{Runtime, RuntimeConfig};

/// The bridge's name and the range of its addresses, below the data directory.
const NETWORK: &str = "network";
/// Of the bridge and the pods' interfaces, bytes.
const MTU: u32 = 1500;

/// What a board has to know of itself.
#[derive(Clone, Debug)]
pub struct BoardConfig {
    /// Everything it keeps is below this directory.
    pub data_dir: PathBuf,
    /// Its name in the cluster.
    pub name: String,
    /// Its address, where it is not for the board to find out.
    pub address: Option<IpAddr>,
    /// Labels beside those every node has.
    pub labels: BTreeMap<String, String>,
    /// Name of the pods' bridge.
    pub bridge: String,
    /// The addresses of its pods.
    pub pod_cidr: Cidr,
    /// Cluster addresses of Services, the name server's among them.
    pub service_cidr: Cidr,
    /// The tunnel to nodes of other network segments.
    pub vxlan: Vxlan,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Cidr,
    /// How the Service proxy chooses among endpoints.
    pub proxy_balance: ProxyBalance,
}

/// A node half that is ready to run.
pub struct Board {
    images: Arc<ImageStore>,
    runtime: Runtime,
    network: Arc<Network>,
    node: NodeConfig,
}

impl Board {
    /// Opens everything the node half needs.
    ///
    /// # Errors
    /// Whatever cannot be opened or made, named.
    pub async fn open(config: BoardConfig) -> Result<Self, Error> {
        let images = images(&config.data_dir).await?;
        let runtime = Runtime::new(runtime_config(&config.data_dir)?)?;
        let network = network_config(&config);
        record_network(&config.data_dir, &network)?;
        let network = Arc::new(Network::open(network).await?);
        let address = config.address.or_else(|| host_address(&config.bridge));
        let node = NodeConfig {
            name: config.name,
            data_dir: config.data_dir.join("node"),
            images_dir: config.data_dir.join("images"),
            addresses: vec![address.unwrap_or_else(|| network.gateway().into())],
            follow_address: config.address.is_none(),
            labels: config.labels,
            dns: DnsConfig { servers: vec![config.service_cidr.host(10).into()], domain: "cluster.local".into() },
            service_cidr: config.service_cidr,
            vxlan: config.vxlan,
            cluster_cidr: config.cluster_cidr,
            proxy_balance: config.proxy_balance,
            view: node::View::default(),
        };
        Ok(Self { images, runtime, network, node })
    }

    /// The image store, to be closed in the end.
    pub fn images(&self) -> Arc<ImageStore> {
        self.images.clone()
    }

    /// What runs here, at any time.
    pub fn view(&self) -> node::View {
        self.node.view.clone()
    }

    /// Runs the node half until the carrier is gone for good.
    pub async fn run(self, link: NodeEnd) {
        log_end("node", node::run(self.node, self.runtime, self.images, self.network, link).await);
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

fn runtime_config(data_dir: &Path) -> Result<RuntimeConfig, Error> {
    let exe = std::env::current_exe().map_err(|source| Error::DataDir { path: "/proc/self/exe".into(), source })?;
    Ok(RuntimeConfig { state_dir: data_dir.join("node/runtime"), cgroup_root: cgroup_root(data_dir), exe })
}

fn network_config(config: &BoardConfig) -> NetworkConfig {
    let state_dir = config.data_dir.join("node/network");
    let BoardConfig { bridge, pod_cidr, cluster_cidr, .. } = config.clone();
    NetworkConfig { bridge, pod_cidr, cluster_cidr, state_dir, mtu: MTU }
}

/// Notes which bridge is ours, so that a reset finds it without the configuration of the day.
fn record_network(data_dir: &Path, config: &NetworkConfig) -> Result<(), Error> {
    let text = format!("{} {}\n", config.bridge, config.pod_cidr);
    keep(data_dir.join(NETWORK), &text)
}

fn recorded_network(data_dir: &Path) -> Option<NetworkConfig> {
    let text = fs::read_to_string(data_dir.join(NETWORK)).ok()?;
    let (bridge, cidr) = text.trim().split_once(' ')?;
    let state_dir = data_dir.join("node/network");
    let pod_cidr = cidr.parse().ok()?;
    Some(NetworkConfig { bridge: bridge.into(), pod_cidr, cluster_cidr: pod_cidr, state_dir, mtu: MTU })
}

/// Removes every container, mount, cgroup and interface of a data directory; its files are the caller's.
///
/// # Errors
/// Whatever could not be removed, named.
pub async fn reset(data_dir: &Path) -> Result<(), Error> {
    let runtime = Runtime::new(runtime_config(data_dir)?)?;
    node::reset(&data_dir.join("node"), &runtime).await?;
    if let Some(config) = recorded_network(data_dir) {
        Network::open(config).await?.destroy().await?;
    }
    Ok(())
}
