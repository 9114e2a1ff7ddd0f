//! Log files in the format of the Kubernetes container runtime interface: `TIME STREAM F|P TEXT`.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use super::super::{LogConfig, sys};

/// The two outputs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Lines written by one system call.
const BATCH: usize = 128;

/// An open log. Never fails and never blocks the container: what does not fit on the disk is counted and reported in the
/// log itself once there is room again.
#[derive(Debug)]
pub(super) struct Log {
    config: LogConfig,
    file: Option<File>,
    size: u64,
    lost: u64,
}

impl Log {
    /// Opens the file to append to it.
    pub(super) fn open(config: LogConfig) -> io::Result<Self> {
        let file = open(&config)?;
        let size = file.metadata()?.len();
        Ok(Self { config, file: Some(file), size, lost: 0 })
    }

    /// Writes a piece of output as it was read. Lines are `F`; what has no newline yet is `P`, and goes on in the next line
    /// of the same stream.
    pub(super) fn write(&mut self, stream: Stream, output: &[u8]) {
        let time = timestamp(sys::now());
        if self.lost > 0 {
            let note = format!(
                "{time} stderr F [umiak: {} bytes of output were lost: the log could not be written]\n",
                self.lost
            );
            if self.append(&mut [IoSlice::new(note.as_bytes())]).is_ok() {
                self.lost = 0;
            }
        }
        let [full, partial] = ["F", "P"].map(|tag| format!("{time} {} {tag} ", stream.name()));
        let mut lines = output.split_inclusive(|b| *b == b'\n').peekable();
        while lines.peek().is_some() {
            let mut slices = [IoSlice::new(&[]); BATCH * 2 + 1];
            let mut bytes = 0;
            for (pair, line) in slices[..BATCH * 2].chunks_mut(2).zip(lines.by_ref()) {
                let ended = line.ends_with(b"\n");
                pair[0] = IoSlice::new(if ended { full.as_bytes() } else { partial.as_bytes() });
                pair[1] = IoSlice::new(line);
                bytes += line.len();
            }
            // `by_ref` with `zip` takes no line too many: the slices come first.
            if lines.peek().is_none() && !output.ends_with(b"\n") {
                slices[BATCH * 2] = IoSlice::new(b"\n");
            }
            if self.append(&mut slices).is_err() {
                self.lost += bytes as u64;
            }
        }
    }

    /// Appends all or, but for a torn end of the file, nothing.
    fn append(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let length: u64 = slices.iter().map(|s| s.len() as u64).sum();
        if self.size > 0 && self.size + length > self.config.max_size {
            self.rotate();
        }
        if self.file.is_none() {
            self.file = Some(open(&self.config)?);
            self.size = 0;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut rest = slices;
        let mut written = 0;
        while written < length {
            match file.write_vectored(rest) {
                Ok(0) => break,
                Ok(more) => {
                    written += more as u64;
                    IoSlice::advance_slices(&mut rest, more);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if written == length {
            self.size += length;
            return Ok(());
        }
        // A torn line would be joined with the next one.
        match file.set_len(self.size) {
            Ok(()) => Err(io::ErrorKind::StorageFull.into()),
            Err(e) => Err(e),
        }
    }

    /// Moves the files one number up and starts a new one. The last one falls off.
    fn rotate(&mut self) {
        let kept = self.config.max_files.max(1);
        for number in (1..kept).rev() {
            // Numbers that do not exist yet are nothing to move.
            let _ = fs::rename(numbered(&self.config, number - 1), numbered(&self.config, number));
        }
        if kept == 1 {
            let _ = fs::remove_file(&self.config.path);
        }
        self.file = None;
    }
}

fn numbered(config: &LogConfig, number: u32) -> PathBuf {
    if number == 0 {
        return config.path.clone();
    }
    let mut path = config.path.clone().into_os_string();
    path.push(format!(".{number}"));
    path.into()
}

fn open(config: &LogConfig) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(&config.path)
}

/// RFC 3339 with nanoseconds, UTC.
fn timestamp(nanoseconds: i64) -> String {
    let (seconds, fraction) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970, counted from 1 March of year 0 so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn log(directory: &std::path::Path, max_size: u64) -> Log {
        Log::open(LogConfig { path: directory.join("0.log"), max_size, max_files: 3 }).unwrap()
    }

    fn texts(path: PathBuf) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn times() {
        for (nanoseconds, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_767_225_599_999_999_999, "2025-12-31T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(timestamp(nanoseconds), expected);
        }
    }

    #[test]
    fn lines_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 1 << 20);
        log.write(Stream::Stdout, b"one\n\ntw");
        log.write(Stream::Stderr, b"err\n");
        log.write(Stream::Stdout, b"o\n");
        let expected = ["stdout F one", "stdout F ", "stdout P tw", "stderr F err", "stdout F o"];
        assert_eq!(texts(dir.path().join("0.log")), expected);
        let many: String = (0..1000).map(|n| format!("{n}\n")).collect();
        log.write(Stream::Stdout, many.as_bytes());
        let lines = texts(dir.path().join("0.log"));
        assert_eq!(lines.len(), 1005);
        assert_eq!(lines[1004], "stdout F 999");
    }

    #[test]
    fn files_rotate() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 100);
        for n in 0..9 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        let names = ["0.log", "0.log.1", "0.log.2"];
        let found: Vec<_> = names.iter().map(|n| texts(dir.path().join(n))).collect();
        assert_eq!(found[0], ["stdout F line 8"]);
        assert_eq!(found[1], ["stdout F line 6", "stdout F line 7"]);
        assert_eq!(found[2], ["stdout F line 4", "stdout F line 5"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_full_disk_loses_lines_but_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 1 << 20);
        log.file = Some(File::options().write(true).open("/dev/full").unwrap());
        log.write(Stream::Stdout, b"lost\n");
        assert_eq!(log.lost, 5);
        log.file = Some(open(&log.config).unwrap());
        log.write(Stream::Stdout, b"kept\n");
        let expected = ["stderr F [umiak: 5 bytes of output were lost: the log could not be written]", "stdout F kept"];
        assert_eq!(texts(dir.path().join("0.log")), expected);
    }
}
