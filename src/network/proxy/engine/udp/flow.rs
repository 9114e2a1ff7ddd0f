//! What one client and one endpoint say to each other by UDP.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;

use super::super::super::{Backend, Frontend};
use super::super::slab::Key;
use super::super::sys;
use super::super::timers::{SECOND, Tick};

/// How long a flow lasts in silence: as the kernel's connection tracking has it, less for a question with its answer
/// than for a conversation.
const LIFE: Tick = 30 * SECOND;
const STREAM_LIFE: Tick = 180 * SECOND;
/// What goes both ways for longer than this is a conversation.
const STREAM: Tick = 2 * SECOND;
/// Endpoints that are tried for one datagram.
const ATTEMPTS: usize = 4;

/// Who speaks to whom: datagrams with the same are one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Path {
    pub(super) listener: Key,
    pub(super) client: SocketAddrV4,
    /// Which of our addresses the client speaks to, at a listener that has several.
    pub(super) local: Option<Ipv4Addr>,
}

/// A flow. Its endpoint is counted with the frontend while there is a socket.
pub(super) struct Flow {
    path: Path,
    socket: Option<UdpSocket>,
    /// Where the socket is connected to, or who refused last.
    endpoint: Option<SocketAddrV4>,
    frontend: Arc<dyn Frontend>,
    began: Tick,
    heard: Tick,
    answered: bool,
}

impl Flow {
    /// A flow that nobody is found for yet.
    pub(super) fn new(path: Path, frontend: Arc<dyn Frontend>, now: Tick) -> Self {
        Self { path, socket: None, endpoint: None, frontend, began: now, heard: now, answered: false }
    }

    pub(super) fn path(&self) -> Path {
        self.path
    }

    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        self.socket.as_ref()
    }

    /// Whether datagrams go there.
    pub(super) fn goes_to(&self, endpoints: &[SocketAddrV4]) -> bool {
        self.socket.is_some() && self.endpoint.is_some_and(|endpoint| endpoints.contains(&endpoint))
    }

    /// Finds an endpoint, if possible not the one that refused last. Without an error there is a socket then, if there
    /// is anybody at all.
    ///
    /// # Errors
    /// When there is no descriptor or memory for the socket.
    pub(super) fn connect(&mut self, frontend: &Arc<dyn Frontend>) -> nix::Result<()> {
        self.disconnect(false);
        self.frontend = frontend.clone();
        let client = self.path.client;
        let mut tried: Vec<SocketAddrV4> = self.endpoint.take().into_iter().collect();
        for _ in 0..ATTEMPTS {
            // Where there is nobody else, who refused may have come to live.
            let picked = frontend.pick(client, &tried).or_else(|| frontend.pick(client, &[]));
            let Some(Backend { endpoint, keep_source }) = picked else { break };
            match open(endpoint, keep_source.then_some(*client.ip())) {
                Ok(socket) => {
                    (self.socket, self.endpoint) = (Some(socket), Some(endpoint));
                    break;
                }
                Err(error) => {
                    let exhausted = sys::is_exhausted(error);
                    frontend.release(endpoint, !exhausted);
                    if exhausted {
                        return Err(error);
                    }
                    tried.push(endpoint);
                }
            }
        }
        Ok(())
    }

    /// Takes the endpoint away; `failed`: nobody was there.
    pub(super) fn disconnect(&mut self, failed: bool) {
        if let (Some(_), Some(endpoint)) = (self.socket.take(), self.endpoint) {
            self.frontend.release(endpoint, failed);
        }
    }

    /// Something was said, by the client or (`answer`) by the endpoint.
    pub(super) fn touch(&mut self, answer: bool, now: Tick) {
        self.heard = now;
        self.answered |= answer;
    }

    /// When it ends if nothing more is said.
    pub(super) fn due(&self) -> Tick {
        let stream = self.answered && self.heard - self.began > STREAM;
        self.heard + if stream { STREAM_LIFE } else { LIFE }
    }
}

/// A socket to the endpoint, from the client's address where that is wished for and possible.
fn open(endpoint: SocketAddrV4, source: Option<Ipv4Addr>) -> nix::Result<UdpSocket> {
    match source.map(|source| sys::udp_connect(endpoint, Some(source))) {
        Some(Err(error)) if sys::is_source_refused(error) => sys::note_source_refused(error),
        Some(opened) => return opened,
        None => {}
    }
    sys::udp_connect(endpoint, None)
}

#[cfg(test)]
mod tests {
    use super::super::super::slab::Slab;
    use super::*;

    struct Nobody;

    impl Frontend for Nobody {
        fn pick(&self, _: SocketAddrV4, _: &[SocketAddrV4]) -> Option<Backend> {
            None
        }

        fn release(&self, _: SocketAddrV4, _: bool) {}
    }

    #[test]
    fn a_conversation_outlives_a_question() {
        let path = Path {
            listener: Slab::default().insert(()),
            client: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
            local: None,
        };
        // When who spoke (`true`: the endpoint), and when that ends.
        for (said, due) in [
            (vec![(100, false)], 100 + LIFE),
            (vec![(100, false), (101, true)], 101 + LIFE),
            (vec![(100, false), (900, false)], 900 + LIFE),
            (vec![(100, false), (101, true), (100 + STREAM, false)], 100 + STREAM + LIFE),
            (vec![(100, false), (101, true), (101 + STREAM, false)], 101 + STREAM + STREAM_LIFE),
        ] {
            let mut flow = Flow::new(path, Arc::new(Nobody), 100);
            said.iter().for_each(|(when, answer)| flow.touch(*answer, *when));
            assert_eq!(flow.due(), due, "{said:?}");
        }
    }
}
