//! `umiak shim`: one small, single-threaded process a pod. It holds the pod's namespaces, is the parent of its containers,
//! writes their logs and exit records, and obeys the daemon on a unix socket. It outlives the daemon.
//!
//! It does no more than poll and fork: whatever needs memory or libcontainer happens in a forked helper.

mod log;
mod namespaces;
mod process;
mod requests;
mod server;
mod streams;

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::ExitCode,
};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
    stat::{Mode, umask},
};
use serde::{Deserialize, Serialize};

use super::{SandboxConfig, cgroup::Cgroups, container::Pod, sys};

/// Name of the socket in the pod's directory.
pub(super) const SOCKET: &str = "shim.sock";
/// Name of the shim's own cgroup in the pod's.
pub(super) const OWN_CGROUP: &str = "shim";
/// Name of a container's exit record in its directory.
pub(super) const EXIT_RECORD: &str = "exit.json";
/// What a shim says once it listens.
pub(super) const READY: &str = "ready";

/// What the daemon tells a new shim, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) sandbox: SandboxConfig,
    /// The pod's directory; exists.
    pub(super) directory: PathBuf,
    /// Name of the pod's cgroup; exists, with one for the shim in it.
    pub(super) cgroup: String,
}

/// A command for the shim of the pod: `EXE shim UID`.
pub(super) fn command(exe: &std::path::Path, uid: &str) -> std::process::Command {
    let mut command = std::process::Command::new(exe);
    command.arg0("umiak").args(["shim", uid]).env_clear();
    command
}

/// Runs a shim. Reads its orders from standard input, says `ready` or what went wrong on standard output, and goes on in
/// the background.
pub fn shim_main(_: impl IntoIterator<Item = String>) -> ExitCode {
    // SAFETY: the process has one thread; the child is a full copy of it.
    match unsafe { libc::fork() } {
        -1 => {
            say(&format!("fork: {}", io::Error::last_os_error()));
            return ExitCode::FAILURE;
        }
        0 => {}
        _ => return ExitCode::SUCCESS,
    }
    match prepare() {
        Ok(mut server) => {
            say(READY);
            match detach_output() {
                Ok(()) => server.run(),
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(reason) => {
            say(&reason);
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    // If the daemon is gone there is nobody to tell.
    let _ = writeln!(io::stdout(), "{text}");
}

fn prepare() -> Result<server::Server, String> {
    fn fail<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
        move |e| format!("{what}: {e}")
    }
    let start: Start = io::read_to_string(io::stdin())
        .and_then(|text| Ok(serde_json::from_str(&text)?))
        .map_err(fail("read the orders"))?;
    sys::close_range(3, u32::MAX, false).map_err(fail("close inherited files"))?;
    nix::unistd::setsid().map_err(fail("setsid"))?;
    nix::unistd::setgroups(&[]).map_err(fail("setgroups"))?;
    umask(Mode::from_bits_truncate(0o022));
    let nobody = File::options().read(true).write(true).open("/dev/null").map_err(fail("open /dev/null"))?;
    for target in [0, 2] {
        // SAFETY: replaces a standard stream of this process, which no value owns.
        if unsafe { libc::dup2(nobody.as_raw_fd(), target) } < 0 {
            return Err(fail("replace standard streams")(io::Error::last_os_error()));
        }
    }
    // At a shutdown of the host everything gets SIGTERM at once: the shim must still see its containers end.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignores a signal; there is no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: prctl with numbers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    // Like the pause process elsewhere; without the right to it the shim stays as it is.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    let cgroups = Cgroups::detect().map_err(fail("cgroups"))?;
    cgroups.join(&format!("{}/{OWN_CGROUP}", start.cgroup), std::process::id()).map_err(fail("join the cgroup"))?;

    std::env::set_current_dir(&start.directory).map_err(fail("enter the pod's directory"))?;
    let listener = listen().map_err(fail("listen"))?;
    namespaces::enter(&start.sandbox)?;
    let shm = match start.sandbox.host_ipc {
        true => None,
        false => Some(namespaces::keep_shared_memory(&start.directory, start.sandbox.shm_size)?),
    };
    std::env::set_current_dir("/").map_err(fail("leave the pod's directory"))?;
    let signals = watch_children().map_err(fail("watch children"))?;
    let pause = match start.sandbox.share_process_namespace && !start.sandbox.host_pid {
        true => Some(process::spawn_pause().map_err(fail("make the shared PID namespace"))?),
        false => None,
    };
    let pod = Pod { config: start.sandbox, directory: start.directory, cgroup: start.cgroup, cgroups, shm, pause };
    Ok(server::Server::new(pod, listener, signals))
}

/// Binds by a relative name, since the directory's path may be too long for a socket address.
fn listen() -> io::Result<OwnedFd> {
    use nix::sys::socket::{bind, listen, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    listen(&listener, Backlog::new(4)?)?;
    Ok(listener)
}

/// A descriptor that becomes readable when a child ends.
fn watch_children() -> io::Result<OwnedFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    fd.as_fd().try_clone_to_owned()
}

/// Closes the pipe the daemon reads our start from.
fn detach_output() -> io::Result<()> {
    // SAFETY: duplicates the descriptor of /dev/null onto that of standard output, which no value owns.
    match unsafe { libc::dup2(0, 1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
