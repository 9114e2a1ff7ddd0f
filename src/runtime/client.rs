//! The daemon's half: starts shims, finds them again, cleans up after them.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    ContainerId, Error, Exit, Result, Sandbox, SandboxConfig,
    cgroup::Cgroups,
    shim::{self, EXIT_RECORD, OWN_CGROUP, READY},
    sys,
};
use crate::files;

/// How long a new shim may take until it listens.
const SHIM_START: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone. One that hangs in the kernel (a dead network disk) may take for ever.
const DYING: Duration = Duration::from_secs(10);
/// The longest pause before a cgroup that is still busy is tried again; it starts at 1 ms and doubles.
const BUSY: Duration = Duration::from_millis(200);

/// Where the runtime lives.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// One directory a pod is made below this one. May be on flash: it holds the containers' writable layers.
    pub state_dir: PathBuf,
    /// Absolute name of the cgroup all pods live below, e.g. `/umiak-1a2b`; made if missing.
    pub cgroup_root: String,
    /// The `umiak` binary, run as `EXE shim UID`.
    pub exe: PathBuf,
}

/// The container runtime of this node. Cheap to clone. Its methods need a tokio runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    config: Arc<RuntimeConfig>,
    cgroups: Arc<Cgroups>,
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
        let dir = &config.state_dir;
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(dir);
        made.map_err(|source| Error::File { op: "create", path: dir.clone(), source })?;
        let cgroups = Cgroups::detect()?;
        cgroups.create(&config.cgroup_root)?;
        Ok(Self { config: config.into(), cgroups: cgroups.into() })
    }

    /// Makes a pod's namespaces, cgroup and shim. Fails with [`Error::SandboxExists`] if there is one; leaves nothing on
    /// failure. Dropped before it is done it may leave something for [`Runtime::cleanup`].
    pub async fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        let uid = &config.uid;
        check_name("uid", uid)?;
        let (directory, cgroup) = (self.directory(uid), self.cgroup(uid));
        let result = match make_directories(&directory) {
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::SandboxExists(uid.clone()));
            }
            Err(other) => Err(other),
            Ok(()) => self.spawn(config, &directory, &cgroup).await,
        };
        if result.is_err() {
            // The first error says more than that of a failing cleanup; what is left is found again by `adopt`.
            if let Err(error) = self.cleanup(uid).await {
                tracing::warn!(%error, uid, "cleanup after a failed sandbox");
            }
        }
        result
    }

    async fn spawn(&self, config: &SandboxConfig, directory: &Path, cgroup: &str) -> Result<Sandbox> {
        self.cgroups.create(&format!("{cgroup}/{OWN_CGROUP}"))?;
        self.cgroups.limit(cgroup, &config.resources)?;
        let fail = |reason: String| Error::ShimStart { uid: config.uid.clone(), reason };
        let io = |e: std::io::Error| fail(e.to_string());
        let start = shim::Start { sandbox: config.clone(), directory: directory.to_owned(), cgroup: cgroup.to_owned() };
        let orders = serde_json::to_vec(&start).map_err(|e| fail(e.to_string()))?;
        let mut command = tokio::process::Command::from(shim::command(&self.config.exe, &config.uid));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(io)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(&orders).await?;
            }
            let mut said = String::new();
            if let Some(stdout) = stdout {
                stdout.take(4096).read_to_string(&mut said).await?;
            }
            // The process that was started goes at once; the shim is its child.
            child.wait().await?;
            Ok(said)
        };
        let said = match timeout(SHIM_START, talk).await {
            Ok(said) => said.map_err(io)?,
            Err(_) => return Err(fail(format!("not ready after {} s", SHIM_START.as_secs()))),
        };
        match said.trim() {
            READY => Sandbox::connect(&config.uid, directory, cgroup, self.cgroups.clone()).await,
            "" => Err(fail("it ended without a word".into())),
            reason => Err(fail(reason.into())),
        }
    }

    /// Finds the pods of an earlier daemon.
    pub async fn adopt(&self) -> Result<Adopted> {
        let fail = |source| Error::File { op: "list", path: self.config.state_dir.clone(), source };
        let mut found = Adopted::default();
        for entry in fs::read_dir(&self.config.state_dir).map_err(fail)? {
            let Ok(uid) = entry.map_err(fail)?.file_name().into_string() else { continue };
            if check_name("uid", &uid).is_err() {
                continue;
            }
            let directory = self.directory(&uid);
            match Sandbox::connect(&uid, &directory, &self.cgroup(&uid), self.cgroups.clone()).await {
                Ok(sandbox) => found.live.push(sandbox),
                Err(reason) => {
                    tracing::debug!(%reason, uid, "no shim");
                    found.dead.push(DeadSandbox { exits: read_exits(&directory), uid });
                }
            }
        }
        Ok(found)
    }

    /// Kills and removes whatever is left of a pod: processes, cgroups, directory. Idempotent.
    pub async fn cleanup(&self, uid: &str) -> Result<()> {
        check_name("uid", uid)?;
        cleanup(&self.cgroups, &self.cgroup(uid), &self.directory(uid)).await
    }

    /// Kills and removes every pod, the root cgroup and the state directory: nothing of this runtime is left.
    pub async fn destroy(&self) -> Result<()> {
        cleanup(&self.cgroups, &self.config.cgroup_root, &self.config.state_dir).await
    }

    fn directory(&self, uid: &str) -> PathBuf {
        self.config.state_dir.join(uid)
    }

    fn cgroup(&self, uid: &str) -> String {
        format!("{}/pod{uid}", self.config.cgroup_root)
    }
}

/// Refuses names that would not stay one component of a path.
pub(super) fn check_name(field: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid { field: field.into(), reason: format!("{name:?} cannot name a directory") })
}

fn make_directories(directory: &Path) -> Result<()> {
    for path in [directory.to_owned(), directory.join("run"), directory.join("shm"), directory.join("containers")] {
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| Error::File { op: "create", path, source })?;
    }
    Ok(())
}

fn read_exits(directory: &Path) -> Vec<(ContainerId, Exit)> {
    let entries = fs::read_dir(directory.join("containers")).into_iter().flatten().flatten();
    let exits = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (name, attempt) = name.rsplit_once('-')?;
        let id = ContainerId { name: name.into(), attempt: attempt.parse().ok()? };
        let record = fs::read(entry.path().join(EXIT_RECORD)).ok()?;
        // A record torn by a power cut is no record.
        Some((id, serde_json::from_slice(&record).ok()?))
    });
    exits.collect()
}

/// Kills all processes of a cgroup, removes it, then a directory.
pub(super) async fn cleanup(cgroups: &Cgroups, cgroup: &str, directory: &Path) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        // Every time: a shim whose daemon died while it started may come into its cgroup only now.
        kill_all(cgroups, cgroup).await;
        match cgroups.remove(cgroup) {
            Ok(()) => break,
            Err(busy) if pause > BUSY => return Err(busy),
            Err(_) => {}
        }
        // A process leaves its cgroup a moment after its end is seen; there is no event for it.
        sleep(pause).await;
        pause *= 2;
    }
    let path = directory.to_owned();
    let removed = tokio::task::spawn_blocking(move || {
        files::remove_tree(&path).map_err(|source| Error::File { op: "remove", path, source })
    });
    removed.await.unwrap_or_else(|e| Err(Error::File { op: "remove", path: directory.into(), source: e.into() }))
}

/// Kills until nothing is left, or patience is at its end.
async fn kill_all(cgroups: &Cgroups, cgroup: &str) {
    let deadline = Instant::now() + DYING;
    loop {
        // Handles first: a number could be another process by the time it is waited for.
        let processes: Vec<_> = cgroups.processes(cgroup).into_iter().map(sys::pidfd_open).collect();
        if processes.is_empty() || Instant::now() >= deadline {
            return;
        }
        cgroups.kill(cgroup);
        for process in processes.into_iter().flatten() {
            // SAFETY: an owned descriptor stays open and the same until it is dropped, by which time it is deregistered.
            let registered = unsafe { AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) };
            if let Ok(process) = registered {
                // On timeout the loop's own look at the clock ends it.
                let _ = timeout_at(deadline, process.readable()).await;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names() {
        for (name, fine) in [("a-b_c.d", true), ("", false), ("..", false), ("a/b", false), (".x", false), ("ü", false)]
        {
            assert_eq!(check_name("uid", name).is_ok(), fine, "{name:?}");
        }
    }

    #[test]
    fn exit_records() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["web-0", "my-app-12", "torn-1", "none-0"] {
            fs::create_dir_all(dir.path().join("containers").join(name)).unwrap();
        }
        let exit = Exit { code: 3, signal: None, oom_killed: false, started_at: 1, finished_at: 2, start_error: None };
        let write = |name: &str, text: &[u8]| {
            fs::write(dir.path().join("containers").join(name).join(EXIT_RECORD), text).unwrap()
        };
        write("web-0", &serde_json::to_vec(&exit).unwrap());
        write("my-app-12", &serde_json::to_vec(&exit).unwrap());
        write("torn-1", b"{");
        let mut found = read_exits(dir.path());
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let id = |name: &str, attempt| ContainerId { name: name.into(), attempt };
        assert_eq!(found, [(id("my-app", 12), exit.clone()), (id("web", 0), exit)]);
    }
}
