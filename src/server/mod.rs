//! Wiring of the server role: which parts start, in which order they stop. No logic.

mod nodes;
mod parts;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use crate::api::{self, Api};
use crate::config::ServerConfig;
use crate::daemon::{self, Signals, notify};
use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::link::mqtt::tls::SERVER_NAME;
use crate::memory::Trimmer;
use crate::pki::node::Subject;
use crate::pki::{self, Ca, ServerTls};
use crate::registry::Registry;
use crate::store::{self, Store};
pub use nodes::JOIN_INFO;
use parts::Parts;

/// The administrator's kubeconfig, below the data directory.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// Connections of pods that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Events are kept for an hour, as by the Kubernetes API server.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What every role needs.
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    /// A value of the configuration.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The API's address is taken or not this host's.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// First objects of the cluster.
    #[error("make the cluster's first objects: {0}")]
    Bootstrap(Status),
}

/// Where the CA of a server with this data directory is.
pub(crate) fn pki_directory(data_dir: &Path) -> PathBuf {
    data_dir.join("server/pki")
}

/// Runs the server until SIGTERM or SIGINT. Pods go on when it returns.
///
/// # Errors
/// Whatever keeps it from starting, named; nothing is left half-made that the next start would trip over.
pub async fn run(config: ServerConfig) -> Result<(), Error> {
    let data_dir = &config.data_dir;
    let _lock = daemon::begin(data_dir)?;
    let address = SocketAddr::new(config.bind_address, config.https_port);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let for_pods = for_pods(&config)?;
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::new()?;

    let store = Store::open(store_options(data_dir))?;
    let registry = Registry::with_services(store.clone(), KindTable::builtin(), config.service_cidr);
    registry.bootstrap().await.map_err(Error::Bootstrap)?;
    let ca = Arc::new(Ca::open(&pki_directory(data_dir))?);
    let tls = server_tls(&config, ca.clone())?;
    write_admin_kubeconfig(&config, &ca)?;
    nodes::publish_addresses(&config, &registry).await.map_err(Error::Bootstrap)?;
    let mut parts = Parts::start(&config, &registry, &ca, &tls, stopped.clone()).await?;
    let (judge, members) = (tls.clone(), parts.members());
    let counts = move |chain: &[CertificateDer<'_>]| {
        judge.trusts(chain) && chain.first().and_then(|der| Subject::of(der)).is_some_and(|s| members.counts(&s))
    };
    let trusted = Arc::new(counts);
    let mut options = api::Options::new(tls.config()?, trusted, parts.streams());
    let trimmer = Trimmer::default();
    let resting = store.clone();
    tokio::spawn(trimmer.clone().run(move || {
        let store = resting.clone();
        async move { store.shrink().await }
    }));
    options.arrived = Arc::new(move |address| {
        tls.arrived_at(address);
        trimmer.active();
    });
    let api = Api::new(registry, options);
    let gateway = for_pods.map(|listener| tokio::spawn(api.clone().serve(listener, until(stopped.clone()))));
    let serving = tokio::spawn(api.serve(listener, until(stopped)));

    let mut ready = std::pin::pin!(parts.ready());
    let mut announced = false;
    let ended = loop {
        tokio::select! {
            name = parts.ended() => break Err(daemon::Error::Ended(name).into()),
            () = signals.next() => break Ok(()),
            () = &mut ready, if !announced => {
                announced = true;
                notify("READY=1");
            }
        }
    };
    notify("STOPPING=1");
    stop.send_replace(true);
    serving.await.ok();
    if let Some(gateway) = gateway {
        gateway.await.ok();
    }
    parts.join().await;
    store.close().await?;
    ended
}

/// Where pods reach an API that listens on loopback only: at their gateway, before the bridge that will have it is made.
fn for_pods(config: &ServerConfig) -> Result<Option<TcpListener>, Error> {
    if !config.bind_address.is_loopback() {
        return Ok(None);
    }
    if config.no_node {
        tracing::warn!(bind_address = %config.bind_address, "pods cannot reach the API: it listens on loopback only");
        return Ok(None);
    }
    let address = SocketAddr::new(parts::gateway(config).into(), config.https_port);
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map(Some).map_err(|source| Error::Listen { address, source })
}

/// Ends when the daemon is told to stop.
async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is as good a reason to stop.
    stopped.wait_for(|stop| *stop).await.ok();
}

fn store_options(data_dir: &Path) -> store::Options {
    let mut options = store::Options::new(data_dir.join("server/umiak.db"));
    let events = store::Limits { ttl: Some(EVENT_TTL), ..store::Limits::default() };
    options.volatile.insert("events".into(), events);
    options
}

fn server_tls(config: &ServerConfig, ca: Arc<Ca>) -> Result<Arc<ServerTls>, Error> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(String::from)
        .into_iter()
        .chain(["kubernetes.default.svc.cluster.local".into(), SERVER_NAME.into()])
        .chain(config.node_name.clone())
        .collect();
    let mut addresses: Vec<IpAddr> =
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), config.service_cidr.host(1).into()];
    if !config.bind_address.is_unspecified() {
        addresses.push(config.bind_address);
    }
    for name in &config.tls_san {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    Ok(ServerTls::new(ca, names, addresses)?)
}

/// Written anew at every start: the port may have changed.
fn write_admin_kubeconfig(config: &ServerConfig, ca: &Ca) -> Result<(), Error> {
    let host = match config.bind_address {
        address if address.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
        address => address,
    };
    let server = format!("https://{}", SocketAddr::new(host, config.https_port));
    let identity = ca.client("umiak-admin", &["system:masters"])?;
    let text = pki::kubeconfig("umiak", &server, ca.certificate(), "umiak-admin", &identity);
    Ok(daemon::keep(config.data_dir.join(ADMIN_KUBECONFIG), &text)?)
}
