//! The store of images.

use std::path::{Path, PathBuf};

use super::error::Result;
use super::{Error, Image, ImageSummary, ImportOptions, Progress, Reference, Source};

/// A directory of images; see the [module](super) for its layout. Cheap to share (`Arc`), usable from any thread.
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// Opens the store in `directory`, makes it where it is missing, and removes what an unclean stop left half-made.
    pub fn open(directory: &Path) -> Result<ImageStore> {
        Ok(ImageStore { directory: directory.to_owned() })
    }

    /// Marks a clean stop, so that the next start trusts what is stored. Only the daemon calls it, last.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Looks up a present image.
    ///
    /// Sees at once what another process imported. After an unclean stop of the machine the first look-up of an image
    /// checks its layers, which reads their directories (and their files, if they were new at the stop).
    ///
    /// # Errors
    /// [`Error::NotPresent`], [`Error::Damaged`].
    pub fn get(&self, reference: &Reference) -> Result<Image> {
        Err(Error::NotPresent(reference.clone()))
    }

    /// Every present image, sorted by its first name.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        Ok(Vec::new())
    }

    /// Takes in every image of an archive that fits this machine and returns the names it now has.
    ///
    /// All of the archive or nothing of it. Memory is bounded whatever the archive says.
    pub fn import(
        &self,
        source: Source<'_>,
        options: &ImportOptions,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<Reference>> {
        let _ = (source, options, progress, &self.directory);
        Ok(Vec::new())
    }

    /// Imports every `*.tar`, `*.tar.gz`, `*.tgz` and `*.tar.zst` of `directory` that changed since it was last
    /// imported. One bad archive does not keep the others out: each has its own result. A missing directory is empty.
    pub fn import_directory(&self, directory: &Path) -> Vec<(PathBuf, Result<Vec<Reference>>)> {
        let _ = directory;
        Vec::new()
    }

    /// Makes the demonstration image [`DEMO_REFERENCE`](super::DEMO_REFERENCE) out of the running program, where it is
    /// missing or was made of another program. Its command is `["/umiak", "demo-web"]`.
    pub fn ensure_demo(&self) -> Result<()> {
        Ok(())
    }

    /// Takes the name away and, with an image's last name, the image and the layers no other image has.
    ///
    /// # Errors
    /// [`Error::NotPresent`], and unless `force` [`Error::InUse`] and [`Error::Pinned`]. Forced, layers that are still
    /// mounted stay on disk until they no longer are, so no container breaks.
    pub fn remove(&self, reference: &Reference, force: bool) -> Result<()> {
        let _ = force;
        Err(Error::NotPresent(reference.clone()))
    }

    /// Sets or clears the pin that keeps an image from being collected.
    pub fn pin(&self, reference: &Reference, pinned: bool) -> Result<()> {
        let _ = pinned;
        Err(Error::NotPresent(reference.clone()))
    }

    /// Checks everything stored of an image, reading every byte.
    ///
    /// # Errors
    /// [`Error::NotPresent`], [`Error::Damaged`].
    pub fn verify(&self, reference: &Reference) -> Result<()> {
        Err(Error::NotPresent(reference.clone()))
    }
}
