//! SPDY/3.1 framing: what Kubernetes clients use of it. Nobody sends WINDOW_UPDATE; the TCP window is the flow control.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::dictionary::dictionary;
use crate::link::stream::MAX_FRAME;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const FRAME_HEADER: usize = 8;
const FLAG_FIN: u8 = 1;
/// `REFUSED_STREAM` of RST_STREAM.
pub(super) const REFUSED: u32 = 3;

/// Longest control frame and longest header block, in bytes. Clients send a few short headers.
const MAX_CONTROL: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Bytes read ahead.
const READ_AHEAD: usize = 16 * 1024;

/// What a client does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// Opens a stream. Names are in lower case.
    Open { id: u32, headers: Vec<(String, String)>, fin: bool },
    /// At most [`MAX_FRAME`] bytes; `fin` ends its direction.
    Data { id: u32, data: Bytes, fin: bool },
    /// Gives a stream up.
    Reset { id: u32 },
    /// Wants [`ping`] back.
    Ping(u32),
    /// Will open no more streams.
    GoAway,
}

/// The first value of a header.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// A DATA frame under way.
#[derive(Debug)]
struct Partial {
    id: u32,
    remaining: usize,
    fin: bool,
}

/// Reads frames. Its memory is bounded by [`MAX_CONTROL`], whatever lengths a client claims.
pub(super) struct Reader<R> {
    io: R,
    buffer: BytesMut,
    partial: Option<Partial>,
    inflate: Decompress,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), partial: None, inflate: Decompress::new(true) }
    }

    /// The next event, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// The connection's, and `InvalidData` for what is not SPDY.
    pub(super) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.parse()? {
                return Ok(Some(event));
            }
            self.buffer.reserve(READ_AHEAD);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// An event from what is in the buffer, if that is enough for one.
    fn parse(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(partial) = &mut self.partial {
                let length = partial.remaining.min(self.buffer.len()).min(MAX_FRAME);
                if length == 0 && partial.remaining > 0 {
                    return Ok(None);
                }
                partial.remaining -= length;
                let done = partial.remaining == 0;
                let event = Event::Data {
                    id: partial.id,
                    data: self.buffer.split_to(length).freeze(),
                    fin: done && partial.fin,
                };
                if done {
                    self.partial = None;
                }
                return Ok(Some(event));
            }
            let Some((head, _)) = self.buffer.split_first_chunk::<FRAME_HEADER>() else { return Ok(None) };
            let [a, b, c, d, flags, length @ ..] = *head;
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            let fin = flags & FLAG_FIN != 0;
            if a & 0x80 == 0 {
                self.buffer.advance(FRAME_HEADER);
                self.partial = Some(Partial { id: u32::from_be_bytes([a, b, c, d]), remaining: length, fin });
                continue;
            }
            if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
                return Err(invalid("not SPDY version 3"));
            }
            if length > MAX_CONTROL {
                return Err(invalid("control frame too long"));
            }
            if self.buffer.len() < FRAME_HEADER + length {
                return Ok(None);
            }
            let body = self.buffer.split_to(FRAME_HEADER + length).freeze().slice(FRAME_HEADER..);
            if let Some(event) = self.control(u16::from_be_bytes([c, d]), fin, body)? {
                return Ok(Some(event));
            }
        }
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> io::Result<Option<Event>> {
        Ok(match kind {
            SYN_STREAM => {
                let id = number(&mut body)?;
                // Associated stream, priority, credential slot.
                if body.len() < 6 {
                    return Err(invalid("SYN_STREAM too short"));
                }
                body.advance(6);
                Some(Event::Open { id, headers: self.headers(&body)?, fin })
            }
            SYN_REPLY | HEADERS => {
                let id = number(&mut body)?;
                // Not needed, but the compression goes on from one block to the next.
                self.headers(&body)?;
                fin.then_some(Event::Data { id, data: Bytes::new(), fin })
            }
            RST_STREAM => Some(Event::Reset { id: number(&mut body)? }),
            PING => Some(Event::Ping(number(&mut body)?)),
            GOAWAY => Some(Event::GoAway),
            _ => None,
        })
    }

    fn headers(&mut self, compressed: &[u8]) -> io::Result<Vec<(String, String)>> {
        let block = self.decompress(compressed)?;
        let mut block = &block[..];
        let count = number(&mut block)? as usize;
        if count > MAX_HEADERS {
            return Err(invalid("too many headers"));
        }
        (0..count).map(|_| Ok((text(&mut block)?.to_ascii_lowercase(), text(&mut block)?))).collect()
    }

    fn decompress(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(MAX_CONTROL);
        while !input.is_empty() {
            let (read, written) = (self.inflate.total_in(), block.len());
            let result = self.inflate.decompress_vec(input, &mut block, FlushDecompress::Sync);
            // Less than the block's own length.
            input = &input[(self.inflate.total_in() - read) as usize..];
            match result {
                Ok(_) if self.inflate.total_in() == read && block.len() == written => {
                    return Err(invalid("header block too long or not at its end"));
                }
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| invalid("unknown header dictionary"))?;
                }
                Err(_) => return Err(invalid("damaged header block")),
            }
        }
        Ok(block)
    }
}

fn number(from: &mut impl Buf) -> io::Result<u32> {
    from.try_get_u32().map_err(|_| invalid("frame too short"))
}

fn text(from: &mut &[u8]) -> io::Result<String> {
    let length = number(from)? as usize;
    let (text, rest) = from.split_at_checked(length).ok_or_else(|| invalid("header longer than its block"))?;
    *from = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + body.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u8(flags);
    // Bodies are a few bytes.
    frame.put_uint(body.len() as u64, 3);
    frame.put_slice(body);
    frame.freeze()
}

/// A DATA frame; `data` is at most [`MAX_FRAME`] bytes.
pub(super) fn data(id: u32, data: &[u8], fin: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + data.len());
    frame.put_u32(id & 0x7fff_ffff);
    frame.put_u8(if fin { FLAG_FIN } else { 0 });
    frame.put_uint(data.len() as u64, 3);
    frame.put_slice(data);
    frame.freeze()
}

/// Answers a PING.
pub(super) fn ping(id: u32) -> Bytes {
    control(PING, 0, &id.to_be_bytes())
}

/// Gives a stream up.
pub(super) fn reset(id: u32, status: u32) -> Bytes {
    control(RST_STREAM, 0, &[id.to_be_bytes(), status.to_be_bytes()].concat())
}

/// No more streams.
pub(super) fn goaway() -> Bytes {
    control(GOAWAY, 0, &[0; 8])
}

/// Accepts streams. The header blocks of a connection are one zlib stream: its two bytes of header go with the first.
#[derive(Debug, Default)]
pub(super) struct Replies {
    started: bool,
}

impl Replies {
    /// The SYN_REPLY without headers for a stream.
    pub(super) fn reply(&mut self, id: u32) -> Bytes {
        let mut body = id.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.started, true) {
            body.extend([0x78, 0x01]);
        }
        // A stored block of four bytes, the number of headers; then an empty one, without which Go's inflate waits
        // for the next block before it gives these four bytes out.
        body.extend([0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        body.extend([0, 0, 0, 0xff, 0xff]);
        control(SYN_REPLY, 0, &body)
    }
}

/// Writes frames until every sender is gone or the connection fails, then closes its direction.
pub(super) async fn write_frames(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        io.write_all(&frame).await?;
        if frames.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}
