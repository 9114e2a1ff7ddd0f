//! What the daemon and a shim say to each other: one JSON value a packet over a `SOCK_SEQPACKET` unix socket, file
//! descriptors beside it.
//!
//! Daemons and shims of different versions meet after an upgrade: fields and messages may be added, never changed.
//! Configurations may be larger than a packet and travel as a memory file.

use std::{
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ContainerId, ContainerState, Error};

/// Version of this protocol.
pub(super) const VERSION: u32 = 1;
/// Largest packet.
pub(super) const MAX_PACKET: usize = 128 << 10;
/// Most descriptors in one packet.
const MAX_FDS: usize = 8;

/// From the daemon to the shim. Every request gets one [`FromShim::Reply`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Chosen by the daemon; also the name of the exec it starts.
    pub(super) id: u64,
    /// What is wanted.
    pub(super) op: Op,
}

/// The operations of a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Op {
    /// Prepares a container; a memory file with its `ContainerConfig` comes along.
    Create { container: ContainerId },
    /// Runs it.
    Start { container: ContainerId },
    /// Sends a signal.
    Signal { container: ContainerId, signal: i32 },
    /// Runs a command in it; a memory file with the `ExecConfig` comes along.
    Exec {
        container: ContainerId,
        /// Kill it when this connection ends: nobody else watches its time.
        bound: bool,
    },
    /// Kills an exec.
    KillExec { exec: u64 },
    /// Joins the streams.
    Attach { container: ContainerId, stdin: bool },
    /// Forgets a container that has ended, or kills it first.
    Remove { container: ContainerId },
    /// Keeps a word of the daemon's about a container for the next daemon.
    Note { container: ContainerId, text: String },
    /// Kills all containers, then ends.
    Shutdown,
}

/// From the shim to the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromShim {
    /// First packet of a connection.
    Hello {
        version: u32,
        pid: u32,
        containers: Vec<(ContainerId, ContainerState)>,
        #[serde(default)]
        notes: Vec<(ContainerId, String)>,
    },
    /// The answer to a request. With streams these come along: output, error, then input where there is one; on a terminal
    /// its master, after the output where that is a copy.
    Reply {
        id: u64,
        result: Result<(), Fault>,
        #[serde(default)]
        tty: bool,
    },
    /// A container changed.
    State { container: ContainerId, state: ContainerState },
    /// Last packet to a daemon whose place another one takes.
    Replaced,
    /// An exec ended.
    ExecExit { exec: u64, code: i32 },
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Fault {
    NoContainer,
    WrongState(String),
    Create(String),
    Start { code: i32, reason: String },
    MissingController { controller: String, limit: String },
    Invalid { field: String, reason: String },
}

impl Fault {
    /// The error the node half sees.
    pub(super) fn into_error(self, id: &ContainerId) -> Error {
        let id = id.clone();
        match self {
            Self::NoContainer => Error::NoContainer(id),
            Self::WrongState(state) => Error::WrongState { id, state },
            Self::Create(reason) => Error::Create { id, reason },
            Self::Start { code, reason } => Error::Start { id, exit_code: code, reason },
            Self::MissingController { controller, limit } => Error::MissingController { controller, limit },
            Self::Invalid { field, reason } => Error::Invalid { field, reason },
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::MissingController { controller, limit } => Self::MissingController { controller, limit },
            Error::Invalid { field, reason } => Self::Invalid { field, reason },
            Error::Start { exit_code, reason, .. } => Self::Start { code: exit_code, reason },
            other => Self::Create(other.to_string()),
        }
    }
}

/// Sends one packet, whole or not at all. Blocks if the socket does.
pub(super) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one packet; `None` at the end of the connection.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    // As long as the packet: what a shim once touched it keeps.
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    let length = nix::sys::socket::recv(socket.as_fd().as_raw_fd(), &mut [], peek)?;
    if length > MAX_PACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long"));
    }
    let mut buffer = vec![0; length.max(1)];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, fds)))
}

/// A value as a memory file.
pub(super) fn to_memory(value: &impl Serialize) -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create("umiak", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file.into())
}

/// Reads a value back from a memory file.
pub(super) fn from_memory<T: DeserializeOwned>(fd: impl AsFd) -> io::Result<T> {
    // By position: several helpers may read through the same open file at once.
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned()?);
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn packets_carry_values_and_files() {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let file = to_memory(&vec!["x"; 3]).unwrap();
        send(&a, &Request { id: 7, op: Op::Shutdown }, &[file.as_raw_fd()]).unwrap();
        drop(a);
        let (request, fds) = receive::<Request>(&b).unwrap().unwrap();
        assert_eq!((request.id, fds.len()), (7, 1));
        assert!(matches!(request.op, Op::Shutdown));
        assert_eq!(from_memory::<Vec<String>>(&fds[0]).unwrap(), ["x", "x", "x"]);
        assert!(receive::<Request>(&b).unwrap().is_none());
    }

    #[test]
    fn too_long_a_message_is_refused() {
        let (a, _b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let error = send(&a, &"x".repeat(MAX_PACKET), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
