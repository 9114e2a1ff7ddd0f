//! Files that are there whole or not at all, and trees that go whatever is in them.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Directories are opened this deep; what is deeper is moved up first. It bounds stack and open files, while a container
/// may nest directories without end.
const MAX_DEPTH: usize = 32;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Writes a file that only the owner may read, so that after a power cut the old or the new content is there whole.
///
/// # Errors
/// When the directory is full, read-only or missing.
pub fn replace(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Waits until the names in a directory are on disk.
///
/// # Errors
/// When it cannot be opened or the disk fails.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Removes a file or a directory with all that is in it; no error if there is none. Follows no link, enters no other file
/// system, and copes with any depth.
///
/// # Errors
/// What cannot be removed: a mount point, a file marked immutable. The rest may be gone by then.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(found) if !found.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    let mut removal = Removal { root: Dir::open(path, DIRECTORY, Mode::empty())?, moved: 0 };
    loop {
        let before = removal.moved;
        let directory = Dir::open(path, DIRECTORY, Mode::empty())?;
        removal.empty(directory, 0)?;
        if removal.moved == before {
            return fs::remove_dir(path);
        }
    }
}

struct Removal {
    /// Where deep directories are moved to.
    root: Dir,
    moved: u64,
}

impl Removal {
    fn empty(&mut self, mut directory: Dir, depth: usize) -> nix::Result<()> {
        let parent = directory.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        for entry in directory.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                Err(Errno::EISDIR) => {}
                Err(error) => return Err(error),
            }
            if depth == MAX_DEPTH {
                self.move_up(&parent, name)?;
                continue;
            }
            let how = OpenHow::new().flags(DIRECTORY).resolve(ResolveFlag::RESOLVE_NO_XDEV);
            self.empty(Dir::from_fd(openat2(&parent, name, how)?)?, depth + 1)?;
            unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?;
        }
        Ok(())
    }

    fn move_up(&mut self, parent: impl AsFd, name: &CStr) -> nix::Result<()> {
        loop {
            self.moved += 1;
            match renameat(&parent, name, &self.root, &*format!(".removed-{}", self.moved)) {
                // Somebody has taken the name.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::fcntl::openat;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for text in ["first", "second"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("no/f"), b"").is_err());
    }

    #[test]
    fn trees_of_any_depth_go_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::write(&kept, "").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join(".removed-1/full")).unwrap();
        fs::write(tree.join(".removed-2"), "").unwrap();
        symlink(dir.path(), tree.join("link")).unwrap();
        let mut at = Dir::open(&tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..6000 {
            mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).unwrap();
            let next = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
            mkdirat(&at, "e", Mode::from_bits_truncate(0o700)).unwrap();
            at = Dir::from_fd(next).unwrap();
        }
        drop(at);
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                remove_tree(&tree).unwrap();
                remove_tree(&tree).unwrap();
                assert!(!tree.exists());
            })
            .unwrap()
            .join()
            .unwrap();
        assert!(kept.exists());
        remove_tree(&kept).unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn what_is_mounted_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("tree/mounted");
        fs::create_dir_all(&place).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(place.join("f"), "").unwrap();
        let result = remove_tree(&dir.path().join("tree"));
        let there = place.join("f").exists();
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        assert!(there && result.is_err());
        remove_tree(&dir.path().join("tree")).unwrap();
    }
}
