//! WebSocket: messages that start with a channel number, and exec and attach over them
//! (`v4.channel.k8s.io`, `v5.channel.k8s.io`).

use std::pin::pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    Socket,
    idle::{Idle, LINGER},
};
use crate::{
    kinds::status::Status,
    link::stream::{Channel, Frame, MAX_FRAME, Stream},
};

/// First byte of a v5 message that ends the channel in the second byte.
const HALF_CLOSE: u8 = 255;
/// Longest message a client may send, in bytes; clients send 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;

pub(super) type Sink<S> = SplitSink<WebSocketStream<S>, Message>;
pub(super) type Source<S> = SplitStream<WebSocketStream<S>>;

/// The two directions of a connection after its handshake.
pub(super) async fn split<S: Socket>(socket: S) -> (Sink<S>, Source<S>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await.split()
}

/// The next message with bytes in it; `None` when the client is gone. Pings are answered on the way. Cancel-safe.
pub(super) async fn receive<S: Socket>(source: &mut Source<S>) -> Option<Bytes> {
    loop {
        match source.next().await {
            Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => return Some(bytes),
            Some(Ok(Message::Text(text))) if !text.is_empty() => return Some(text.into()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

/// A message on a channel.
pub(super) fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

/// What a client's message on a channel means.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    Data(u8, Bytes),
    HalfClose(u8),
}

/// Takes a message that is not empty apart.
pub(super) fn incoming(mut message: Bytes) -> Incoming {
    let channel = message.split_to(1)[0];
    match message.first() {
        Some(closed) if channel == HALF_CLOSE => Incoming::HalfClose(*closed),
        _ => Incoming::Data(channel, message),
    }
}

/// Sends what comes from a queue until every sender is gone, then the normal close.
pub(super) async fn send_all<S: Socket>(mut sink: Sink<S>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    close(sink).await;
}

/// Sends the normal close (1000).
pub(super) async fn close<S: Socket>(mut sink: Sink<S>) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // Fails only if the client has left already.
    let _ = sink.send(Message::Close(Some(frame))).await;
}

/// Runs both directions: to the end of `outbound` and then a little for the client to close, or until the client
/// leaves (`inbound` ends), or nothing happens for long.
pub(super) async fn drive(inbound: impl Future<Output = ()>, outbound: impl Future<Output = ()>, idle: &Idle) {
    let mut inbound = pin!(inbound);
    tokio::select! {
        () = &mut inbound => {}
        () = outbound => drop(tokio::time::timeout(LINGER, inbound).await),
        () = idle.expired() => tracing::debug!("closing an idle stream"),
    }
}

/// Splits data for a channel of a [`Stream`] into its frames and sends them. A process that reads no more may still
/// write: what comes for it is dropped.
pub(super) async fn send_frames(tx: &mpsc::Sender<Frame>, channel: Channel, mut data: Bytes) {
    while !data.is_empty() {
        let data = data.split_to(data.len().min(MAX_FRAME));
        let _ = tx.send(Frame { channel, data }).await;
    }
}

/// Ends a channel of a [`Stream`].
pub(super) async fn send_end(tx: &mpsc::Sender<Frame>, channel: Channel) {
    let _ = tx.send(Frame { channel, data: Bytes::new() }).await;
}

/// The status for a stream whose other end is gone without one.
pub(super) fn lost() -> Bytes {
    Status::internal("the connection to the container was lost").to_value().to_string().into()
}

/// The message of a status that is not a success.
pub(super) fn failure(status: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(status).unwrap_or_default();
    if value["status"] == "Success" {
        return None;
    }
    Some(value["message"].as_str().map_or_else(|| String::from_utf8_lossy(status).into_owned(), str::to_owned))
}

/// Exec and attach.
pub(super) async fn remote_command<S: Socket>(socket: S, stream: Stream) {
    let (sink, mut source) = split(socket).await;
    let Stream { tx, rx } = stream;
    let idle = Idle::new();
    let inbound = async {
        while let Some(message) = receive(&mut source).await {
            idle.touch();
            match incoming(message) {
                Incoming::Data(0, data) => send_frames(&tx, Channel::Stdin, data).await,
                Incoming::Data(4, data) => send_frames(&tx, Channel::Resize, data).await,
                Incoming::HalfClose(0) => send_end(&tx, Channel::Stdin).await,
                Incoming::Data(..) | Incoming::HalfClose(_) => {}
            }
        }
    };
    drive(inbound, command_output(sink, rx, &idle), &idle).await;
}

async fn command_output<S: Socket>(mut sink: Sink<S>, mut rx: mpsc::Receiver<Frame>, idle: &Idle) {
    // An empty message tells the client that the connection stands, as the kubelet does.
    let mut next = Some(Frame { channel: Channel::Stdout, data: Bytes::new() });
    while let Some(Frame { channel, data }) = next.take() {
        if sink.send(message(channel as u8, &data)).await.is_err() {
            return;
        }
        idle.touch();
        if channel == Channel::Error {
            break;
        }
        // The end of one output channel has no message of its own.
        next = loop {
            match rx.recv().await {
                Some(frame) if frame.data.is_empty() => {}
                Some(frame) => break Some(frame),
                None => break Some(Frame { channel: Channel::Error, data: lost() }),
            }
        };
    }
    close(sink).await;
}
