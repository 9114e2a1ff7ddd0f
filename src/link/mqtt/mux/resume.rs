//! Long control messages over sessions that break: what has arrived is not sent again.
//!
//! Who got part of a message says so when the next session starts, by length and digest. Who sends a message that begins
//! with just that leaves it out. Neither end keeps track of anything: if the message has changed meanwhile, nothing
//! fits, and it is sent from its start.

use bytes::{Buf, Bytes, BytesMut};
use ring::digest::{SHA256, digest};

/// Less is not worth the words.
const LEAST: usize = 16 * 1024;

/// What the other end has of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes, from its start.
    pub(super) length: usize,
    digest: Bytes,
}

impl Held {
    /// The words for it; none if nothing is held.
    pub(super) fn of(held: &[u8]) -> Vec<u8> {
        if held.is_empty() {
            return Vec::new();
        }
        [&(held.len() as u32).to_be_bytes(), digest(&SHA256, held).as_ref()].concat()
    }

    /// What the other end's words mean.
    pub(super) fn parse(mut words: Bytes) -> Option<Self> {
        let length = words.try_get_u32().ok()? as usize;
        (length > 0).then_some(Self { length, digest: words })
    }

    /// Whether the message begins with what is held, and goes on.
    pub(super) fn begins(&self, message: &[u8]) -> bool {
        message.len() > self.length && digest(&SHA256, &message[..self.length]).as_ref() == self.digest
    }
}

/// What to hold at the end of a session: the message it did not finish, or else what was held before.
pub(super) fn worth_holding(unfinished: BytesMut, before: BytesMut) -> BytesMut {
    if unfinished.len() >= LEAST { unfinished } else { before }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_beginning_fits() {
        assert!(Held::of(&[]).is_empty());
        assert_eq!(Held::parse(Bytes::new()), None);
        let held = Held::parse(Held::of(b"begin").into()).unwrap();
        for (message, fits) in
            [(&b"begin and go on"[..], true), (b"begin", false), (b"begun long ago", false), (b"", false)]
        {
            assert_eq!(held.begins(message), fits, "{message:?}");
        }
        let damaged = Held { digest: Bytes::new(), ..held };
        assert!(!damaged.begins(b"begin and go on"));
    }
}
