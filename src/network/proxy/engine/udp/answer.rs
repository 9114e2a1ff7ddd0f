//! Answers from a port that is another program's: the Service's listener has been led to it (`engine::steer`), but what
//! it sends itself would come from its own port.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockaddrIn, sendmsg};

use super::super::sys;

const HEADER: usize = 8;

/// Sends datagrams from one address and port.
pub(super) struct Answers {
    socket: OwnedFd,
    from: SocketAddrV4,
}

impl Answers {
    pub(super) fn new(from: SocketAddrV4) -> io::Result<Self> {
        Ok(Self { socket: sys::raw_udp(*from.ip())?, from })
    }

    /// Best effort, as on any wire.
    pub(super) fn send(&self, client: SocketAddrV4, payload: &[u8]) {
        let header = header(self.from, client, payload);
        let to = SockaddrIn::from(SocketAddrV4::new(*client.ip(), 0));
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        sendmsg(self.socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_DONTWAIT, Some(&to)).ok();
    }
}

/// A UDP header (RFC 768).
fn header(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> [u8; HEADER] {
    let length = (HEADER + payload.len()) as u16;
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let addresses = [*from.ip(), *to.ip()].iter().map(|ip: &Ipv4Addr| sum(&ip.octets())).sum::<u64>();
    let all = addresses + libc::IPPROTO_UDP as u64 + u64::from(length) + sum(&header) + sum(payload);
    // Nothing would mean that there is no checksum.
    let checksum = match folded(all) {
        0 => u16::MAX,
        other => other,
    };
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The 16-bit words of `bytes`, added up; one that is half is filled with nothing.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|word| u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    words.map(u64::from).sum()
}

/// The Internet checksum (RFC 1071) of a sum.
fn folded(mut sum: u64) -> u16 {
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
    fn checksums_are_right() {
        let (from, to): (SocketAddrV4, SocketAddrV4) =
            ("10.43.0.7:53".parse().unwrap(), "10.42.0.9:4000".parse().unwrap());
        for payload in [&b""[..], b"odd", b"even", &[0xff; 9001]] {
            let header = header(from, to, payload);
            assert_eq!(header[..4], [0, 53, 0x0f, 0xa0]);
            let pseudo = sum(&from.ip().octets()) + sum(&to.ip().octets()) + 17 + (8 + payload.len()) as u64;
            assert_eq!(folded(pseudo + sum(&header) + sum(payload)), 0, "{} bytes", payload.len());
        }
    }
}
