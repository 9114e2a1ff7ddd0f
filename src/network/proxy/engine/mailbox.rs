//! What is on its way to a thread of the engine.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::super::{Command, Frontend, Listen};
use super::helper::Client;

/// What is to be done about one listener. `forget` comes after `listen`.
#[derive(Default)]
pub(super) struct Order {
    /// Whom to ask from now on; `None` within: close.
    pub(super) listen: Option<Option<Arc<dyn Frontend>>>,
    /// Endpoints whose flows end.
    pub(super) forget: Vec<SocketAddrV4>,
}

/// What has come in.
#[derive(Default)]
pub(super) struct Mail {
    pub(super) orders: HashMap<Listen, Order>,
    /// Clients to be served; as many as there are descriptors, at most.
    pub(super) clients: Vec<Client>,
    stop: bool,
}

/// Mail that a thread has not looked at yet, and a descriptor that has an edge when there is some.
pub(super) struct Mailbox {
    waiting: Mutex<Mail>,
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

    /// Leaves a client to the thread.
    pub(super) fn hand_over(&self, client: Client) {
        let mut waiting = self.lock();
        waiting.clients.push(client);
        if waiting.clients.len() == 1 {
            self.ring();
        }
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.ring();
    }

    /// What has come in since; `None`: end.
    pub(super) fn take(&self) -> Option<Mail> {
        let mail = mem::take(&mut *self.lock());
        (!mail.stop).then_some(mail)
    }

    /// To be watched for edges: it is never read, so it stays readable.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn ring(&self) {
        // Fails only where the counter is full, after more mail than anybody will ever get.
        self.bell.write(1).ok();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        // Every change is one step, so a panic elsewhere leaves it whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::super::super::{Backend, Listen};
    use super::*;
    use crate::network::services::Protocol;

    struct Nobody;

    impl Frontend for Nobody {
        fn pick(&self, _: SocketAddrV4, _: &[SocketAddrV4]) -> Option<Backend> {
            None
        }

        fn release(&self, _: SocketAddrV4, _: bool) {}
    }

    #[test]
    fn what_waits_is_one_order_per_listener() {
        let mailbox = Mailbox::new().unwrap();
        let address = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let listen = Listen { protocol: Protocol::Udp, address: address(53) };
        for _ in 0..3 {
            mailbox.put(Command::Listen(listen, Arc::new(Nobody)));
            mailbox.put(Command::Forget(listen, vec![address(2), address(1)]));
            mailbox.put(Command::Close(listen));
        }
        let mail = mailbox.take().unwrap();
        assert_eq!((mail.orders.len(), mail.orders[&listen].forget.len()), (1, 2));
        assert!(matches!(mail.orders[&listen].listen, Some(None)));
        assert!(mailbox.take().unwrap().orders.is_empty());
        mailbox.stop();
        assert!(mailbox.take().is_none());
    }
}
