//! Decompression by what a stream begins with; the media types of archives are often wrong.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const BUFFER: usize = 64 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Fifteen magic numbers that differ in the lowest four bits begin frames to be skipped; some writers put one first.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// What a stream is packed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Tells the compression from the first bytes.
pub(super) fn detect(head: &[u8]) -> Compression {
    if head.starts_with(GZIP) {
        Compression::Gzip
    } else if head.starts_with(ZSTD)
        || (head.first().is_some_and(|b| b & 0xf0 == 0x50) && head[1..].starts_with(ZSTD_SKIPPABLE))
    {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// The plain content of a stream.
///
/// Memory is bounded by zstd's window, at most 100 MiB and 8 MiB with the usual levels.
pub(super) fn decompress<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0; 4];
    let mut input = BufReader::with_capacity(BUFFER, stream);
    let mut length = 0;
    while length < head.len() {
        match input.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    let kind = detect(&head[..length]);
    let input = BufReader::with_capacity(BUFFER, io::Cursor::new(head).take(length as u64).chain(input));
    Ok(match kind {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(Zstd { input, frame: FrameDecoder::new(), in_frame: false }),
    })
}

/// Reads all frames of a stream; the crate's own reader stops after the first.
struct Zstd<R> {
    input: R,
    frame: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Goes to the next frame with data; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame && self.frame.can_collect() > 0 {
                return self.frame.read(buffer);
            }
            if self.in_frame && !self.frame.is_finished() {
                self.frame
                    .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                continue;
            }
            self.in_frame = self.next_frame()?;
            if !self.in_frame || buffer.is_empty() {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn plain(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(packed)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn reads_every_kind_and_concatenations() {
        let data: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for (name, packed) in [
            ("plain", data.clone()),
            ("gzip", gzip(&data)),
            ("zstd", zstd(&data)),
            ("two gzip members", [gzip(&data[..999]), gzip(&data[999..])].concat()),
            ("frames", [skippable.clone(), zstd(&data[..999]), skippable, zstd(&data[999..])].concat()),
        ] {
            assert!(plain(&packed).unwrap() == data, "{name}");
        }
        assert_eq!(plain(b"").unwrap(), b"");
        assert_eq!(plain(b"ab").unwrap(), b"ab");
    }

    #[test]
    fn tells_truncation() {
        let data = vec![7; 300_000];
        for packed in [gzip(&data), zstd(&data)] {
            assert!(plain(&packed[..packed.len() - 9]).is_err());
        }
    }
}
