//! One forwarded connection, whatever carries it to the client.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{idle::Idle, websocket::failure};
use crate::{
    kinds::status::Status,
    link::stream::{Channel, Frame, Stream},
};

/// Connects to a TCP port of the pod.
pub type Opener = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<Stream, Status>> + Send + Sync>;

/// What goes back to the client.
#[derive(Debug)]
pub(super) enum Output {
    /// At most [`MAX_FRAME`](crate::link::stream::MAX_FRAME) bytes from the pod.
    Data(Bytes),
    /// The pod sends no more.
    Eof,
    /// The connection failed: text for people.
    Failed(String),
    /// Nothing more will come.
    Closed,
}

/// The client's end of one forwarded connection.
pub(super) struct Client<T, E> {
    /// To the client's socket.
    pub(super) out: mpsc::Sender<T>,
    /// An output as the socket wants it.
    pub(super) encode: E,
    /// Of the whole socket.
    pub(super) idle: Arc<Idle>,
}

impl<T: Send, E: Fn(Output) -> T + Sync> Client<T, E> {
    /// Connects and copies both ways until the pod's end is done or the client gives up. [`Output::Closed`] comes
    /// last in any case.
    ///
    /// `input` is what the client sends: frames of [`Channel::Stdin`], an empty one at the end. It is closed (not
    /// merely ended) when the client gives the connection up.
    pub(super) async fn forward(self, open: Opener, port: u16, mut input: mpsc::Receiver<Frame>) {
        match open(port).await {
            Err(status) => self.fail(port, &status.message, false).await,
            Ok(Stream { tx, mut rx }) => {
                let inbound = async {
                    while let Some(frame) = input.recv().await {
                        // A pod that reads no more may still send: what comes for it is dropped.
                        let _ = tx.send(frame).await;
                    }
                };
                tokio::select! {
                    () = inbound => {}
                    () = self.copy_out(&mut rx, port) => {}
                }
            }
        }
        self.send(Output::Closed).await;
    }

    async fn copy_out(&self, rx: &mut mpsc::Receiver<Frame>, port: u16) {
        let mut ended = false;
        while let Some(Frame { channel, data }) = rx.recv().await {
            self.idle.touch();
            match channel {
                Channel::Stdout if data.is_empty() => {
                    if !ended {
                        self.send(Output::Eof).await;
                    }
                    ended = true;
                }
                Channel::Stdout => self.send(Output::Data(data)).await,
                Channel::Error => {
                    return match failure(&data) {
                        Some(text) => self.fail(port, &text, ended).await,
                        None if !ended => self.send(Output::Eof).await,
                        None => {}
                    };
                }
                Channel::Stdin | Channel::Stderr | Channel::Resize => {}
            }
        }
        self.fail(port, "lost connection to pod", ended).await;
    }

    async fn fail(&self, port: u16, text: &str, ended: bool) {
        self.send(Output::Failed(format!("error forwarding port {port}: {text}"))).await;
        if !ended {
            self.send(Output::Eof).await;
        }
    }

    async fn send(&self, output: Output) {
        // Only fails when the client is gone; then this connection is about to be dropped too.
        let _ = self.out.send((self.encode)(output)).await;
    }
}
