//! ARP over Ethernet (RFC 826, RFC 5227), as bytes.

use std::net::Ipv4Addr;

/// A hardware address.
pub type Mac = [u8; 6];

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, and the lengths of their addresses.
const FORMAT: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];
/// Bytes of a frame, Ethernet header included; senders may pad it.
pub(super) const LENGTH: usize = 42;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) to: Mac,
    pub(super) operation: Operation,
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target_mac: Mac,
    pub(super) target: Ipv4Addr,
}

impl Frame {
    /// Asks who has an address. From 0.0.0.0 it is a probe of RFC 5227, which changes nobody's cache.
    pub(super) fn request(mac: Mac, from: Ipv4Addr, to: Option<Mac>, address: Ipv4Addr) -> Self {
        Self {
            to: to.unwrap_or(BROADCAST),
            operation: Operation::Request,
            sender_mac: mac,
            sender: from,
            target_mac: NOBODY,
            target: address,
        }
    }

    /// Tells everyone who has an address. In both forms, because some systems take note of only one of them.
    pub(super) fn announcement(mac: Mac, address: Ipv4Addr) -> [Self; 2] {
        let request = Self::request(mac, address, None, address);
        [request, Self { operation: Operation::Reply, target_mac: BROADCAST, ..request }]
    }

    /// The answer to a request for `self.target`.
    pub(super) fn answer(&self, mac: Mac) -> Self {
        Self {
            to: self.sender_mac,
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let parts: [&[u8]; 9] = [
            &self.to,
            &self.sender_mac,
            &ETHERTYPE_ARP,
            &FORMAT,
            &[0, operation],
            &self.sender_mac,
            &self.sender.octets(),
            &self.target_mac,
            &self.target.octets(),
        ];
        let mut bytes = [0; LENGTH];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }

    /// `None` for what is no ARP of IPv4 over Ethernet, is cut short, or claims a sender that no host can be: a group
    /// address, none, or one that differs from the frame's own.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let part = |at: usize, length: usize| bytes.get(at..at + length);
        let mac = |at| part(at, 6)?.try_into().ok();
        let address = |at| <[u8; 4]>::try_from(part(at, 4)?).ok().map(Ipv4Addr::from);
        if part(12, 2)? != ETHERTYPE_ARP || part(14, 6)? != FORMAT {
            return None;
        }
        let operation = match part(20, 2)? {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let sender_mac: Mac = mac(22)?;
        let is_host = sender_mac[0] & 1 == 0 && sender_mac != NOBODY;
        if !is_host || mac(6)? != sender_mac {
            return None;
        }
        let (sender, target_mac, target) = (address(28)?, mac(32)?, address(38)?);
        Some(Self { to: mac(0)?, operation, sender_mac, sender, target_mac, target })
    }
}

/// As people write it.
pub fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn frames_survive_the_wire() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let request = Frame::request(PEER, b, None, a);
        let answer = request.answer(ME);
        assert_eq!((answer.to, answer.sender, answer.target, answer.target_mac), (PEER, a, b, PEER));
        for frame in [request, answer].into_iter().chain(Frame::announcement(ME, a)) {
            let mut padded = frame.bytes().to_vec();
            padded.resize(60, 0xaa);
            assert_eq!(Frame::parse(&padded), Some(frame));
        }
        assert_eq!(show(PEER), "02:00:00:00:00:02");
    }

    #[test]
    fn what_is_malformed_is_nothing() {
        let good = Frame::request(PEER, Ipv4Addr::new(10, 0, 0, 2), None, Ipv4Addr::new(10, 0, 0, 1)).bytes();
        assert!(Frame::parse(&good).is_some());
        for length in 0..good.len() {
            assert!(Frame::parse(&good[..length]).is_none(), "{length} bytes");
        }
        for (what, at, value) in [
            ("another protocol", 12, 0x86),
            ("hardware that is not Ethernet", 15, 6),
            ("addresses that are not IPv4", 16, 0x86),
            ("a length of 0", 18, 0),
            ("addresses of 16 bytes", 19, 16),
            ("an unknown operation", 21, 3),
            ("a group as sender", 22, 3),
            ("a sender that is not the frame's", 27, 9),
        ] {
            let mut bytes = good;
            bytes[at] = value;
            assert!(Frame::parse(&bytes).is_none(), "{what}");
        }
        let mut nobody = good;
        nobody[6..12].fill(0);
        nobody[22..28].fill(0);
        assert!(Frame::parse(&nobody).is_none(), "no sender");
    }
}
