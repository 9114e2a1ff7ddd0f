//! Telling a client by ICMP that nobody answers, as the kernel does for a port that is closed (RFC 792, RFC 1122
//! 3.2.2.1), so that it need not wait for its time-out.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use super::super::timers::Tick;

/// Refusals in a tick; the kernel's own limit is a thousand a second, too (`icmp_msgs_per_sec`).
const PER_TICK: u32 = 100;

const IP: usize = 20;
const ICMP: usize = 8;
const UDP: usize = 8;
const SIZE: usize = IP + ICMP + IP + UDP;

/// Sends refusals, within limits.
#[derive(Default)]
pub(super) struct Refusals {
    /// Made for the first one.
    socket: Option<OwnedFd>,
    tick: Tick,
    count: u32,
}

impl Refusals {
    /// Tells `client` that nobody is at `local`. Best effort: it may get lost like the datagram it is about.
    pub(super) fn send(&mut self, client: SocketAddrV4, local: SocketAddrV4, now: Tick) {
        if self.tick != now {
            (self.tick, self.count) = (now, 0);
        }
        self.count += 1;
        if self.count > PER_TICK {
            return;
        }
        if self.socket.is_none() {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            self.socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).ok();
        }
        if let Some(socket) = &self.socket {
            let to = SockaddrIn::from(SocketAddrV4::new(*client.ip(), 0));
            sendto(socket.as_raw_fd(), &port_unreachable(client, local), &to, MsgFlags::empty()).ok();
        }
    }
}

/// The packet: destination unreachable, port unreachable, with the beginning of a datagram from `client` to `local`.
fn port_unreachable(client: SocketAddrV4, local: SocketAddrV4) -> [u8; SIZE] {
    let mut packet = [0; SIZE];
    let (outer, message) = packet.split_at_mut(IP);
    write_ip(outer, SIZE, libc::IPPROTO_ICMP, local, client);
    message[..2].copy_from_slice(&[3, 3]);
    let (inner, udp) = message[ICMP..].split_at_mut(IP);
    write_ip(inner, IP + UDP, libc::IPPROTO_UDP, client, local);
    udp[..2].copy_from_slice(&client.port().to_be_bytes());
    udp[2..4].copy_from_slice(&local.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(UDP as u16).to_be_bytes());
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn write_ip(header: &mut [u8], length: usize, protocol: i32, from: SocketAddrV4, to: SocketAddrV4) {
    const VERSION_AND_LENGTH: u8 = 0x45;
    const TTL: u8 = 64;
    header[0] = VERSION_AND_LENGTH;
    header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    header[8] = TTL;
    header[9] = protocol as u8;
    header[12..16].copy_from_slice(&from.ip().octets());
    header[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_refusal_quotes_the_datagram_with_right_checksums() {
        let (client, local) = ("192.0.2.7:4000".parse().unwrap(), "10.43.0.10:53".parse().unwrap());
        let packet = port_unreachable(client, local);
        // A block with its checksum sums up to nothing.
        for part in [&packet[..IP], &packet[IP..], &packet[IP + ICMP..IP + ICMP + IP]] {
            assert_eq!(checksum(part), 0);
        }
        assert_eq!(packet[IP..IP + 2], [3, 3]);
        assert_eq!((&packet[12..16], &packet[16..20]), (&[10, 43, 0, 10][..], &[192, 0, 2, 7][..]));
        let quoted = &packet[IP + ICMP..];
        assert_eq!((&quoted[12..16], &quoted[16..20]), (&[192, 0, 2, 7][..], &[10, 43, 0, 10][..]));
        assert_eq!(quoted[IP..IP + 4], [0x0f, 0xa0, 0, 53]);
    }
}
