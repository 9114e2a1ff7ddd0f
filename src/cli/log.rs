//! The lines of a daemon's log, bounded: whoever can make the daemon complain, a client of its broker or a guest of its
//! API, can do so as often as he likes, and what he says may be part of the line.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Longest line, in bytes. The rest is cut off.
const LONGEST: usize = 2048;

/// How many lines the same place in the program may write at once, and how often another one. One place is good for 3 MB a
/// day of usual lines at the worst.
struct Allowance {
    at_once: u32,
    every: Duration,
}

/// What is wrong: an attack looks like this.
const WARNINGS: Allowance = Allowance { at_once: 100, every: Duration::from_secs(10) };
/// What goes on: a thousand boards that come at once are no attack.
const NEWS: Allowance = Allowance { at_once: 2000, every: Duration::from_secs(5) };

impl Allowance {
    /// Of a level; `None`: whoever asked for these wants all of them.
    fn of(level: &Level) -> Option<&'static Self> {
        match *level {
            Level::ERROR | Level::WARN => Some(&WARNINGS),
            Level::INFO => Some(&NEWS),
            _ => None,
        }
    }
}

/// What one place in the program has written.
struct Account {
    /// When its allowance is whole again.
    whole: Instant,
    left_out: u64,
}

/// Another format's lines, bounded in number and length. A line says how many like it were left out before it.
pub(super) struct Bounded<F> {
    lines: F,
    accounts: Mutex<HashMap<Identifier, Account>>,
}

impl<F> Bounded<F> {
    pub(super) fn new(lines: F) -> Self {
        Self { lines, accounts: Mutex::default() }
    }

    /// How many lines like this one were left out since the last; `None`: so is this one.
    fn admit(&self, place: Identifier, level: &Level, now: Instant) -> Option<u64> {
        let Some(Allowance { at_once, every }) = Allowance::of(level) else { return Some(0) };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.entry(place).or_insert(Account { whole: now, left_out: 0 });
        let whole = account.whole.max(now) + *every;
        if whole > now + *every * *at_once {
            account.left_out += 1;
            return None;
        }
        account.whole = whole;
        Some(std::mem::take(&mut account.left_out))
    }
}

impl<S, N, F> FormatEvent<S, N> for Bounded<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let Some(left_out) = self.admit(metadata.callsite(), metadata.level(), Instant::now()) else { return Ok(()) };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        to.write_str(&one_line(&line))?;
        if left_out > 0 {
            write!(to, " ({left_out} like this were left out)")?;
        }
        writeln!(to)
    }
}

/// A line without its end, not too long, and without what would begin another one.
fn one_line(line: &str) -> String {
    let line = line.trim_end();
    let cut = line.floor_char_boundary(LONGEST);
    let mark = if cut < line.len() { "…" } else { "" };
    line[..cut].replace(['\n', '\r'], "⏎") + mark
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use tracing_subscriber::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Finds out where an event comes from.
    struct Finder(Arc<Mutex<Option<Identifier>>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Finder {
        fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            *self.0.lock().unwrap() = Some(event.metadata().callsite());
        }
    }

    fn log(work: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let layer = layer.event_format(Bounded::new(tracing_subscriber::fmt::format().with_ansi(false)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn complaints_are_bounded_and_others_are_heard_beside_them() {
        let text = log(|| {
            for number in 0..1000 {
                tracing::warn!(number, "an attack");
            }
            tracing::warn!("something else");
        });
        assert_eq!(text.matches("an attack").count(), WARNINGS.at_once as usize);
        assert!(text.contains("number=0") && text.contains("something else"), "{text}");
    }

    #[test]
    fn a_line_stays_one_line_and_is_cut() {
        let text = log(|| {
            let name = format!("x\n2026-01-01 INFO all is well {}", "é".repeat(100_000));
            tracing::warn!("{name}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.len() < LONGEST + 20, "{}", text.len());
    }

    #[test]
    fn what_was_left_out_is_told() {
        let bounded = Bounded::new(());
        let place = Arc::new(Mutex::new(None));
        let found = place.clone();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Finder(found)), || {
            tracing::warn!("here")
        });
        let place = place.lock().unwrap().take().unwrap();
        let now = Instant::now();
        let admit = |level: Level, after: u64| bounded.admit(place.clone(), &level, now + Duration::from_secs(after));
        let first = (0..200).filter(|_| admit(Level::WARN, 0) == Some(0)).count();
        assert_eq!(first, 100);
        assert_eq!(admit(Level::WARN, 9), None);
        assert_eq!(admit(Level::WARN, 10), Some(101));
        assert_eq!(admit(Level::WARN, 10), None);
        assert_eq!((0..200).filter(|_| admit(Level::WARN, 2000).is_some()).count(), 100);
        assert_eq!(admit(Level::DEBUG, 2000), Some(0), "whoever asks for these gets them");
    }
}
