//! The first error libcontainer logs. Its error values lose the cause on the way through its processes; its log does not.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Catches the ERROR events of this process and its forks from now on.
pub(super) struct Capture {
    log: File,
    _write: OwnedFd,
}

impl Capture {
    /// Installs the process's subscriber; at most once in a helper.
    pub(super) fn start() -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        // In the shim itself none is installed, and a helper installs one once: the only error there is cannot occur.
        let _ = tracing::subscriber::set_global_default(ToPipe(write.as_raw_fd()));
        Ok(Self { log: read.into(), _write: write })
    }

    /// The root cause, if one was logged.
    pub(super) fn first(&mut self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.log.read(&mut buffer).unwrap_or_default();
        let text = String::from_utf8_lossy(&buffer[..length]);
        text.lines().next().map(str::to_owned)
    }
}

struct ToPipe(RawFd);

impl Subscriber for ToPipe {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}\n", line.message, line.fields).replace('\0', "");
        // SAFETY: writes bytes of a live string to a descriptor that stays open as long as this process. A full pipe loses
        // the line, which is not the first.
        unsafe { libc::write(self.0, text.as_ptr().cast(), text.len()) };
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "err" => write!(self.fields, ": {value:?}"),
            name => write!(self.fields, ", {name}={value:?}"),
        };
    }
}
