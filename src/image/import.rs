//! Taking archives in.
//!
//! Everything is made in a room of its own and verified there; only then, under the store's lock, do the layers take
//! their places and the index name them. Whenever this is cut off, the store is as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::archive::{Archive, describe};
use super::compression::decompress;
use super::digest::{Digest, Hashing};
use super::error::{At, Error, Result};
use super::index::{self, ArchiveRecord, ImageRecord, Index, LayerRecord};
use super::manifest::{self, Found, FoundLayer};
use super::platform::Machine;
use super::progress::Told;
use super::store::{ImageStore, Lock};
use super::tarball::Tar;
use super::tree::{Depth, Seal};
use super::usage::Mounted;
use super::{ImportOptions, Progress, Reference, Source, layer};
use crate::files;

const ARCHIVES: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

impl ImageStore {
    /// Takes in every image of an archive that fits this machine and returns the names it now has.
    ///
    /// All of the archive or nothing of it. Memory is bounded whatever the archive says.
    ///
    /// # Errors
    /// [`Error::Archive`] names the archive and what is wrong with it.
    pub fn import(
        &self,
        source: Source<'_>,
        options: &ImportOptions,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<Reference>> {
        self.import_noting(source, options, None, progress)
    }

    /// Imports every `*.tar`, `*.tar.gz`, `*.tgz` and `*.tar.zst` of `directory` that changed since it was last
    /// imported, or whose image was damaged since. What the operator removed does not come back. One bad archive does not keep the others out: each has its own result. A missing directory is empty.
    pub fn import_directory(&self, directory: &Path) -> Vec<(PathBuf, Result<Vec<Reference>>)> {
        let mut paths: Vec<PathBuf> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| ARCHIVES.iter().any(|end| path.to_string_lossy().ends_with(end)))
            .collect();
        paths.sort();
        paths.into_iter().filter_map(|path| self.import_changed(&path).map(|result| (path, result))).collect()
    }

    /// None where the archive is as it was at its last import.
    fn import_changed(&self, path: &Path) -> Option<Result<Vec<Reference>>> {
        let name = path.display().to_string();
        let stamp = match fs::metadata(path) {
            Ok(m) => format!("{}:{}:{}.{}", m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
            Err(e) => return Some(Err(e).at("read", path)),
        };
        let index = match self.index() {
            Ok(index) => index,
            Err(e) => return Some(Err(e)),
        };
        let known = index.archives.get(&name).filter(|record| record.stamp == stamp);
        if known.is_some_and(|record| record.images.iter().all(|id| self.is_sound(&index, id))) {
            return None;
        }
        Some(self.import_noting(Source::Path(path), &ImportOptions::default(), Some((name, stamp)), &mut |_| {}))
    }

    fn import_noting(
        &self,
        source: Source<'_>,
        options: &ImportOptions,
        note: Option<(String, String)>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<Reference>> {
        let room = self.room()?;
        let archive = Archive::open(source, &room.path, progress)?;
        let found = manifest::find(&archive, &Machine::this(), options.name.as_ref())?;

        let lock = self.lock()?;
        let mut index = Index::load(&self.directory)?;
        let mut made = Vec::new();
        for layer in found.iter().flat_map(|image| &image.layers) {
            let is_made = made.iter().any(|(id, _)| *id == layer.diff_id);
            if is_made || self.is_whole(&index, &layer.diff_id) {
                continue;
            }
            let record = self.unpack(&archive, layer, &room.path, progress)?;
            made.push((layer.diff_id.clone(), record));
        }
        let names = self.commit(&mut index, &room.path, found, made, options.pin, note)?;
        self.tidy(&lock);
        Ok(names)
    }

    /// Whether the layer is present and undamaged: importing again is how damage is repaired.
    fn is_whole(&self, index: &Index, diff_id: &Digest) -> bool {
        let Some(seal) = index.layers.get(diff_id).and_then(|l| l.seal.as_ref()) else { return false };
        matches!(seal.fits(&index::layer_path(&self.directory, diff_id), Depth::Contents), Ok(true))
    }

    /// Unpacks one layer into the room and verifies it.
    fn unpack(
        &self,
        archive: &Archive,
        layer: &FoundLayer,
        room: &Path,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<LayerRecord> {
        let problem = |what: &str| archive.error(format!("layer {}: {what}", layer.member));
        let (member, total) = archive
            .member(&layer.member)?
            .ok_or_else(|| problem("it is missing: the archive is truncated or incomplete"))?;
        let mut packed = Hashing::new(Told::new(member, layer.diff_id.as_str(), Some(total), progress));
        let mut tar = Tar::new(Hashing::new(decompress(&mut packed).map_err(|e| problem(&describe(&e)))?));
        let root = index::layer_path(room, &layer.diff_id);
        fs::create_dir_all(&root).at("create", &root)?;
        let unpacked = layer::unpack(&mut tar, &root).and_then(|size| Ok((size, tar.into_inner().finish()?)));
        let (size, diff_id) = unpacked.map_err(|e| match e.raw_os_error() {
            Some(_) => Error::Io { operation: "unpack a layer into", path: root.clone(), source: e },
            None => problem(&describe(&e)),
        })?;
        let packed_id = packed.finish().map_err(|e| problem(&describe(&e)))?;
        if let Some(expected) = layer.packed.as_ref().filter(|expected| **expected != packed_id) {
            return Err(problem(&format!("it is damaged: its digest is {packed_id}, not {expected}")));
        }
        if diff_id != layer.diff_id {
            return Err(problem(&format!("it is damaged: unpacked its digest is {diff_id}, not {}", layer.diff_id)));
        }
        let seal = Seal::of(&root).at("read", &root)?;
        Ok(LayerRecord { size, seal: Some(seal), boot: self.session.boot.clone() })
    }

    /// Puts what was made in its place, for good.
    fn commit(
        &self,
        index: &mut Index,
        room: &Path,
        found: Vec<Found>,
        made: Vec<(Digest, LayerRecord)>,
        pin: bool,
        note: Option<(String, String)>,
    ) -> Result<Vec<Reference>> {
        fs::File::open(room).and_then(|d| Ok(nix::unistd::syncfs(d)?)).at("sync", room)?;
        for (diff_id, record) in made {
            self.place_layer(&index::layer_path(room, &diff_id), &diff_id)?;
            index.layers.insert(diff_id, record);
        }
        let layers = self.directory.join("layers");
        files::sync_directory(&layers).at("sync", &layers)?;
        let images = found.iter().map(|image| image.id.clone()).collect();
        let mut names = Vec::new();
        for image in found {
            let blob = index::blob_path(&self.directory, &image.id);
            files::replace(&blob, &image.config).at("write", &blob)?;
            names.extend(image.references.iter().cloned());
            record(index, image, pin);
        }
        if let Some((archive, stamp)) = note {
            index.archives.insert(archive, ArchiveRecord { stamp, images });
        }
        index.archives.retain(|archive, _| Path::new(archive).exists());
        index.save(&self.directory)?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// A layer of that name that is in the way is damaged or belongs to no image. It steps aside; while a container has
    /// it mounted it stays on disk.
    pub(super) fn place_layer(&self, made: &Path, diff_id: &Digest) -> Result<()> {
        let path = index::layer_path(&self.directory, diff_id);
        if path.exists() {
            let aside = path.with_extension(uuid::Uuid::new_v4().to_string());
            fs::rename(&path, &aside).at("rename", &path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !Mounted::now(&self.processes).uses(&name) {
                files::remove_tree(&aside).at("remove", &aside)?;
            }
        }
        fs::rename(made, &path).at("rename", made)
    }

    /// Collects what an import replaced. That can wait, so it does not fail the import.
    pub(super) fn tidy(&self, lock: &Lock) {
        if let Err(e) = self.collect(lock) {
            tracing::warn!(error = %e, "cannot remove images that lost their names");
        }
    }
}

/// Enters an image into the index; a name it takes leaves the image that had it.
fn record(index: &mut Index, image: Found, pin: bool) {
    let repo_digests = image
        .references
        .iter()
        .flat_map(|reference| image.manifests.iter().map(move |m| format!("{}@{m}", reference.name())))
        .collect();
    for reference in &image.references {
        let name = match reference.tag() {
            Some(tag) => format!("{}:{tag}", reference.name()),
            None => reference.to_string(),
        };
        index.names.insert(name, image.id.clone());
    }
    let layers = image.layers.into_iter().map(|l| l.diff_id).collect();
    let imported = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let new = ImageRecord { layers, repo_digests, created: image.created, imported, pinned: pin };
    let entry = index.images.entry(image.id).or_insert_with(|| new.clone());
    entry.repo_digests.extend(new.repo_digests);
    entry.pinned |= pin;
    entry.imported = imported;
}
