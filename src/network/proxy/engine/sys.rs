//! Sockets as the engine needs them.

use std::fs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, listen, setsockopt, socket,
    sockopt,
};

use super::super::Listen;
use super::steer::Steer;
use crate::network::services::Protocol;

/// Connections that wait to be accepted; the kernel takes `net.core.somaxconn` where that is less.
const BACKLOG: i32 = 4096;

/// A connection that is silent this long (seconds) is asked whether it lives; shorter than what common NATs forget.
const KEEPALIVE_IDLE: u32 = 300;
/// Seconds between questions, and how many go without an answer.
const KEEPALIVE: (u32, u32) = (30, 5);

/// A listening socket; with a `steer`, one that leaves the port to others. What it is set to, the kernel hands on to the
/// connections it accepts.
pub(super) fn tcp_listener(address: SocketAddrV4, steer: Option<&Steer>) -> io::Result<OwnedFd> {
    let listener = stream_socket()?;
    // A node port is listened at on all addresses, a Service of the same port on its own: the kernel lets both of us
    // only where both say that they know (SO_REUSEPORT).
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    setsockopt(&listener, sockopt::ReusePort, &true)?;
    allow_any_address(&listener, address)?;
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    let steer = steer.filter(|_| !address.ip().is_unspecified());
    let port = if steer.is_some() { 0 } else { address.port() };
    bind(listener.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(*address.ip(), port)))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    let listen = Listen { protocol: Protocol::Tcp, address };
    match steer.map(|steer| steer.lead(listen, listener.as_fd())) {
        Some(Err(_)) => tcp_listener(address, None),
        Some(Ok(())) | None => Ok(listener),
    }
}

/// Lets a listener have an address that is no interface's, and answer from it where no local route says it is ours
/// (see `network::intake`).
fn allow_any_address(listener: &OwnedFd, address: SocketAddrV4) -> nix::Result<()> {
    setsockopt(listener, sockopt::IpFreebind, &true)?;
    if address.ip().is_unspecified() { Ok(()) } else { setsockopt(listener, sockopt::IpTransparent, &true) }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Has the kernel ask from time to time whether the other side lives, and keep NATs on the way aware of the connection.
pub(super) fn keep_alive(stream: &impl AsFd) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE.0)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE.1)
}

/// Lets ports whose connection is over be used again after a second instead of a minute (`net.ipv4.tcp_tw_reuse`; safe
/// by RFC 6191): to an endpoint, the connections of all clients come from one address, which has 28,000 ports.
pub(super) fn reuse_ports() {
    const SETTING: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
    let set = fs::read(SETTING).and_then(|now| if now.starts_with(b"1") { Ok(()) } else { fs::write(SETTING, "1") });
    if let Err(error) = set {
        tracing::warn!(%error, "cannot set {SETTING}: an endpoint gets less than 500 connections per second");
    }
}

/// The next connection that waits, and who it is.
pub(super) fn accept(listener: &OwnedFd) -> nix::Result<(TcpStream, SocketAddrV4)> {
    // SAFETY: all zeroes is a valid sockaddr_in.
    let mut peer: libc::sockaddr_in = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: both pointers are to live values of the sizes stated.
    let accepted = unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &mut length, flags) };
    let fd = Errno::result(accepted)?;
    // SAFETY: the kernel just made this descriptor for us.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((stream, address(&peer)))
}

/// Begins to connect, from `source` where that is given (`IP_TRANSPARENT`). The handshake's last packet waits for data to
/// go with; [`acknowledge`] where there is none.
pub(super) fn tcp_connect(endpoint: SocketAddrV4, source: Option<Ipv4Addr>) -> nix::Result<TcpStream> {
    let stream = stream_socket()?;
    set_quick_acknowledgement(&stream, false);
    if let Some(source) = source {
        bind_transparent(&stream, source)?;
    }
    match connect(stream.as_raw_fd(), &SockaddrIn::from(endpoint)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream.into()),
        Err(error) => Err(error),
    }
}

/// Sends the handshake's last packet: there is no data for it to go with yet.
pub(super) fn acknowledge(stream: &TcpStream) {
    set_quick_acknowledgement(stream, true);
}

/// `TCP_QUICKACK`, which only says what to do next.
fn set_quick_acknowledgement(stream: &impl AsRawFd, quick: bool) {
    let (value, length) = (libc::c_int::from(quick), size_of::<libc::c_int>() as libc::socklen_t);
    let value = ptr::from_ref(&value).cast();
    // SAFETY: `value` points to an integer of the length stated. It fails only on what is no TCP socket.
    unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, value, length) };
}

/// A socket from an address that is not ours; any port, chosen when it connects.
fn bind_transparent(socket: &OwnedFd, source: Ipv4Addr) -> nix::Result<()> {
    setsockopt(socket, sockopt::IpTransparent, &true)?;
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))
}

/// Makes closing the socket a reset, so that the other side sees an error and not an end.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // Fails only on what is no socket.
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).ok();
}

/// Moves up to `count` bytes between a socket and a pipe without copying them; 0 at the end.
pub(super) fn splice(from: &impl AsRawFd, to: &impl AsRawFd, count: usize) -> nix::Result<usize> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: no memory of ours is involved; null offsets are what sockets and pipes want.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), count, flags) };
    Ok(Errno::result(moved)? as usize)
}

/// A socket for datagrams; on all addresses it learns which of them each was sent to (`IP_PKTINFO`).
pub(super) fn udp_listener(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let listener = datagram_socket()?;
    setsockopt(&listener, sockopt::ReusePort, &true)?;
    allow_any_address(&listener, address)?;
    if address.ip().is_unspecified() {
        setsockopt(&listener, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        // Name servers of the host set it, too, and can then listen at the same port of all addresses.
        setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    }
    bind(listener.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(listener.into())
}

/// One for an address whose port another program has: it gets what is sent there, but answers from another port.
pub(super) fn led_udp_listener(address: SocketAddrV4, steer: &Steer) -> io::Result<UdpSocket> {
    let listener = datagram_socket()?;
    allow_any_address(&listener, address)?;
    bind(listener.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(*address.ip(), 0)))?;
    steer.lead(Listen { protocol: Protocol::Udp, address }, listener.as_fd())?;
    Ok(listener.into())
}

/// A socket that sends UDP datagrams, header and all, from this address; nothing is received there.
pub(super) fn raw_udp(address: Ipv4Addr) -> io::Result<OwnedFd> {
    const RETURN: u16 = 0x06;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Udp)?;
    let mut nothing = [libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    let (pointer, length) = (ptr::from_ref(&filter).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: the program and what it points to live until the call returns; the kernel copies them.
    let set = unsafe { libc::setsockopt(raw.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, pointer, length) };
    Errno::result(set)?;
    setsockopt(&raw, sockopt::IpTransparent, &true)?;
    bind(raw.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0)))?;
    Ok(raw)
}

fn datagram_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// A socket whose datagrams go to and come from `endpoint` only.
pub(super) fn udp_connect(endpoint: SocketAddrV4, source: Option<Ipv4Addr>) -> nix::Result<UdpSocket> {
    let socket = datagram_socket()?;
    if let Some(source) = source {
        bind_transparent(&socket, source)?;
    }
    connect(socket.as_raw_fd(), &SockaddrIn::from(endpoint))?;
    Ok(socket.into())
}

/// Whether the kernel has no descriptor or memory left for another socket.
pub(super) fn is_exhausted(error: Errno) -> bool {
    matches!(error, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Whether the kernel refuses to let us send from somebody else's address.
pub(super) fn is_source_refused(error: Errno) -> bool {
    matches!(error, Errno::EPERM | Errno::EACCES | Errno::ENOPROTOOPT | Errno::EADDRNOTAVAIL | Errno::EINVAL)
}

/// Says so, once.
pub(super) fn note_source_refused(error: Errno) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(%error, "the kernel does not let connections keep their clients' addresses");
    }
}

pub(super) fn address(raw: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr)), u16::from_be(raw.sin_port))
}
