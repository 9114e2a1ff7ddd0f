//! What a carrier has taken and not delivered for certain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Counts messages from the moment the carrier has taken them until the other end has confirmed them. Clones count
/// together. A carrier that delivers at once counts nothing.
#[derive(Clone, Debug, Default)]
pub struct Underway(Arc<AtomicUsize>);

impl Underway {
    /// Whether all is delivered that was taken.
    pub fn is_nothing(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// The same bytes; the message counts until the last copy of them is gone.
    pub(super) fn carry(&self, message: Bytes) -> Bytes {
        self.0.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Carried { message, underway: self.clone() })
    }
}

struct Carried {
    message: Bytes,
    underway: Underway,
}

impl AsRef<[u8]> for Carried {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.underway.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_until_nobody_holds_it() {
        let underway = Underway::default();
        let message = underway.carry(Bytes::from_static(b"abc"));
        let part = message.slice(1..);
        drop(message);
        assert_eq!((&part[..], underway.is_nothing()), (&b"bc"[..], false));
        drop(part);
        assert!(underway.is_nothing());
    }
}
