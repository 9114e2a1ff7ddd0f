//! What waits to be written to one client, bounded in bytes.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes that wait at most; one packet always finds room in an empty queue.
const LIMIT: usize = 256 * 1024;

/// The client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Encoded packets for one client. Takes no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Something to write, or closed.
    filled: Notify,
    /// Room, or closed.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a packet as soon as there is room.
    pub(super) async fn push(&self, packet: Bytes) -> Result<(), Closed> {
        loop {
            let mut drained = pin!(self.drained.notified());
            // From here on no notification is missed.
            drained.as_mut().enable();
            {
                let mut waiting = self.lock();
                if waiting.closed {
                    return Err(Closed);
                }
                if waiting.packets.is_empty() || waiting.bytes + packet.len() <= LIMIT {
                    waiting.bytes += packet.len();
                    waiting.packets.push_back(packet);
                    self.filled.notify_one();
                    return Ok(());
                }
            }
            drained.await;
        }
    }

    /// The next packet; `None` once the queue is closed.
    pub(super) async fn pop(&self) -> Option<Bytes> {
        loop {
            {
                let mut waiting = self.lock();
                if waiting.closed {
                    return None;
                }
                if let Some(packet) = waiting.packets.pop_front() {
                    waiting.bytes -= packet.len();
                    if waiting.packets.is_empty() {
                        waiting.packets = VecDeque::new();
                    }
                    self.drained.notify_waiters();
                    return Some(packet);
                }
            }
            self.filled.notified().await;
        }
    }

    /// Ends both sides and forgets what waits.
    pub(super) fn close(&self) {
        *self.lock() = Waiting { closed: true, ..Waiting::default() };
        self.filled.notify_one();
        self.drained.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_holds_up_its_writers() {
        let queue = Arc::new(Queue::default());
        queue.push(vec![0; 2 * LIMIT].into()).await.unwrap();
        let writers: Vec<_> = (1..=3u8)
            .map(|n| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.push(vec![n; LIMIT / 2].into()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(writers.iter().all(|w| !w.is_finished()));
        let mut got: Vec<usize> = Vec::new();
        for _ in 0..4 {
            got.push(queue.pop().await.unwrap().len());
            tokio::task::yield_now().await;
        }
        assert_eq!(got, [2 * LIMIT, LIMIT / 2, LIMIT / 2, LIMIT / 2]);
        for writer in writers {
            assert_eq!(writer.await.unwrap(), Ok(()));
        }
        assert_eq!(queue.lock().packets.capacity(), 0);
    }

    #[tokio::test]
    async fn closing_wakes_everybody() {
        let queue = Arc::new(Queue::default());
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move { queue.pop().await }
        });
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(reader.await.unwrap(), None);
        assert_eq!(queue.push(Bytes::new()).await, Err(Closed));
    }
}
