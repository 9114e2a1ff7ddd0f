//! MQTT packets on a byte stream.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{Packet, Publish};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use tokio::io::{AsyncRead, ReadBuf};

/// Largest packet anybody may send, in bytes.
pub(crate) const MAX_PACKET: usize = 256 * 1024;
/// Bytes taken from the stream at once.
const READ: usize = 16 * 1024;

/// Why no packet came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection was lost: {0}")]
    Io(std::io::Error),
    #[error("malformed packet: {0}")]
    Malformed(CodecError),
}

/// Cuts a byte stream into packets. Holds no memory between packets.
#[derive(Debug, Default)]
pub(crate) struct PacketReader {
    buffer: BytesMut,
}

impl PacketReader {
    /// The next packet, of at most `max` bytes. Nothing is lost when the future is dropped.
    pub(crate) async fn next<R: AsyncRead + Unpin>(&mut self, from: &mut R, max: usize) -> Result<Packet, PacketError> {
        loop {
            match Packet::read(&mut self.buffer, max) {
                Ok(packet) => {
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new();
                    }
                    return Ok(packet);
                }
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => return Err(PacketError::Malformed(error)),
            }
            match poll_fn(|cx| read_some(from, cx, &mut self.buffer)).await {
                Ok(0) => return Err(PacketError::Closed),
                Ok(_) => {}
                Err(error) => return Err(PacketError::Io(error)),
            }
        }
    }
}

/// Reads by way of the stack: a connection that waits holds no buffer.
fn read_some<R: AsyncRead + Unpin>(
    from: &mut R,
    cx: &mut Context<'_>,
    to: &mut BytesMut,
) -> Poll<std::io::Result<usize>> {
    let mut space = [MaybeUninit::uninit(); READ];
    let mut read = ReadBuf::uninit(&mut space);
    Pin::new(from).poll_read(cx, &mut read).map_ok(|()| {
        to.extend_from_slice(read.filled());
        read.filled().len()
    })
}

/// A packet's bytes.
pub(crate) fn encode(packet: &Packet) -> Result<Bytes, CodecError> {
    let mut buffer = BytesMut::with_capacity(packet.size());
    packet.write(&mut buffer, MAX_PACKET)?;
    Ok(buffer.freeze())
}

/// A message that is delivered at most once: what is lost with a connection its sender finds out by himself.
pub(crate) fn publish(topic: String, payload: Bytes) -> Packet {
    Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, payload))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_are_put_together() {
        let mut wire = Vec::new();
        for length in [0, 1, 5000, 100_000] {
            wire.extend_from_slice(&encode(&publish("t".into(), vec![7; length].into())).unwrap());
        }
        let mut reader = PacketReader::default();
        let mut stream = wire.as_slice();
        for length in [0, 1, 5000, 100_000] {
            let Packet::Publish(publish) = reader.next(&mut stream, MAX_PACKET).await.unwrap() else { panic!() };
            assert_eq!(publish.payload.len(), length);
        }
        assert!(matches!(reader.next(&mut stream, MAX_PACKET).await, Err(PacketError::Closed)));
        assert_eq!(reader.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn oversized_packets_are_refused_by_their_header() {
        let mut stream: &[u8] = &[0x30, 0xff, 0xff, 0x7f];
        let result = PacketReader::default().next(&mut stream, MAX_PACKET).await;
        assert!(matches!(result, Err(PacketError::Malformed(CodecError::PayloadSizeLimitExceeded(_)))));
    }

    /// The codec comes from outside and the daemon does not survive a panic.
    #[test]
    fn no_bytes_make_the_codec_panic() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..200_000 {
            let length = (next() % 40) as usize;
            let mut bytes: BytesMut = (0..length + 2).map(|_| (next() >> 11) as u8).collect();
            if round % 2 == 0 {
                bytes[1] = length as u8;
            }
            // Only that it returns.
            let _ = Packet::read(&mut bytes, 64);
        }
    }
}
