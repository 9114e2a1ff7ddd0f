//! System calls that `nix` and `libc` do not wrap: the mount API of Linux 5.2–5.12, `openat2`, pidfds.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// The file descriptor that means "relative to the working directory".
pub(super) const CWD: BorrowedFd<'static> =
    // SAFETY: AT_FDCWD is not an open descriptor but a constant every *at call understands; it can never be closed.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// `openat2`: treat the directory as the root, so that neither `..` nor links lead out of it.
pub(super) const RESOLVE_IN_ROOT: u64 = 0x10;
/// `openat2`: refuse the links of /proc that lead anywhere.
pub(super) const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// `openat2`: fail where the path leads out of the directory.
pub(super) const RESOLVE_BENEATH: u64 = 0x08;
/// Propagation: neither way. These three have 64 bits here on every architecture.
pub(super) const MS_PRIVATE: u64 = 1 << 18;
/// Propagation: from the host.
pub(super) const MS_SLAVE: u64 = 1 << 19;
/// Propagation: both ways.
pub(super) const MS_SHARED: u64 = 1 << 20;

/// Mount attribute: read-only.
pub(super) const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Mount attribute: set-user-ID bits mean nothing.
pub(super) const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Mount attribute: device nodes do not open.
pub(super) const MOUNT_ATTR_NODEV: u64 = 0x4;

/// A path as the kernel wants it.
pub(super) fn cstring(path: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(path.as_ref().as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the system call just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Opens `path` below `dir` under the `RESOLVE_*` rules.
pub(super) fn openat2(
    dir: impl AsFd,
    path: impl AsRef<Path>,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let path = cstring(path)?;
    let how = How { flags: (flags | libc::O_CLOEXEC) as u32 as u64, mode: mode.into(), resolve };
    let size = size_of::<How>();
    loop {
        // SAFETY: the pointers are to a C string and a structure of the given size, both alive during the call.
        let result = unsafe { libc::syscall(libc::SYS_openat2, dir.as_fd().as_raw_fd(), path.as_ptr(), &how, size) };
        match owned(result) {
            // The kernel asks to try again where a rename raced with the resolution.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            other => return other,
        }
    }
}

/// A detached copy of the mount at `path` (with an empty path: at `dir` itself), with what is mounted below it if asked.
pub(super) fn clone_tree(dir: impl AsFd, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string that lives during the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_fd().as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches a detached mount onto the file or directory `target` stands for.
pub(super) fn attach_mount(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (tree.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    // SAFETY: both paths are empty C strings, both descriptors are borrowed for the call.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) }).map(drop)
}

/// Sets attributes (`MOUNT_ATTR_*`) and the propagation (`MS_SHARED`, …; 0 keeps it) of a mount.
pub(super) fn set_mount_attributes(mount: impl AsFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attributes = Attributes { set, clear: 0, propagation, userns: 0 };
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    let (fd, size) = (mount.as_fd().as_raw_fd(), size_of::<Attributes>());
    // SAFETY: the pointers are to an empty C string and a structure of the given size.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &attributes, size) }).map(drop)
}

/// A new, detached tmpfs.
pub(super) fn new_tmpfs(options: &[(&CStr, &CStr)], attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: the file system's name is a C string.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = context.as_raw_fd();
    for (key, value) in options {
        // SAFETY: key and value are C strings that live during the call.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0) })?;
    }
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: takes a descriptor and two numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as libc::c_uint) })
}

/// A handle on a process, readable once it has ended.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Marks every descriptor from `first` on close-on-exec, or closes it.
pub(super) fn close_range(first: u32, last: u32, only_on_exec: bool) -> io::Result<()> {
    let flags = if only_on_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: takes numbers. The caller answers for descriptors owned by values it still uses.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// A path that leads to an open file, whatever its own path and length: for calls that know only paths.
pub(super) fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The wall clock in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i64,
        Err(before) => -(before.duration().as_nanos() as i64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_stay_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        symlink("../../../../etc/passwd", dir.path().join("up")).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        for path in ["link", "up", "/etc/passwd"] {
            let fd = openat2(&root, path, libc::O_RDONLY, 0, RESOLVE_IN_ROOT).unwrap();
            assert_eq!(io::read_to_string(fs::File::from(fd)).unwrap(), "inside", "{path}");
        }
        let beneath = openat2(&root, "up", libc::O_RDONLY, 0, RESOLVE_BENEATH);
        assert_eq!(beneath.unwrap_err().raw_os_error(), Some(libc::EXDEV));
    }
}
