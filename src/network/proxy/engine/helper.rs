//! The second thread. One thread moves more bytes per processor second than two, but on a machine with several
//! processors no more than one processor's worth; so the first one, which accepts, shares its clients with another when
//! it has some already. It starts when it is first needed.

use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::super::Frontend;
use super::mailbox::Mailbox;
use super::worker::{Role, Worker};

/// A client that was accepted and is to be served by whoever gets it.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddrV4,
    pub(super) frontend: Arc<dyn Frontend>,
}

/// How many connections a thread has, counting those on their way to it.
pub(super) type Load = Arc<AtomicUsize>;

/// The other thread, as the first one sees it. Ends with it.
pub(super) struct Helper {
    mailbox: Arc<Mailbox>,
    load: Load,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts the thread; `None` where it could serve nobody faster.
    pub(super) fn start() -> Option<Self> {
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2) {
            return None;
        }
        let started = Self::spawn();
        if let Err(error) = &started {
            tracing::warn!(%error, "the proxy stays with one thread");
        }
        started.ok()
    }

    fn spawn() -> io::Result<Self> {
        let (mailbox, load) = (Arc::new(Mailbox::new()?), Load::default());
        let worker = Worker::new(mailbox.clone(), Role::Second(load.clone()))?;
        let thread = super::spawn("proxy-helper", move || worker.build().run())?;
        Ok(Self { mailbox, load, thread: Some(thread) })
    }

    /// How many connections it has.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Leaves a client to it.
    pub(super) fn serve(&self, client: Client) {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.mailbox.hand_over(client);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.mailbox.stop();
        super::join(self.thread.take());
    }
}
