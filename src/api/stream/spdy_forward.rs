//! Port-forward over SPDY (`portforward.k8s.io`): for each connection a pair of streams, `error` and `data`, that
//! share a `requestID`.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{
    Opener, Socket,
    forward::{Client, Output},
    idle::{Idle, SETUP},
    spdy::{Event, REFUSED, Reader, Replies, data, header, ping, reset, write_frames},
    websocket::{send_end, send_frames},
};
use crate::link::stream::{Channel, Frame, WINDOW};

/// Most connections, and half-open pairs, of one client at a time.
const MAX_CONNECTIONS: usize = 256;

/// Serves a client until it leaves.
pub(super) async fn serve<S: Socket>(socket: S, open: Opener) {
    let (read, write) = tokio::io::split(socket);
    let (out, queue) = mpsc::channel(WINDOW);
    let idle = Arc::new(Idle::new());
    let session = Session {
        out,
        open,
        idle: idle.clone(),
        replies: Replies::default(),
        pairs: HashMap::new(),
        inputs: HashMap::new(),
        connections: JoinSet::new(),
    };
    tokio::select! {
        result = write_frames(write, queue) => {
            if let Err(e) = result {
                tracing::debug!("port-forward: {e}");
            }
        }
        () = session.run(Reader::new(read)) => {}
        () = idle.expired() => tracing::debug!("closing an idle port-forward"),
    }
}

/// The streams of one connection that have come so far.
#[derive(Debug)]
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
    port: Option<u16>,
    since: Instant,
}

struct Session {
    out: mpsc::Sender<Bytes>,
    open: Opener,
    idle: Arc<Idle>,
    replies: Replies,
    /// By request ID.
    pairs: HashMap<String, Pair>,
    /// By data stream.
    inputs: HashMap<u32, mpsc::Sender<Frame>>,
    /// Give their data stream when done.
    connections: JoinSet<u32>,
}

impl Session {
    async fn run(mut self, mut reader: Reader<impl tokio::io::AsyncRead + Unpin>) {
        loop {
            let event = tokio::select! {
                event = reader.next() => event,
                Some(done) = self.connections.join_next() => {
                    if let Ok(stream) = done {
                        self.inputs.remove(&stream);
                    }
                    continue;
                }
            };
            let handled = match event {
                Ok(Some(event)) => self.handle(event).await,
                Ok(None) => return,
                Err(e) => return tracing::debug!("port-forward: {e}"),
            };
            if handled.is_none() {
                return;
            }
        }
    }

    /// `None` when the client cannot be written to any more.
    async fn handle(&mut self, event: Event) -> Option<()> {
        match event {
            Event::Open { id, headers, .. } => return self.opened(id, &headers).await,
            Event::Data { id, data, fin } => {
                self.idle.touch();
                if let Some(input) = self.inputs.get(&id) {
                    send_frames(input, Channel::Stdin, data).await;
                    if fin {
                        send_end(input, Channel::Stdin).await;
                    }
                }
            }
            // Closes the input of its connection, which ends it.
            Event::Reset { id } => drop(self.inputs.remove(&id)),
            Event::Ping(id) => return self.send(ping(id)).await,
            Event::GoAway => {}
        }
        Some(())
    }

    async fn opened(&mut self, id: u32, headers: &[(String, String)]) -> Option<()> {
        self.idle.touch();
        self.pairs.retain(|_, pair| pair.since.elapsed() < SETUP);
        let kind = header(headers, "streamtype").unwrap_or_default();
        let port = header(headers, "port").and_then(|p| p.parse().ok()).filter(|p| *p != 0);
        let full = self.inputs.len() >= MAX_CONNECTIONS || self.pairs.len() >= MAX_CONNECTIONS;
        if full || port.is_none() || !matches!(kind, "data" | "error") {
            return self.send(reset(id, REFUSED)).await;
        }
        // Clients of old name no request; then the error stream comes first and the data stream is the next one.
        let request = match header(headers, "requestid") {
            Some(request) => request.to_owned(),
            None if kind == "error" => id.to_string(),
            None => id.saturating_sub(2).to_string(),
        };
        let new = Pair { data: None, error: None, port, since: Instant::now() };
        let pair = self.pairs.entry(request.clone()).or_insert(new);
        let slot = if kind == "data" { &mut pair.data } else { &mut pair.error };
        if slot.is_some() || pair.port != port {
            return self.send(reset(id, REFUSED)).await;
        }
        *slot = Some(id);
        let complete = pair.data.zip(pair.error).zip(pair.port);
        let reply = self.replies.reply(id);
        self.send(reply).await?;
        if let Some(((data, error), port)) = complete {
            self.pairs.remove(&request);
            self.connect(data, error, port);
        }
        Some(())
    }

    fn connect(&mut self, data: u32, error: u32, port: u16) {
        let (sender, input) = mpsc::channel(WINDOW);
        self.inputs.insert(data, sender);
        let (open, out, idle) = (self.open.clone(), self.out.clone(), self.idle.clone());
        let client = Client { out, encode: move |output| encode(data, error, output), idle };
        self.connections.spawn(async move {
            client.forward(open, port, input).await;
            data
        });
    }

    async fn send(&self, frame: Bytes) -> Option<()> {
        self.out.send(frame).await.ok()
    }
}

fn encode(data_stream: u32, error_stream: u32, output: Output) -> Bytes {
    match output {
        Output::Data(bytes) => data(data_stream, &bytes, false),
        Output::Eof => data(data_stream, &[], true),
        Output::Failed(text) => data(error_stream, text.as_bytes(), false),
        Output::Closed => data(error_stream, &[], true),
    }
}
