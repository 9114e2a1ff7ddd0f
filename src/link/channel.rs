//! Bounded channels that take no memory while nothing waits in them.
//!
//! Those of tokio keep room for 32 messages from the start, several kilobytes each here, and a server has half a dozen
//! for every node. The names and promises are those of `tokio::sync::mpsc`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// The receiver is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the channel is closed")]
pub struct Closed;

/// Why a message was not taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError {
    /// There is no room now.
    #[error("the channel is full")]
    Full,
    /// The receiver is gone.
    #[error("the channel is closed")]
    Closed,
}

/// There is no message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// There may be one later.
    #[error("the channel is empty")]
    Empty,
    /// There will be none any more.
    #[error("the channel is closed")]
    Disconnected,
}

#[derive(Debug)]
struct Shared<T> {
    waiting: Mutex<VecDeque<T>>,
    /// Closed by the receiver's end.
    room: Semaphore,
    /// A message, or the end of the last sender.
    filled: Notify,
    /// The end of the receiver.
    gone: Notify,
    senders: AtomicUsize,
}

impl<T> Shared<T> {
    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel with room for so many messages.
pub fn channel<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        waiting: Mutex::default(),
        room: Semaphore::new(room),
        filled: Notify::new(),
        gone: Notify::new(),
        senders: AtomicUsize::new(1),
    });
    (Sender(shared.clone()), Receiver(shared))
}

/// The end that sends. There may be several.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.filled.notify_one();
        }
    }
}

impl<T> Sender<T> {
    /// Sends a message as soon as there is room.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), Closed> {
        self.reserve().await?.send(message);
        Ok(())
    }

    /// Waits for room. Cancel safe.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub async fn reserve(&self) -> Result<Permit<'_, T>, Closed> {
        let room = self.0.room.acquire().await.map_err(|_| Closed)?;
        Ok(Permit { shared: &self.0, room })
    }

    /// Sends a message if there is room now.
    ///
    /// # Errors
    /// When there is none, or no receiver.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError> {
        let room = self.0.room.try_acquire().map_err(|error| match error {
            tokio::sync::TryAcquireError::NoPermits => TrySendError::Full,
            tokio::sync::TryAcquireError::Closed => TrySendError::Closed,
        })?;
        Permit { shared: &self.0, room }.send(message);
        Ok(())
    }

    /// Resolves when the receiver is gone.
    pub async fn closed(&self) {
        let mut gone = std::pin::pin!(self.0.gone.notified());
        // From here on no notification is missed.
        gone.as_mut().enable();
        if !self.is_closed() {
            gone.await;
        }
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.0.room.is_closed()
    }

    /// Whether the receiver has taken everything.
    pub fn is_empty(&self) -> bool {
        self.0.waiting().is_empty()
    }

    /// Whether both send to the same receiver.
    pub fn same_channel(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Room for one message.
#[derive(Debug)]
pub struct Permit<'a, T> {
    shared: &'a Shared<T>,
    room: SemaphorePermit<'a>,
}

impl<T> Permit<'_, T> {
    /// Sends a message. It is lost if the receiver has gone meanwhile.
    pub fn send(self, message: T) {
        // Given back by the receiver.
        self.room.forget();
        let mut waiting = self.shared.waiting();
        if !self.shared.room.is_closed() {
            waiting.push_back(message);
        }
        drop(waiting);
        self.shared.filled.notify_one();
    }
}

/// The end that receives. Dropping it closes the channel.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// The next message; `None` when there are no more and no sender. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            match self.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            // Here, where no room for a message is kept in the future.
            self.0.filled.notified().await;
        }
    }

    /// The next message if there is one now.
    ///
    /// # Errors
    /// When there is none.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        // Asked first: whoever leaves has sent before.
        let alone = self.0.senders.load(Ordering::Acquire) == 0;
        let mut waiting = self.0.waiting();
        let Some(message) = waiting.pop_front() else {
            return Err(if alone { TryRecvError::Disconnected } else { TryRecvError::Empty });
        };
        if waiting.is_empty() {
            *waiting = VecDeque::new();
        }
        drop(waiting);
        self.0.room.add_permits(1);
        Ok(message)
    }
}

impl<T> Receiver<T> {
    /// Takes no more, and forgets what waits.
    pub fn close(&mut self) {
        let mut waiting = self.0.waiting();
        self.0.room.close();
        let rest = std::mem::take(&mut *waiting);
        drop(waiting);
        self.0.gone.notify_waiters();
        drop(rest);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn messages_keep_their_order_and_wait_for_room() {
        let (tx, mut rx) = channel(2);
        let sender = tokio::spawn(async move {
            for n in 0..100 {
                tx.send(n).await.unwrap();
            }
        });
        tokio::task::yield_now().await;
        assert_eq!(rx.0.waiting().len(), 2);
        for n in 0..100 {
            assert_eq!(rx.recv().await, Some(n));
        }
        assert_eq!(rx.recv().await, None);
        assert_eq!(rx.0.waiting().capacity(), 0);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_arrives() {
        let (tx, mut rx) = channel(4);
        let other = tx.clone();
        tx.try_send(1).unwrap();
        drop(tx);
        assert_eq!(rx.try_recv(), Ok(1));
        assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
        other.try_send(2).unwrap();
        drop(other);
        assert_eq!(rx.recv().await, Some(2));
        assert_eq!(rx.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[tokio::test]
    async fn senders_hear_of_the_end() {
        let (tx, rx) = channel(1);
        tx.try_send(Arc::new(())).unwrap();
        assert_eq!(tx.try_send(Arc::new(())), Err(TrySendError::Full));
        let waiting = tokio::spawn({
            let tx = tx.clone();
            async move { (tx.send(Arc::new(())).await, tx.closed().await) }
        });
        tokio::task::yield_now().await;
        drop(rx);
        let (sent, ()) = timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(sent, Err(Closed));
        assert!(tx.is_closed() && tx.0.waiting().is_empty());
        assert_eq!(tx.try_send(Arc::new(())), Err(TrySendError::Closed));
        timeout(Duration::from_secs(5), tx.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn room_that_is_not_used_is_given_back() {
        let (tx, mut rx) = channel(1);
        drop(tx.reserve().await.unwrap());
        tx.try_send(7).unwrap();
        assert!(timeout(Duration::from_millis(10), tx.reserve()).await.is_err());
        assert_eq!(rx.recv().await, Some(7));
        tx.reserve().await.unwrap().send(8);
        assert_eq!(rx.recv().await, Some(8));
    }
}
