//! What can go wrong in this room.

use std::io;
use std::path::{Path, PathBuf};

use crate::{image, network, runtime};

/// Shorthand of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the node half. Each names the operation and its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod's specification cannot be carried out: something it refers to is missing, or a field is not supported.
    /// The text is what the user sees.
    #[error("{0}")]
    Config(String),
    /// A volume cannot be set up.
    #[error("volume {name:?}: {reason}")]
    Volume {
        /// Its name in the pod.
        name: String,
        /// Why.
        reason: String,
    },
    /// A file operation failed.
    #[error("{op} {}: {source}", path.display())]
    File {
        /// Verb.
        op: &'static str,
        /// Subject.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file of the node's own state cannot be understood.
    #[error("read {}: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// See [`runtime::Error`].
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// See [`image::Error`].
    #[error(transparent)]
    Image(#[from] image::Error),
    /// See [`network::Error`].
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Work on a helper thread was broken off.
    #[error("{0} was interrupted")]
    Interrupted(&'static str),
}

impl Error {
    /// A [`Error::Config`].
    pub(super) fn config(text: impl Into<String>) -> Self {
        Error::Config(text.into())
    }
}

/// Names the operation and path of an I/O error.
pub(super) trait At<T> {
    fn at(self, op: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, op: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::File { op, path: path.to_owned(), source: e.into() })
    }
}
