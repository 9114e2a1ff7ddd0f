//! The mounts of a container, made by hand: sources are opened on the host, attached inside of the container between its
//! creation and its start. So links in a volume or an image lead nowhere they should not, and propagation works.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::stat::Mode};

use super::super::{Error, Mount, MountSource, Propagation, Result, sys};

/// More links than this in a path are a loop.
const MAX_LINKS: usize = 40;

/// A detached mount and where it belongs.
#[derive(Debug)]
pub(super) struct Ready {
    path: String,
    tree: OwnedFd,
    directory: bool,
}

impl Ready {
    /// Something that is mounted already.
    pub(super) fn directory(path: &str, tree: OwnedFd) -> Self {
        Self { path: path.into(), tree, directory: true }
    }
}

/// Opens the sources, in the host's mount namespace.
pub(super) fn open(mounts: &[Mount]) -> Result<Vec<Ready>> {
    let mut ready = mounts.iter().map(open_one).collect::<Result<Vec<_>>>()?;
    // Parents before what is mounted below them; equal depths in the order given.
    ready.sort_by_key(|r| Path::new(&r.path).components().count());
    Ok(ready)
}

fn open_one(mount: &Mount) -> Result<Ready> {
    if !mount.path.starts_with('/') {
        return Err(Error::Invalid { field: "mountPath".into(), reason: format!("{:?} is not absolute", mount.path) });
    }
    if Path::new(&mount.path).components().count() == 1 {
        return Err(Error::Invalid { field: "mountPath".into(), reason: "the root cannot be mounted over".into() });
    }
    let (tree, directory) = match &mount.source {
        MountSource::Bind { source, sub_path } => bind(source, sub_path.as_deref(), mount.propagation)?,
        MountSource::Tmpfs { size, mode } => {
            (tmpfs(*size, *mode).map_err(fail("make a tmpfs for", &mount.path))?, true)
        }
    };
    let propagation = match mount.propagation {
        Propagation::Private => sys::MS_PRIVATE,
        Propagation::HostToContainer => sys::MS_SLAVE,
        Propagation::Bidirectional => sys::MS_SHARED,
    };
    let attributes = || {
        sys::set_mount_attributes(&tree, 0, propagation, true)?;
        match mount.readonly {
            true => sys::set_mount_attributes(&tree, sys::MOUNT_ATTR_RDONLY, 0, mount.recursive_readonly),
            false => Ok(()),
        }
    };
    attributes().map_err(fail("set the attributes of the mount at", &mount.path))?;
    Ok(Ready { path: mount.path.clone(), tree, directory })
}

fn bind(source: &Path, sub_path: Option<&str>, propagation: Propagation) -> Result<(OwnedFd, bool)> {
    let mut at = sys::openat2(sys::CWD, source, libc::O_PATH, 0, 0).map_err(fail("open", source))?;
    if let Some(sub_path) = sub_path.filter(|s| !s.is_empty()) {
        at = open_below(at, sub_path).map_err(fail("open subPath", &source.join(sub_path)))?;
    }
    if propagation == Propagation::Bidirectional && !is_shared(&at).map_err(fail("look up the mount of", source))? {
        let reason = format!("Bidirectional, but {} is not on a shared mount of the host", source.display());
        return Err(Error::Invalid { field: "mountPropagation".into(), reason });
    }
    let directory = File::from(at.try_clone().map_err(fail("open", source))?).metadata();
    let directory = directory.map_err(fail("stat", source))?.is_dir();
    let tree = sys::clone_tree(&at, c"", true).map_err(fail("clone the mount of", source))?;
    Ok((tree, directory))
}

/// Opens a subPath without leaving the volume; what is missing is made, with the permissions of the volume's root.
fn open_below(volume: OwnedFd, sub_path: &str) -> io::Result<OwnedFd> {
    let mode = File::from(volume.try_clone()?).metadata()?.permissions().mode() & 0o7777;
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_MAGICLINKS;
    let mut at = PathBuf::new();
    let mut parent = volume.try_clone()?;
    for part in Path::new(sub_path).components() {
        match part {
            Component::CurDir => continue,
            Component::Normal(_) => at.push(part),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and without ..")),
        }
        parent = match sys::openat2(&volume, &at, libc::O_PATH, 0, resolve) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                let name = Path::new(part.as_os_str());
                nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o700))?;
                let made =
                    sys::openat2(&parent, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0, resolve)?;
                File::from(made.try_clone()?).set_permissions(fs::Permissions::from_mode(mode))?;
                made
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// True if the mount a file is on shares its mounts with others.
fn is_shared(file: impl AsFd) -> io::Result<bool> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))?;
    let id = info.lines().find_map(|l| l.strip_prefix("mnt_id:")).unwrap_or_default().trim().to_owned();
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let row = table.lines().find(|l| l.split(' ').next() == Some(&id)).unwrap_or_default();
    Ok(row.split(" - ").next().is_some_and(|r| r.contains(" shared:")))
}

fn tmpfs(size: Option<u64>, mode: u32) -> io::Result<OwnedFd> {
    let mode = std::ffi::CString::new(format!("{mode:o}"))?;
    let size = std::ffi::CString::new(size.map(|s| s.to_string()).unwrap_or_default())?;
    let mut options = vec![(c"mode", &*mode)];
    if !size.is_empty() {
        options.push((c"size", &size));
    }
    sys::new_tmpfs(&options, sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV)
}

/// Attaches the mounts, in the container's mount namespace.
pub(super) fn attach(mounts: Vec<Ready>) -> Result<()> {
    for mount in mounts {
        let target =
            make(Path::new(&mount.path), mount.directory).map_err(fail("make the mount point", &mount.path))?;
        let system =
            nix::sys::statfs::fstatfs(&target).map_err(|e| fail("stat", &mount.path)(e.into()))?.filesystem_type();
        if system == nix::sys::statfs::PROC_SUPER_MAGIC {
            return Err(Error::Invalid {
                field: "mountPath".into(),
                reason: format!("{:?} is inside of /proc", mount.path),
            });
        }
        sys::attach_mount(&mount.tree, &target).map_err(fail("mount on", &mount.path))?;
    }
    Ok(())
}

/// Makes the root of this mount namespace read-only, not what is mounted below it.
pub(super) fn seal_root() -> Result<()> {
    let root = sys::openat2(sys::CWD, "/", libc::O_PATH, 0, 0);
    root.and_then(|r| sys::set_mount_attributes(r, sys::MOUNT_ATTR_RDONLY, 0, false)).map_err(fail("seal", "/"))
}

/// Opens a path below `/`, following links by hand so that also the target of a dangling one can be made; what is missing
/// becomes a directory, at the end a file if so wanted.
pub(super) fn make(path: &Path, directory: bool) -> io::Result<OwnedFd> {
    let parts = |p: &Path| -> VecDeque<_> {
        let own = p.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
        own.map(|c| c.as_os_str().to_owned()).collect()
    };
    let mut todo = parts(path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match sys::openat2(sys::CWD, &next, flags, 0, sys::RESOLVE_NO_MAGICLINKS) {
            Ok(fd) => match nix::fcntl::readlinkat(&fd, c"") {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        done = "/".into();
                    }
                    let mut prefix = parts(target);
                    prefix.append(&mut todo);
                    todo = prefix;
                    continue;
                }
                Err(_) => done = next,
            },
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                if todo.is_empty() && !directory {
                    nix::fcntl::open(
                        &next,
                        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC,
                        Mode::from_bits_truncate(0o644),
                    )?;
                } else {
                    nix::unistd::mkdir(&next, Mode::from_bits_truncate(0o755))?;
                }
                done = next;
            }
            Err(other) => return Err(other),
        }
    }
    sys::openat2(sys::CWD, &done, flags, 0, sys::RESOLVE_NO_MAGICLINKS)
}

fn fail(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
    let path = path.as_ref().to_owned();
    move |source| Error::File { op, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn mount_points_are_made_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        symlink("../run/resolve/stub.conf", at("link")).unwrap();
        fs::create_dir(at("etc")).unwrap();
        symlink("../run/stub.conf", at("etc/resolv.conf")).unwrap();
        make(&at("etc/resolv.conf"), false).unwrap();
        assert!(at("run/stub.conf").is_file());
        make(&at("a/b/c"), true).unwrap();
        assert!(at("a/b/c").is_dir());
        symlink("loop", at("loop")).unwrap();
        assert_eq!(make(&at("loop/x"), true).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("in")).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).unwrap();
        symlink("/etc", volume.join("out")).unwrap();
        symlink("in", volume.join("alias")).unwrap();
        let open = |sub| {
            let fd = sys::openat2(sys::CWD, &volume, libc::O_PATH, 0, 0).unwrap();
            open_below(fd, sub).map(|fd| fs::read_link(sys::fd_path(&fd)).unwrap())
        };
        assert_eq!(open("alias").unwrap(), volume.join("in"));
        assert_eq!(open("new/er").unwrap(), volume.join("new/er"));
        assert_eq!(fs::metadata(volume.join("new/er")).unwrap().permissions().mode() & 0o7777, 0o2775);
        assert_eq!(open("out/passwd").unwrap_err().raw_os_error(), Some(libc::EXDEV));
        assert!(open("../x").is_err());
    }
}
