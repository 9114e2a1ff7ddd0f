//! The backend: one thread, and no more work than it has to do.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::subject::Port;

/// Bytes of a request and of its answer.
pub const REQUEST: usize = 64;
pub const ANSWER: usize = 1024;

struct Connection {
    stream: TcpStream,
    port: Port,
    asked: usize,
}

/// Serves until it is killed.
pub fn serve() {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let watch = |fd: &dyn AsRawFd, flags: EpollFlags| {
        // SAFETY: the descriptor is open: its owner is borrowed.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        epoll.add(fd, EpollEvent::new(flags, fd.as_raw_fd() as u64)).unwrap();
    };
    let mut listeners = HashMap::new();
    for port in [Port::Requests, Port::Once, Port::Source] {
        let listener = TcpListener::bind(port.at_backend()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXCONN).unwrap();
        listener.set_nonblocking(true).unwrap();
        watch(&listener, EpollFlags::EPOLLIN);
        listeners.insert(listener.as_raw_fd() as u64, (listener, port));
    }
    let udp = UdpSocket::bind(Port::Udp.at_backend()).unwrap();
    udp.set_nonblocking(true).unwrap();
    watch(&udp, EpollFlags::EPOLLIN);
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        for event in &events[..count] {
            let id = event.data();
            if let Some((listener, port)) = listeners.get(&id) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let writes = if matches!(port, Port::Source) { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
                    watch(&stream, EpollFlags::EPOLLIN | writes);
                    connections.insert(stream.as_raw_fd() as u64, Connection { stream, port: *port, asked: 0 });
                }
            } else if id == udp.as_raw_fd() as u64 {
                while let Ok((_, client)) = udp.recv_from(&mut buffer) {
                    // What cannot be sent is lost.
                    udp.send_to(&buffer[..ANSWER], client).ok();
                }
            } else if let Some(connection) = connections.get_mut(&id)
                && !connection.serve(&mut buffer)
            {
                connections.remove(&id);
            }
        }
    }
}

impl Connection {
    /// `false`: it is over.
    fn serve(&mut self, buffer: &mut [u8]) -> bool {
        if matches!(self.port, Port::Source) {
            return match self.stream.write(buffer) {
                Ok(_) => true,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
        }
        match self.stream.read(&mut buffer[..8 * REQUEST]) {
            Ok(0) => return false,
            Ok(count) => self.asked += count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        while self.asked >= REQUEST {
            self.asked -= REQUEST;
            if self.stream.write_all(&buffer[..ANSWER]).is_err() || matches!(self.port, Port::Once) {
                return false;
            }
        }
        true
    }
}
