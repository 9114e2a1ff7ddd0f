//! The data plane of the Service proxy: sockets, and bytes between them.
//!
//! A thread with an epoll instance, apart from the daemon's runtime, so that neither holds the other up; and another one
//! like it where there are several processors and several connections. Per
//! connection it keeps under a hundred bytes and no buffer: what arrives goes on at once, through one buffer per thread
//! or, in bulk, by `splice(2)` through a pipe borrowed for as long as data is in it. What cannot be written is not read.
//!
//! An engine without listeners is no thread; one without traffic sleeps.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

pub use steer::Steer;

use mailbox::Mailbox;
use worker::{Role, Worker};

use super::{Command, Listen};

mod helper;
mod mailbox;
mod slab;
mod steer;
mod sys;
mod tcp;
mod timers;
mod udp;
mod worker;

/// What became of a [`Command::Listen`] for an address that was not listened at yet.
#[derive(Debug)]
pub enum Report {
    /// Clients are served.
    Listening(Listen),
    /// The address cannot be had, for instance because another program has it. Not tried again by itself.
    Failed(Listen, io::Error),
}

/// Where reports go. Called on a thread of the data plane: must not block.
type Reporter = Arc<dyn Fn(Report) + Send + Sync>;

/// Bytes of a thread's stack; it calls frontends, and nothing of its own is deep.
const STACK: usize = 256 << 10;

/// The data plane. Dropping it ends every connection and joins its threads.
pub struct Engine {
    mailbox: Arc<Mailbox>,
    report: Reporter,
    steer: Option<Arc<Steer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Prepares an engine; its thread starts with the first listener, in the network namespace of whoever sends that.
    /// `report` is called on the engine's thread and must not block.
    ///
    /// # Errors
    /// When there is no descriptor left to wake the thread by.
    pub fn start(report: impl Fn(Report) + Send + Sync + 'static) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        Ok(Self { mailbox, report: Arc::new(report), steer: None, thread: Mutex::new(None) })
    }

    /// Lets listeners at single addresses leave their ports to others, who listen at all addresses.
    pub fn steered(mut self, steer: Steer) -> Self {
        self.steer = Some(Arc::new(steer));
        self
    }

    /// Hands a command over; it takes effect within the engine's next turn. Never blocks. Commands for the same
    /// listener that were not looked at yet become one, so what waits is bounded by the number of listeners.
    pub fn send(&self, command: Command) {
        let starting = match &command {
            Command::Listen(listen, _) => Some(*listen),
            Command::Close(_) | Command::Forget(..) => None,
        };
        self.mailbox.put(command);
        if let Some(listen) = starting {
            self.ensure_thread(listen);
        }
    }

    fn ensure_thread(&self, listen: Listen) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        let role = Role::First(self.report.clone(), self.steer.clone());
        let spawned =
            Worker::new(self.mailbox.clone(), role).and_then(|worker| spawn("proxy", move || worker.build().run()));
        match spawned {
            Ok(handle) => *thread = Some(handle),
            Err(error) => (self.report)(Report::Failed(listen, error)),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.mailbox.stop();
        join(self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run)
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the proxy panicked");
    }
}

#[cfg(test)]
mod tests;
