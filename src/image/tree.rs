//! Fingerprints of unpacked layers, by which damage is noticed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hasher};

const BUFFER: usize = 128 << 10;
/// Symbolic links let a layer's tar make deeper trees than its names are.
const MAX_DEPTH: usize = 512;

/// How thoroughly a tree is compared with its [`Seal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Names, types, modes, owners, sizes, link targets: reads directories only.
    Structure,
    /// And every byte of every file.
    Contents,
}

/// Two fingerprints of a directory tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    pub(super) structure: Digest,
    pub(super) contents: Digest,
}

impl Seal {
    /// Reads the whole tree.
    pub(super) fn of(root: &Path) -> io::Result<Seal> {
        let mut walk = Walk { structure: Hasher::default(), contents: Some((Hasher::default(), vec![0; BUFFER])) };
        walk.directory(root, 0)?;
        let contents = walk.contents.map(|(hasher, _)| hasher).unwrap_or_default().finish();
        Ok(Seal { structure: walk.structure.finish(), contents })
    }

    /// Whether the tree is still what was sealed.
    pub(super) fn fits(&self, root: &Path, depth: Depth) -> io::Result<bool> {
        if depth == Depth::Contents {
            return Ok(Seal::of(root)? == *self);
        }
        let mut walk = Walk { structure: Hasher::default(), contents: None };
        walk.directory(root, 0)?;
        Ok(walk.structure.finish() == self.structure)
    }
}

struct Walk {
    structure: Hasher,
    contents: Option<(Hasher, Vec<u8>)>,
}

impl Walk {
    /// Depth first, by name; leaving a directory is recorded too, so that no two trees give the same record.
    fn directory(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("directories are nested too deeply"));
        }
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|e| e.file_name());
        for entry in entries {
            let (path, metadata) = (entry.path(), entry.metadata()?);
            self.structure.field(entry.file_name().as_bytes());
            self.record(&metadata);
            if metadata.is_symlink() {
                self.structure.field(fs::read_link(&path)?.as_os_str().as_bytes());
            } else if metadata.is_dir() {
                self.directory(&path, depth + 1)?;
            } else if metadata.is_file() {
                self.file(&path)?;
            }
        }
        self.structure.field(b"");
        Ok(())
    }

    fn record(&mut self, metadata: &Metadata) {
        // A directory's size is the file system's business.
        let size = if metadata.is_file() { metadata.size() } else { 0 };
        let kind = metadata.file_type();
        let device = if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 };
        for number in [u64::from(metadata.mode()), metadata.uid().into(), metadata.gid().into(), size, device] {
            self.structure.update(&number.to_le_bytes());
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let Some((hasher, buffer)) = &mut self.contents else { return Ok(()) };
        let mut file = File::open(path)?;
        loop {
            match file.read(buffer)? {
                0 => return Ok(()),
                n => hasher.update(&buffer[..n]),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/f"), "abc").unwrap();
        std::os::unix::fs::symlink("d", root.path().join("l")).unwrap();
        root
    }

    #[test]
    fn sees_every_change_of_structure() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("shorter file", |r| fs::write(r.join("d/f"), "ab").unwrap()),
            ("missing file", |r| fs::remove_file(r.join("d/f")).unwrap()),
            ("additional file", |r| fs::write(r.join("g"), "").unwrap()),
            ("mode", |r| fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o700)).unwrap()),
            ("link", |r| {
                fs::remove_file(r.join("l")).unwrap();
                std::os::unix::fs::symlink("e", r.join("l")).unwrap();
            }),
            ("moved up", |r| fs::rename(r.join("d/f"), r.join("f")).unwrap()),
        ];
        for (name, change) in changes {
            let root = tree();
            let seal = Seal::of(root.path()).unwrap();
            assert!(seal.fits(root.path(), Depth::Contents).unwrap(), "{name}: before");
            change(root.path());
            assert!(!seal.fits(root.path(), Depth::Structure).unwrap(), "{name}");
        }
    }

    #[test]
    fn sees_a_changed_byte_by_contents_only() {
        let root = tree();
        let seal = Seal::of(root.path()).unwrap();
        fs::write(root.path().join("d/f"), "abd").unwrap();
        assert!(seal.fits(root.path(), Depth::Structure).unwrap());
        assert!(!seal.fits(root.path(), Depth::Contents).unwrap());
    }
}
