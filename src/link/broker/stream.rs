//! The broker's end of a client's TLS connection, which holds no buffer while nothing comes or goes.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::link::mqtt::Records;

/// Bytes taken from the socket at once.
const READ: usize = 16 * 1024;
/// Bytes sealed at once.
const WRITE: usize = 64 * 1024;

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct TlsStream {
    tcp: TcpStream,
    records: Records,
    /// Opened and not read yet.
    plain: BytesMut,
    /// Sealed and not written yet.
    out: BytesMut,
    farewell: bool,
}

impl TlsStream {
    /// Shakes hands with a client.
    pub(super) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let records = Records::server(config).map_err(io::Error::other)?;
        let mut stream = Self { tcp, records, plain: BytesMut::new(), out: BytesMut::new(), farewell: false };
        while !stream.records.established() {
            let read = poll_fn(|cx| stream.poll_fill(cx)).await;
            // Also after an error: the client is to read why.
            let flushed = stream.flush().await;
            if read? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection"));
            }
            flushed?;
        }
        Ok(stream)
    }

    /// The client's certificate, if it has shown one.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.records.certificate()
    }

    /// Opens what has come, by way of the stack; how many bytes it was.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
        let opened = self.records.read(read.filled(), &mut self.plain, &mut self.out);
        // What does not go out now does with the next write.
        let _ = self.poll_drain(cx)?;
        opened.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Poll::Ready(Ok(read.filled().len()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.plain.is_empty() {
            if self.records.is_closed() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_fill(cx))? == 0 && !self.records.is_closed() {
                let why = "the connection ended without a farewell";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
        }
        let length = self.plain.len().min(to.remaining());
        to.put_slice(&self.plain[..length]);
        self.plain.advance(length);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let length = bytes.len().min(WRITE);
        let Self { records, out, .. } = &mut *self;
        records.write(&bytes[..length], out).map_err(io::Error::other)?;
        // The rest goes out before anything else is sealed, or is flushed.
        let _ = self.poll_drain(cx)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.farewell, true) {
            let Self { records, out, .. } = &mut *self;
            records.close(out).map_err(io::Error::other)?;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsConnector, client};

    use super::*;
    use crate::link::mqtt::tests::Authority;
    use crate::link::mqtt::tls::ClientTls;

    /// Both ends of a connection, as far as they came.
    async fn pair(authority: &Authority, tls: &ClientTls) -> (client::TlsStream<TcpStream>, io::Result<TlsStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, config) = (listener.local_addr().unwrap(), authority.server_tls().broker);
        let accepted = tokio::spawn(async move { TlsStream::accept(listener.accept().await.unwrap().0, config).await });
        let tcp = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(tls.outer_config());
        let client = connector.connect("umiak-server".try_into().unwrap(), tcp).await.unwrap();
        (client, accepted.await.unwrap())
    }

    #[tokio::test]
    async fn much_passes_both_ways_and_nothing_is_kept() {
        const BYTES: usize = 3_000_000;
        let authority = Authority::new();
        let (client, server) = pair(&authority, &authority.node_tls("a")).await;
        let server = server.unwrap();
        assert!(server.certificate().is_some());
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let (mut from_client, mut to_client) = tokio::io::split(server);
        let (sent, mut up, mut down) = (vec![7; BYTES], vec![0; BYTES], vec![0; BYTES]);
        let send = async |to: &mut (dyn AsyncWrite + Unpin)| {
            to.write_all(&sent).await.unwrap();
            to.flush().await.unwrap();
        };
        tokio::join!(
            send(&mut to_server),
            send(&mut to_client),
            async { from_client.read_exact(&mut up).await.unwrap() },
            async { from_server.read_exact(&mut down).await.unwrap() },
        );
        assert!(up == sent && down == sent);
        let server = from_client.unsplit(to_client);
        assert_eq!((server.plain.capacity(), server.out.capacity()), (0, 0));
    }

    #[tokio::test]
    async fn a_client_that_is_refused_hears_why() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let tls = authority.trusting(stranger.client("system:node:a"));
        let (mut client, server) = pair(&authority, &tls).await;
        assert_eq!(server.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let heard = client.read_u8().await.unwrap_err();
        assert!(heard.to_string().contains("alert"), "{heard}");
    }

    #[tokio::test]
    async fn a_farewell_is_told_from_an_end() {
        let authority = Authority::new();
        let tls = authority.node_tls("a");
        let (mut client, server) = pair(&authority, &tls).await;
        client.shutdown().await.unwrap();
        let mut server = server.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);

        let (client, server) = pair(&authority, &tls).await;
        client.get_ref().0.set_zero_linger().unwrap();
        drop(client);
        assert!(server.unwrap().read(&mut [0]).await.is_err());
    }
}
