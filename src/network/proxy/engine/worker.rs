//! The engine's thread: waits for events and hands them to whom they are about.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::super::services::Protocol;
use super::mailbox::{Mailbox, Order};
use super::slab::Token;
use super::steer::Steer;
use super::tcp::Tcp;
use super::timers::Clock;
use super::udp::Udp;
use super::{Listen, Report, Reporter};

/// Events taken from the kernel at once.
const EVENTS: usize = 128;

/// What the thread is made from.
pub(super) struct Worker {
    mailbox: Arc<Mailbox>,
    report: Reporter,
    epoll: Epoll,
    steer: Option<Arc<Steer>>,
}

/// The thread's own.
pub(super) struct Running {
    mailbox: Arc<Mailbox>,
    report: Reporter,
    epoll: Rc<Epoll>,
    clock: Clock,
    tcp: Tcp,
    udp: Udp,
}

impl Worker {
    pub(super) fn new(mailbox: Arc<Mailbox>, report: Reporter, steer: Option<Arc<Steer>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(mailbox.bell(), EpollEvent::new(EpollFlags::EPOLLIN, Token::Mailbox.pack()))?;
        Ok(Self { mailbox, report, epoll, steer })
    }

    /// On the thread itself: what follows does not leave it.
    pub(super) fn build(self) -> Running {
        let epoll = Rc::new(self.epoll);
        let (tcp, udp) = (Tcp::new(epoll.clone(), self.steer), Udp::new(epoll.clone()));
        Running { mailbox: self.mailbox, report: self.report, epoll, clock: Clock::start(), tcp, udp }
    }
}

impl Running {
    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "the proxy cannot wait for events");
                    return;
                }
            };
            let now = self.clock.now();
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Some(Token::TcpListener(key)) => self.tcp.accept(key, now),
                    Some(Token::Client(key)) => self.tcp.client(key, event.events(), now),
                    Some(Token::Server(key)) => self.tcp.server(key, event.events(), now),
                    Some(Token::UdpListener(key)) => self.udp.datagrams(key, now),
                    Some(Token::Flow(key)) => self.udp.replies(key, now),
                    Some(Token::Mailbox) => match self.mailbox.take() {
                        Some(orders) => orders.into_iter().for_each(|(listen, order)| self.obey(listen, order)),
                        None => return self.stop(),
                    },
                    None => {}
                }
            }
            self.tcp.turn(now);
            self.udp.turn(now);
        }
    }

    fn stop(&mut self) {
        self.tcp.stop();
        self.udp.stop();
    }

    fn timeout(&self) -> EpollTimeout {
        if self.tcp.is_busy() {
            return EpollTimeout::ZERO;
        }
        let due = [self.tcp.due(), self.udp.due()].into_iter().flatten().min();
        // One millisecond more than it takes: the kernel's clock and ours may differ in rounding.
        due.map_or(EpollTimeout::NONE, |due| {
            EpollTimeout::from(u16::try_from(self.clock.until(due).as_millis() + 1).unwrap_or(u16::MAX))
        })
    }

    fn obey(&mut self, listen: Listen, order: Order) {
        let tcp = listen.protocol == Protocol::Tcp;
        match order.listen {
            Some(Some(frontend)) => {
                let known = if tcp {
                    self.tcp.exchange(listen.address, &frontend)
                } else {
                    self.udp.exchange(listen.address, &frontend)
                };
                if !known {
                    let made = if tcp {
                        self.tcp.listen(listen.address, frontend)
                    } else {
                        self.udp.listen(listen.address, frontend)
                    };
                    (self.report)(match made {
                        Ok(()) => Report::Listening(listen),
                        Err(error) => Report::Failed(listen, error),
                    });
                }
            }
            Some(None) if tcp => self.tcp.close(listen.address),
            Some(None) => self.udp.close(listen.address),
            None => {}
        }
        if !tcp && !order.forget.is_empty() {
            self.udp.forget(listen.address, &order.forget);
        }
    }
}
