//! A TLS session as bytes that go in and come out.
//!
//! Unlike a connection of rustls, or one of tokio-rustls, it keeps no buffers: at rest it holds its keys and the other
//! end's certificate. A server has two such sessions for every node.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

/// Bytes that wait for the rest of a record, or of a handshake message that comes in many.
const MAX_PENDING: usize = 64 * 1024;

/// One end of a session.
pub(crate) struct Records {
    tls: Tls,
    pending: BytesMut,
    failed: Option<Error>,
    closed: bool,
}

enum Tls {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What to do after a step.
#[derive(PartialEq)]
enum Next {
    Step,
    /// Nothing, until more comes or something is to be said.
    Rest,
    /// The other end says nothing more.
    Close,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("failed", &self.failed).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Records {
    pub(crate) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::of(Tls::Client(Box::new(UnbufferedClientConnection::new(config, name)?))))
    }

    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::of(Tls::Server(Box::new(UnbufferedServerConnection::new(config)?))))
    }

    fn of(tls: Tls) -> Self {
        Self { tls, pending: BytesMut::new(), failed: None, closed: false }
    }

    fn state(&self) -> &CommonState {
        match &self.tls {
            Tls::Client(tls) => tls,
            Tls::Server(tls) => tls,
        }
    }

    /// Whether both ends are proven, as far as this end can tell.
    pub(crate) fn established(&self) -> bool {
        !self.state().is_handshaking()
    }

    /// Whether the other end has said that it says nothing more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The other end's certificate.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.state().peer_certificates()?.first()
    }

    /// Takes in what has come, in pieces of any size. Appends what was in it to `plain`, and to `out` what the other end
    /// is to get, which after an error is the alert that says so.
    ///
    /// # Errors
    /// When it is not what the other end of this session sent. There is no going on after that.
    pub(crate) fn read(&mut self, bytes: &[u8], plain: &mut BytesMut, out: &mut BytesMut) -> Result<(), Error> {
        if !self.closed {
            self.pending.extend_from_slice(bytes);
        }
        self.run(None, plain, out)
    }

    /// Seals bytes and appends the records to `out`, after what the session has to say by itself: its handshake begins
    /// when there is nothing to seal yet.
    ///
    /// # Errors
    /// When the session is not established or has failed.
    pub(crate) fn write(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let say = if bytes.is_empty() { None } else { Some(Say::Bytes(bytes)) };
        self.run(say, &mut BytesMut::new(), out)
    }

    /// Tells the other end that nothing more will be said.
    ///
    /// # Errors
    /// As of [`Records::write`].
    pub(crate) fn close(&mut self, out: &mut BytesMut) -> Result<(), Error> {
        self.run(Some(Say::Farewell), &mut BytesMut::new(), out)
    }

    fn run(&mut self, say: Option<Say<'_>>, plain: &mut BytesMut, out: &mut BytesMut) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let end = loop {
            match self.step(say, plain, out) {
                Ok(Next::Step) => {}
                Ok(Next::Close) => self.closed = true,
                Ok(Next::Rest) if self.pending.len() > MAX_PENDING && !self.closed => {
                    break Err(Error::General("a message that does not end".into()));
                }
                Ok(Next::Rest) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = &end {
            self.failed = Some(error.clone());
            // What is left to say is the alert. rustls must not be shown anything again.
            while self.state().wants_write() && self.step(None, &mut BytesMut::new(), out).is_ok() {}
        }
        if self.closed || end.is_err() || self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
        end
    }

    fn step(&mut self, say: Option<Say<'_>>, plain: &mut BytesMut, out: &mut BytesMut) -> Result<Next, Error> {
        let (discard, next) = match &mut self.tls {
            Tls::Client(tls) => act(tls.process_tls_records(&mut self.pending), say, plain, out),
            Tls::Server(tls) => act(tls.process_tls_records(&mut self.pending), say, plain, out),
        };
        self.pending.advance(discard);
        next
    }
}

/// What this end says.
#[derive(Clone, Copy)]
enum Say<'a> {
    Bytes(&'a [u8]),
    Farewell,
}

/// Does what rustls asks for; with it, how many bytes it needs no more.
fn act<T>(
    status: UnbufferedStatus<'_, '_, T>,
    say: Option<Say<'_>>,
    plain: &mut BytesMut,
    out: &mut BytesMut,
) -> (usize, Result<Next, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Ok(Next::Step)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            append(out, |room| data.encode(room).map_err(encode_room))?;
            Ok(Next::Step)
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is in `out`.
            data.done();
            Ok(Next::Step)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            match say {
                Some(Say::Bytes(bytes)) => append(out, |room| traffic.encrypt(bytes, room).map_err(encrypt_room))?,
                Some(Say::Farewell) => append(out, |room| traffic.queue_close_notify(room).map_err(encrypt_room))?,
                None => {}
            }
            Ok(Next::Rest)
        }
        ConnectionState::PeerClosed => Ok(Next::Close),
        ConnectionState::BlockedHandshake if say.is_some() => Err(Error::HandshakeNotComplete),
        ConnectionState::BlockedHandshake => Ok(Next::Rest),
        ConnectionState::Closed if say.is_some() => Err(Error::General("the session is over".into())),
        ConnectionState::Closed => Ok(Next::Rest),
        // Early data, which no configuration of ours allows.
        other => Err(Error::General(format!("unexpected: {other:?}"))),
    });
    (discard, next)
}

/// Appends what `write` writes into the room it is given, or what it says it needs: [`None`] if that is not why it fails.
fn append(out: &mut BytesMut, mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> Result<(), Error> {
    let start = out.len();
    loop {
        let room = out.len() - start;
        match write(&mut out[start..]) {
            Ok(length) => {
                out.truncate(start + length);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => out.resize(start + needed, 0),
            Err(_) => return Err(Error::EncryptError),
        }
    }
}

fn encode_room(error: EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(room) => Some(room.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn encrypt_room(error: EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(room) => Some(room.required_size),
        EncryptError::EncryptExhausted => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustls::AlertDescription;

    use super::super::tests::Authority;
    use super::super::tls::server_name;
    use super::*;

    fn ends(authority: &Authority) -> (Records, Records) {
        let client = Records::client(authority.node_tls("a").inner, server_name()).unwrap();
        (client, Records::server(authority.server_tls().inner).unwrap())
    }

    /// Passes everything on in pieces, until nobody has more to say; what each end heard, or why it failed.
    fn talk(ends: [&mut Records; 2], outs: [&mut BytesMut; 2], piece: usize) -> [Result<BytesMut, Error>; 2] {
        let [client, server] = ends;
        let [mut up, mut down] = outs.map(std::mem::take);
        let [mut at_client, mut at_server] = [Ok(BytesMut::new()), Ok(BytesMut::new())];
        let pass = |bytes: BytesMut, to: &mut Records, heard: &mut Result<BytesMut, Error>, out: &mut BytesMut| {
            for piece in bytes.chunks(piece) {
                if let Ok(plain) = heard
                    && let Err(error) = to.read(piece, plain, out)
                {
                    *heard = Err(error);
                }
            }
        };
        if client.failed.is_none() {
            client.write(&[], &mut up).unwrap();
        }
        while !up.is_empty() || !down.is_empty() {
            pass(std::mem::take(&mut up), server, &mut at_server, &mut down);
            pass(std::mem::take(&mut down), client, &mut at_client, &mut up);
        }
        [at_client, at_server]
    }

    fn established(authority: &Authority, piece: usize) -> (Records, Records) {
        let (mut client, mut server) = ends(authority);
        let heard = talk([&mut client, &mut server], [&mut BytesMut::new(), &mut BytesMut::new()], piece);
        assert!(heard.iter().all(Result::is_ok) && client.established() && server.established());
        (client, server)
    }

    #[test]
    fn bytes_come_in_whatever_pieces() {
        let authority = Authority::new();
        for piece in [1, 7, 1000, usize::MAX] {
            let (mut client, mut server) = established(&authority, piece);
            assert!(client.certificate().is_some() && server.certificate().is_some());
            let [mut up, mut down] = [BytesMut::new(), BytesMut::new()];
            let (question, answer) = (vec![1; 100_000], vec![2; 3]);
            client.write(&question, &mut up).unwrap();
            server.write(&answer, &mut down).unwrap();
            server.write(&answer, &mut down).unwrap();
            let [at_client, at_server] = talk([&mut client, &mut server], [&mut up, &mut down], piece);
            assert_eq!((at_server.unwrap(), at_client.unwrap()), (question[..].into(), [2; 6][..].into()), "{piece}");
            assert_eq!((client.pending.capacity(), server.pending.capacity()), (0, 0), "it holds memory at rest");
        }
    }

    #[test]
    fn a_session_that_failed_says_so_and_does_not_go_on() {
        let (mut client, mut server) = established(&Authority::new(), usize::MAX);
        let [mut first, mut second, mut plain, mut alert] = <[BytesMut; 4]>::default();
        client.write(b"first", &mut first).unwrap();
        client.write(b"second", &mut second).unwrap();
        first[7] ^= 1;
        let error = server.read(&first, &mut plain, &mut alert).unwrap_err();
        assert_eq!(error, Error::DecryptError);
        let heard = client.read(&alert, &mut plain, &mut BytesMut::new());
        assert_eq!(heard, Err(Error::AlertReceived(AlertDescription::BadRecordMac)));
        alert.clear();
        assert_eq!(server.read(&second, &mut plain, &mut alert), Err(error.clone()));
        assert_eq!(server.write(b"more", &mut alert), Err(error));
        assert!(plain.is_empty() && alert.is_empty());
    }

    #[test]
    fn a_stranger_is_told_that_he_is_one() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let tls = authority.trusting(stranger.client("system:node:a"));
        let mut client = Records::client(tls.inner, server_name()).unwrap();
        let mut server = Records::server(authority.server_tls().inner).unwrap();
        let [at_client, at_server] =
            talk([&mut client, &mut server], [&mut BytesMut::new(), &mut BytesMut::new()], usize::MAX);
        assert!(matches!(at_client, Err(Error::AlertReceived(_))), "{at_client:?}");
        assert!(matches!(at_server, Err(Error::InvalidCertificate(_))), "{at_server:?}");
        assert!(!server.established());
    }

    #[test]
    fn nothing_is_said_too_early_or_heard_too_late() {
        let (mut client, mut server) = ends(&Authority::new());
        assert_eq!(client.write(b"secret", &mut BytesMut::new()), Err(Error::HandshakeNotComplete));
        assert_eq!(server.write(b"secret", &mut BytesMut::new()), Err(Error::HandshakeNotComplete));
        let (mut client, mut server) = established(&Authority::new(), usize::MAX);
        let [mut out, mut plain] = <[BytesMut; 2]>::default();
        client.write(b"last", &mut out).unwrap();
        client.close(&mut out).unwrap();
        out.extend_from_slice(b"whatever");
        server.read(&out, &mut plain, &mut BytesMut::new()).unwrap();
        server.read(&out, &mut plain, &mut BytesMut::new()).unwrap();
        assert!(server.is_closed() && &plain[..] == b"last" && server.pending.is_empty());
    }

    #[test]
    fn a_handshake_message_without_end_is_refused() {
        let (_, mut server) = ends(&Authority::new());
        let record = |byte: u8| [22, 3, 3, 0, 1, byte];
        // A ClientHello of 60,000 bytes, one byte a record.
        let mut begun = [1, 0, 0xea, 0x60].map(record).concat();
        let mut sent = 0;
        while server.read(&begun, &mut BytesMut::new(), &mut BytesMut::new()).is_ok() {
            sent += begun.len();
            begun = record(0).repeat(1000);
        }
        assert!(sent <= MAX_PENDING && server.pending.is_empty(), "{sent}");
    }
}
