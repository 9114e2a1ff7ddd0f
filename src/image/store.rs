//! The store of images: opening, looking up, removing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::digest::Digest;
use super::error::{At, Result};
use super::index::{self, Index, Stamp, layer_name};
use super::manifest::ConfigFile;
use super::session::Session;
use super::tree::Depth;
use super::usage::Mounted;
use super::{Error, Image, ImageSummary, Reference};
use crate::files;

/// A directory of images; see the [module](super) for its layout. Cheap to share (`Arc`), usable from any thread.
pub struct ImageStore {
    pub(super) directory: PathBuf,
    pub(super) session: Session,
    /// `/proc`; in tests a directory with less in it.
    pub(super) processes: PathBuf,
    /// The index as last read, with the stamp it had.
    cache: Mutex<(Option<Stamp>, Arc<Index>)>,
    /// Suspect layers that were looked at and found well.
    verified: Mutex<HashSet<Digest>>,
}

/// Held while the index or the layers change.
pub(super) type Lock = Flock<File>;

/// A directory for what is being made. Dropping it removes it; a killed process leaves it to the next opening.
pub(super) struct Room {
    pub(super) path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(e) = files::remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a temporary directory");
        }
    }
}

impl ImageStore {
    /// Opens the store in `directory`, makes it where it is missing, and removes what an unclean stop left half-made.
    pub fn open(directory: &Path) -> Result<ImageStore> {
        ImageStore::open_beside(directory, Path::new("/proc"))
    }

    /// Opens the store beside the processes of `processes`, which may use its layers.
    fn open_beside(directory: &Path, processes: &Path) -> Result<ImageStore> {
        for part in ["", "blobs/sha256", "layers", "tmp", "import"] {
            let path = directory.join(part);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("create", &path)?;
        }
        // Mounts and messages name layers by absolute path.
        let directory = fs::canonicalize(directory).at("open", directory)?;
        let session = Session::begin(&directory)?;
        let store = ImageStore {
            directory,
            session,
            processes: processes.to_owned(),
            cache: Mutex::new((None, Arc::new(Index::default()))),
            verified: Mutex::default(),
        };
        // Whoever holds the lock is importing: it will leave the store tidy, and the next opening looks again.
        if let Some(lock) = store.try_lock()? {
            store.sweep_rooms()?;
            store.collect(&lock)?;
        }
        Ok(store)
    }

    /// Marks a clean stop, so that the next start trusts what is stored. Only the daemon calls it, last.
    pub fn close(&self) -> Result<()> {
        Session::end(&self.directory)
    }

    /// Looks up a present image.
    ///
    /// Sees at once what another process imported. After an unclean stop of the machine the first look-up of an image
    /// checks its layers, which reads their directories (and their files, if they were new at the stop).
    ///
    /// # Errors
    /// [`Error::NotPresent`], [`Error::Damaged`].
    pub fn get(&self, reference: &Reference) -> Result<Image> {
        let index = self.index()?;
        let id = index.find(reference).ok_or_else(|| Error::NotPresent(reference.clone()))?;
        let config = self.examine(&reference.to_string(), &index, id)?;
        let record = &index.images[id];
        Ok(Image {
            id: id.to_string(),
            config: config.into_config(),
            layers: record.layers.iter().map(|l| index::layer_path(&self.directory, l)).collect(),
            size: index.size_of(record),
            repo_tags: index.tags_of(id),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            pinned: record.pinned,
        })
    }

    /// Every present image, sorted by its first name.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        Ok(self.index()?.summaries())
    }

    /// Checks everything stored of an image, reading every byte.
    ///
    /// # Errors
    /// [`Error::NotPresent`], [`Error::Damaged`].
    pub fn verify(&self, reference: &Reference) -> Result<()> {
        let index = self.index()?;
        let id = index.find(reference).ok_or_else(|| Error::NotPresent(reference.clone()))?;
        let name = reference.to_string();
        self.config(&name, id)?;
        index.images[id].layers.iter().try_for_each(|l| self.check(&name, &index, l, Depth::Contents))
    }

    /// Takes the name away and, with an image's last name, the image and the layers no other image has. A reference by
    /// digest takes all names of that image away.
    ///
    /// # Errors
    /// [`Error::NotPresent`], and unless `force` [`Error::InUse`] and [`Error::Pinned`]. Forced, layers that are still
    /// mounted stay on disk until they no longer are, so no container breaks.
    pub fn remove(&self, reference: &Reference, force: bool) -> Result<()> {
        let lock = self.lock()?;
        let mut index = Index::load(&self.directory)?;
        let id = index.find(reference).cloned().ok_or_else(|| Error::NotPresent(reference.clone()))?;
        let is_last_name = reference.digest().is_some() || index.names_of(&id).count() == 1;
        if is_last_name {
            let record = &index.images[&id];
            if record.pinned && !force {
                return Err(Error::Pinned { image: reference.to_string() });
            }
            if !force && Mounted::now(&self.processes).runs(&record.layers) {
                return Err(Error::InUse { image: reference.to_string() });
            }
            index.images.remove(&id);
            index.names.retain(|_, image| *image != id);
        } else {
            index.names.remove(&reference.to_string());
        }
        index.drop_unused_layers();
        index.save(&self.directory)?;
        self.collect(&lock)
    }

    /// Sets or clears the pin that keeps an image from being collected.
    pub fn pin(&self, reference: &Reference, pinned: bool) -> Result<()> {
        let _lock = self.lock()?;
        let mut index = Index::load(&self.directory)?;
        let id = index.find(reference).cloned().ok_or_else(|| Error::NotPresent(reference.clone()))?;
        match index.images.get_mut(&id) {
            Some(image) if image.pinned != pinned => image.pinned = pinned,
            _ => return Ok(()),
        }
        index.save(&self.directory)
    }

    /// The current index, read again only if the file changed.
    pub(super) fn index(&self) -> Result<Arc<Index>> {
        let mut cache = relock(&self.cache);
        let stamp = Index::stamp(&self.directory)?;
        if stamp.is_none() || stamp != cache.0 {
            *cache = (stamp, Arc::new(Index::load(&self.directory)?));
        }
        Ok(cache.1.clone())
    }

    /// What every look-up checks. `name` is for the message.
    fn examine(&self, name: &str, index: &Index, id: &Digest) -> Result<ConfigFile> {
        let config = self.config(name, id)?;
        for layer in &index.images[id].layers {
            if !index::layer_path(&self.directory, layer).is_dir() {
                return Err(damaged(name, layer, "its directory is missing"));
            }
            if let Some(suspect) = &self.session.suspect {
                let new = index.layers.get(layer).is_none_or(|l| l.boot == *suspect);
                self.check_once(name, index, layer, if new { Depth::Contents } else { Depth::Structure })?;
            }
        }
        Ok(config)
    }

    /// Whether a look-up would find the image undamaged; one that was removed is no concern.
    pub(super) fn is_sound(&self, index: &Index, id: &Digest) -> bool {
        !index.images.contains_key(id) || self.examine(id.as_str(), index, id).is_ok()
    }

    fn config(&self, name: &str, id: &Digest) -> Result<ConfigFile> {
        let bytes = fs::read(index::blob_path(&self.directory, id)).map_err(|e| damaged(name, id, &e.to_string()))?;
        if Digest::of(&bytes) != *id {
            return Err(damaged(name, id, "its content has another digest"));
        }
        serde_json::from_slice(&bytes).map_err(|e| damaged(name, id, &e.to_string()))
    }

    fn check_once(&self, name: &str, index: &Index, layer: &Digest, depth: Depth) -> Result<()> {
        if relock(&self.verified).contains(layer) {
            return Ok(());
        }
        self.check(name, index, layer, depth)?;
        relock(&self.verified).insert(layer.clone());
        Ok(())
    }

    fn check(&self, name: &str, index: &Index, layer: &Digest, depth: Depth) -> Result<()> {
        let Some(seal) = index.layers.get(layer).and_then(|l| l.seal.as_ref()) else { return Ok(()) };
        match seal.fits(&index::layer_path(&self.directory, layer), depth) {
            Ok(true) => Ok(()),
            Ok(false) => Err(damaged(name, layer, "its files are not what was imported")),
            Err(e) => Err(damaged(name, layer, &e.to_string())),
        }
    }

    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.directory.join("lock");
        let file = open_lock(&path)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).at("lock", &path)
    }

    fn try_lock(&self) -> Result<Option<Lock>> {
        Ok(Flock::lock(open_lock(&self.directory.join("lock"))?, FlockArg::LockExclusiveNonblock).ok())
    }

    /// A new temporary directory, safe from other processes' sweeping.
    pub(super) fn room(&self) -> Result<Room> {
        let _lock = self.lock()?;
        let path = self.directory.join("tmp").join(uuid::Uuid::new_v4().to_string());
        fs::DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
        let file = File::open(&path).at("open", &path)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).at("lock", &path)?;
        Ok(Room { path, _lock: lock })
    }

    /// Removes the rooms of processes that are gone. Under the lock, so that no room is between made and locked.
    fn sweep_rooms(&self) -> Result<()> {
        let tmp = self.directory.join("tmp");
        for entry in fs::read_dir(&tmp).at("read", &tmp)? {
            let path = entry.at("read", &tmp)?.path();
            let file = File::open(&path).at("open", &path)?;
            if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes images without a name, and what belongs to no image, unless it is mounted or pinned.
    pub(super) fn collect(&self, _lock: &Lock) -> Result<()> {
        let mut index = Index::load(&self.directory)?;
        let nameless = index.nameless();
        if !nameless.is_empty() {
            let mounted = Mounted::now(&self.processes);
            let before = index.images.len();
            index.images.retain(|id, image| !nameless.contains(id) || mounted.runs(&image.layers));
            if index.images.len() < before {
                index.drop_unused_layers();
                index.save(&self.directory)?;
            }
        }
        for blob in self.strangers("blobs/sha256", |name| index.images.keys().any(|id| id.hex() == name))? {
            remove(&blob)?;
        }
        let layers = self.strangers("layers", |name| index.layers.keys().any(|l| layer_name(l) == name))?;
        if !layers.is_empty() {
            let mounted = Mounted::now(&self.processes);
            // What stepped aside for a repaired layer has a suffix.
            let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            layers.iter().filter(|path| !mounted.uses(&name(path))).try_for_each(|path| remove(path))?;
        }
        Ok(())
    }

    /// Entries of one of the store's directories that `is_known` does not know.
    fn strangers(&self, directory: &str, is_known: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join(directory);
        let mut strangers = Vec::new();
        for entry in fs::read_dir(&directory).at("read", &directory)? {
            let entry = entry.at("read", &directory)?;
            if !is_known(&entry.file_name().to_string_lossy()) {
                strangers.push(entry.path());
            }
        }
        Ok(strangers)
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).at("open", path)
}

fn damaged(name: &str, digest: &Digest, problem: &str) -> Error {
    Error::Damaged { image: name.to_owned(), digest: digest.to_string(), problem: problem.to_owned() }
}

fn remove(path: &Path) -> Result<()> {
    files::remove_tree(path).at("remove", path)
}

/// What the mutexes guard is valid after any panic: each is written in one step.
fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
