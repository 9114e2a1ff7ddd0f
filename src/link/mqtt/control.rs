//! Control messages as bytes: JSON, compressed where that pays.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Shorter messages are not compressed, bytes.
const COMPRESS: usize = 256;
/// Longest message, inflated, to a node: a pod with some thirty ConfigMaps of the largest size.
pub(super) const TO_NODE: usize = 32 << 20;
/// And to the server, which has many nodes and trusts none.
pub(super) const TO_SERVER: usize = 4 << 20;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// The message cannot be read, or not be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error("a message of {bytes} bytes, {limit} are allowed")]
    TooLong { bytes: usize, limit: usize },
    #[error("damaged compression")]
    Compression,
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// A message of at most `limit` bytes.
pub(super) fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Bytes, ControlError> {
    let json = serde_json::to_vec(message)?;
    if json.len() > limit {
        return Err(ControlError::TooLong { bytes: json.len(), limit });
    }
    Ok(pack(json))
}

fn pack(json: Vec<u8>) -> Bytes {
    let mut bytes = BytesMut::new();
    if json.len() >= COMPRESS {
        let compressed = lz4_flex::block::compress(&json);
        if compressed.len() < json.len() / 10 * 9 {
            bytes.reserve(compressed.len() + 5);
            // The length last: messages that begin alike are to begin alike when they are compressed, too.
            bytes.put_u8(LZ4);
            bytes.put_slice(&compressed);
            bytes.put_u32(json.len() as u32);
            return bytes.freeze();
        }
    }
    bytes.reserve(json.len() + 1);
    bytes.put_u8(PLAIN);
    bytes.put_slice(&json);
    bytes.freeze()
}

/// Reads a message that inflates to at most `limit` bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, ControlError> {
    let inflated;
    let json = match bytes {
        [LZ4, rest @ .., a, b, c, d] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if length > limit {
                return Err(ControlError::TooLong { bytes: length, limit });
            }
            inflated = lz4_flex::block::decompress(rest, length).map_err(|_| ControlError::Compression)?;
            &inflated
        }
        [PLAIN, json @ ..] => json,
        _ => return Err(ControlError::Compression),
    };
    Ok(serde_json::from_slice(json)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive() {
        for length in [0, 10, 255, 256, 100_000] {
            let text = "x".repeat(length);
            let bytes = encode(&text, 1 << 20).unwrap();
            assert!(bytes.len() < 1000);
            assert_eq!(decode::<String>(&bytes, 1 << 20).unwrap(), text);
        }
    }

    #[test]
    fn what_inflates_too_much_is_refused() {
        let bytes = encode(&"x".repeat(5000), 1 << 20).unwrap();
        assert!(matches!(decode::<String>(&bytes, 4000), Err(ControlError::TooLong { bytes: 5002, .. })));
        let mut lying = BytesMut::from(&bytes[..]);
        let end = lying.len() - 4;
        lying[end..].copy_from_slice(&100u32.to_be_bytes());
        assert!(decode::<String>(&lying, 4000).is_err());
        for bytes in [&[][..], &[1], &[1, 0, 0, 0], &[1, 1, 2, 3, 0, 0, 0, 9], &[7, 1]] {
            assert!(decode::<String>(bytes, 4000).is_err(), "{bytes:?}");
        }
        assert!(matches!(encode(&"x".repeat(5000), 4000), Err(ControlError::TooLong { .. })));
    }
}
