//! What can go wrong with the pod network.

use std::io;
use std::path::PathBuf;

use super::Cidr;

/// Shorthand of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Each message is one line that names the operation and its subject.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A change of interfaces, addresses or routes was refused by the kernel.
    #[error("{operation} {subject}: {cause}")]
    Netlink {
        /// Verb.
        operation: &'static str,
        /// Interface or address.
        subject: String,
        /// The kernel's answer.
        cause: String,
    },
    /// Every address is taken.
    #[error("no free pod address in {0}")]
    Exhausted(Cidr),
    /// Pods of this node cannot reach the world outside the node.
    #[error("pod traffic cannot leave this node: masquerading is not available: {0}")]
    MasqueradeUnavailable(String),
    /// Endpoints cannot be shown their clients' addresses.
    #[error("endpoints cannot see their clients' addresses: {0}")]
    SourceUnavailable(String),
    /// Pods of nodes behind routers cannot be reached.
    #[error("nodes of other network segments cannot be reached: VXLAN is not available (CONFIG_VXLAN): {0}")]
    Overlay(String),
    /// A file of the network's state, or a kernel setting, cannot be read or written.
    #[error("{operation} {}: {cause}", path.display())]
    File {
        /// Verb.
        operation: &'static str,
        /// Subject.
        path: PathBuf,
        /// Cause.
        cause: String,
    },
    /// The pod's network namespace cannot be entered.
    #[error("network namespace of pod {pod}: {cause}")]
    Netns {
        /// Pod UID.
        pod: String,
        /// Cause.
        cause: String,
    },
}

impl Error {
    pub(super) fn file(operation: &'static str, path: impl Into<PathBuf>, cause: io::Error) -> Error {
        Error::File { operation, path: path.into(), cause: cause.to_string() }
    }
}
