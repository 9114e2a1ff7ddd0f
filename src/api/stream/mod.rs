//! The client's side of pod streams: exec, attach, port-forward and logs over WebSocket and SPDY.
//!
//! The caller authenticates, authorizes and finds the pod; then
//! 1. [`Upgrade::remote_command`] or [`Upgrade::port_forward`] look at the headers, so that a client that cannot
//!    stream is refused before anything starts,
//! 2. the caller opens the [`Stream`] to the pod, so that its failure is still an HTTP error,
//! 3. [`remote_command`] or [`port_forward`] give the `101` answer and drive the connection in a task of their own.
//!
//! Back-pressure reaches from the pod to the client's socket and back; no buffer grows with what a peer sends.

mod channels;
mod dictionary;
mod forward;
mod idle;
mod logs;
mod options;
mod spdy;
mod spdy_command;
mod spdy_forward;
mod tunnel;
mod upgrade;
mod websocket;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

pub use forward::Opener;
pub use logs::{LogBody, log_body};
pub use options::{CommandOptions, command_options, forward_ports, log_options};
pub use upgrade::Upgrade;

use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::link::stream::{Stream, Streams};
use upgrade::Protocol;

/// A client's connection after the upgrade.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket for T {}

/// Answers an exec or attach request and connects the client with the process. `streams` must be those that
/// `stream` was opened with.
pub fn remote_command<B, R: Default>(
    upgrade: Upgrade,
    request: &mut Request<B>,
    streams: Streams,
    stream: Stream,
) -> Response<R> {
    let (protocol, upgraded) = (upgrade.protocol(), hyper::upgrade::on(request));
    tokio::spawn(async move {
        let Some(socket) = socket(upgraded).await else { return };
        match protocol {
            Protocol::Spdy => spdy_command::serve(socket, streams, stream).await,
            Protocol::Channels | Protocol::Tunnel => websocket::remote_command(socket, stream).await,
        }
    });
    upgrade.response()
}

/// Answers a port-forward request; `open` connects to a port of the pod for each of the client's connections.
/// `ports` are those of the query: only the channel protocols of WebSocket need them.
pub fn port_forward<B, R: Default>(
    upgrade: Upgrade,
    request: &mut Request<B>,
    ports: Vec<u16>,
    open: Opener,
) -> Response<R> {
    let (protocol, upgraded) = (upgrade.protocol(), hyper::upgrade::on(request));
    tokio::spawn(async move {
        let Some(socket) = socket(upgraded).await else { return };
        match protocol {
            Protocol::Channels => channels::serve(socket, &ports, open).await,
            Protocol::Tunnel => tunnel::serve(socket, open).await,
            Protocol::Spdy => spdy_forward::serve(socket, open).await,
        }
    });
    upgrade.response()
}

async fn socket(upgraded: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    let result = upgraded.await;
    result.inspect_err(|e| tracing::debug!("upgrade to a stream: {e}")).ok().map(TokioIo::new)
}
