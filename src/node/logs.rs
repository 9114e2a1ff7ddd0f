//! Reading the logs the shims write: CRI format, rotated by renaming (`N.log` → `N.log.1` → `N.log.2` …).

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::disk::PodDir;
use super::engine::blocking;
use super::error::{At, Error, Result};
use super::inotify::Watcher;
use crate::kinds::status::Status;
use crate::link::stream::{Channel, Frame, LogOptions, MAX_FRAME};
use crate::runtime::{ContainerId, ContainerState, SandboxState};

/// Which log.
pub(super) struct Source {
    /// The pod's directory.
    pub(super) dir: PodDir,
    /// The pod's name, for messages.
    pub(super) pod: String,
    /// The container's name.
    pub(super) container: String,
    /// Tells when the container ends; `None`: it has.
    pub(super) state: Option<watch::Receiver<SandboxState>>,
}

/// Sends what the options select. Returns when it is all sent, the container has ended, or nobody listens.
///
/// # Errors
/// 400 if there is no such log; 500 if it cannot be read.
pub(super) async fn serve(source: Source, options: &LogOptions, to: &mpsc::Sender<Frame>) -> Result<(), Status> {
    let current = source.attempt();
    let (pod, container) = (&source.pod, &source.container);
    let attempt = match (options.previous, current) {
        (false, Some(attempt)) => Ok(attempt),
        (true, Some(attempt)) if attempt > 0 => Ok(attempt - 1),
        (true, _) => Err(format!("previous terminated container {container:?} in pod {pod:?} not found")),
        (false, None) => Err(format!("container {container:?} in pod {pod:?} is waiting to start: ContainerCreating")),
    };
    let attempt = attempt.map_err(Status::bad_request)?;
    let path = source.dir.log(container, attempt);
    let mut out = Output::new(options, to)?;
    let id = ContainerId { name: container.clone(), attempt };
    let state = source.state.filter(|_| options.follow && !options.previous);
    match copy(&path, options, &mut out, state.map(|s| (id, s))).await {
        Err(Error::File { source: cause, .. }) if cause.kind() == io::ErrorKind::NotFound && !out.began => {
            Err(Status::bad_request(format!("the log of container {container:?} in pod {pod:?} is not there")))
        }
        result => result.map_err(Status::internal),
    }
}

impl Source {
    /// The number of the container's newest run.
    fn attempt(&self) -> Option<u32> {
        let state = self.state.as_ref().map(|s| s.borrow().clone()).unwrap_or_default();
        let known = state.containers.keys().filter(|id| id.name == self.container).map(|id| id.attempt).max();
        let logs = self.dir.log(&self.container, 0);
        let files = fs::read_dir(logs.parent()?).ok()?.flatten();
        let number = |name: String| name.split('.').next()?.parse().ok();
        known.max(files.filter_map(|f| number(f.file_name().to_string_lossy().into_owned())).max())
    }
}

async fn copy(
    path: &Path,
    options: &LogOptions,
    out: &mut Output<'_>,
    follow: Option<(ContainerId, watch::Receiver<SandboxState>)>,
) -> Result<()> {
    // Watching begins before reading, so that no line falls between.
    let mut watcher = follow.as_ref().map(|_| Watcher::file(path)).transpose().at("watch", path)?;
    let (first, tail) = (path.to_owned(), options.tail_lines);
    let mut files = blocking("looking for the end of a log", move || begin(&first, tail)).await?;
    let Some(newest) = files.pop() else { return Ok(()) };
    for file in files {
        let mut reader = reader(file, path).await?;
        if !out.copy(&mut reader).await.at("read", path)? {
            return Ok(());
        }
    }
    let mut reader = reader(newest, path).await?;
    let mut follow = follow;
    loop {
        // Asked before reading: what it wrote before it ended is read then.
        let ended = follow.as_ref().is_none_or(|(id, state)| has_ended(&state.borrow(), id));
        if !out.copy(&mut reader).await.at("read", path)? || !out.flush().await || ended {
            return Ok(());
        }
        let (Some((id, state)), Some(changes)) = (follow.as_mut(), watcher.as_mut()) else { return Ok(()) };
        tokio::select! {
            changed = changes.next() => {
                changed.at("watch", path)?;
            }
            // An error means that the shim is gone, and with it the container.
            _ = state.wait_for(|s| has_ended(s, id)) => {}
            () = out.to.closed() => return Ok(()),
        }
        if is_rotated(&reader, path).await {
            if !out.copy(&mut reader).await.at("read", path)? {
                return Ok(());
            }
            watcher = Some(Watcher::file(path).at("watch", path)?);
            let file = fs::File::open(path).at("open", path)?;
            reader = BufReader::new(tokio::fs::File::from_std(file));
        }
    }
}

fn has_ended(state: &SandboxState, id: &ContainerId) -> bool {
    !state.alive || matches!(state.containers.get(id), None | Some(ContainerState::Exited(_)))
}

async fn is_rotated(reader: &BufReader<tokio::fs::File>, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (reader.get_ref().metadata().await, fs::metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() != named.ino(),
        _ => false,
    }
}

async fn reader((file, offset): (fs::File, u64), path: &Path) -> Result<BufReader<tokio::fs::File>> {
    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(offset)).await.at("read", path)?;
    Ok(BufReader::with_capacity(MAX_FRAME, file))
}

/// The files of a log from the oldest to the newest, each with the offset to begin at.
fn begin(path: &Path, tail: Option<i64>) -> Result<Vec<(fs::File, u64)>> {
    let rotated = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let mut newest_first = vec![fs::File::open(path).at("open", path)?];
    newest_first.extend((1..).map_while(|n| fs::File::open(rotated(n)).ok()));
    let mut wanted = tail.map(|n| usize::try_from(n).unwrap_or(0));
    let mut files = Vec::new();
    for mut file in newest_first {
        if wanted == Some(0) && !files.is_empty() {
            break;
        }
        let offset = match &mut wanted {
            None => 0,
            Some(lines) => last_lines(&mut file, lines).at("read", path)?,
        };
        files.push((file, offset));
    }
    files.reverse();
    Ok(files)
}

/// Where the last `wanted` lines begin; takes off those that are there.
fn last_lines(file: &mut fs::File, wanted: &mut usize) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if *wanted == 0 {
        return Ok(end);
    }
    let mut block = vec![0; MAX_FRAME];
    let mut at = end;
    while at > 0 {
        let size = at.min(MAX_FRAME as u64);
        at -= size;
        // At most MAX_FRAME.
        let block = &mut block[..usize::try_from(size).unwrap_or(MAX_FRAME)];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(block)?;
        for (n, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = at + n as u64 + 1;
            if after == end {
                continue;
            }
            *wanted -= 1;
            if *wanted == 0 {
                return Ok(after);
            }
        }
    }
    *wanted -= usize::from(end > 0);
    Ok(0)
}

/// Lines on their way to the client, collected into frames.
struct Output<'a> {
    to: &'a mpsc::Sender<Frame>,
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<usize>,
    buffer: BytesMut,
    /// The next piece begins a line.
    line_start: bool,
    /// What was read of a line that is not yet complete.
    line: Vec<u8>,
    began: bool,
}

impl<'a> Output<'a> {
    fn new(options: &LogOptions, to: &'a mpsc::Sender<Frame>) -> Result<Self, Status> {
        let since = match (&options.since_time, options.since_seconds) {
            (Some(text), _) => Some(text.parse().map_err(|e| Status::bad_request(format!("sinceTime {text:?}: {e}")))?),
            (None, Some(seconds)) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, None) => None,
        };
        Ok(Self {
            to,
            since,
            timestamps: options.timestamps,
            left: options.limit_bytes.map(|n| usize::try_from(n).unwrap_or(0)),
            buffer: BytesMut::new(),
            line_start: true,
            line: Vec::new(),
            began: false,
        })
    }

    /// Takes in complete lines up to the end of the file; `false` when no more is wanted.
    async fn copy(&mut self, reader: &mut BufReader<tokio::fs::File>) -> io::Result<bool> {
        self.began = true;
        loop {
            let mut line = std::mem::take(&mut self.line);
            reader.read_until(b'\n', &mut line).await?;
            if line.last() != Some(&b'\n') {
                // The rest of it is still to be written.
                self.line = line;
                return Ok(true);
            }
            self.take(&line);
            if self.buffer.len() >= MAX_FRAME && !self.flush().await {
                return Ok(false);
            }
            if self.left == Some(0) {
                self.flush().await;
                return Ok(false);
            }
        }
    }

    /// One line of the file: `TIME STREAM F|P TEXT`.
    fn take(&mut self, line: &[u8]) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(flag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let time = String::from_utf8_lossy(time);
        if self.since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|t| t < since)) {
            return;
        }
        if self.timestamps && self.line_start {
            self.put(time.as_bytes());
            self.put(b" ");
        }
        let complete = flag.first() == Some(&b'F');
        self.put(if complete { text } else { text.strip_suffix(b"\n").unwrap_or(text) });
        self.line_start = complete;
    }

    fn put(&mut self, bytes: &[u8]) {
        let length = self.left.map_or(bytes.len(), |left| left.min(bytes.len()));
        self.buffer.extend_from_slice(&bytes[..length]);
        self.left = self.left.map(|left| left - length);
    }

    /// Sends what is collected; `false` if nobody listens.
    async fn flush(&mut self) -> bool {
        while !self.buffer.is_empty() {
            let data: Bytes = self.buffer.split_to(self.buffer.len().min(MAX_FRAME)).freeze();
            if self.to.send(Frame { channel: Channel::Stdout, data }).await.is_err() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::super::disk::Pods;
    use super::*;

    fn line(second: u32, flag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {flag} {text}\n")
    }

    struct Bench {
        _base: tempfile::TempDir,
        dir: PodDir,
        state: watch::Sender<SandboxState>,
    }

    impl Bench {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            let dir = Pods::open(base.path()).unwrap().pod("u").unwrap();
            let mut state = SandboxState { alive: true, ..SandboxState::default() };
            let id = ContainerId { name: "c".into(), attempt: 1 };
            state.containers.insert(id, ContainerState::Running { pid: 1, started_at: 0 });
            let bench = Self { _base: base, dir, state: watch::Sender::new(state) };
            bench.dir.prepare_run("c", 1).unwrap();
            let old = (1..=3).map(|n| line(n, "F", &format!("old {n}"))).collect::<String>();
            fs::write(format!("{}.1", bench.path().display()), old).unwrap();
            let new = line(4, "F", "new 4") + &line(5, "P", "half ") + &line(5, "F", "whole") + &line(6, "F", "new 6");
            fs::write(bench.path(), new).unwrap();
            fs::write(bench.dir.log("c", 0), line(0, "F", "before")).unwrap();
            bench
        }

        fn path(&self) -> PathBuf {
            self.dir.log("c", 1)
        }

        fn source(&self) -> Source {
            let state = Some(self.state.subscribe());
            Source { dir: self.dir.clone(), pod: "p".into(), container: "c".into(), state }
        }

        async fn read(&self, options: LogOptions) -> Result<String, Status> {
            let (to, mut from) = mpsc::channel(64);
            serve(self.source(), &options, &to).await?;
            drop(to);
            let mut text = String::new();
            while let Some(frame) = from.recv().await {
                text.push_str(&String::from_utf8_lossy(&frame.data));
            }
            Ok(text)
        }
    }

    #[tokio::test]
    async fn options_select_lines() {
        let bench = Bench::new();
        let all = "old 1\nold 2\nold 3\nnew 4\nhalf whole\nnew 6\n";
        let tail = |n| LogOptions { tail_lines: Some(n), ..LogOptions::default() };
        let since = |time: &str| LogOptions { since_time: Some(time.into()), ..LogOptions::default() };
        for (options, expected) in [
            (LogOptions::default(), all),
            (tail(0), ""),
            (tail(1), "new 6\n"),
            (tail(4), "new 4\nhalf whole\nnew 6\n"),
            (tail(5), "old 3\nnew 4\nhalf whole\nnew 6\n"),
            (tail(100), all),
            (since("2026-01-01T00:00:05Z"), "half whole\nnew 6\n"),
            (LogOptions { since_seconds: Some(1), ..LogOptions::default() }, ""),
            (LogOptions { limit_bytes: Some(8), ..LogOptions::default() }, "old 1\nol"),
            (LogOptions { previous: true, ..LogOptions::default() }, "before\n"),
            (
                LogOptions { timestamps: true, tail_lines: Some(3), ..LogOptions::default() },
                "2026-01-01T00:00:05.000000000Z half whole\n2026-01-01T00:00:06.000000000Z new 6\n",
            ),
        ] {
            // The runtime's clock is not ours: the pod's lines may lie in the future.
            let expected =
                if options.since_seconds.is_some() && Timestamp::now() < "2026-01-01T00:00:10Z".parse().unwrap() {
                    all
                } else {
                    expected
                };
            assert_eq!(bench.read(options.clone()).await.unwrap(), expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let bench = Bench::new();
        let mut source = bench.source();
        source.container = "none".into();
        let (to, _from) = mpsc::channel(1);
        let error = serve(source, &LogOptions::default(), &to).await.unwrap_err();
        assert_eq!((error.code, error.message.contains("waiting to start")), (400, true));
        fs::remove_file(bench.dir.log("c", 0)).unwrap();
        let previous = LogOptions { previous: true, ..LogOptions::default() };
        assert_eq!(bench.read(previous).await.unwrap_err().code, 400);
    }

    #[tokio::test]
    async fn following_goes_over_rotations_to_the_end() {
        let bench = Bench::new();
        let (to, mut from) = mpsc::channel(64);
        let options = LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() };
        let source = bench.source();
        let serving = tokio::spawn(async move { serve(source, &options, &to).await });
        let mut next = async || {
            let frame = tokio::time::timeout(Duration::from_secs(10), from.recv()).await.unwrap();
            frame.map(|f| String::from_utf8_lossy(&f.data).into_owned())
        };
        assert_eq!(next().await.unwrap(), "new 6\n");
        let mut file = fs::File::options().append(true).open(bench.path()).unwrap();
        file.write_all(line(7, "F", "seven").as_bytes()).unwrap();
        assert_eq!(next().await.unwrap(), "seven\n");
        fs::rename(bench.path(), format!("{}.1", bench.path().display())).unwrap();
        file.write_all(line(8, "F", "late").as_bytes()).unwrap();
        // The file is missing for a moment.
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::write(bench.path(), line(9, "F", "nine")).unwrap();
        let mut text = next().await.unwrap();
        while !text.ends_with("nine\n") {
            text.push_str(&next().await.unwrap());
        }
        assert_eq!(text, "late\nnine\n");
        bench.state.send_modify(|s| s.containers.clear());
        assert_eq!(next().await, None);
        serving.await.unwrap().unwrap();
    }
}
