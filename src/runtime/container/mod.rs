//! What happens in the helpers a shim forks: a container made, started, and commands run in it.
//!
//! Every libcontainer call of the project is below here. A helper is a fork of the single-threaded shim; it works in a
//! mount namespace of its own, so that the writable root, the bundle and libcontainer's state vanish with it (the root
//! lives on in the container's namespace) and nothing is ever mounted on the host.

mod capture;
mod capabilities;
mod create;
mod exec;
mod executor;
mod mounts;
mod spec;
mod user;

pub(super) use capabilities::{bit as capability, permitted};
pub(super) use create::{Stdio, create};
pub(super) use exec::exec;
pub(super) use executor::Failure;

use std::{fs, io, os::fd::OwnedFd, path::Path};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::{Error, Result, SandboxConfig, cgroup::Cgroups};

/// The pod a helper works for.
#[derive(Debug)]
pub(super) struct Pod {
    /// As given.
    pub(super) config: SandboxConfig,
    /// Its directory on the host.
    pub(super) directory: std::path::PathBuf,
    /// Name of its cgroup.
    pub(super) cgroup: String,
    /// The host's hierarchies.
    pub(super) cgroups: Cgroups,
    /// A mount namespace whose root is the pod's shared memory; `None` where that is the host's.
    pub(super) shm: Option<OwnedFd>,
    /// First process of a PID namespace the containers share.
    pub(super) pause: Option<u32>,
}

impl Pod {
    /// Name of a container's cgroup.
    pub(super) fn cgroup_of(&self, id: &super::ContainerId) -> String {
        format!("{}/{id}", self.cgroup)
    }

    /// Directory of a container.
    pub(super) fn directory_of(&self, id: &super::ContainerId) -> std::path::PathBuf {
        self.directory.join("containers").join(id.to_string())
    }

    /// Where a helper mounts its scratch space.
    fn scratch(&self) -> std::path::PathBuf {
        self.directory.join("run")
    }
}

/// What an exec needs to know of its container; made at its creation, kept by the shim as a memory file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Profile {
    /// The OCI runtime specification of the container.
    spec: serde_json::Value,
    /// How its processes are run.
    command: executor::Command,
    /// As whom.
    identity: user::Identity,
    oom_score_adj: i32,
}

/// What a helper tells its shim: one packet, with descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Done: the new process. For a new container a memory file with its [`Profile`], then, with a terminal, its master.
    Done { pid: u32 },
    /// Not done.
    Failed(super::protocol::Fault),
}

/// Leaves the host's mount namespace for a copy from which nothing comes back, and mounts the scratch space.
fn enter_private_mounts(pod: &Pod) -> Result<()> {
    let fail = |op, path: &Path, source: nix::Error| Error::File { op, path: path.into(), source: source.into() };
    let (root, scratch) = (Path::new("/"), pod.scratch());
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|e| fail("unshare mounts of", root, e))?;
    let nothing = None::<&str>;
    mount(nothing, root, nothing, MsFlags::MS_SLAVE | MsFlags::MS_REC, nothing)
        .map_err(|e| fail("make a slave of", root, e))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("umiak"), &scratch, Some("tmpfs"), flags, Some("mode=0700,size=16m"))
        .map_err(|e| fail("mount a tmpfs at", &scratch, e))?;
    for part in ["bundle", "state"] {
        make_directory(&scratch.join(part))?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(|source| Error::File { op: "create", path: path.into(), source })
}

fn write_file(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::from);
    bytes.and_then(|b| fs::write(path, b)).map_err(|source| Error::File { op: "write", path: path.into(), source })
}
