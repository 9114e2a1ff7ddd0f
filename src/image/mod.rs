//! Images: references, archive import, content store, layers.
//!
//! Everything here is blocking file work. [`ImageStore::get`] and [`ImageStore::list`] cost one `stat(2)` and one small
//! file read; everything else belongs into `spawn_blocking`.
//!
//! The store is a directory, safe to use from several processes at once:
//!
//! ```text
//! index.json           which reference names which image; replaced by rename, the only truth about what is present
//! lock                 flock: held while the index or the layers change
//! session              present while the store is in use: tells an unclean stop of the machine (see `session`)
//! blobs/sha256/HEX     image configurations (layer blobs are dropped once unpacked: the unpacked form is what runs, and
//!                      a board's flash has no room for both)
//! layers/HEX32/        one unpacked layer in overlayfs form, named by the first 32 hex digits of its diff id: short, so
//!                      that many of them fit into the page of options that mount(2) takes
//! tmp/                 what is being made; whoever makes it holds a flock, what is not locked is rubbish
//! import/*.tar         archives the operator leaves for the daemon's next start
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::{Error, Result};
pub use reference::{InvalidReference, Reference};
pub use store::ImageStore;

mod archive;
mod compression;
mod demo;
mod digest;
mod error;
mod import;
mod index;
mod layer;
mod manifest;
mod platform;
mod progress;
mod reference;
mod session;
mod store;
mod tarball;
mod tree;
mod usage;
#[cfg(test)]
mod test_archives;

/// The reference of the demonstration image that is always present (see [`ImageStore::ensure_demo`]).
pub const DEMO_REFERENCE: &str = "docker.io/umiak/demo:latest";

/// A present image, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of the image's configuration, `sha256:…`: the image's identity.
    pub id: String,
    /// What the image's author declared.
    pub config: ImageConfig,
    /// Unpacked layers in overlayfs form, lowest first, absolute, never empty. Never write into them.
    ///
    /// They are siblings of one directory: where the list of paths outgrows mount(2)'s page of options, use relative
    /// names from that directory, or `fsconfig(2)` with `lowerdir+`.
    pub layers: Vec<PathBuf>,
    /// Bytes of the unpacked layers' files.
    pub size: u64,
    /// `registry/repository:tag` names, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:…` names, sorted; empty for an image whose archive carried no manifest.
    pub repo_digests: Vec<String>,
    /// Never collected or removed unless forced.
    pub pinned: bool,
}

impl Image {
    /// What Kubernetes reports as a container's `imageID`: a repository digest, or else the configuration's digest.
    pub fn image_id(&self) -> &str {
        self.repo_digests.first().unwrap_or(&self.id)
    }
}

/// The part of an OCI image configuration that decides how a container of it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and leading arguments; empty: none.
    pub entrypoint: Vec<String>,
    /// Arguments to the entry point, or the program where there is none.
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty: root.
    pub user: String,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `SIGQUIT` or a number.
    pub stop_signal: Option<String>,
    /// Mount points the author wants on anonymous volumes.
    pub volumes: Vec<String>,
    /// Free-form.
    pub labels: BTreeMap<String, String>,
}

/// One line of `umiak image ls` and of a node's `status.images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    /// Digest of the image's configuration, `sha256:…`.
    pub id: String,
    /// As in [`Image`].
    pub repo_tags: Vec<String>,
    /// As in [`Image`].
    pub repo_digests: Vec<String>,
    /// Bytes of the unpacked layers' files.
    pub size: u64,
    /// When the author made it: RFC 3339 text of the configuration, empty where that is silent.
    pub created: String,
    /// When it came into this store, seconds since 1970.
    pub imported: u64,
    /// Never collected or removed unless forced.
    pub pinned: bool,
}

/// Where an archive comes from.
pub enum Source<'a> {
    /// A tar file (plain, gzip or zstd) or a directory in OCI image layout.
    Path(&'a Path),
    /// A stream of a tar (plain, gzip or zstd) and the name to call it in messages.
    Stream(&'a mut dyn std::io::Read, &'a str),
}

/// How far an import is; passed to the caller's callback at most every mebibyte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being worked on: `reading` or a layer's digest.
    pub step: String,
    /// Bytes done of this step.
    pub done: u64,
    /// Bytes of this step, where known.
    pub total: Option<u64>,
}

/// Options of [`ImageStore::import`].
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name for an image that the archive does not name.
    pub name: Option<Reference>,
    /// Pin what is imported.
    pub pin: bool,
}
