//! Connections: accepting, TLS, HTTP/1.1 and HTTP/2, stopping.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Api;
use super::identity::{self, User};
use super::limits::Permit;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for a request's header, an idle HTTP/1.1 connection included.
const HEADER: Duration = Duration::from_secs(90);
/// Longest life of a connection without a known user: it can learn the version and the health, no more.
const ANONYMOUS: Duration = Duration::from_secs(60);
/// How long requests may go on after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Wait after a failed accept (out of file descriptors).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// Idle seconds after which the kernel probes a connection; a peer that is gone is noticed within two minutes.
const KEEPALIVE_IDLE: u32 = 60;
const KEEPALIVE_INTERVAL: u32 = 20;
const KEEPALIVE_PROBES: u32 = 3;
/// HTTP/2 streams of one connection: informers of one client share it.
const MAX_STREAMS: u32 = 250;
const WINDOW: u32 = 256 << 10;

impl Api {
    /// Accepts connections until `stop` resolves, then ends watches, lets requests finish for a few seconds and returns.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let acceptor = TlsAcceptor::from(self.tls.clone());
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            let next = async {
                let permit = self.limits.connection().await;
                (listener.accept().await, permit)
            };
            tokio::select! {
                () = &mut stop => break,
                (accepted, permit) = next => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(self.clone().connection(acceptor.clone(), stream, permit));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept an API connection");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
                // Finished tasks are taken as they end, so that the set does not grow.
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        self.stopping.send_replace(true);
        let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            connections.shutdown().await;
        }
    }

    async fn connection(self: Arc<Self>, acceptor: TlsAcceptor, stream: TcpStream, _permit: Option<Permit>) {
        if let Err(error) = tune(&stream) {
            tracing::debug!(%error, "set socket options");
        }
        if let Ok(address) = stream.local_addr() {
            (self.arrived)(address.ip());
        }
        let mut stopping = self.stopping.subscribe();
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
            () = stopped(&mut stopping) => return,
        };
        let tls = match shaken {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        };
        let chain = tls.get_ref().1.peer_certificates().filter(|chain| (self.trusted)(chain));
        let user = identity::of(chain).map(Arc::new);
        let anonymous = user.is_none();
        let service = service_fn(|request: Request<Incoming>| {
            let (api, user): (_, Option<Arc<User>>) = (self.clone(), user.clone());
            async move { Ok::<_, Infallible>(api.handle(user, request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(64 << 10);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 4)
            .max_header_list_size(64 << 10)
            .max_send_buf_size(64 << 10);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(tls), service));
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = sleep(ANONYMOUS), if anonymous => {
                connection.as_mut().graceful_shutdown();
                timeout(HANDSHAKE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "API connection");
        }
    }
}

/// Resolves when the server was told to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is stopping too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Small answers go out at once; a peer that lost its power is noticed by the kernel, with no timer of ours.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}
