//! The body of a log answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::Value;

use super::websocket::failure;
use crate::{
    kinds::status::Status,
    link::stream::{Channel, Stream},
};

/// Time the node has to say that there is no such log while the answer can still be an HTTP error.
const VERDICT: Duration = Duration::from_secs(1);

/// The lines of a log as plain bytes. Dropping it ends the stream.
#[derive(Debug)]
pub struct LogBody {
    stream: Stream,
    first: Option<Bytes>,
    done: bool,
}

/// The body for a log stream. Waits up to a second for the first lines.
///
/// # Errors
/// The status the stream failed with before its first byte.
pub async fn log_body(mut stream: Stream) -> Result<LogBody, Status> {
    let first = match tokio::time::timeout(VERDICT, stream.rx.recv()).await {
        Ok(frame) => frame,
        Err(_) => return Ok(LogBody { stream, first: None, done: false }),
    };
    match first {
        Some(frame) if frame.channel == Channel::Error => match failure(&frame.data) {
            Some(message) => Err(status(&frame.data, message)),
            None => Ok(LogBody { stream, first: None, done: true }),
        },
        Some(frame) => Ok(LogBody { stream, first: Some(frame.data).filter(|d| !d.is_empty()), done: false }),
        None => Err(Status::internal("the connection to the container was lost")),
    }
}

/// A status document of a node as ours.
fn status(document: &[u8], message: String) -> Status {
    let value: Value = serde_json::from_slice(document).unwrap_or_default();
    match value["code"].as_u64() {
        Some(400) => Status::bad_request(message),
        Some(404) => Status::new(404, "NotFound", message),
        Some(503) => Status::unavailable(message),
        _ => Status::new(500, "InternalError", message),
    }
}

impl Body for LogBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(data) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        while !self.done {
            let Poll::Ready(next) = self.stream.rx.poll_recv(cx) else { return Poll::Pending };
            match next {
                Some(frame) if frame.channel == Channel::Error => {
                    self.done = true;
                    // Cut off, so that the client sees that this was not all.
                    return Poll::Ready(failure(&frame.data).map(|text| Err(io::Error::other(text))));
                }
                Some(frame) if frame.data.is_empty() => {}
                Some(frame) => return Poll::Ready(Some(Ok(Frame::data(frame.data)))),
                None => {
                    self.done = true;
                    return Poll::Ready(Some(Err(io::Error::other("the connection to the container was lost"))));
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.first.is_none()
    }
}
