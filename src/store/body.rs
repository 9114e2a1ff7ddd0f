//! Compressed bodies. A row says which dictionary it needs, and the file keeps every dictionary its rows were
//! written with, so a new built-in dictionary never makes old rows unreadable.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use lz4_flex::block::{compress_into_with_dict, decompress_with_dict, get_maximum_output_size};

/// What JSON bodies have in common. Only the compression ratio depends on its content.
pub(super) const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");

/// Largest body in bytes; etcd's default bound on a request is 1.5 MiB, and lists of images make nodes big.
pub(super) const MAX_BODY: usize = 3 << 20;

/// Dictionary number of a body that is stored as it is.
const RAW: u8 = 0;
/// Dictionary number, then the length of the body as u32 LE.
const HEADER: usize = 5;

/// A body as it is kept in memory and on disk: header and LZ4 block.
#[derive(Clone, Debug)]
pub(super) struct Body(Arc<[u8]>);

impl Body {
    /// Bytes as read from a row.
    pub(super) fn from_row(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Bytes for a row.
    pub(super) fn as_row(&self) -> &[u8] {
        &self.0
    }

    /// Bytes of memory.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Compresses and decompresses with the dictionaries of one database file.
#[derive(Debug)]
pub(super) struct Codec {
    current: u8,
    dictionaries: HashMap<u8, Arc<[u8]>>,
}

impl Codec {
    /// `current` must be one of `dictionaries`; new bodies are written with it.
    pub(super) fn new(current: u8, dictionaries: HashMap<u8, Arc<[u8]>>) -> Self {
        Self { current, dictionaries }
    }

    /// Compresses a body of at most [`MAX_BODY`] bytes; kept as it is where that is smaller (sealed Secrets).
    pub(super) fn encode(&self, data: &[u8]) -> Body {
        let dictionary = self.dictionaries.get(&self.current).map(|d| &**d).unwrap_or_default();
        let mut out = vec![0; HEADER + get_maximum_output_size(data.len())];
        // The buffer has the size that cannot be too small, so the error case is only a body kept as it is.
        let length = compress_into_with_dict(data, &mut out[HEADER..], dictionary).unwrap_or(usize::MAX);
        if length < data.len() {
            out.truncate(HEADER + length);
            out[0] = self.current;
        } else {
            out.truncate(HEADER);
            out.extend_from_slice(data);
            out[0] = RAW;
        }
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        out[1..HEADER].copy_from_slice(&length.to_le_bytes());
        Body(out.into())
    }

    /// The bytes as written.
    ///
    /// # Errors
    /// What is damaged.
    pub(super) fn decode(&self, body: &Body) -> Result<Bytes, String> {
        let Some((header, block)) = body.0.split_first_chunk::<HEADER>() else {
            return Err("body shorter than its header".into());
        };
        let [dictionary, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_BODY {
            return Err(format!("body claims {length} bytes"));
        }
        let data = if dictionary == RAW {
            block.to_vec()
        } else {
            let known = self.dictionaries.get(&dictionary).ok_or_else(|| format!("no dictionary {dictionary}"))?;
            decompress_with_dict(block, length, known).map_err(|e| e.to_string())?
        };
        if data.len() != length {
            return Err(format!("body has {} bytes instead of {length}", data.len()));
        }
        Ok(data.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn codec() -> Codec {
        Codec::new(1, HashMap::from([(1, DICTIONARY.into())]))
    }

    #[test]
    fn bodies_come_back_as_written() {
        let codec = codec();
        let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for data in [&b""[..], b"a", b"{\"kind\":\"Pod\"}", &noise, &DICTIONARY[2000..9000], &vec![0; MAX_BODY]] {
            let body = codec.encode(data);
            assert!(body.len() <= data.len() + HEADER);
            assert_eq!(codec.decode(&body).unwrap(), data);
        }
        assert!(codec.encode(&DICTIONARY[2000..9000]).len() < 300);
    }

    #[test]
    fn damage_is_an_error() {
        let codec = codec();
        let good = codec.encode(&DICTIONARY[100..1100]);
        for bytes in [
            &b""[..],
            b"\x01\x02",
            b"\x07\x00\x00\x00\x00",
            b"\x00\x05\x00\x00\x00abc",
            b"\x01\xff\xff\xff\xff\x00",
            &good.as_row()[..good.len() - 2],
        ] {
            assert!(codec.decode(&Body::from_row(bytes)).is_err(), "{bytes:?}");
        }
    }
}
