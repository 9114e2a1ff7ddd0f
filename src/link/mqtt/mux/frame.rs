//! Frames of the sealed byte stream: kind, stream, length, content.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before the content.
pub(super) const HEADER: usize = 8;
/// Largest content. A frame fits into one TLS record.
pub(super) const MAX_CONTENT: usize = 16 * 1024 - HEADER;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first frame of each end: its version, four bytes, and what it has of a control message whose end it did not
    /// get in an earlier session: the length, four bytes, and a digest, if it has any.
    Start = 1,
    /// Part of a control message.
    Control = 2,
    /// The last part of a control message.
    ControlEnd = 3,
    /// The server opens a stream: a request as JSON.
    Open = 4,
    /// Part of a stream: a channel's number, and bytes of it.
    Data = 5,
    /// Part of a stream's frame that must be put together again first.
    DataPart = 6,
    /// The sender has no more data for the stream.
    End = 7,
    /// The sender wants no more data of the stream.
    Stop = 8,
    /// The sender has room for more bytes of the stream, or of control messages (stream 0): four bytes.
    Credit = 9,
    /// So many frames were received, acknowledgements not counted: eight bytes.
    Ack = 10,
    /// The next control message begins with what the receiver has of it: so many bytes, four bytes.
    Resume = 11,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::*;
        [Start, Control, ControlEnd, Open, Data, DataPart, End, Stop, Credit, Ack, Resume]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) stream: u32,
    pub(super) content: Bytes,
}

/// The bytes are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of kind {kind} and {length} bytes")]
pub(super) struct BadFrame {
    kind: u8,
    length: usize,
}

/// Appends a frame whose content comes in two parts.
pub(super) fn put(to: &mut BytesMut, kind: Kind, stream: u32, first: &[u8], second: &[u8]) {
    let length = first.len() + second.len();
    debug_assert!(length <= MAX_CONTENT);
    to.put_u8(kind as u8);
    to.put_uint(length as u64, 3);
    to.put_u32(stream);
    to.put_slice(first);
    to.put_slice(second);
}

/// Takes the next whole frame off `from`.
pub(super) fn take(from: &mut BytesMut) -> Result<Option<Frame>, BadFrame> {
    if from.len() < HEADER {
        return Ok(None);
    }
    let mut header = &from[..HEADER];
    let kind = header.get_u8();
    let length = header.get_uint(3) as usize;
    let stream = header.get_u32();
    let Some(kind) = Kind::of(kind).filter(|_| length <= MAX_CONTENT) else {
        return Err(BadFrame { kind, length });
    };
    if from.len() < HEADER + length {
        return Ok(None);
    }
    from.advance(HEADER);
    let content = from.split_to(length).freeze();
    if from.is_empty() {
        *from = BytesMut::new();
    }
    Ok(Some(Frame { kind, stream, content }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut bytes = BytesMut::new();
        put(&mut bytes, Kind::Data, 7, &[1], b"hello");
        put(&mut bytes, Kind::Ack, 0, &[], &[]);
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let mut frames = Vec::new();
            while let Some(frame) = take(&mut buffer).unwrap() {
                frames.push(frame);
            }
            buffer.extend_from_slice(&bytes[cut..]);
            while let Some(frame) = take(&mut buffer).unwrap() {
                frames.push(frame);
            }
            let data = Frame { kind: Kind::Data, stream: 7, content: Bytes::from_static(b"\x01hello") };
            assert_eq!(frames, [data, Frame { kind: Kind::Ack, stream: 0, content: Bytes::new() }]);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[0, 0, 0, 0, 0, 0, 0, 0][..], &[99, 0, 0, 1, 0, 0, 0, 0], &[5, 1, 0, 0, 0, 0, 0, 0]] {
            assert!(take(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
