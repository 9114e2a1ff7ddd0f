//! Control messages and streams over one sealed session.
//!
//! # Guarantees
//! Control messages arrive once and in order, or the session ends. Of a stream the same holds for its frames. Control
//! messages go before streams; within a long one (more than a chunk) streams have every other chunk; among themselves
//! streams take turns. Memory is bounded by windows: each stream's, that of control messages, and that of the session,
//! which follows the link ([`pace`]). A session in which nothing is said sends nothing. A long control message that a
//! session did not bring to its end goes on in the next one where it stopped ([`resume`]).

mod frame;
mod pace;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::frame::{Frame, Kind};
use self::pace::Pace;
use self::stream::{Event, Handle, STEP, Violation, WINDOW};
use super::seal::{Seal, SealError};
use crate::link::message::VERSION;
use crate::link::stream::Stream;

mod resume;
use self::resume::Held;
use crate::link::{Open, channel};

/// An acknowledgement waits so long for something to go with.
const ACK_DELAY: Duration = Duration::from_millis(25);
/// With so many bytes to acknowledge it waits no longer.
const ACK_BYTES: usize = 8 * 1024;
/// After this long without any acknowledgement the other end counts as gone.
const STALL: Duration = Duration::from_secs(75);
/// Streams at once.
const MAX_STREAMS: usize = 256;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the connection ended")]
    Carrier,
    #[error("the session was disturbed: {0}")]
    Seal(#[from] SealError),
    #[error("the other end does not keep to the protocol: {0}")]
    Protocol(String),
    #[error("the other end confirmed nothing for {} s", STALL.as_secs())]
    Stalled,
    #[error("the other end does not answer")]
    Silent,
    #[error("closed")]
    Closed,
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Protocol(violation.to_string())
    }
}

/// Which end of a session this is.
pub(super) enum Role<'a> {
    /// The server's: it opens streams.
    Server(&'a mut channel::Receiver<Open>),
    /// The node's: it serves them.
    Node(&'a channel::Sender<Open>),
}

/// What a session is connected with.
pub(super) struct Ends<'a> {
    /// Messages of the carrier, as they come in.
    pub(super) messages: channel::Receiver<Bytes>,
    /// Messages for the carrier.
    pub(super) carrier: channel::Sender<Bytes>,
    /// Control messages to send.
    pub(super) to_send: channel::Receiver<Bytes>,
    /// Control messages that came in.
    pub(super) received: channel::Sender<Bytes>,
    /// Bytes of one control message at most.
    pub(super) longest: usize,
    /// What an earlier session has left of a control message.
    pub(super) held: &'a mut BytesMut,
    /// Is told the other end's version once it has spoken.
    pub(super) started: oneshot::Sender<u32>,
    /// Streams.
    pub(super) role: Role<'a>,
}

/// Lets both ends prove who they are. Returns what came with the last message already.
pub(super) async fn handshake(seal: &mut Seal, ends: &mut Ends<'_>) -> Result<BytesMut, End> {
    let mut plain = BytesMut::new();
    loop {
        while let Some(message) = seal.take()? {
            ends.carrier.send(message).await.map_err(|_| End::Carrier)?;
        }
        if seal.established() {
            return Ok(plain);
        }
        let message = ends.messages.recv().await.ok_or(End::Carrier)?;
        seal.open(message, &mut plain)?;
    }
}

/// Runs a session after its handshake, to its end. The second is what was to be sent and the other end did not confirm.
pub(super) fn run(seal: Seal, plain: BytesMut, ends: Ends<'_>) -> impl Future<Output = (End, Vec<Bytes>)> {
    let Ends { messages, carrier, to_send, received, longest, held, started, role } = ends;
    let (events_in, events) = channel::channel(1);
    // Made here, so that the future holds it once.
    let mut mux = Mux::new(seal, plain, std::mem::take(held), longest, started, events_in);
    let mut channels = Channels { messages, carrier, to_send, received, events, role };
    async move {
        let end = match mux.run(&mut channels).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        *held = resume::worth_holding(mux.inward.assembly, mux.inward.held);
        let mut rest: Vec<Bytes> = mux.out.unconfirmed.into_iter().map(|(_, message)| message).collect();
        rest.extend(mux.out.sending.map(|sending| sending.message));
        rest.extend(std::iter::from_fn(|| channels.to_send.try_recv().ok()));
        (end, rest)
    }
}

struct Channels<'a> {
    messages: channel::Receiver<Bytes>,
    carrier: channel::Sender<Bytes>,
    to_send: channel::Receiver<Bytes>,
    received: channel::Sender<Bytes>,
    events: channel::Receiver<Event>,
    role: Role<'a>,
}

struct Mux {
    seal: Seal,
    pace: Pace,
    /// [`Pace::chunk`], for the streams' tasks.
    chunk: Arc<AtomicUsize>,
    /// Sealed messages the carrier has not taken yet. New frames are made only when there are none.
    outbox: VecDeque<Bytes>,
    out: Outward,
    inward: Inward,
    streams: HashMap<u32, Handle>,
    last_stream: u32,
    tasks: JoinSet<u32>,
    events_in: channel::Sender<Event>,
}

/// Control messages to the other end.
struct Outward {
    sending: Option<Sending>,
    /// Bytes the other end has room for.
    credit: usize,
    /// The next chunk is a stream's, if one waits.
    yields: bool,
    /// Sent, with the number of their last frame.
    unconfirmed: VecDeque<(u64, Bytes)>,
    /// What the other end has of a message of an earlier session.
    held: Option<Held>,
}

struct Sending {
    message: Bytes,
    at: usize,
}

/// What came from the other end.
struct Inward {
    plain: BytesMut,
    assembly: BytesMut,
    /// What an earlier session has left, until it is continued or replaced.
    held: BytesMut,
    /// Whole control messages, each with the bytes to give room for once it is taken.
    ready: VecDeque<(Bytes, usize)>,
    /// Bytes the other end may still send, and bytes taken that it was not told of.
    window: usize,
    owed: usize,
    longest: usize,
    /// Frames received, those of them acknowledged, and bytes since.
    frames: u64,
    told: u64,
    bytes: usize,
    ack_at: Option<Instant>,
    started: Option<oneshot::Sender<u32>>,
}

impl Mux {
    fn new(
        seal: Seal,
        plain: BytesMut,
        held: BytesMut,
        longest: usize,
        started: oneshot::Sender<u32>,
        events_in: channel::Sender<Event>,
    ) -> Self {
        let pace = Pace::new(Instant::now());
        let chunk = Arc::new(AtomicUsize::new(pace.chunk()));
        Self {
            seal,
            pace,
            chunk,
            outbox: VecDeque::new(),
            out: Outward { sending: None, credit: WINDOW, yields: false, unconfirmed: VecDeque::new(), held: None },
            inward: Inward {
                plain,
                assembly: BytesMut::new(),
                held,
                ready: VecDeque::new(),
                window: WINDOW,
                owed: 0,
                longest,
                frames: 0,
                told: 0,
                bytes: 0,
                ack_at: None,
                started: Some(started),
            },
            streams: HashMap::new(),
            last_stream: 0,
            tasks: JoinSet::new(),
            events_in,
        }
    }

    async fn run(&mut self, channels: &mut Channels<'_>) -> Result<std::convert::Infallible, End> {
        self.send(Kind::Start, 0, &VERSION.to_be_bytes(), &Held::of(&self.inward.held))?;
        self.read(&channels.role)?;
        loop {
            self.fill(&mut channels.events, &mut channels.role)?;
            let idle = self.outbox.is_empty();
            let room = idle && self.pace.has_room();
            let between = self.out.sending.is_none();
            let stuck = between || self.out.credit == 0;
            let stalled = self.pace.waiting_since().map(|since| since + STALL);
            let far = Instant::now() + STALL;
            tokio::select! {
                biased;
                message = channels.messages.recv() => {
                    self.seal.open(message.ok_or(End::Carrier)?, &mut self.inward.plain)?;
                    self.read(&channels.role)?;
                }
                permit = channels.carrier.reserve(), if !idle => {
                    let permit = permit.map_err(|_| End::Carrier)?;
                    if let Some(message) = pop(&mut self.outbox) {
                        permit.send(message);
                    }
                }
                permit = channels.received.reserve(), if !self.inward.ready.is_empty() => {
                    let permit = permit.map_err(|_| End::Closed)?;
                    if let Some((message, bytes)) = pop(&mut self.inward.ready) {
                        self.inward.owed += bytes;
                        permit.send(message);
                    }
                }
                () = channels.received.closed() => return Err(End::Closed),
                message = channels.to_send.recv(), if room && between => {
                    self.begin(message.ok_or(End::Closed)?)?;
                }
                open = opened(&mut channels.role), if room && self.may_open() => self.open(open)?,
                Some(event) = channels.events.recv(), if room && stuck => self.event(event)?,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Ok(id) = ended {
                        self.streams.remove(&id);
                    }
                }
                () = sleep_until(self.inward.ack_at.unwrap_or(far)), if self.inward.ack_at.is_some() => {
                    // It goes as soon as the carrier takes anything.
                    self.inward.bytes = ACK_BYTES;
                    self.inward.ack_at = None;
                }
                () = sleep_until(stalled.unwrap_or(far)), if stalled.is_some() => return Err(End::Stalled),
            }
        }
    }

    /// Makes the next frame, if it is time for one.
    fn fill(&mut self, events: &mut channel::Receiver<Event>, role: &mut Role<'_>) -> Result<(), End> {
        if !self.outbox.is_empty() {
            return Ok(());
        }
        if self.inward.owed >= STEP {
            let bytes = std::mem::take(&mut self.inward.owed);
            self.inward.window += bytes;
            return self.send(Kind::Credit, 0, &(bytes as u32).to_be_bytes(), &[]);
        }
        if self.pace.has_room() && self.out.sending.is_some() {
            if std::mem::take(&mut self.out.yields) {
                if let Some(open) = self.may_open().then(|| waiting(role)).flatten() {
                    return self.open(open);
                }
                if let Ok(event) = events.try_recv() {
                    return self.event(event);
                }
            }
            self.send_control()?;
        }
        if self.outbox.is_empty() && self.inward.bytes >= ACK_BYTES {
            self.flush(BytesMut::new())?;
        }
        Ok(())
    }

    /// Begins a control message, at its start or where an earlier session stopped.
    fn begin(&mut self, message: Bytes) -> Result<(), End> {
        let at = match self.out.held.take_if(|held| held.begins(&message)) {
            Some(held) => {
                self.send(Kind::Resume, 0, &(held.length as u32).to_be_bytes(), &[])?;
                held.length
            }
            None => 0,
        };
        self.out.sending = Some(Sending { message, at });
        Ok(())
    }

    fn send_control(&mut self) -> Result<(), End> {
        let Some(Sending { message, at }) = &mut self.out.sending else { return Ok(()) };
        let left = message.len() - *at;
        let length = left.min(self.pace.chunk()).min(self.out.credit);
        if length == 0 {
            return Ok(());
        }
        let chunk = message.slice(*at..*at + length);
        *at += length;
        self.out.credit -= length;
        if length < left {
            self.out.yields = true;
            return self.send(Kind::Control, 0, &chunk, &[]);
        }
        self.send(Kind::ControlEnd, 0, &chunk, &[])?;
        let sent = self.out.sending.take().map(|sending| (self.pace.sent(), sending.message));
        self.out.unconfirmed.extend(sent);
        Ok(())
    }

    /// Seals a frame, with an acknowledgement if one waits.
    fn send(&mut self, kind: Kind, stream: u32, first: &[u8], second: &[u8]) -> Result<(), End> {
        let mut frames = BytesMut::new();
        frame::put(&mut frames, kind, stream, first, second);
        self.pace.send(first.len() + second.len(), Instant::now());
        self.flush(frames)
    }

    fn flush(&mut self, mut frames: BytesMut) -> Result<(), End> {
        if self.inward.frames > self.inward.told {
            self.inward.told = self.inward.frames;
            self.inward.bytes = 0;
            self.inward.ack_at = None;
            frame::put(&mut frames, Kind::Ack, 0, &self.inward.frames.to_be_bytes(), &[]);
        }
        self.seal.seal(&frames)?;
        while let Some(message) = self.seal.take()? {
            self.outbox.push_back(message);
        }
        Ok(())
    }

    /// Takes in all whole frames there are.
    fn read(&mut self, role: &Role<'_>) -> Result<(), End> {
        while let Some(frame) = frame::take(&mut self.inward.plain).map_err(|e| End::Protocol(e.to_string()))? {
            if frame.kind != Kind::Ack {
                self.inward.frames += 1;
                self.inward.bytes += frame.content.len() + frame::HEADER;
                self.inward.ack_at.get_or_insert_with(|| Instant::now() + ACK_DELAY);
            }
            self.take(frame, role)?;
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame, role: &Role<'_>) -> Result<(), End> {
        let Frame { kind, stream, mut content } = frame;
        if (kind == Kind::Start) != self.inward.started.is_some() {
            return Err(Violation("a session that does not begin with its start").into());
        }
        match kind {
            Kind::Start => {
                let version = content.try_get_u32().map_err(|_| Violation("no version"))?;
                self.out.held = Held::parse(content);
                if let Some(started) = self.inward.started.take() {
                    // Fails when nobody wants to know.
                    let _ = started.send(version);
                }
            }
            Kind::Control | Kind::ControlEnd => self.inward.control(kind, &content)?,
            Kind::Resume => {
                let length = content.try_get_u32().map_err(|_| Violation("no length"))? as usize;
                self.inward.resume(length)?;
            }
            Kind::Open => match role {
                Role::Node(opened) => self.opened(stream, &content, opened)?,
                Role::Server(_) => return Err(Violation("a stream opened by a node").into()),
            },
            Kind::Data | Kind::DataPart => {
                if let Some(handle) = self.streams.get_mut(&stream) {
                    handle.data(kind, content)?;
                }
            }
            Kind::End => self.streams.get_mut(&stream).into_iter().for_each(Handle::end),
            Kind::Stop => self.streams.get_mut(&stream).into_iter().for_each(Handle::stop),
            Kind::Credit => {
                let bytes = content.try_get_u32().map_err(|_| Violation("no room"))? as usize;
                if stream == 0 {
                    self.out.credit += bytes;
                    if self.out.credit > WINDOW {
                        return Err(Violation("more room than there ever was").into());
                    }
                } else if let Some(handle) = self.streams.get_mut(&stream) {
                    handle.credit(bytes)?;
                }
            }
            Kind::Ack => {
                let frames = content.try_get_u64().map_err(|_| Violation("no acknowledgement"))?;
                if !self.pace.confirm(frames, Instant::now()) {
                    return Err(Violation("an acknowledgement of what was never sent").into());
                }
                self.chunk.store(self.pace.chunk(), Ordering::Relaxed);
                while self.out.unconfirmed.front().is_some_and(|(last, _)| *last <= frames) {
                    pop(&mut self.out.unconfirmed);
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, id: u32, stream: Stream) {
        let (handle, task) = stream::connect(id, stream, self.chunk.clone(), self.events_in.clone());
        self.streams.insert(id, handle);
        self.tasks.spawn(task);
    }

    fn may_open(&self) -> bool {
        self.streams.len() < MAX_STREAMS
    }

    /// The application opens a stream.
    fn open(&mut self, open: Open) -> Result<(), End> {
        let Open { request, stream } = open;
        let request = serde_json::to_vec(&request).map_err(|e| End::Protocol(e.to_string()))?;
        if request.len() > frame::MAX_CONTENT {
            tracing::warn!(bytes = request.len(), "a request for a stream is too long");
            return Ok(());
        }
        self.last_stream += 1;
        self.connect(self.last_stream, stream);
        self.send(Kind::Open, self.last_stream, &request, &[])
    }

    /// The other end opens a stream.
    fn opened(&mut self, id: u32, request: &[u8], to: &channel::Sender<Open>) -> Result<(), End> {
        if id <= self.last_stream || self.streams.len() >= MAX_STREAMS {
            return Err(Violation("a stream too many").into());
        }
        self.last_stream = id;
        let (ours, theirs) = Stream::pair();
        // Connected in any case: what the node cannot serve ends at once.
        self.connect(id, ours);
        match serde_json::from_slice(request) {
            Ok(request) => {
                if to.try_send(Open { request, stream: theirs }).is_err() {
                    tracing::warn!("too many streams are being opened");
                }
            }
            Err(error) => tracing::warn!(%error, "a stream of a kind this version does not know"),
        }
        Ok(())
    }

    /// A stream has something to say.
    fn event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Data { stream, kind, channel, data } => self.send(kind, stream, &[channel as u8], &data),
            Event::End(stream) => self.send(Kind::End, stream, &[], &[]),
            Event::Stop(stream) => self.send(Kind::Stop, stream, &[], &[]),
            Event::Taken(stream, bytes) => {
                let Some(handle) = self.streams.get_mut(&stream) else { return Ok(()) };
                handle.taken(bytes);
                self.send(Kind::Credit, stream, &(bytes as u32).to_be_bytes(), &[])
            }
        }
    }
}

impl Inward {
    /// The next message begins with what is held.
    fn resume(&mut self, length: usize) -> Result<(), Violation> {
        if !self.assembly.is_empty() || length == 0 || length != self.held.len() {
            return Err(Violation("a message continued that was not begun"));
        }
        self.assembly = std::mem::take(&mut self.held);
        Ok(())
    }

    /// Part of a control message.
    fn control(&mut self, kind: Kind, content: &[u8]) -> Result<(), Violation> {
        self.window = self.window.checked_sub(content.len()).ok_or(Violation("more bytes than there was room for"))?;
        if self.assembly.len() + content.len() > self.longest {
            return Err(Violation("a message too long"));
        }
        self.assembly.extend_from_slice(content);
        if kind == Kind::ControlEnd {
            let message = std::mem::take(&mut self.assembly).freeze();
            if message.len() >= self.held.len() {
                // What is held belongs to none that will come.
                self.held = BytesMut::new();
            }
            self.ready.push_back((message, content.len()));
        } else {
            self.owed += content.len();
        }
        Ok(())
    }
}

/// The first of a queue, which takes no memory once it is empty.
fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
    first
}

/// A stream the application wants to open, if there is one now.
fn waiting(role: &mut Role<'_>) -> Option<Open> {
    match role {
        Role::Server(opens) => opens.try_recv().ok(),
        Role::Node(_) => None,
    }
}

/// The next stream the application opens; never, where it does not.
async fn opened(role: &mut Role<'_>) -> Open {
    if let Role::Server(opens) = role
        && let Some(open) = opens.recv().await
    {
        return open;
    }
    std::future::pending().await
}
