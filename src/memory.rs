//! Giving memory back to the board.
//!
//! glibc keeps what was freed, and a heap for each thread. Both are bounded here: after a burst of requests the daemon
//! shrinks to what it needs at rest. Other allocators return memory by themselves, so elsewhere nothing is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Quiet time after the last activity before memory is given back.
const QUIET: Duration = Duration::from_secs(10);

/// Keeps the allocator to one heap. Call it before the first thread starts.
pub fn limit_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a number in the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory back once activity has ceased. At rest it waits without a timer.
#[derive(Clone, Default)]
pub struct Trimmer {
    activity: Arc<Notify>,
}

impl Trimmer {
    /// Notes that something happened that may have used memory.
    pub fn active(&self) {
        self.activity.notify_one();
    }

    /// Runs for as long as the daemon. `shrink` has its parts let go of what they do not need at rest.
    pub async fn run<F: Future<Output = ()>>(self, shrink: impl Fn() -> F) {
        loop {
            self.activity.notified().await;
            while tokio::time::timeout(QUIET, self.activity.notified()).await.is_ok() {}
            shrink().await;
            trim();
        }
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread; it frees only what is not in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
