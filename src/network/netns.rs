//! Talking to the kernel about another network namespace.
//!
//! A netlink socket belongs for life to the namespace it was opened in. So a thread of its own enters the pod's
//! namespace, opens a socket there and ends; the daemon's threads never leave theirs, and the socket is then driven by
//! the daemon's event loop like any other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::{Socket, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::sync::oneshot;

use super::Netns;

impl Netns<'_> {
    /// Opens the namespace, so that it stays however long the pod lives.
    pub(super) fn open(self) -> io::Result<OwnedFd> {
        match self {
            Netns::Pid(pid) => Ok(File::open(format!("/proc/{pid}/ns/net"))?.into()),
            Netns::Path(path) => Ok(File::open(path)?.into()),
            Netns::Fd(fd) => fd.try_clone_to_owned(),
        }
    }
}

/// A route netlink socket within `netns`. Must be called within a tokio runtime.
pub(super) async fn socket_in(netns: &OwnedFd) -> io::Result<TokioSocket> {
    let netns = netns.as_fd().try_clone_to_owned()?;
    let (answer, socket) = oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).stack_size(64 << 10).spawn(move || {
        let opened = setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        });
        // Nobody listens any more only if the caller gave up; then the socket closes here.
        drop(answer.send(opened));
    })?;
    let socket = socket.await.map_err(|_| io::Error::other("the thread that entered the namespace died"))??;
    // SAFETY: the descriptor was just taken out of its owner, so it is open and nobody else's.
    Ok(unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) })
}
