//! Clients as the protocols describe them, over connections in memory.

mod command;
mod forwarding;
mod framing;
mod kubectl;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{Opener, dictionary::dictionary, spdy};
use crate::{
    kinds::status::Status,
    link::stream::{Channel, Frame, Stream},
};

/// Fails a test that hangs.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing happens")
}

fn frame(channel: Channel, data: &str) -> Frame {
    Frame { channel, data: Bytes::copy_from_slice(data.as_bytes()) }
}

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
const EXIT_3: &str = r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;

/// A process: a line for its start, then standard input on standard output and sizes on standard error. Ends with
/// its input, with code 3 if that was `fail`.
async fn process(mut pod: Stream) {
    let mut status = SUCCESS;
    pod.tx.send(frame(Channel::Stdout, "started\n")).await.unwrap();
    while let Some(Frame { channel, data }) = pod.rx.recv().await {
        let end = channel == Channel::Stdin && data.is_empty();
        if data.starts_with(b"fail") {
            status = EXIT_3;
        }
        let channel = match (channel, end) {
            (_, true) => Channel::Error,
            (Channel::Resize, _) => Channel::Stderr,
            _ => Channel::Stdout,
        };
        let data = if end { Bytes::from_static(status.as_bytes()) } else { data };
        pod.tx.send(Frame { channel, data }).await.unwrap();
        if end {
            return;
        }
    }
}

/// A pod with an echo on every port but 1, which refuses, and 2, whose connection breaks.
fn echo_pod() -> Opener {
    Arc::new(|port| {
        Box::pin(async move {
            if port == 1 {
                return Err(Status::internal("connection refused"));
            }
            let (near, mut pod) = Stream::pair();
            tokio::spawn(async move {
                while let Some(Frame { data, .. }) = pod.rx.recv().await {
                    let end = data.is_empty();
                    if port == 2 || pod.tx.send(Frame { channel: Channel::Stdout, data }).await.is_err() {
                        return;
                    }
                    if end {
                        pod.tx.send(frame(Channel::Error, SUCCESS)).await.unwrap();
                        return;
                    }
                }
            });
            Ok(near)
        })
    })
}

/// A WebSocket client.
struct Web(WebSocketStream<DuplexStream>);

impl Web {
    async fn new(socket: DuplexStream) -> Self {
        Self(WebSocketStream::from_raw_socket(socket, Role::Client, None).await)
    }

    async fn send(&mut self, bytes: &[u8]) {
        soon(self.0.send(Message::binary(bytes.to_vec()))).await.unwrap();
    }

    /// The next message that is not empty apart from its channel; the close code at the end.
    async fn next(&mut self) -> Result<(u8, String), Option<u16>> {
        loop {
            match soon(self.0.next()).await {
                Some(Ok(Message::Binary(bytes))) if bytes.len() > 1 => {
                    return Ok((bytes[0], String::from_utf8_lossy(&bytes[1..]).into_owned()));
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|f| f.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }
}

/// A SPDY client; what it receives is checked by a reader of its own, for frames are the same both ways.
struct Spdy<S = DuplexStream> {
    read: spdy::Reader<ReadHalf<S>>,
    write: WriteHalf<S>,
    deflate: Compress,
    next: u32,
}

impl<S: super::Socket> Spdy<S> {
    fn new(socket: S) -> Self {
        let (read, write) = tokio::io::split(socket);
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        Self { read: spdy::Reader::new(read), write, deflate, next: 1 }
    }

    async fn write(&mut self, bytes: &[u8]) {
        soon(self.write.write_all(bytes)).await.unwrap();
    }

    async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(4096);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
        let mut syn = [0x80, 3, 0, 1, 0].to_vec();
        syn.extend(&(packed.len() as u32 + 10).to_be_bytes()[1..]);
        syn.extend(id.to_be_bytes());
        syn.extend([0; 6]);
        syn.extend(packed);
        self.write(&syn).await;
        id
    }

    async fn send(&mut self, id: u32, data: &str, fin: bool) {
        self.write(&spdy::data(id, data.as_bytes(), fin)).await;
    }

    async fn event(&mut self) -> Option<spdy::Event> {
        soon(self.read.next()).await.unwrap()
    }

    /// All data up to the end of each of the streams, in their order.
    async fn finish(&mut self, ids: &[u32]) -> Vec<String> {
        let mut texts = vec![String::new(); ids.len()];
        let mut open = ids.to_vec();
        while !open.is_empty() {
            if let spdy::Event::Data { id, data, fin } = self.event().await.expect("closed too early") {
                let index = ids.iter().position(|i| *i == id).unwrap();
                texts[index].push_str(std::str::from_utf8(&data).unwrap());
                open.retain(|i| !(fin && *i == id));
            }
        }
        texts
    }
}
