//! The daemon's half: starts shims, finds them again, talks to them.

use std::path::PathBuf;

use tokio::sync::watch;

use super::{
    Capture, ContainerConfig, ContainerId, Error, ExecConfig, ExecOutput, Exit, Result, SandboxConfig, SandboxState,
    Stats, Streams,
};

/// Where the runtime lives.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// One directory a pod is made below this one. May be on flash: it holds the containers' writable layers.
    pub state_dir: PathBuf,
    /// Absolute name of the cgroup all pods live below, e.g. `/umiak-1a2b`; made if missing.
    pub cgroup_root: String,
    /// The `umiak` binary, run as `EXE shim …`.
    pub exe: PathBuf,
}

/// The container runtime of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    config: std::sync::Arc<RuntimeConfig>,
}

/// What [`Runtime::adopt`] found.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Pods whose shim answers; their state is current.
    pub live: Vec<Sandbox>,
    /// Pods whose shim is gone (after a reboot: all). [`Runtime::cleanup`] takes away what they left.
    pub dead: Vec<DeadSandbox>,
}

/// What a dead shim left.
#[derive(Debug)]
pub struct DeadSandbox {
    /// The pod.
    pub uid: String,
    /// The exits that were recorded.
    pub exits: Vec<(ContainerId, Exit)>,
}

impl Runtime {
    /// Prepares the state directory (0700) and the root cgroup.
    pub fn new(config: RuntimeConfig) -> Result<Self> {
        Ok(Self { config: config.into() })
    }

    /// Makes a pod's namespaces, cgroup and shim. Fails with [`Error::SandboxExists`] if there is one; leaves nothing on
    /// failure.
    pub async fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        let _ = &self.config.exe;
        Err(Error::ShimGone { uid: config.uid.clone() })
    }

    /// Finds the pods of an earlier daemon.
    pub async fn adopt(&self) -> Result<Adopted> {
        Ok(Adopted::default())
    }

    /// Kills and removes whatever is left of a pod: processes, cgroups, directory. Idempotent.
    pub async fn cleanup(&self, uid: &str) -> Result<()> {
        Err(Error::ShimGone { uid: uid.to_owned() })
    }
}

/// A pod's sandbox. Cheap to clone; dropping it changes nothing about the pod.
#[derive(Debug, Clone)]
pub struct Sandbox {
    uid: String,
    pid: u32,
    state: watch::Receiver<SandboxState>,
}

impl Sandbox {
    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The shim's process id: the holder of the pod's namespaces.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pod's network namespace, `/proc/PID/ns/net`.
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// The state of all containers; changes are announced.
    pub fn state(&self) -> watch::Receiver<SandboxState> {
        self.state.clone()
    }

    /// Prepares a container: root, mounts, cgroup, a first process that waits for [`Sandbox::start`].
    pub async fn create_container(&self, config: &ContainerConfig) -> Result<()> {
        Err(Error::NoContainer(config.id()))
    }

    /// Runs the command of a created container; returns when it has been executed. Fails with [`Error::Start`] if that is
    /// impossible; the container is then `Exited` with the same code and reason.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        Err(Error::NoContainer(id.clone()))
    }

    /// Sends a signal to the first process of a container; SIGKILL goes to all of its processes. No error if it has ended.
    pub async fn signal(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let _ = signal;
        Err(Error::NoContainer(id.clone()))
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &ContainerId, config: &ExecConfig) -> Result<Exec> {
        let _ = config;
        Err(Error::NoContainer(id.clone()))
    }

    /// Runs a command without input, for a probe or a hook, within bounds.
    pub async fn exec_captured(&self, id: &ContainerId, args: &[String], capture: Capture) -> Result<ExecOutput> {
        let _ = (args, capture);
        Err(Error::NoContainer(id.clone()))
    }

    /// Joins the streams of a running container. Output from now on is copied; a client that reads nothing for 10 s is
    /// detached.
    pub async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<Streams> {
        let _ = stdin;
        Err(Error::NoContainer(id.clone()))
    }

    /// Kills what is left of a container and removes its cgroup, writable layer and exit record. Idempotent.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        Err(Error::NoContainer(id.clone()))
    }

    /// What a container uses.
    pub fn stats(&self, id: &ContainerId) -> Result<Stats> {
        Err(Error::NoContainer(id.clone()))
    }

    /// What the whole pod uses, its shim included.
    pub fn pod_stats(&self) -> Result<Stats> {
        Err(Error::ShimGone { uid: self.uid.clone() })
    }

    /// Changes the limits of a container while it runs.
    pub fn update_resources(&self, id: &ContainerId, resources: &super::Resources) -> Result<()> {
        let _ = resources;
        Err(Error::NoContainer(id.clone()))
    }

    /// Kills all containers and the shim, removes cgroups and the pod's directory.
    pub async fn destroy(&self) -> Result<()> {
        Err(Error::ShimGone { uid: self.uid.clone() })
    }
}

/// A running exec. Dropping it does not end the process; closing its streams usually does.
#[derive(Debug)]
pub struct Exec {
    /// Its streams.
    pub streams: Streams,
    exit: tokio::sync::oneshot::Receiver<i32>,
}

impl Exec {
    /// The exit code, or 128 + signal. [`Error::ShimGone`] if it cannot be known any more.
    pub async fn wait(&mut self) -> Result<i32> {
        (&mut self.exit).await.map_err(|_| Error::ShimGone { uid: String::new() })
    }
}
