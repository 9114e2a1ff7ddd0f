//! What can go wrong in this room.

use std::{io, path::PathBuf};

use super::ContainerId;

/// Shorthand for results of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the runtime. Each names the operation and its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation on the host failed.
    #[error("{op} {}: {source}", path.display())]
    File {
        /// What was done, as a verb: `open`, `create`, `remove`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The configuration of a pod or container cannot be carried out as written.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of [`super::SandboxConfig`] or [`super::ContainerConfig`].
        field: String,
        /// Why it is refused.
        reason: String,
    },
    /// A limit was asked for that needs a cgroup controller this kernel does not offer.
    #[error("the kernel has no {controller} cgroup controller, which the {limit} needs")]
    MissingController {
        /// `memory`, `cpu`, `pids`, `devices`.
        controller: String,
        /// The limit that was asked for.
        limit: String,
    },
    /// A cgroup file could not be written or read.
    #[error("cgroup {}: {source}", path.display())]
    Cgroup {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The shim of a pod could not be started.
    #[error("start the shim of pod {uid}: {reason}")]
    ShimStart {
        /// The pod.
        uid: String,
        /// What the shim said.
        reason: String,
    },
    /// The shim of the pod is gone; [`super::Runtime::cleanup`] takes away what it left.
    #[error("the shim of pod {uid} is gone")]
    ShimGone {
        /// The pod.
        uid: String,
    },
    /// The shim did not answer in time.
    #[error("the shim of pod {uid} did not answer to {op} within {seconds} s")]
    Timeout {
        /// The pod.
        uid: String,
        /// The request.
        op: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// A sandbox of this pod exists already.
    #[error("a sandbox of pod {0} exists already")]
    SandboxExists(String),
    /// The shim knows no such container.
    #[error("no container {0}")]
    NoContainer(ContainerId),
    /// The container is not in the state the operation needs.
    #[error("container {id} is {state}")]
    WrongState {
        /// The container.
        id: ContainerId,
        /// Its state: `created`, `running`, `exited`.
        state: String,
    },
    /// The container could not be created; the text is the root cause.
    #[error("create container {id}: {reason}")]
    Create {
        /// The container.
        id: ContainerId,
        /// The root cause.
        reason: String,
    },
    /// The command of a container or of an exec could not be run. The text reads as kubelet's: `exec: "foo": executable
    /// file not found in $PATH`.
    #[error("{reason}")]
    Start {
        /// The container.
        id: ContainerId,
        /// What a shell would return: 127 not found, 126 not executable, 128 any other fault.
        exit_code: i32,
        /// The root cause.
        reason: String,
    },
    /// The shim sent something this daemon does not understand.
    #[error("protocol of the shim of pod {uid}: {reason}")]
    Protocol {
        /// The pod.
        uid: String,
        /// What was wrong.
        reason: String,
    },
}
