//! A TLS session inside messages: a broker sees sizes and times, and breaks what it touches.
//!
//! Every message carries, in clear, the session it belongs to and its number in it, so that what is left over from
//! another session is passed by and a loss is seen at once. Neither is trusted: the records prove order and content.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use super::random;
use super::records::Records;
use super::tls::server_name;

/// Bytes before the records: session and number.
const HEADER: usize = 20;

/// A session's name: the number of the node's connection to the broker, which its last will carries too, and which
/// session of that connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionId {
    pub(super) connection: u64,
    pub(super) count: u32,
}

impl SessionId {
    /// The first of a new connection.
    pub(super) fn first() -> Self {
        Self { connection: random(), count: 0 }
    }

    /// The one after.
    pub(super) fn next(self) -> Self {
        Self { count: self.count.wrapping_add(1), ..self }
    }

    /// As the content of a message that resets it.
    pub(super) fn to_bytes(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(12);
        bytes.put_u64(self.connection);
        bytes.put_u32(self.count);
        bytes.freeze()
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        Some(Self { connection: bytes.try_get_u64().ok()?, count: bytes.try_get_u32().ok()? })
    }
}

/// A message taken apart: session, number, records.
pub(super) fn parse(mut message: Bytes) -> Option<(SessionId, u64, Bytes)> {
    let session = SessionId::parse(&message)?;
    message.try_advance(12).ok()?;
    let number = message.try_get_u64().ok()?;
    Some((session, number, message))
}

trait TryAdvance {
    fn try_advance(&mut self, count: usize) -> Result<(), ()>;
}

impl TryAdvance for Bytes {
    fn try_advance(&mut self, count: usize) -> Result<(), ()> {
        if self.len() < count {
            return Err(());
        }
        self.advance(count);
        Ok(())
    }
}

/// Notices that messages come again. [`Seal::open`] passes those by, whoever repeats them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    next: u64,
    told: bool,
}

impl Seen {
    /// Whether a message of this number was here before, and none before it was.
    pub(super) fn again(&mut self, number: u64) -> bool {
        let again = number < self.next;
        self.next += u64::from(number == self.next);
        let first = again && !self.told;
        self.told |= again;
        first
    }
}

/// The session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// A message is missing, or came too early.
    #[error("message {got} came where {expected} was expected")]
    Gap { expected: u64, got: u64 },
    /// It is not what the other end sent, or not the other end that sent it.
    #[error("{0}")]
    Broken(String),
}

/// One end of a session.
#[derive(Debug)]
pub(super) struct Seal {
    session: SessionId,
    tls: Records,
    /// Records that wait to be sent.
    out: BytesMut,
    sent: u64,
    received: u64,
}

impl Seal {
    /// The node's end.
    pub(super) fn client(session: SessionId, tls: Arc<ClientConfig>) -> Result<Self, SealError> {
        Ok(Self::of(session, Records::client(tls, server_name()).map_err(broken)?))
    }

    /// The server's end.
    pub(super) fn server(session: SessionId, tls: Arc<ServerConfig>) -> Result<Self, SealError> {
        Ok(Self::of(session, Records::server(tls).map_err(broken)?))
    }

    fn of(session: SessionId, tls: Records) -> Self {
        Self { session, tls, out: BytesMut::new(), sent: 0, received: 0 }
    }

    /// Whether both ends are proven, as far as this end can tell.
    pub(super) fn established(&self) -> bool {
        self.tls.established()
    }

    /// The other end's certificate.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.tls.certificate().cloned()
    }

    /// Opens a message and appends what was in it to `plain`. Messages of other sessions and those that were here before
    /// are passed by.
    pub(super) fn open(&mut self, message: Bytes, plain: &mut BytesMut) -> Result<(), SealError> {
        let Some((session, number, records)) = parse(message) else { return Ok(()) };
        if session != self.session || number < self.received {
            return Ok(());
        }
        if number > self.received {
            return Err(SealError::Gap { expected: self.received, got: number });
        }
        self.received += 1;
        if !is_whole(&records) {
            return Err(SealError::Broken("a message that does not hold whole records".into()));
        }
        self.tls.read(&records, plain, &mut self.out).map_err(broken)?;
        if self.tls.is_closed() {
            return Err(SealError::Broken("the other end closed the session".into()));
        }
        Ok(())
    }

    /// Seals bytes; [`Seal::take`] gives the message.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Result<(), SealError> {
        self.tls.write(plain, &mut self.out).map_err(broken)
    }

    /// What waits to be sent, if anything does, as one message: the handshake's part, or the records of one call of
    /// [`Seal::seal`].
    pub(super) fn take(&mut self) -> Result<Option<Bytes>, SealError> {
        self.tls.write(&[], &mut self.out).map_err(broken)?;
        if self.out.is_empty() {
            return Ok(None);
        }
        let records = std::mem::take(&mut self.out);
        let mut message = BytesMut::with_capacity(HEADER + records.len());
        message.put_u64(self.session.connection);
        message.put_u32(self.session.count);
        message.put_u64(self.sent);
        message.put(records);
        self.sent += 1;
        Ok(Some(message.freeze()))
    }
}

/// Whether TLS records fill the bytes: a length that was tampered with would have the other records wait for more.
fn is_whole(mut bytes: &[u8]) -> bool {
    while let [_, _, _, high, low, rest @ ..] = bytes {
        match rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) {
            Some(next) => bytes = next,
            None => return false,
        }
    }
    bytes.is_empty()
}

fn broken(cause: impl ToString) -> SealError {
    SealError::Broken(cause.to_string())
}
