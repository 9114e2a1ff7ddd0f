//! Unpacks a layer's tar into a directory in the form overlayfs reads.
//!
//! The tar comes from outside and is applied as root, so no name in it is ever given to the kernel as a path from the
//! host's root: parents are opened with `openat2(RESOLVE_IN_ROOT)`, where symbolic links and `..` cannot leave the
//! layer, and the last component only meets calls that do not follow links.
//!
//! Whiteouts (OCI image specification, "Layer filesystem changeset") become what overlayfs understands: `.wh.x` a
//! character device 0:0 named `x`, `.wh..wh..opq` the attribute `trusted.overlay.opaque` on its directory.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{self, FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::tarball::{Entry, Forward, Kind, Tar};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names the aufs storage driver once left in layers; they mean nothing.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const DIRECTORY_MODE: u32 = 0o755;
const BUFFER: usize = 128 << 10;
/// Deeper trees are refused: they serve nothing but to exhaust whoever walks them.
const MAX_DEPTH: usize = 256;

/// Applies every entry of `tar` below the existing empty directory `root` and returns the bytes of its files.
///
/// # Errors
/// Name the entry. What was unpacked so far stays: the caller throws the directory away.
pub(super) fn unpack<R: Forward>(tar: &mut Tar<R>, root: &Path) -> io::Result<u64> {
    let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    stat::fchmodat(&root, ".", mode(DIRECTORY_MODE), FchmodatFlags::FollowSymlink)?;
    let mut unpacker = Unpacker { root, buffer: vec![0; BUFFER], bytes: 0, directories: Vec::new() };
    while let Some(entry) = tar.next()? {
        unpacker.apply(&entry, tar).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => e,
            _ => io::Error::new(e.kind(), format!("{}: {e}", entry.display())),
        })?;
    }
    unpacker.restore_directory_times()?;
    Ok(unpacker.bytes)
}

struct Unpacker {
    root: OwnedFd,
    buffer: Vec<u8>,
    bytes: u64,
    /// Times of directories, set last because every entry made inside changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
}

/// A place in the layer: an open directory and a name in it that is no path.
struct Place<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
}

/// What stood in an entry's place.
#[derive(PartialEq, Eq)]
enum Former {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

impl Unpacker {
    fn apply(&mut self, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            let root = Place { parent: self.root.try_clone()?, name: OsStr::new(".") };
            return if entry.kind == Kind::Directory { self.attributes(&root, entry) } else { Ok(()) };
        };
        let place = Place { parent: self.directory(parents)?, name: OsStr::from_bytes(name) };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return whiteout(&place, name, hidden);
        }
        match entry.kind {
            Kind::File => self.file(&place, entry, data),
            Kind::Directory => {
                make_directory(&place)?;
                self.directories.push((components.join(&b'/'), entry.mtime));
                self.attributes(&place, entry)
            }
            Kind::HardLink => self.hard_link(&place, entry),
            Kind::Symlink => {
                clear(&place)?;
                symlinkat(OsStr::from_bytes(&entry.link), &place.parent, place.name)?;
                self.attributes(&place, entry)
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                clear(&place)?;
                node(&place, entry)?;
                self.attributes(&place, entry)
            }
        }
    }

    fn file(&mut self, place: &Place<'_>, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        clear(place)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&place.parent, place.name, flags, mode(0o600))?);
        loop {
            let n = data.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            file.write_all(&self.buffer[..n])?;
            self.bytes += n as u64;
        }
        self.attributes(place, entry)
    }

    fn hard_link(&self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        let target = components(&entry.link)?;
        let Some((name, parents)) = target.split_last() else {
            return Err(invalid("a hard link to the layer's root"));
        };
        let target = Place { parent: self.directory(parents)?, name: OsStr::from_bytes(name) };
        let (from, to) = (target.stat()?, place.stat()?);
        match (from, to) {
            (None, _) => return Err(invalid(format!("the hard link's target {} is missing", lossy(&entry.link)))),
            (Some(from), Some(to)) if from.st_ino == to.st_ino => return Ok(()),
            _ => clear(place)?,
        };
        linkat(&target.parent, target.name, &place.parent, place.name, AtFlags::empty())?;
        Ok(())
    }

    /// Opens a directory of the layer and makes what is missing of it.
    fn directory(&self, path: &[&[u8]]) -> io::Result<OwnedFd> {
        if path.is_empty() {
            return self.root.try_clone();
        }
        match self.open(path) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            other => return Ok(other?),
        }
        for end in 1..=path.len() {
            let (name, parents) = path[..end].split_last().unwrap_or((&path[0], &[]));
            let parent = if parents.is_empty() { self.root.try_clone()? } else { self.open(parents)? };
            let place = Place { parent, name: OsStr::from_bytes(name) };
            if place.former()? == Former::Nothing || place.former()? == Former::Whiteout {
                make_directory(&place)?;
            }
        }
        Ok(self.open(path)?)
    }

    fn open(&self, path: &[&[u8]]) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, OsStr::from_bytes(&path.join(&b'/')), how)
    }

    /// Owner before mode (chown clears setuid) and before attributes (chown clears capabilities).
    fn attributes(&self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| invalid("a bad owner id"));
        let (uid, gid) = (Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?));
        fchownat(&place.parent, place.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if entry.kind != Kind::Symlink {
            stat::fchmodat(&place.parent, place.name, mode(entry.mode), FchmodatFlags::FollowSymlink)?;
        }
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            match place.set_xattr(name, value) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && name.starts_with("user.") => {}
                other => other.map_err(|e| io::Error::new(e.kind(), format!("attribute {name}: {e}")))?,
            }
        }
        set_time(place, entry.mtime)
    }

    fn restore_directory_times(&self) -> io::Result<()> {
        for (path, time) in &self.directories {
            let components = components(path)?;
            let Some((name, parents)) = components.split_last() else { continue };
            let parent = if parents.is_empty() { self.root.try_clone()? } else { self.open(parents)? };
            let place = Place { parent, name: OsStr::from_bytes(name) };
            if place.former()? == Former::Directory {
                set_time(&place, *time)?;
            }
        }
        Ok(())
    }
}

impl Place<'_> {
    fn stat(&self) -> io::Result<Option<FileStat>> {
        match stat::fstatat(&self.parent, self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn former(&self) -> io::Result<Former> {
        Ok(match self.stat()? {
            None => Former::Nothing,
            Some(s) if kind(&s) == SFlag::S_IFDIR => Former::Directory,
            Some(s) if kind(&s) == SFlag::S_IFCHR && s.st_rdev == 0 => Former::Whiteout,
            Some(_) => Former::Other,
        })
    }

    /// The place as a path that cannot be led astray: the kernel keeps the parent open, and `name` is one component.
    fn path(&self) -> std::path::PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_fd().as_raw_fd().to_string()).join(self.name)
    }

    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let path = CString::new(self.path().into_os_string().as_bytes())?;
        let name = CString::new(name)?;
        // SAFETY: path and name are NUL-terminated and value's pointer and length describe one live slice.
        let answer = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        Ok(Errno::result(answer).map(drop)?)
    }
}

/// Splits a name into its components; refuses names that could leave the layer.
fn components(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let all: Vec<_> = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
    if all.contains(&&b".."[..]) {
        return Err(invalid(format!("the name {} leaves the layer", lossy(path))));
    }
    if all.len() > MAX_DEPTH {
        return Err(invalid("the name has more than 256 components"));
    }
    Ok(all)
}

/// Empties the place: what a layer's tar says last about a name is what counts.
fn clear(place: &Place<'_>) -> io::Result<Former> {
    let former = place.former()?;
    match former {
        Former::Nothing => {}
        Former::Directory => crate::files::remove_tree(&place.path())?,
        Former::Whiteout | Former::Other => unlinkat(&place.parent, place.name, UnlinkatFlags::NoRemoveDir)?,
    }
    Ok(former)
}

/// Makes a directory, or keeps the one that is there. Over a whiteout of its own layer it must hide what is below.
fn make_directory(place: &Place<'_>) -> io::Result<()> {
    if place.former()? == Former::Directory {
        return Ok(());
    }
    let former = clear(place)?;
    stat::mkdirat(&place.parent, place.name, mode(DIRECTORY_MODE))?;
    stat::fchmodat(&place.parent, place.name, mode(DIRECTORY_MODE), FchmodatFlags::FollowSymlink)?;
    if former == Former::Whiteout { place.set_xattr(OPAQUE_XATTR, b"y") } else { Ok(()) }
}

/// A whiteout hides what lower layers have, never what its own layer has.
fn whiteout(place: &Place<'_>, name: &[u8], hidden: &[u8]) -> io::Result<()> {
    if name == OPAQUE {
        let directory = Place { parent: place.parent.try_clone()?, name: OsStr::new(".") };
        return directory.set_xattr(OPAQUE_XATTR, b"y");
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(invalid("a whiteout of no name"));
    }
    let place = Place { parent: place.parent.try_clone()?, name: OsStr::from_bytes(hidden) };
    match place.former()? {
        Former::Nothing => Ok(stat::mknodat(&place.parent, place.name, SFlag::S_IFCHR, Mode::empty(), 0)?),
        Former::Directory => place.set_xattr(OPAQUE_XATTR, b"y"),
        Former::Whiteout | Former::Other => Ok(()),
    }
}

fn node(place: &Place<'_>, entry: &Entry) -> io::Result<()> {
    let (kind, device) = match entry.kind {
        Kind::Char => (SFlag::S_IFCHR, stat::makedev(entry.device.0.into(), entry.device.1.into())),
        Kind::Block => (SFlag::S_IFBLK, stat::makedev(entry.device.0.into(), entry.device.1.into())),
        _ => (SFlag::S_IFIFO, 0),
    };
    Ok(stat::mknodat(&place.parent, place.name, kind, mode(0o600), device)?)
}

fn set_time(place: &Place<'_>, (seconds, nanos): (i64, u32)) -> io::Result<()> {
    let time = TimeSpec::new(seconds as libc::time_t, nanos as _);
    Ok(stat::utimensat(&place.parent, place.name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Attributes an image may set. `trusted.overlay.*` would steer the overlay itself; labels belong to the host.
fn is_kept(name: &str) -> bool {
    name == "security.capability"
        || name == "system.posix_acl_access"
        || name == "system.posix_acl_default"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
