//! The index file: which references name which image, and what each image consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{At, Result};
use super::tree::Seal;
use super::{ImageSummary, Reference};
use crate::files;

const FILE: &str = "index.json";
const VERSION: u32 = 1;

/// All that is present.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    /// By configuration digest.
    pub(super) images: BTreeMap<Digest, ImageRecord>,
    /// `registry/repository:tag`, or `registry/repository@digest` of what came without a tag, to image. An image that
    /// is named nowhere here is collected.
    pub(super) names: BTreeMap<String, Digest>,
    /// By diff id.
    pub(super) layers: BTreeMap<Digest, LayerRecord>,
    /// Archives imported at start, by path.
    #[serde(default)]
    pub(super) archives: BTreeMap<String, ArchiveRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Diff ids, lowest first.
    pub(super) layers: Vec<Digest>,
    /// `registry/repository@digest`.
    pub(super) repo_digests: BTreeSet<String>,
    pub(super) created: String,
    /// Seconds since 1970.
    pub(super) imported: u64,
    pub(super) pinned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Bytes of its files.
    pub(super) size: u64,
    /// None for the demonstration image, which is made anew instead of being checked.
    pub(super) seal: Option<Seal>,
    /// Boot in which it was written: what was new at a power cut is checked more thoroughly.
    pub(super) boot: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ArchiveRecord {
    /// Tells one version of the file from another.
    pub(super) stamp: String,
    /// What it brought.
    pub(super) images: BTreeSet<Digest>,
}

/// Tells one version of the index file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    seconds: i64,
    nanos: i64,
    size: u64,
}

impl Index {
    /// The file's stamp; none where there is no file.
    pub(super) fn stamp(directory: &Path) -> Result<Option<Stamp>> {
        let path = directory.join(FILE);
        match fs::metadata(&path) {
            Ok(m) => Ok(Some(Stamp { inode: m.ino(), seconds: m.mtime(), nanos: m.mtime_nsec(), size: m.size() })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("read", &path),
        }
    }

    /// Reads the file. One that is damaged counts as empty: it is written whole and synced, so this is a failing medium,
    /// and a node that starts without images can be given them again.
    pub(super) fn load(directory: &Path) -> Result<Index> {
        let path = directory.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(e) => return Err(e).at("read", &path),
        };
        match serde_json::from_slice::<Index>(&bytes) {
            Ok(index) if index.version == VERSION => Ok(index),
            Ok(index) => {
                Err(io::Error::other(format!("version {} is newer than this program", index.version))).at("read", &path)
            }
            Err(e) => {
                tracing::error!(path = %path.display(), error = %e, "the image index is damaged: import the images again");
                Ok(Index::default())
            }
        }
    }

    /// Replaces the file and waits until that is on disk. The caller holds the store's lock.
    pub(super) fn save(&mut self, directory: &Path) -> Result<()> {
        self.version = VERSION;
        let bytes = serde_json::to_vec(self).map_err(io::Error::from).at("encode", directory)?;
        let path = directory.join(FILE);
        files::replace(&path, &bytes).at("write", &path)
    }

    /// The image a reference names. A digest decides over a tag.
    pub(super) fn find(&self, reference: &Reference) -> Option<&Digest> {
        let id = match reference.digest() {
            Some(digest) => {
                let name = format!("{}@{digest}", reference.name());
                self.images.iter().find(|(_, image)| image.repo_digests.contains(&name)).map(|(id, _)| id)
            }
            None => self.names.get(&reference.to_string()),
        };
        id.filter(|id| self.images.contains_key(id))
    }

    /// All names of an image, sorted.
    pub(super) fn names_of(&self, id: &Digest) -> impl Iterator<Item = &String> {
        self.names.iter().filter(move |(_, image)| *image == id).map(|(name, _)| name)
    }

    /// Tags of an image, sorted.
    pub(super) fn tags_of(&self, id: &Digest) -> Vec<String> {
        self.names_of(id).filter(|name| !name.contains('@')).cloned().collect()
    }

    /// Images that lost their last name to another, and are not pinned.
    pub(super) fn nameless(&self) -> BTreeSet<Digest> {
        let is_nameless = |(id, image): &(&Digest, &ImageRecord)| !image.pinned && self.names_of(id).next().is_none();
        self.images.iter().filter(is_nameless).map(|(id, _)| id.clone()).collect()
    }

    /// Bytes of an image's layers.
    pub(super) fn size_of(&self, image: &ImageRecord) -> u64 {
        image.layers.iter().filter_map(|l| self.layers.get(l)).map(|l| l.size).sum()
    }

    /// Forgets layers that no image has.
    pub(super) fn drop_unused_layers(&mut self) {
        let used: BTreeSet<Digest> = self.images.values().flat_map(|i| i.layers.iter().cloned()).collect();
        self.layers.retain(|layer, _| used.contains(layer));
    }

    pub(super) fn summaries(&self) -> Vec<ImageSummary> {
        let mut all: Vec<_> = self
            .images
            .iter()
            .map(|(id, image)| ImageSummary {
                id: id.to_string(),
                repo_tags: self.tags_of(id),
                repo_digests: image.repo_digests.iter().cloned().collect(),
                size: self.size_of(image),
                created: image.created.clone(),
                imported: image.imported,
                pinned: image.pinned,
            })
            .collect();
        all.sort_by(|a, b| (&a.repo_tags, &a.repo_digests, &a.id).cmp(&(&b.repo_tags, &b.repo_digests, &b.id)));
        all
    }
}

/// A layer's directory name: half the digits, see the module above for why.
pub(super) fn layer_name(diff_id: &Digest) -> &str {
    &diff_id.hex()[..32]
}

/// A layer's directory within the store.
pub(super) fn layer_path(directory: &Path, diff_id: &Digest) -> PathBuf {
    directory.join("layers").join(layer_name(diff_id))
}

/// A blob's file within the store.
pub(super) fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}
