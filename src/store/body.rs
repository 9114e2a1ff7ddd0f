//! Compressed bodies. Objects of one resource look alike, so each resource has a dictionary: a typical body of its
//! own. A row says which dictionary it needs and the file keeps every one, so rows stay readable whatever comes later.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use lz4_flex::block::{compress_into_with_dict, decompress_with_dict, get_maximum_output_size};

/// Largest body in bytes; etcd's default bound on a request is 1.5 MiB, and lists of images make nodes big.
pub(super) const MAX_BODY: usize = 3 << 20;

/// Bodies that may become a dictionary: short ones teach little, long ones cost memory.
const TYPICAL: RangeInclusive<usize> = 256..=8192;
/// Learned again when a body keeps more than one byte in this many: the first pod has no status yet.
const GOOD: usize = 3;
/// Dictionaries of one resource, and bytes of all.
const MAX_LEARNED: usize = 4;
const MAX_BYTES: usize = 1 << 20;

/// Dictionary number of a body that is compressed without one.
const NONE: u16 = 0;
/// Dictionary number of a body that is stored as it is.
const RAW: u16 = u16::MAX;
/// Dictionary number as u16 LE, length of the body as u32 LE.
const HEADER: usize = 6;

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

/// A body that others of its resource are compressed against.
#[derive(Clone, Debug)]
pub(super) struct Dictionary {
    pub(super) id: u16,
    pub(super) resource: Arc<str>,
    pub(super) bytes: Arc<[u8]>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<u16, Arc<[u8]>>,
    /// The newest of each resource and how many it has.
    current: HashMap<Arc<str>, (Dictionary, usize)>,
    bytes: usize,
    /// Not on disk yet.
    unsaved: Vec<Dictionary>,
}

impl Known {
    fn add(&mut self, dictionary: Dictionary) {
        self.bytes += dictionary.bytes.len();
        self.by_id.insert(dictionary.id, dictionary.bytes.clone());
        let count = self.current.get(&dictionary.resource).map_or(0, |(_, count)| *count);
        self.current.insert(dictionary.resource.clone(), (dictionary, count + 1));
    }
}

/// Compresses and decompresses with the dictionaries of one database file.
#[derive(Debug)]
pub(super) struct Codec {
    known: RwLock<Known>,
    private: Vec<String>,
}

impl Codec {
    /// With the dictionaries of the file, oldest first. Nothing is learned from `private` resources: what is
    /// deleted of them must not live on in a dictionary.
    pub(super) fn new(dictionaries: Vec<Dictionary>, private: Vec<String>) -> Self {
        let mut known = Known::default();
        for dictionary in dictionaries {
            known.add(dictionary);
        }
        Self { known: RwLock::new(known), private }
    }

    /// Compresses a body of at most [`MAX_BODY`] bytes; kept as it is where that is smaller (sealed Secrets).
    /// Called by the writer thread only; rows with the result go to disk not before [`Codec::unsaved`].
    pub(super) fn encode(&self, resource: &Arc<str>, data: &[u8]) -> Body {
        let current = self.read().current.get(resource).map(|(dictionary, _)| dictionary.clone());
        let body = compress(current.as_ref(), data);
        if body.len() * GOOD <= data.len() || !TYPICAL.contains(&data.len()) {
            return body;
        }
        self.learn(resource, data).map_or(body, |learned| compress(Some(&learned), data))
    }

    fn learn(&self, resource: &Arc<str>, data: &[u8]) -> Option<Dictionary> {
        let mut known = self.write();
        let count = known.current.get(resource).map_or(0, |(_, count)| *count);
        let full = count >= MAX_LEARNED || known.bytes + data.len() > MAX_BYTES;
        if full || self.private.iter().any(|p| **p == **resource) {
            return None;
        }
        let id = known.by_id.keys().max().copied().unwrap_or(NONE) + 1;
        let dictionary = Dictionary { id, resource: resource.clone(), bytes: data.into() };
        known.add(dictionary.clone());
        known.unsaved.push(dictionary.clone());
        Some(dictionary)
    }

    /// What the next transaction has to write.
    pub(super) fn unsaved(&self) -> Vec<Dictionary> {
        self.read().unsaved.clone()
    }

    /// After the COMMIT of the first `count` of [`Codec::unsaved`].
    pub(super) fn saved(&self, count: usize) {
        if count > 0 {
            self.write().unsaved.drain(..count);
        }
    }

    /// The bytes as written.
    ///
    /// # Errors
    /// What is damaged.
    pub(super) fn decode(&self, body: &Body) -> Result<Bytes, String> {
        let Some((&[a, b, length @ ..], block)) = body.0.split_first_chunk::<HEADER>() else {
            return Err("body shorter than its header".into());
        };
        let (id, length) = (u16::from_le_bytes([a, b]), u32::from_le_bytes(length) as usize);
        if length > MAX_BODY {
            return Err(format!("body claims {length} bytes"));
        }
        let data = if id == RAW {
            block.to_vec()
        } else {
            let dictionary = match id {
                NONE => Arc::default(),
                _ => self.read().by_id.get(&id).cloned().ok_or_else(|| format!("no dictionary {id}"))?,
            };
            decompress_with_dict(block, length, &dictionary).map_err(|e| e.to_string())?
        };
        if data.len() != length {
            return Err(format!("body has {} bytes instead of {length}", data.len()));
        }
        Ok(data.into())
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compress(dictionary: Option<&Dictionary>, data: &[u8]) -> Body {
    let (mut id, bytes) = dictionary.map_or((NONE, &[][..]), |d| (d.id, &d.bytes));
    let mut out = vec![0; HEADER + get_maximum_output_size(data.len())];
    // The buffer has the size that cannot be too small; a failure would only mean a body kept as it is.
    let length = compress_into_with_dict(data, &mut out[HEADER..], bytes).unwrap_or(usize::MAX);
    if length < data.len() {
        out.truncate(HEADER + length);
    } else {
        id = RAW;
        out.truncate(HEADER);
        out.extend_from_slice(data);
    }
    out[..2].copy_from_slice(&id.to_le_bytes());
    out[2..HEADER].copy_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    Body(out.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(seed: u32) -> Vec<u8> {
        let words = (0..300u32).map(|i| format!("\"field{}\":{},", i.wrapping_mul(7919) % 997, i * seed % 5));
        words.collect::<String>().into_bytes()
    }

    fn noise(length: u32) -> Vec<u8> {
        (0..length).map(|i| ((i + length).wrapping_mul(2_654_435_761) >> (13 + length % 7)) as u8).collect()
    }

    #[test]
    fn bodies_come_back_as_written() {
        let (codec, pods) = (Codec::new(Vec::new(), Vec::new()), "pods".into());
        let table = [vec![], b"a".to_vec(), text(1), noise(300), text(2), noise(5000), text(3), vec![0; MAX_BODY]];
        let bodies: Vec<Body> = table.iter().map(|data| codec.encode(&pods, data)).collect();
        // As after a restart: with what was to be saved.
        let reopened = Codec::new(codec.unsaved(), Vec::new());
        for (data, body) in table.iter().zip(&bodies) {
            assert!(body.len() <= data.len() + HEADER);
            assert_eq!(codec.decode(body).unwrap(), data);
            assert_eq!(reopened.decode(body).unwrap(), data);
        }
        assert!(bodies[4].len() < text(2).len() / GOOD);
        codec.saved(1);
        assert_eq!(codec.unsaved().len(), reopened.read().by_id.len() - 1);
    }

    #[test]
    fn learning_is_bounded_and_leaves_private_resources_alone() {
        let codec = Codec::new(Vec::new(), vec!["secrets".into()]);
        for i in 0..100u32 {
            let data = noise(300 + i * 10);
            codec.encode(&"secrets".into(), &data);
            codec.encode(&"pods".into(), &data);
        }
        let learned: Vec<_> = codec.unsaved().iter().map(|d| d.resource.clone()).collect();
        assert_eq!(learned, vec![Arc::from("pods"); MAX_LEARNED]);
    }

    #[test]
    fn damage_is_an_error() {
        let codec = Codec::new(Vec::new(), Vec::new());
        let good = codec.encode(&"pods".into(), &text(1));
        for bytes in [
            &b""[..],
            b"\x01\x02",
            b"\x07\x00\x00\x00\x00\x00",
            b"\xff\xff\x05\x00\x00\x00abc",
            b"\x00\x00\xff\xff\xff\xff\x00",
            &good.as_row()[..good.len() - 2],
        ] {
            assert!(codec.decode(&Body::from_row(bytes)).is_err(), "{bytes:?}");
        }
    }
}
