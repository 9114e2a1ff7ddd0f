//! Wiring of the server role: which parts start, in which order they stop. No logic.

mod parts;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, Api};
use crate::config::ServerConfig;
use crate::files;
use crate::kinds::status::Status;
use crate::kinds::table::KindTable;
use crate::memory::Trimmer;
use crate::network::Network;
use crate::node;
use crate::pki::{self, Ca, ServerTls};
use crate::registry::Registry;
use crate::runtime::Runtime;
use crate::store::{self, Store};
use parts::Parts;

/// The administrator's kubeconfig, below the data directory.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// Held by the one daemon that may use a data directory.
pub const LOCK: &str = "umiak.lock";

/// Events are kept for an hour, as by the Kubernetes API server.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node makes namespaces, mounts and cgroups.
    #[error("umiak server needs root: it makes namespaces, mounts and cgroups")]
    NotRoot,
    /// The data directory cannot be used.
    #[error("data directory {path}: {source}")]
    DataDir {
        /// The directory or the file below it.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another daemon runs on it.
    #[error("data directory {0} is in use by another umiak")]
    InUse(PathBuf),
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
    /// The image store.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// The container runtime.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
    /// The pod network.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    /// The node half.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// First objects of the cluster.
    #[error("make the cluster's first objects: {0}")]
    Bootstrap(Status),
    /// A signal handler could not be installed.
    #[error("handle signals: {0}")]
    Signals(io::Error),
    /// A part that runs for as long as the daemon ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// The cgroup that all pods of a data directory live below: several daemons run side by side on one machine.
pub fn cgroup_root(data_dir: &Path) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, data_dir.as_os_str().as_encoded_bytes());
    let name: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("/umiak-{name}")
}

/// Takes a data directory for this process; the lock ends with the value or the process.
///
/// # Errors
/// [`Error::InUse`] while a daemon runs on it; [`Error::DataDir`] where it cannot be written.
pub fn lock(data_dir: &Path) -> Result<Flock<fs::File>, Error> {
    let path = data_dir.join(LOCK);
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|source| Error::DataDir { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::InUse(data_dir.to_owned()))
}

/// Runs the server until SIGTERM or SIGINT. Pods go on when it returns.
///
/// # Errors
/// Whatever keeps it from starting, named; nothing is left half-made that the next start would trip over.
pub async fn run(config: ServerConfig) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let data_dir = &config.data_dir;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| Error::DataDir { path: data_dir.clone(), source })?;
    let _lock = lock(data_dir)?;
    raise_file_limit();
    let address = SocketAddr::new(config.bind_address, config.https_port);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::new()?;

    let store = Store::open(store_options(data_dir))?;
    let registry = Registry::with_services(store.clone(), KindTable::builtin(), config.service_cidr);
    registry.bootstrap().await.map_err(Error::Bootstrap)?;
    let ca = Arc::new(Ca::open(&data_dir.join("server/pki"))?);
    let tls = server_tls(&config, ca.clone())?;
    write_admin_kubeconfig(&config, &ca)?;
    let mut parts = Parts::start(&config, &registry, &ca, stopped.clone()).await?;
    let judge = tls.clone();
    let trusted = Arc::new(move |chain: &[CertificateDer<'_>]| judge.trusts(chain));
    let mut options = api::Options::new(tls.config()?, trusted, parts.streams());
    let trimmer = Trimmer::default();
    tokio::spawn(trimmer.clone().run());
    options.arrived = Arc::new(move |address| {
        tls.arrived_at(address);
        trimmer.active();
    });
    let api = Api::new(registry, options);
    let serving = tokio::spawn(api.serve(listener, until(stopped)));

    let mut ready = std::pin::pin!(parts.ready());
    let mut announced = false;
    let ended = loop {
        tokio::select! {
            name = parts.ended() => break Err(Error::Ended(name)),
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
    parts.join().await;
    store.close().await?;
    ended
}

/// Ends when the daemon is told to stop.
async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is as good a reason to stop.
    stopped.wait_for(|stop| *stop).await.ok();
}

/// Every watch is a connection, every log that is followed a file: the soft limit is for programs that use select(2).
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

/// Tells systemd (sd_notify(3)); nothing where it did not start this process.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), &path));
    if let Err(error) = told {
        tracing::warn!(%error, "notify the service manager");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let of = |kind| signal(kind).map_err(Error::Signals);
        Ok(Self { terminate: of(SignalKind::terminate())?, interrupt: of(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
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
        .chain(["kubernetes.default.svc.cluster.local".into()])
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
    keep(config.data_dir.join(ADMIN_KUBECONFIG), &text)
}

/// Keeps a file in the data directory.
fn keep(path: PathBuf, text: &str) -> Result<(), Error> {
    files::replace(&path, text.as_bytes()).map_err(|source| Error::DataDir { path, source })
}

/// Removes every container, mount, cgroup and interface of a data directory; its files are the caller's.
///
/// # Errors
/// Whatever could not be removed, named.
pub async fn reset(data_dir: &Path) -> Result<(), Error> {
    let runtime = Runtime::new(parts::runtime_config(data_dir)?)?;
    node::reset(&data_dir.join("node"), &runtime).await?;
    if let Some(config) = parts::recorded_network(data_dir) {
        Network::open(config).await?.destroy().await?;
    }
    Ok(())
}
