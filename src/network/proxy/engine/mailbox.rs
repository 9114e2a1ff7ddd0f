//! Commands on their way to the engine's thread.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::super::{Command, Frontend, Listen};

/// What is to be done about one listener. `forget` comes after `listen`.
#[derive(Default)]
pub(super) struct Order {
    /// Whom to ask from now on; `None` within: close.
    pub(super) listen: Option<Option<Arc<dyn Frontend>>>,
    /// Endpoints whose flows end.
    pub(super) forget: Vec<SocketAddrV4>,
}

#[derive(Default)]
struct Waiting {
    orders: HashMap<Listen, Order>,
    stop: bool,
}

/// Commands that the engine's thread has not looked at yet, and a descriptor that is readable while there are any.
pub(super) struct Mailbox {
    waiting: Mutex<Waiting>,
    bell: EventFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { waiting: Mutex::default(), bell })
    }

    pub(super) fn put(&self, command: Command) {
        let mut waiting = self.lock();
        let (listen, change) = match command {
            Command::Listen(listen, frontend) => (listen, Some(Some(frontend))),
            Command::Close(listen) => (listen, Some(None)),
            Command::Forget(listen, endpoints) => {
                let forget = &mut waiting.orders.entry(listen).or_default().forget;
                forget.extend(endpoints);
                forget.sort_unstable();
                forget.dedup();
                (listen, None)
            }
        };
        if change.is_some() {
            waiting.orders.entry(listen).or_default().listen = change;
        }
        self.ring();
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.ring();
    }

    /// What has come in since; `None`: end.
    pub(super) fn take(&self) -> Option<HashMap<Listen, Order>> {
        // An empty counter (EAGAIN) only means that nothing came in.
        self.bell.read().ok();
        let mut waiting = self.lock();
        if waiting.stop { None } else { Some(mem::take(&mut waiting.orders)) }
    }

    /// Readable while something waits.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn ring(&self) {
        // Fails only where the counter is full, and then the bell rings already.
        self.bell.write(1).ok();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every change is one step, so a panic elsewhere leaves it whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
