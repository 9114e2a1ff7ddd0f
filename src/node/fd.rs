//! Reading and writing a descriptor of any kind (pipe, terminal, socket) without blocking.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor.
pub(super) struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// For reading. The descriptor must be non-blocking.
    pub(super) fn reader(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// For writing. The descriptor must be non-blocking.
    pub(super) fn writer(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an owned descriptor stays open and the same until it is dropped, by which time it is deregistered.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, interest) }?))
    }

    /// Reads something; 0 at the end. Cancel safe.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await;
        match read {
            // A terminal whose last process is gone.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            result => result,
        }
    }

    /// Writes all of it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}
