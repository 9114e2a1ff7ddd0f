//! UDP.
use super::super::Frontend;
use super::slab::Key;
use super::timers::Tick;
use nix::sys::epoll::Epoll;
use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::Arc;
pub(super) struct Udp;
impl Udp {
    pub(super) fn new(_: Rc<Epoll>) -> Self {
        Self
    }
    pub(super) fn exchange(&mut self, _: SocketAddrV4, _: &Arc<dyn Frontend>) -> bool {
        false
    }
    pub(super) fn listen(&mut self, _: SocketAddrV4, _: Arc<dyn Frontend>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(super) fn close(&mut self, _: SocketAddrV4) {}
    pub(super) fn forget(&mut self, _: SocketAddrV4, _: &[SocketAddrV4]) {}
    pub(super) fn datagrams(&mut self, _: Key, _: Tick) {}
    pub(super) fn replies(&mut self, _: Key, _: Tick) {}
    pub(super) fn turn(&mut self, _: Tick) {}
    pub(super) fn due(&self) -> Option<Tick> {
        None
    }
    pub(super) fn stop(&mut self) {}
}
