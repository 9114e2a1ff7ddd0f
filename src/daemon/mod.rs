//! What the daemon does in every role: takes its data directory, heeds signals, speaks with the service manager.

pub mod board;
pub mod status;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::files;
use crate::node;

/// Held by the one daemon that may use a data directory.
pub const LOCK: &str = "umiak.lock";

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node makes namespaces, mounts and cgroups.
    #[error("umiak needs root: it makes namespaces, mounts and cgroups")]
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

/// Makes and takes the data directory, as root, and lifts the limit of open files.
///
/// # Errors
/// [`Error::NotRoot`], and those of [`lock`].
pub fn begin(data_dir: &Path) -> Result<Flock<fs::File>, Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    make_directory(data_dir)?;
    let lock = lock(data_dir)?;
    raise_file_limit();
    Ok(lock)
}

/// Makes a directory that only root enters.
///
/// # Errors
/// [`Error::DataDir`].
pub fn make_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::DataDir { path: path.to_owned(), source })
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
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), &path));
    if let Err(error) = told {
        tracing::warn!(%error, "notify the service manager");
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Handles them from now on.
    ///
    /// # Errors
    /// [`Error::Signals`].
    pub fn new() -> Result<Self, Error> {
        let of = |kind| signal(kind).map_err(Error::Signals);
        Ok(Self { terminate: of(SignalKind::terminate())?, interrupt: of(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Keeps a file in the data directory.
///
/// # Errors
/// [`Error::DataDir`].
pub fn keep(path: PathBuf, text: &str) -> Result<(), Error> {
    files::replace(&path, text.as_bytes()).map_err(|source| Error::DataDir { path, source })
}

/// Logs why a part ended, if not because it was to.
pub fn log_end<E: std::fmt::Display>(part: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(%error, part, "stopped");
    }
}
