//! The time by which certificates are judged, on boards whose own clock may be wrong.
//!
//! Such a board starts in 1970 or at whatever its battery remembers. Its clock is not asked: time goes on from the last
//! time the server told, which is kept on disk as a floor, and never begins before this release. So a certificate is
//! taken for expired too late at worst, never too early, and nothing waits for a clock to be set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::files;

/// 2026-11-01: no clock of this program shows an earlier time.
pub const RELEASE_TIME: Duration = Duration::from_secs(1_793_491_200);
/// The floor on disk is raised this often at most, to spare flash.
const KEEP_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A clock that the server sets. All times are since 1970.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the clock showed …
    shown: Duration,
    /// … at this moment.
    at: Instant,
    /// The floor on disk.
    kept: Duration,
}

impl Clock {
    /// A clock whose floor is kept in a file. A file that cannot be read counts as none: the time of this release is a
    /// floor, too.
    pub fn open(path: &Path) -> Arc<Self> {
        let kept = match fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map(Duration::from_secs).unwrap_or_default(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "read the last known time");
                }
                Duration::ZERO
            }
        };
        let state = State { shown: kept.max(RELEASE_TIME), at: Instant::now(), kept };
        Arc::new(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// The time.
    pub fn now(&self) -> Duration {
        let state = self.state();
        state.shown + state.at.elapsed()
    }

    /// Takes over the server's time, if this clock is behind it.
    pub fn learn(&self, time: Duration) {
        let mut state = self.state();
        if time <= state.shown + state.at.elapsed() {
            return;
        }
        (state.shown, state.at) = (time, Instant::now());
        if time < state.kept + KEEP_EVERY {
            return;
        }
        match files::replace(&self.path, time.as_secs().to_string().as_bytes()) {
            Ok(()) => state.kept = time,
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "keep the last known time"),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_server_sets_it_and_the_floor_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let clock = Clock::open(&path);
        assert!(clock.now() >= RELEASE_TIME && clock.now() < RELEASE_TIME + KEEP_EVERY);
        let later = RELEASE_TIME + 9 * KEEP_EVERY;
        clock.learn(later);
        assert!(clock.now() >= later);
        clock.learn(RELEASE_TIME);
        assert!(clock.now() >= later, "it never goes back");
        clock.learn(later + KEEP_EVERY / 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), later.as_secs().to_string(), "flash is spared");
        let again = Clock::open(&path).now();
        assert!(again >= later && again < later + KEEP_EVERY / 2);
        fs::write(&path, "damaged").unwrap();
        assert!(Clock::open(&path).now() < later);
    }
}
