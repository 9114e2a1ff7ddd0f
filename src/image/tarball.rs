//! A reader of tar streams (ustar, GNU, PAX) that trusts nothing in them.
//!
//! Names and extended headers are bounded, a stream that ends inside an entry is an error, and the caller sees where an
//! entry's data lies. The `tar` crate reads extended headers of any size into memory, so only its header fields are used.

use std::fs::File;
use std::io::{self, BufReader, Read};

use tar::Header;

const BLOCK: u64 = 512;
/// Longest extended header or long name; the limit Go's archive/tar has.
const MAX_EXTENSION: u64 = 1 << 20;
const XATTR: &str = "SCHILY.xattr.";

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Fifo,
    Directory,
}

/// One entry, extended headers applied. Its data is read from the [`Tar`].
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(super) fn display(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// A reader that can leave bytes out.
pub(super) trait Forward: Read {
    /// Leaves `n` bytes out; an error if there are fewer.
    fn forward(&mut self, n: u64) -> io::Result<()> {
        match io::copy(&mut self.take(n), &mut io::sink())? {
            all if all == n => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> Forward for super::digest::Hashing<R> {}
impl<F: Forward + ?Sized> Forward for &mut F {}

/// A file that leaves bytes out by seeking.
pub(super) struct Seeking {
    file: BufReader<File>,
    left: u64,
}

impl Seeking {
    /// From the file's current position, which must be its beginning.
    pub(super) fn new(file: File) -> io::Result<Seeking> {
        let left = file.metadata()?.len();
        Ok(Seeking { file: BufReader::with_capacity(BLOCK as usize, file), left })
    }
}

impl Read for Seeking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}

impl Forward for Seeking {
    fn forward(&mut self, n: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(n).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.seek_relative(i64::try_from(n).map_err(|_| io::ErrorKind::UnexpectedEof)?)
    }
}

/// Walks a tar stream; as a reader it gives the current entry's data.
pub(super) struct Tar<R> {
    input: R,
    /// Bytes of the stream consumed.
    position: u64,
    /// Of the current entry: data not yet read, and zeros after it.
    data: u64,
    padding: u64,
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl<R: Forward> Tar<R> {
    pub(super) fn new(input: R) -> Tar<R> {
        Tar { input, position: 0, data: 0, padding: 0 }
    }

    /// The stream, after the last entry read.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// Where the current entry's unread data begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; none after the end-of-archive block or where the stream ends between entries.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type().as_byte() {
                b'x' | b'X' => extensions.pax(&self.extension()?)?,
                b'L' => extensions.path = Some(until_nul(self.extension()?)),
                b'K' => extensions.link = Some(until_nul(self.extension()?)),
                // Global headers carry comments (git archive); nothing in them describes a file.
                b'g' => {}
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let rest = self.data.checked_add(self.padding).ok_or_else(|| invalid("an entry is too big"))?;
        self.input.forward(rest)?;
        self.position += rest;
        (self.data, self.padding) = (0, 0);
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK as usize {
            match self.input.read(&mut header.as_mut_bytes()[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        self.position += BLOCK;
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 = header.as_bytes().iter().map(|b| u32::from(*b)).sum();
        let without: u32 = header.as_bytes()[148..156].iter().map(|b| u32::from(*b)).sum();
        if number(&header.as_old().cksum).ok() != Some(u64::from(sum - without + 8 * u32::from(b' '))) {
            return Err(invalid("it is not a tar archive, or an entry's header is damaged (checksum)"));
        }
        self.set_size(number(&header.as_old().size)?);
        Ok(Some(header))
    }

    fn set_size(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    /// Data of an extended header.
    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.data > MAX_EXTENSION {
            return Err(invalid("an extended header is longer than 1 MiB"));
        }
        let mut bytes = Vec::with_capacity(self.data as usize);
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match header.entry_type().as_byte() {
            b'0' | b'7' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'7' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let name = String::from_utf8_lossy(&path).into_owned();
                return Err(invalid(format!("{name}: entries of type {:?} are not supported", char::from(other))));
            }
        };
        // Only files have data: the size of any other entry means nothing.
        let size = if kind == Kind::File { extensions.size.unwrap_or(self.data) } else { 0 };
        self.set_size(size);
        let fields = header.as_old();
        // GNU's header has the device fields where ustar has them.
        let device = match kind {
            Kind::Char | Kind::Block => (number(&header.as_bytes()[329..337])?, number(&header.as_bytes()[337..345])?),
            _ => (0, 0),
        };
        Ok(Entry {
            path,
            kind,
            link: extensions.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default(),
            mode: (number(&fields.mode)? & 0o7777) as u32,
            uid: extensions.uid.map_or_else(|| number(&fields.uid), Ok)?,
            gid: extensions.gid.map_or_else(|| number(&fields.gid), Ok)?,
            mtime: extensions.mtime.unwrap_or((number(&fields.mtime).map_or(0, |t| t.min(i64::MAX as u64) as i64), 0)),
            size,
            device: (device.0.min(u64::from(u32::MAX)) as u32, device.1.min(u64::from(u32::MAX)) as u32),
            xattrs: extensions.xattrs,
        })
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..wanted])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

impl Extensions {
    /// Records are `LENGTH KEY=VALUE\n`; the length counts itself.
    fn pax(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let bad = || invalid("an extended header is malformed");
        while bytes.first().is_some_and(|b| *b != 0) {
            let space = bytes.iter().take(10).position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = parse(&bytes[..space]).ok_or_else(bad)?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let key = std::str::from_utf8(&record[..equals]).map_err(|_| bad())?;
            self.record(key, &record[equals + 1..]).ok_or_else(bad)??;
        }
        Ok(())
    }

    /// None where the value is malformed.
    fn record(&mut self, key: &str, value: &[u8]) -> Option<io::Result<()>> {
        match key {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "size" => self.size = Some(parse(value)?),
            "uid" => self.uid = Some(parse(value)?),
            "gid" => self.gid = Some(parse(value)?),
            "mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with("GNU.sparse.") => return Some(Err(invalid("sparse entries are not supported"))),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Some(Ok(()))
    }
}

/// A numeric field: octal digits between blanks and NULs (nothing at all is 0), or GNU's big-endian binary form.
fn number(field: &[u8]) -> io::Result<u64> {
    let bad = || invalid("an entry's header has a field that is not a number");
    if field[0] & 0x80 != 0 {
        return field[1..].iter().try_fold(u64::from(field[0] & 0x7f), |n, byte| {
            n.checked_mul(256).map(|n| n | u64::from(*byte)).ok_or_else(bad)
        });
    }
    let text = std::str::from_utf8(field).map_err(|_| bad())?.trim_matches(['\0', ' ']);
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| bad()) }
}

fn parse<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// `-12.34`: seconds with a decimal fraction.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    // The fraction of a time before 1970 counts away from zero; the kernel's counts forward.
    if text.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    bytes
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::digest::Hashing;
    use super::*;

    fn entries(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut tar = Tar::new(Hashing::new(bytes));
        let mut all = Vec::new();
        while let Some(entry) = tar.next()? {
            let mut data = Vec::new();
            tar.read_to_end(&mut data)?;
            all.push((entry, data));
        }
        Ok(all)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_mtime(9);
        builder
            .append_pax_extensions([("SCHILY.xattr.user.a", &b"v\nw"[..]), ("uid", b"3000000"), ("mtime", b"5.25")])
            .unwrap();
        builder.append_data(&mut header.clone(), "a", &b"abc"[..]).unwrap();
        builder.append_data(&mut header, format!("{}/b", "d".repeat(300)), &b"def"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn applies_extended_headers() {
        let all = entries(&sample()).unwrap();
        let (first, data) = &all[0];
        assert_eq!((first.path.as_slice(), data.as_slice()), (&b"a"[..], &b"abc"[..]));
        assert_eq!((first.uid, first.mtime, first.mode), (3_000_000, (5, 250_000_000), 0o4755));
        assert_eq!(first.xattrs, [("user.a".to_owned(), b"v\nw".to_vec())]);
        let (second, data) = &all[1];
        assert_eq!((second.path.len(), data.as_slice(), second.uid, second.mtime), (302, &b"def"[..], 7, (9, 0)));
    }

    #[test]
    fn tells_truncation_and_damage() {
        let whole = sample();
        // Between the first entry's data and the next header a stream may end; anywhere inside an entry it may not.
        for length in [100, 700, 1500, 1600, 2600] {
            assert!(entries(&whole[..length]).is_err(), "{length}");
        }
        let mut damaged = whole;
        damaged[3] ^= 1;
        assert!(entries(&damaged).unwrap_err().to_string().contains("checksum"));
        assert!(entries(&[b'x'; 2048]).is_err());
    }

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\x02\0\0\0", Some(2 << 24)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"12x\0", None),
        ] {
            assert_eq!(number(field).ok(), value, "{field:?}");
        }
    }

    #[test]
    fn bounds_extended_headers() {
        let mut header = Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(MAX_EXTENSION + 1);
        header.set_cksum();
        let error = entries(header.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("1 MiB"), "{error}");
    }

    #[test]
    fn malformed_records_are_errors() {
        for bytes in [&b"5 a=b\n"[..], b"99 a=b\n", b"6 a=bc", b"x a=b\n", b"4 a\n", b"10 size=x\n", b"3 =\n"] {
            let bad = Extensions::default().pax(bytes).is_err();
            assert!(bad, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
    }
}
