//! The engine's thread: waits for events and hands them to whom they are about.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::super::services::Protocol;
use super::helper::Load;
use super::mailbox::{Mail, Mailbox, Order};
use super::slab::Token;
use super::steer::Steer;
use super::sys;
use super::tcp::{Tcp, Team};
use super::timers::{Clock, Tick};
use super::udp::Udp;
use super::{Listen, Report, Reporter};

/// Events taken from the kernel at once.
const EVENTS: usize = 128;

/// What a thread is there for.
pub(super) enum Role {
    /// It listens, says so, and serves whom it accepts.
    First(Reporter, Option<Arc<Steer>>),
    /// It serves whom the first one leaves to it.
    Second(Load),
}

/// What the thread is made from.
pub(super) struct Worker {
    mailbox: Arc<Mailbox>,
    role: Role,
    epoll: Epoll,
}

/// The thread's own.
pub(super) struct Running {
    mailbox: Arc<Mailbox>,
    report: Option<Reporter>,
    epoll: Rc<Epoll>,
    clock: Clock,
    tcp: Tcp,
    udp: Udp,
}

impl Worker {
    pub(super) fn new(mailbox: Arc<Mailbox>, role: Role) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(mailbox.bell(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, Token::Mailbox.pack()))?;
        Ok(Self { mailbox, role, epoll })
    }

    /// On the thread itself: what follows does not leave it.
    pub(super) fn build(self) -> Running {
        let epoll = Rc::new(self.epoll);
        let (report, team, steer) = match self.role {
            Role::First(report, steer) => (Some(report), Team::Alone, steer),
            Role::Second(load) => (None, Team::Second(load), None),
        };
        if report.is_some() {
            sys::reuse_ports();
        }
        let udp = Udp::new(epoll.clone(), steer.clone());
        let tcp = Tcp::new(epoll.clone(), team, steer);
        Running { mailbox: self.mailbox, report, epoll, clock: Clock::start(), tcp, udp }
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
                    Some(Token::Client(key)) => self.tcp.client(key, event.events()),
                    Some(Token::Server(key)) => self.tcp.server(key, event.events(), now),
                    Some(Token::UdpListener(key)) => self.udp.datagrams(key, now),
                    Some(Token::Flow(key)) => self.udp.replies(key, now),
                    Some(Token::Mailbox) => match self.mailbox.take() {
                        Some(mail) => self.read(mail, now),
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

    fn read(&mut self, mail: Mail, now: Tick) {
        for (listen, order) in mail.orders {
            match listen.protocol {
                Protocol::Tcp => self.obey_tcp(listen, order),
                Protocol::Udp => self.obey_udp(listen, order),
            }
        }
        mail.clients.into_iter().for_each(|client| self.tcp.serve(client, now));
    }

    fn obey_tcp(&mut self, listen: Listen, order: Order) {
        match order.listen {
            Some(Some(frontend)) if self.tcp.exchange(listen.address, &frontend) => {}
            Some(Some(frontend)) => {
                let made = self.tcp.listen(listen.address, frontend);
                self.report(listen, made);
            }
            Some(None) => self.tcp.close(listen.address),
            None => {}
        }
    }

    fn obey_udp(&mut self, listen: Listen, order: Order) {
        match order.listen {
            Some(Some(frontend)) if self.udp.exchange(listen.address, &frontend) => {}
            Some(Some(frontend)) => {
                let made = self.udp.listen(listen.address, frontend);
                self.report(listen, made);
            }
            Some(None) => self.udp.close(listen.address),
            None => {}
        }
        if !order.forget.is_empty() {
            self.udp.forget(listen.address, &order.forget);
        }
    }

    fn report(&self, listen: Listen, made: io::Result<()>) {
        if let Some(report) = &self.report {
            report(match made {
                Ok(()) => Report::Listening(listen),
                Err(error) => Report::Failed(listen, error),
            });
        }
    }
}
