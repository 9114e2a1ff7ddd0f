//! Several datagrams in one system call.

use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;

use super::super::sys;

/// Datagrams taken or sent at once.
pub(super) const BATCH: usize = 16;
/// Room for the largest datagram there is. Memory that no datagram has reached is never touched.
const ROOM: usize = 64 << 10;
/// Bytes of an `IP_PKTINFO` message with its header.
const CONTROL: usize = {
    // SAFETY: computes a size.
    unsafe { libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32) as usize }
};

/// Where the kernel writes a control message; aligned as its header has to be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Datagrams that were received together and wait to be sent on.
pub(super) struct Batch {
    bytes: Box<[u8]>,
    lengths: [usize; BATCH],
    names: [libc::sockaddr_in; BATCH],
    controls: [Control; BATCH],
    /// Whose control is filled in.
    locals: [Option<Ipv4Addr>; BATCH],
}

impl Batch {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            bytes: vec![0; BATCH * ROOM].into_boxed_slice(),
            lengths: [0; BATCH],
            // SAFETY: all zeroes is a valid sockaddr_in.
            names: unsafe { mem::zeroed() },
            controls: [Control([0; CONTROL]); BATCH],
            locals: [None; BATCH],
        })
    }

    /// Takes what waits at the socket; how many datagrams that were.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> nix::Result<usize> {
        let mut buffers = self.buffers();
        // SAFETY: all zeroes is a valid mmsghdr.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (index, header) in headers.iter_mut().enumerate() {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut buffers[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: every header points at memory of the lengths stated that is ours until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as _,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = Errno::result(count)? as usize;
        for (index, header) in headers[..count].iter().enumerate() {
            self.lengths[index] = header.msg_len as usize;
            self.locals[index] = local_address(&header.msg_hdr);
        }
        Ok(count)
    }

    /// Who sent a datagram.
    pub(super) fn source(&self, index: usize) -> SocketAddrV4 {
        sys::address(&self.names[index])
    }

    /// What it says.
    pub(super) fn payload(&self, index: usize) -> &[u8] {
        self.bytes.get(index * ROOM..).and_then(|room| room.get(..self.lengths[index])).unwrap_or_default()
    }

    /// Which of our addresses it was sent to, where the socket tells.
    pub(super) fn local(&self, index: usize) -> Option<Ipv4Addr> {
        self.locals[index]
    }

    /// Sends datagrams on to where the socket is connected to.
    ///
    /// # Errors
    /// When not even the first could be sent. Those that the socket has no room for are lost, as on any wire.
    pub(super) fn send(&mut self, socket: &UdpSocket, which: Range<usize>) -> nix::Result<()> {
        self.transmit(socket, which, None)
    }

    /// Sends datagrams to a client, from one of our addresses.
    ///
    /// # Errors
    /// As of [`Batch::send`].
    pub(super) fn send_to(
        &mut self,
        socket: &UdpSocket,
        which: Range<usize>,
        client: SocketAddrV4,
        local: Option<Ipv4Addr>,
    ) -> nix::Result<()> {
        self.transmit(socket, which, Some((client, local)))
    }

    fn transmit(
        &mut self,
        socket: &UdpSocket,
        which: Range<usize>,
        to: Option<(SocketAddrV4, Option<Ipv4Addr>)>,
    ) -> nix::Result<()> {
        let mut buffers = self.buffers();
        let mut name = to.map(|(client, _)| *nix::sys::socket::SockaddrIn::from(client).as_ref());
        let mut control = to.and_then(|(_, local)| local).map(packet_info);
        // SAFETY: all zeroes is a valid mmsghdr.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for index in which.clone() {
            buffers[index].iov_len = self.lengths[index];
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = &raw mut buffers[index];
            header.msg_iovlen = 1;
            if let Some(name) = &mut name {
                header.msg_name = ptr::from_mut(name).cast();
                header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            if let Some(control) = &mut control {
                header.msg_control = ptr::from_mut(control).cast();
                header.msg_controllen = CONTROL as _;
            }
        }
        let headers = &mut headers[which];
        // SAFETY: every header points at memory of the lengths stated that is ours until the call returns.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as _, libc::MSG_DONTWAIT as _)
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EMSGSIZE) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn buffers(&mut self) -> [libc::iovec; BATCH] {
        let mut rooms = self.bytes.chunks_exact_mut(ROOM);
        std::array::from_fn(|_| {
            let room = rooms.next().unwrap_or_default();
            libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }
        })
    }
}

/// The address of ours that a datagram was sent to (`IP_PKTINFO`).
fn local_address(header: &libc::msghdr) -> Option<Ipv4Addr> {
    // SAFETY: the kernel wrote the control messages that the header describes.
    let control = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }?;
    if (control.cmsg_level, control.cmsg_type) != (libc::IPPROTO_IP, libc::IP_PKTINFO) {
        return None;
    }
    // SAFETY: a message of this type holds an in_pktinfo, maybe not aligned.
    let info = unsafe { libc::CMSG_DATA(control).cast::<libc::in_pktinfo>().read_unaligned() };
    Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)))
}

/// Says which address to send from.
fn packet_info(local: Ipv4Addr) -> Control {
    let mut control = Control([0; CONTROL]);
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(local).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    // SAFETY: `control` is aligned for a header and has room for one followed by an in_pktinfo.
    unsafe {
        let header = ptr::from_mut(&mut control).cast::<libc::cmsghdr>();
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) as _;
        libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
    }
    control
}
