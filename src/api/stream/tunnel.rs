//! Port-forward by SPDY inside the binary messages of a WebSocket (`SPDY/3.1+portforward.k8s.io`).

use bytes::BytesMut;
use futures_util::SinkExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Opener, Socket,
    idle::Idle,
    spdy_forward,
    websocket::{Sink, close, drive, receive, split},
};
use crate::link::stream::MAX_FRAME;

/// Unwraps the SPDY connection and serves it. Its idle timeout is that of the SPDY connection.
pub(super) async fn serve<S: Socket>(socket: S, open: Opener) {
    let (sink, mut source) = split(socket).await;
    let (near, far) = tokio::io::duplex(2 * MAX_FRAME);
    let (from, mut to) = tokio::io::split(near);
    let inbound = async {
        while let Some(bytes) = receive(&mut source).await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let outbound = async {
        tokio::join!(spdy_forward::serve(far, open), wrap(from, sink));
    };
    drive(inbound, outbound, &Idle::new()).await;
}

async fn wrap<S: Socket>(mut from: impl tokio::io::AsyncRead + Unpin, mut sink: Sink<S>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MAX_FRAME);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
            return;
        }
    }
    close(sink).await;
}
