//! A packet socket on one interface that wakes up for ARP about our addresses only.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frame::Frame;

const ETH_P_ARP: u16 = 0x0806;
/// With more addresses the program would be longer than the kernel takes (BPF_MAXINSNS is 4096).
const MAX_FILTERED: usize = 1000;
/// Bytes of a packet that are of interest.
const SNAP: u32 = 64;

/// The socket.
pub(super) struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Opens it on the interface with this index, deaf to everything.
    pub(super) fn open(interface: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the result is checked. Protocol 0 receives nothing before bind names one.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an OwnedFd gives the same descriptor for as long as it lives, and the AsyncFd owns it.
        let socket = Self(unsafe { AsyncFd::register(fd) }?);
        socket.listen_for(&[])?;
        socket.bind(interface)?;
        Ok(socket)
    }

    fn bind(&self, interface: u32) -> io::Result<()> {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETH_P_ARP.to_be();
        address.sll_ifindex = interface as i32;
        let (pointer, length) = (std::ptr::from_ref(&address).cast(), size_of::<libc::sockaddr_ll>() as u32);
        // SAFETY: the address outlives the call and its length is its own.
        let done = unsafe { libc::bind(self.0.as_raw_fd(), pointer, length) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// From now on only ARP that names one of these addresses is received.
    pub(super) fn listen_for(&self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        let mut program = filter(addresses);
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let (pointer, length) = (std::ptr::from_ref(&program).cast(), size_of::<libc::sock_fprog>() as u32);
        // SAFETY: the kernel copies the program during the call, which it outlives.
        let done =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, pointer, length) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that can be read as one; others are passed over. Cancel safe.
    ///
    /// # Errors
    /// Also when the interface goes down, however soon it comes up again: who is on the segment may be another one then.
    pub(super) async fn next(&self) -> io::Result<Frame> {
        let mut buffer = [0; SNAP as usize];
        loop {
            let mut ready = self.0.ready(Interest::READABLE | Interest::ERROR).await?;
            let got = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?));
            if let Ok(length) = got
                && let Some(frame) = Frame::parse(&buffer[..length?])
            {
                return Ok(frame);
            }
        }
    }

    /// Sends a frame. What does not fit into the queue is lost, as on the wire.
    pub(super) fn send(&self, frame: &Frame) -> io::Result<()> {
        self.send_bytes(&frame.bytes())
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        match send(self.0.as_raw_fd(), bytes, MsgFlags::empty()) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOBUFS) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Classic BPF: the ethertype, then the target and the sender address against each of ours.
fn filter(addresses: &[Ipv4Addr]) -> Vec<libc::sock_filter> {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SENDER: u32 = 28;
    const TARGET: u32 = 38;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (accept, refuse) = (step(RETURN, 0, 0, SNAP), step(RETURN, 0, 0, 0));
    let mut program = vec![step(LOAD_HALF, 0, 0, 12), step(JUMP_IF_EQUAL, 1, 0, ETH_P_ARP.into()), refuse];
    if addresses.len() > MAX_FILTERED {
        program.push(accept);
        return program;
    }
    for field in [TARGET, SENDER] {
        program.push(step(LOAD_WORD, 0, 0, field));
        for address in addresses {
            program.extend([step(JUMP_IF_EQUAL, 0, 1, address.to_bits()), accept]);
        }
    }
    program.push(refuse);
    program
}
