//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use super::Reference;
use super::reference::InvalidReference;

/// Shorthand of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Each message is one line that names the operation and its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store has no such image. Umiak does not pull from registries.
    #[error(
        "image {0} is not present on this node, and pulling from a registry is not available: \
         import it with `umiak image import ARCHIVE.tar`"
    )]
    NotPresent(Reference),
    /// See [`InvalidReference`].
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The archive cannot be read as one, or its content is not what its digests say.
    #[error("import {archive}: {problem}")]
    Archive {
        /// File, directory or stream.
        archive: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// What is stored is no longer what was imported.
    #[error("image {image} is damaged ({digest}: {problem}): import it again")]
    Damaged {
        /// Reference or image id.
        image: String,
        /// Of the blob or layer.
        digest: String,
        /// What was found.
        problem: String,
    },
    /// Containers use it.
    #[error("remove {image}: it is used by a container; stop that first, or force it")]
    InUse {
        /// Reference.
        image: String,
    },
    /// The operator pinned it.
    #[error("remove {image}: it is pinned; unpin it first, or force it")]
    Pinned {
        /// Reference.
        image: String,
    },
    /// A file operation of the store failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// Verb.
        operation: &'static str,
        /// Subject.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Names the operation and path of an I/O error.
pub(super) trait At<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::Io { operation, path: path.to_owned(), source: e.into() })
    }
}
