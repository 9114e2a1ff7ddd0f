//! Exec and attach over SPDY (`v4.channel.k8s.io`): one stream a channel, named by its `streamType` header.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Socket,
    idle::{Idle, SETUP},
    spdy::{Event, REFUSED, Reader, Replies, data, goaway, header, ping, reset, write_frames},
    websocket::{drive, lost, send_end, send_frames},
};
use crate::link::stream::{Channel, Frame, Stream, Streams, WINDOW};

/// Serves a client until the process ends or the client leaves.
pub(super) async fn serve<S: Socket>(socket: S, streams: Streams, stream: Stream) {
    let (read, write) = tokio::io::split(socket);
    let (out, queue) = mpsc::channel(WINDOW);
    let session = async {
        let idle = Idle::new();
        let Stream { tx, rx } = stream;
        let mut client = Client { out: out.clone(), tx, replies: Replies::default(), streams: Vec::new() };
        let mut reader = Reader::new(read);
        let setup = tokio::time::timeout(SETUP, client.setup(&mut reader, streams)).await;
        if !matches!(setup, Ok(Some(()))) {
            return tracing::debug!("the client did not open the streams it asked for");
        }
        let known = client.streams.clone();
        let inbound = async {
            while let Some(event) = next(&mut reader).await {
                idle.touch();
                if client.handle(event).await.is_none() {
                    return;
                }
            }
        };
        drive(inbound, output(out, rx, &known, &idle), &idle).await;
    };
    tokio::select! {
        result = write_frames(write, queue) => {
            if let Err(e) = result {
                tracing::debug!("exec: {e}");
            }
        }
        () = session => {}
    }
}

async fn next(reader: &mut Reader<impl tokio::io::AsyncRead + Unpin>) -> Option<Event> {
    reader.next().await.unwrap_or_else(|e| {
        tracing::debug!("exec: {e}");
        None
    })
}

struct Client {
    out: mpsc::Sender<Bytes>,
    tx: mpsc::Sender<Frame>,
    replies: Replies,
    /// At most one a channel.
    streams: Vec<(u32, Channel)>,
}

impl Client {
    /// Waits for every stream that was asked for. `None` if the client leaves.
    async fn setup(&mut self, reader: &mut Reader<impl tokio::io::AsyncRead + Unpin>, wanted: Streams) -> Option<()> {
        let wanted = [
            (Channel::Error, true),
            (Channel::Stdin, wanted.stdin),
            (Channel::Stdout, wanted.stdout),
            (Channel::Stderr, wanted.stderr),
            (Channel::Resize, wanted.tty),
        ];
        while wanted.iter().any(|(channel, wanted)| *wanted && stream_of(&self.streams, *channel).is_none()) {
            let event = next(reader).await?;
            self.handle(event).await?;
        }
        Some(())
    }

    /// `None` when the client cannot be written to any more.
    async fn handle(&mut self, event: Event) -> Option<()> {
        match event {
            Event::Open { id, headers, .. } => {
                let channel = header(&headers, "streamtype").and_then(channel_of);
                let reply = match channel.filter(|c| stream_of(&self.streams, *c).is_none()) {
                    Some(channel) => {
                        self.streams.push((id, channel));
                        self.replies.reply(id)
                    }
                    None => reset(id, REFUSED),
                };
                return self.out.send(reply).await.ok();
            }
            Event::Data { id, data, fin } => match self.streams.iter().find(|(stream, _)| *stream == id) {
                Some((_, Channel::Stdin)) => {
                    send_frames(&self.tx, Channel::Stdin, data).await;
                    if fin {
                        send_end(&self.tx, Channel::Stdin).await;
                    }
                }
                Some((_, Channel::Resize)) => send_frames(&self.tx, Channel::Resize, data).await,
                _ => {}
            },
            Event::Reset { id } if stream_of(&self.streams, Channel::Stdin) == Some(id) => {
                send_end(&self.tx, Channel::Stdin).await;
            }
            Event::Ping(id) => return self.out.send(ping(id)).await.ok(),
            Event::Reset { .. } | Event::GoAway => {}
        }
        Some(())
    }
}

fn channel_of(stream_type: &str) -> Option<Channel> {
    Some(match stream_type {
        "stdin" => Channel::Stdin,
        "stdout" => Channel::Stdout,
        "stderr" => Channel::Stderr,
        "error" => Channel::Error,
        "resize" => Channel::Resize,
        _ => return None,
    })
}

fn stream_of(streams: &[(u32, Channel)], channel: Channel) -> Option<u32> {
    streams.iter().find(|(_, c)| *c == channel).map(|(id, _)| *id)
}

/// Copies the process's output, then ends every stream, the status on the error stream last.
async fn output(out: mpsc::Sender<Bytes>, mut rx: mpsc::Receiver<Frame>, streams: &[(u32, Channel)], idle: &Idle) {
    let mut open: Vec<Channel> = vec![Channel::Stdout, Channel::Stderr];
    let mut status = None;
    while let Some(Frame { channel, data: bytes }) = rx.recv().await {
        idle.touch();
        if channel == Channel::Error {
            status = Some(bytes);
            break;
        }
        let fin = bytes.is_empty();
        if let (true, Some(id)) = (open.contains(&channel), stream_of(streams, channel))
            && out.send(data(id, &bytes, fin)).await.is_err()
        {
            return;
        }
        open.retain(|c| !(fin && *c == channel));
    }
    let mut last: Vec<Bytes> =
        open.iter().filter_map(|c| stream_of(streams, *c)).map(|id| data(id, &[], true)).collect();
    if let Some(id) = stream_of(streams, Channel::Error) {
        last.push(data(id, &status.unwrap_or_else(lost), true));
    }
    last.push(goaway());
    for frame in last {
        if out.send(frame).await.is_err() {
            return;
        }
    }
}
