//! Giving a volume to a group.
//!
//! Containers of other pods, or of this one, may be at work in the volume: every file is opened once, without following a
//! link, and only looked at and changed through that. A path looked up twice could lead to a file of the host in between.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat};
use nix::unistd::{Gid, fchownat};

use super::super::error::{At, Result};

/// Deeper trees are refused: a container may nest directories without end.
const MAX_DEPTH: usize = 256;
const THIS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The group may read and write all of it, and what is made there stays the group's. Done before, it is done quickly: the
/// root is changed last.
pub(super) fn own(path: &Path, group: Option<u32>) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    let root = open(path, THIS, Mode::empty()).at("open", path)?;
    give(&root, Gid::from_raw(group), 0).at("change the group of", path)
}

fn give(file: &OwnedFd, group: Gid, depth: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let stat = fstat(file)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFLNK {
        return Ok(());
    }
    let directory = kind == SFlag::S_IFDIR;
    let mode = stat.st_mode & 0o7777;
    let wanted = if directory { mode | 0o2770 } else { mode | 0o660 };
    if stat.st_gid == group.as_raw() && mode == wanted {
        return Ok(());
    }
    if directory {
        for entry in
            Dir::openat(file, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?.iter()
        {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match openat(file, name, THIS, Mode::empty()) {
                Ok(child) => give(&child, group, depth + 1)?,
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    fchownat(file, "", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
    // There is no fchmod for a file that is not opened for reading; this path leads to the open file and nowhere else.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(fchmodat(AT_FDCWD, &*path, Mode::from_bits_truncate(wanted), FchmodatFlags::FollowSymlink)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn all_of_a_volume_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let (volume, outside) = (base.path().join("v"), base.path().join("outside"));
        fs::create_dir_all(volume.join("d")).unwrap();
        fs::write(volume.join("d/f"), "").unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        nix::unistd::mkfifo(&volume.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        own(&volume, None).unwrap();
        own(&volume, Some(4711)).unwrap();
        for (path, gid, mode) in [("", 4711, 0o2770), ("d", 4711, 0o2770), ("d/f", 4711, 0o660), ("fifo", 4711, 0o660)]
        {
            let found = fs::metadata(volume.join(path)).unwrap();
            assert_eq!((found.gid(), found.mode() & mode), (gid, mode), "{path}");
        }
        assert_ne!(fs::metadata(&outside).unwrap().gid(), 4711);
        assert!(own(&base.path().join("none"), Some(1)).is_err());
    }

    #[test]
    fn trees_without_end_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let mut path = base.path().to_owned();
        path.extend(std::iter::repeat_n("d", MAX_DEPTH + 1));
        fs::create_dir_all(&path).unwrap();
        assert!(own(base.path(), Some(4711)).unwrap_err().to_string().contains("nested too deeply"));
    }
}
