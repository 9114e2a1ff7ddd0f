//! One stream at one end: from the application to the frames, and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::frame::Kind;
use crate::link::channel;
use crate::link::stream::{Channel, Frame, MAX_FRAME, Stream};

/// Bytes of one stream and direction that may be under way or unread.
pub(super) const WINDOW: usize = 256 * 1024;
/// Room is told of in steps of so many bytes.
pub(super) const STEP: usize = WINDOW / 8;

/// What a stream has to say to the other end.
#[derive(Debug)]
pub(super) enum Event {
    /// Bytes of a channel; `kind` is [`Kind::Data`] or [`Kind::DataPart`].
    Data { stream: u32, kind: Kind, channel: Channel, data: Bytes },
    /// The application has no more.
    End(u32),
    /// The application wants no more.
    Stop(u32),
    /// The application took so many bytes.
    Taken(u32, usize),
}

/// What the session keeps of a stream. Dropping it ends the stream.
#[derive(Debug)]
pub(super) struct Handle {
    inbox: Option<mpsc::UnboundedSender<Frame>>,
    stop: Option<oneshot::Sender<()>>,
    credit: Arc<Semaphore>,
    /// Bytes the other end may still send.
    window: usize,
    parts: BytesMut,
}

/// The other end does not keep to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(pub(super) &'static str);

impl Handle {
    /// The other end sent bytes.
    pub(super) fn data(&mut self, kind: Kind, mut content: Bytes) -> Result<(), Violation> {
        let channel = content.first().copied().and_then(channel_of).ok_or(Violation("a frame of no channel"))?;
        let data = content.split_off(1);
        self.window = self.window.checked_sub(data.len()).ok_or(Violation("more bytes than there was room for"))?;
        let data = if kind == Kind::DataPart || !self.parts.is_empty() {
            if self.parts.len() + data.len() > MAX_FRAME {
                return Err(Violation("a frame too large"));
            }
            self.parts.extend_from_slice(&data);
            if kind == Kind::DataPart {
                return Ok(());
            }
            std::mem::take(&mut self.parts).freeze()
        } else {
            data
        };
        if let Some(inbox) = &self.inbox {
            // Fails when the application wants no more.
            let _ = inbox.send(Frame { channel, data });
        }
        Ok(())
    }

    /// The other end has no more.
    pub(super) fn end(&mut self) {
        self.inbox = None;
    }

    /// The other end wants no more.
    pub(super) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails when there is no more anyway.
            let _ = stop.send(());
        }
    }

    /// The other end has room for more.
    pub(super) fn credit(&mut self, bytes: usize) -> Result<(), Violation> {
        if self.credit.available_permits() + bytes > WINDOW {
            return Err(Violation("more room than there ever was"));
        }
        self.credit.add_permits(bytes);
        Ok(())
    }

    /// The application took bytes.
    pub(super) fn taken(&mut self, bytes: usize) {
        self.window += bytes;
    }
}

/// The handle of a stream and the task that serves the application's end of it.
pub(super) fn connect(
    id: u32,
    stream: Stream,
    chunk: Arc<AtomicUsize>,
    events: channel::Sender<Event>,
) -> (Handle, impl Future<Output = u32> + Send) {
    let (inbox, arrived) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let credit = Arc::new(Semaphore::new(WINDOW));
    let handle =
        Handle { inbox: Some(inbox), stop: Some(stop), credit: credit.clone(), window: WINDOW, parts: BytesMut::new() };
    let run = async move {
        let Stream { tx, rx } = stream;
        let out = outward(id, rx, stopped, &credit, &chunk, &events);
        tokio::join!(out, inward(id, tx, arrived, &events));
        id
    };
    (handle, run)
}

/// Until the application has no more, or the other end wants no more.
async fn outward(
    id: u32,
    mut rx: mpsc::Receiver<Frame>,
    stopped: oneshot::Receiver<()>,
    credit: &Semaphore,
    chunk: &AtomicUsize,
    events: &channel::Sender<Event>,
) {
    let send = async {
        while let Some(Frame { channel, mut data }) = rx.recv().await {
            loop {
                let piece = data.split_to(data.len().min(chunk.load(Ordering::Relaxed)));
                // Fails only on a semaphore that is closed or a request for more than 4 GB.
                if let Ok(permits) = credit.acquire_many(piece.len() as u32).await {
                    permits.forget();
                }
                let over = data.is_empty();
                let kind = if over || !is_whole(channel) { Kind::Data } else { Kind::DataPart };
                if events.send(Event::Data { stream: id, kind, channel, data: piece }).await.is_err() {
                    return;
                }
                if over {
                    break;
                }
            }
        }
        // Fails only when the session is over.
        let _ = events.send(Event::End(id)).await;
    };
    tokio::select! {
        () = send => {}
        Ok(()) = stopped => {}
    }
}

/// Until the other end has no more, or the application wants no more.
async fn inward(
    id: u32,
    tx: mpsc::Sender<Frame>,
    mut arrived: mpsc::UnboundedReceiver<Frame>,
    events: &channel::Sender<Event>,
) {
    let mut taken = 0;
    let deliver = async {
        while let Some(frame) = arrived.recv().await {
            taken += frame.data.len();
            if tx.send(frame).await.is_err() {
                return true;
            }
            if taken >= STEP && events.send(Event::Taken(id, std::mem::take(&mut taken))).await.is_err() {
                return false;
            }
        }
        false
    };
    let unwanted = tokio::select! {
        unwanted = deliver => unwanted,
        () = tx.closed() => true,
    };
    if unwanted {
        // Fails only when the session is over.
        let _ = events.send(Event::Stop(id)).await;
    }
}

/// Frames of these channels are documents and arrive in one piece.
fn is_whole(channel: Channel) -> bool {
    matches!(channel, Channel::Error | Channel::Resize)
}

fn channel_of(byte: u8) -> Option<Channel> {
    use Channel::*;
    [Stdin, Stdout, Stderr, Error, Resize].into_iter().find(|c| *c as u8 == byte)
}
