//! Changes of files, announced by the kernel.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches one file or directory.
pub(crate) struct Watcher {
    fd: AsyncFd<Fd>,
}

impl Watcher {
    /// Files that appear in, are renamed into or are removed from a directory.
    pub(crate) fn directory(path: &Path) -> io::Result<Self> {
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        Self::new(path, flags)
    }

    /// Writes to a file, and the making of another one in its place or beside it.
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        let watcher = Self::new(path, AddWatchFlags::IN_MODIFY)?;
        let directory = path.parent().unwrap_or(path);
        watcher.fd.get_ref().0.add_watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        Ok(watcher)
    }

    /// Whatever happens to the contents of these files and directories; what is not there is left out.
    pub(crate) fn any<'a>(paths: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let appears = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for path in paths {
            match inotify.add_watch(path, appears | AddWatchFlags::IN_CLOSE_WRITE) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::wait_on(inotify)
    }

    fn new(path: &Path, flags: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(path, flags)?;
        Self::wait_on(inotify)
    }

    fn wait_on(inotify: Inotify) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `Inotify` inside and stays open and the same until that is dropped.
        Ok(Self { fd: unsafe { AsyncFd::register(Fd(inotify)) }? })
    }

    /// Waits for changes; the names of files in a watched directory (none for a watched file itself). Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<OsString>> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.get_inner().0.read_events() {
                Ok(events) => return Ok(events.into_iter().filter_map(|e| e.name).collect()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
