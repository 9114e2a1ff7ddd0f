//! What the node half tells the runtime and hears from it.

use std::{collections::BTreeMap, fmt, os::fd::OwnedFd, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// One run of a container: its name in the pod and the attempt, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId {
    /// The container's name in the pod.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name, self.attempt)
    }
}

/// What a pod's sandbox is made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    /// The pod's UID; names its directory and cgroup.
    pub uid: String,
    /// Host name in the pod; ignored with `host_network`, where the node's name is kept.
    pub hostname: String,
    /// Stay in the host's network (and UTS) namespace.
    pub host_network: bool,
    /// Containers stay in the host's PID namespace.
    pub host_pid: bool,
    /// Stay in the host's IPC namespace.
    pub host_ipc: bool,
    /// All containers share one PID namespace, whose first process is a reaper of the runtime's.
    pub share_process_namespace: bool,
    /// Sysctls by dotted name; only namespaced ones (`kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`, `net.*`).
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the whole pod.
    pub resources: Resources,
    /// Size of the pod's shared `/dev/shm` in bytes; 64 MiB if `None`.
    pub shm_size: Option<u64>,
}

/// cgroup limits; `None` is "no limit".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CPU shares in cgroup v1 units (2–262144); converted to a weight on v2.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds a period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds; 100000 if `None`.
    pub cpu_period: Option<u64>,
    /// Memory in bytes.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids_limit: Option<u64>,
}

/// What a container is made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Name in the pod.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
    /// Unpacked image layers, the topmost first, as overlayfs wants them.
    pub layers: Vec<PathBuf>,
    /// Command and arguments, complete.
    pub args: Vec<String>,
    /// `NAME=value`, later entries win. `PATH`, `HOME`, `HOSTNAME` and (with a tty) `TERM` are added where missing.
    pub env: Vec<String>,
    /// Working directory; `/` if empty, made if missing.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Mounts in the order of their container paths; parents are mounted first whatever the order here.
    pub mounts: Vec<Mount>,
    /// Host devices beyond the usual ones.
    pub devices: Vec<Device>,
    /// Capabilities, masked paths, seccomp and the like.
    pub security: Security,
    /// Limits.
    pub resources: Resources,
    /// −1000…1000. A value below the daemon's own, where it lacks CAP_SYS_RESOURCE, becomes the lowest possible.
    pub oom_score_adj: i32,
    /// Run on a terminal.
    pub tty: bool,
    /// Keep a standard input open for `attach`.
    pub stdin: bool,
    /// Close it when the first attached client goes.
    pub stdin_once: bool,
    /// Where the output goes, in CRI format; its directory must exist. `None`: thrown away.
    pub log: Option<LogConfig>,
}

impl ContainerConfig {
    /// The id of this run.
    pub fn id(&self) -> ContainerId {
        ContainerId { name: self.name.clone(), attempt: self.attempt }
    }
}

/// The log file of a container. A full file is renamed to `PATH.1`, that one to `PATH.2` and so on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogConfig {
    /// The current file.
    pub path: PathBuf,
    /// Bytes after which it is rotated; 10 MiB by default.
    pub max_size: u64,
    /// How many files are kept, the current one included; 5 by default.
    pub max_files: u32,
}

impl LogConfig {
    /// A log with the default limits (those of kubelet: 10 MiB, 5 files).
    pub fn new(path: PathBuf) -> Self {
        Self { path, max_size: 10 << 20, max_files: 5 }
    }
}

/// Who runs a container. Numbers of the pod win over the image's user.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// The image's user: `""`, `name`, `name:group`, numbers or names; looked up in the image's own files.
    pub image: String,
    /// `runAsUser`.
    pub uid: Option<u32>,
    /// `runAsGroup`.
    pub gid: Option<u32>,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: Vec<u32>,
    /// `supplementalGroupsPolicy: Strict`: leave out the groups the image's `/etc/group` gives the user.
    pub strict_groups: bool,
}

/// One mount of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub path: String,
    /// What is mounted there.
    pub source: MountSource,
    /// Read-only.
    pub readonly: bool,
    /// With `readonly`: everything mounted below the source too.
    pub recursive_readonly: bool,
    /// Which later mounts are seen on the other side.
    pub propagation: Propagation,
}

impl Mount {
    /// A private, writable bind mount.
    pub fn bind(source: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            source: MountSource::Bind { source: source.into(), sub_path: None },
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
        }
    }
}

/// What a mount shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host.
    Bind {
        /// The volume's path on the host.
        source: PathBuf,
        /// A path below `source`, never followed out of it, made as a directory where missing.
        sub_path: Option<String>,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Bytes; half of the memory if `None`.
        size: Option<u64>,
        /// Permission bits of its root.
        mode: u32,
    },
}

/// `mountPropagation` of Kubernetes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `None`.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

/// A device node of the host given to a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Device {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub path: String,
    /// Any of `r`, `w`, `m`.
    pub access: String,
}

/// What a container may do. The default is the container world's: a few capabilities, seccomp, masked paths.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Everything: all capabilities and devices, no seccomp, nothing masked.
    pub privileged: bool,
    /// Capabilities added, without `CAP_`; `ALL` is understood.
    pub add: Vec<String>,
    /// Capabilities taken away; `ALL` is understood.
    pub drop: Vec<String>,
    /// `readOnlyRootFilesystem`.
    pub readonly_root: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// `procMount: Unmasked` is false: nothing of /proc and /sys hidden.
    pub masked_proc: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            privileged: false,
            add: Vec::new(),
            drop: Vec::new(),
            readonly_root: false,
            no_new_privs: false,
            seccomp: Seccomp::RuntimeDefault,
            masked_proc: true,
        }
    }
}

/// `seccompProfile` of Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The built-in filter.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile file in the usual JSON format.
    Localhost(PathBuf),
}

/// All that is known of a pod's containers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxState {
    /// False once the shim is gone: nothing watches the containers any more, [`super::Runtime::cleanup`] is due. Also false
    /// if another connection to the shim has replaced this one.
    pub alive: bool,
    /// Every container that was created and not removed.
    pub containers: BTreeMap<ContainerId, ContainerState>,
    /// What the shim was told to keep about them ([`super::Sandbox::note`]), as it was on connecting.
    pub notes: BTreeMap<ContainerId, String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ContainerState {
    /// All is prepared, the command does not run yet.
    Created {
        /// Process id on the host.
        pid: u32,
    },
    /// The command runs.
    Running {
        /// Process id on the host.
        pid: u32,
        /// Nanoseconds since 1970, by this host's clock.
        started_at: i64,
    },
    /// It ended.
    Exited(Exit),
}

impl ContainerState {
    /// The exit, if it has ended.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// How a container ended. Also on disk as `exit.json`, so that it is known after a restart of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal where a signal ended it; 128 where the command could not be run.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// Nanoseconds since 1970; 0 if it never ran.
    pub started_at: i64,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
    /// Why the command could not be run.
    pub start_error: Option<String>,
}

/// A command to run in a running container: with its user, environment, directory, capabilities and filter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecConfig {
    /// Command and arguments.
    pub args: Vec<String>,
    /// Additional environment.
    pub env: Vec<String>,
    /// On a terminal of its own; `stdout` then carries everything.
    pub tty: bool,
    /// With a standard input; else it is /dev/null.
    pub stdin: bool,
}

/// The ends of a process's streams. Pipes and terminals are the kernel's, so back-pressure is natural: what is not read
/// blocks the writer. All are non-blocking.
#[derive(Debug)]
pub struct Streams {
    /// Write here; dropping it is end of file (on a terminal: send 0x04).
    pub stdin: Option<OwnedFd>,
    /// Read here. For a terminal the same file as `stdin`.
    pub stdout: Option<OwnedFd>,
    /// Read here; `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, for [`resize`].
    pub tty: Option<OwnedFd>,
}

/// Sets the window size of a terminal; its foreground processes get SIGWINCH.
pub fn resize(tty: impl std::os::fd::AsFd, rows: u16, columns: u16) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which lives until the call returns.
    match unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What a captured exec (a probe, a hook) gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code, or 128 + signal; `None` if it was killed because its time was up.
    pub code: Option<i32>,
    /// Standard output and error together, cut at the asked limit.
    pub output: Vec<u8>,
}

/// Bounds of a captured exec.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// After this the process is killed.
    pub timeout: Duration,
    /// Bytes of output kept; the rest is read and thrown away.
    pub limit: usize,
}

/// What a container or pod uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use in bytes; 0 without a memory controller.
    pub memory_usage: u64,
    /// Memory in use without the inactive file cache: what kubelet calls the working set.
    pub memory_working_set: u64,
    /// Resident anonymous memory.
    pub memory_rss: u64,
    /// Processes and threads.
    pub pids: u64,
}
