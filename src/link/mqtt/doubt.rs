//! Whether a connection that gets no answer is worth waiting for.
//!
//! What an outage swallowed TCP sends again when its timer says so, and that doubles all the while: a connection may stay
//! stuck for as long again as the outage took. So when something was sent and nothing came back for a while, or when the
//! host's network has changed, another connection to the same address is tried. If that gets through and the old one
//! still does not, the old one is given up; so is one from an address that the host has no more. As long as there is
//! nothing to doubt, nothing is sent and nobody wakes up.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// Nothing heard for so long after something was sent raises doubt.
const SILENCE: Duration = Duration::from_secs(3);
/// For one attempt at another connection: a lost SYN is sent again after 1 s.
const ATTEMPT: Duration = Duration::from_millis(2500);
/// Between attempts that fail at once.
const PAUSE: Duration = Duration::from_millis(500);
/// Once another connection gets through, the old one has [`TRIPS`] times as long as that took to do so, within these.
const GRACE: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];
const TRIPS: u32 = 4;
/// Times in a row that TCP's timer ran out on a stuck connection. Where a fifth of all packets is lost, each time is one in
/// three by chance, and another connection still gets through; after fewer times TCP soon tries again by itself.
const STUCK: u8 = 4;

/// A connection's socket and what is known of it.
#[derive(Debug)]
pub(super) struct Doubt {
    socket: OwnedFd,
    local: IpAddr,
    peer: SocketAddr,
    /// Something was sent, and no answer has come since while TCP itself was well.
    waiting: watch::Sender<bool>,
}

impl Doubt {
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?);
        Ok(Self { socket, local, peer, waiting: watch::Sender::new(false) })
    }

    /// Something was sent.
    pub(super) fn sent(&self) {
        self.set(true);
    }

    /// Something was heard. After an outage one direction may work again long before the other.
    pub(super) fn heard(&self) {
        if *self.waiting.borrow() && self.unconfirmed().is_none_or(|backoff| backoff == 0) {
            self.set(false);
        }
    }

    fn set(&self, waiting: bool) {
        self.waiting.send_if_modified(|was| std::mem::replace(was, waiting) != waiting);
    }

    /// Returns when the connection is stuck while its other end can be reached. Asks it to `ping` when the network has
    /// changed.
    pub(super) async fn stuck(&self, mut network: watch::Receiver<u64>, ping: &Notify) {
        loop {
            tokio::select! {
                () = self.silence() => {}
                // Never where nobody watches the network.
                Ok(()) = network.changed() => {
                    if self.is_homeless() {
                        return;
                    }
                    self.sent();
                    ping.notify_one();
                }
            }
            if self.is_passed_by().await {
                return;
            }
        }
    }

    /// Whether the host has lost the connection's own address: the kernel sends nothing from it, and does not say so.
    fn is_homeless(&self) -> bool {
        let bound = std::net::UdpSocket::bind((self.local, 0));
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
    }

    /// Waits until there is no answer, and TCP knows of none either.
    async fn silence(&self) {
        let mut waiting = self.waiting.subscribe();
        loop {
            // Its sender is here.
            let _ = waiting.wait_for(|waiting| *waiting).await;
            if timeout(SILENCE, waiting.wait_for(|waiting| !*waiting)).await.is_ok() {
                continue;
            }
            if self.unconfirmed().is_some() {
                return;
            }
            // It has arrived; not everything is answered.
            self.set(false);
        }
    }

    /// Whether another connection gets through and this one does not; false as soon as it does.
    async fn is_passed_by(&self) -> bool {
        let mut waiting = self.waiting.subscribe();
        let passed = async {
            let trip = loop {
                let begun = Instant::now();
                match timeout(ATTEMPT, TcpStream::connect(self.peer)).await {
                    Ok(Ok(_)) => break begun.elapsed(),
                    // Somebody is there.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => break begun.elapsed(),
                    Ok(Err(_)) => sleep(PAUSE).await,
                    Err(_) => {}
                }
            };
            loop {
                sleep((trip * TRIPS).clamp(GRACE[0], GRACE[1])).await;
                match self.unconfirmed() {
                    None => return false,
                    Some(backoff) if backoff < STUCK => {}
                    Some(_) => return true,
                }
            }
        };
        tokio::select! {
            biased;
            _ = waiting.wait_for(|waiting| !*waiting) => false,
            passed = passed => {
                // That was all there is to be found out.
                self.set(false);
                passed
            }
        }
    }

    /// How often TCP's timer ran out for what the other end has not confirmed; `None`: it has confirmed everything.
    fn unconfirmed(&self) -> Option<u8> {
        let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `info`, of whose fields every bit pattern is valid.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        // SAFETY: zeroed above, and written by the kernel.
        let info = unsafe { info.assume_init() };
        (result == 0 && info.tcpi_unacked > 0).then_some(info.tcpi_backoff)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, far, listener)
    }

    #[tokio::test]
    async fn what_has_arrived_needs_no_answer() {
        let (mut near, mut far, _listener) = pair().await;
        let doubt = Doubt::of(&near).unwrap();
        near.write_all(b"x").await.unwrap();
        far.read_u8().await.unwrap();
        doubt.sent();
        assert_eq!(doubt.unconfirmed(), None);
        assert!(timeout(SILENCE * 3 / 2, doubt.stuck(watch::channel(0).1, &Notify::new())).await.is_err());
        assert!(!*doubt.waiting.borrow());
    }

    #[tokio::test]
    async fn another_address_ends_it() {
        let (near, _far, _listener) = pair().await;
        let (change, network) = watch::channel(0);
        change.send_modify(|n| *n += 1);
        let lost = Doubt { local: [192, 0, 2, 1].into(), ..Doubt::of(&near).unwrap() };
        timeout(Duration::from_secs(1), lost.stuck(network.clone(), &Notify::new())).await.unwrap();
        let kept = Doubt::of(&near).unwrap();
        assert!(timeout(Duration::from_millis(100), kept.stuck(network, &Notify::new())).await.is_err());
    }

    #[tokio::test]
    async fn a_change_of_the_network_asks_and_an_answer_settles_it() {
        let (near, _far, _listener) = pair().await;
        let doubt = Doubt::of(&near).unwrap();
        let (change, network) = watch::channel(0);
        let ping = Notify::new();
        change.send_modify(|n| *n += 1);
        let answer = async {
            ping.notified().await;
            doubt.heard();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = doubt.stuck(network, &ping) => panic!("it was answered"),
            () = answer => {}
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}
