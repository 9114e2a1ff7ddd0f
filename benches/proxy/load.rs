//! The load generator: one thread; what it measured goes to standard output.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use crate::backend::{ANSWER, REQUEST};

/// A datagram that is not answered in this time is asked again.
const LOST: Duration = Duration::from_millis(200);

/// `what address connections seconds`.
pub fn run(words: &[String]) {
    let address: SocketAddrV4 = words[1].parse().unwrap();
    let count: usize = words[2].parse().unwrap();
    let time = Duration::from_secs(words[3].parse().unwrap());
    let figure = match words[0].as_str() {
        "bulk" => bulk(address, count, time),
        "requests" => requests(address, count, time),
        "connections" => connections(address, count, time),
        "latency" => latency(address, time),
        "udp" => udp(address, count, time),
        "hold" => return hold(address, count),
        "probe" => return probe(address),
        other => panic!("{other}"),
    };
    println!("{figure}");
}

fn probe(address: SocketAddrV4) {
    let answers = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(&[0; REQUEST])?;
        stream.read_exact(&mut [0; ANSWER])
    });
    std::process::exit(i32::from(answers.is_err()));
}

struct Events {
    epoll: Epoll,
    ready: [EpollEvent; 256],
}

impl Events {
    fn new() -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        Self { epoll, ready: [EpollEvent::empty(); 256] }
    }

    fn add(&self, socket: &impl AsFd, index: usize, flags: EpollFlags) {
        self.epoll.add(socket, EpollEvent::new(flags, index as u64)).unwrap();
    }

    fn wait(&mut self) -> impl Iterator<Item = (usize, EpollFlags)> {
        let count = self.epoll.wait(&mut self.ready, EpollTimeout::from(100_u16)).unwrap();
        self.ready[..count].iter().map(|event| (event.data() as usize, event.events()))
    }
}

/// Gbit/s received, once it flows.
fn bulk(address: SocketAddrV4, count: usize, time: Duration) -> f64 {
    let mut events = Events::new();
    let mut streams: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (index, stream) in streams.iter().enumerate() {
        stream.set_nonblocking(true).unwrap();
        events.add(stream, index, EpollFlags::EPOLLIN);
    }
    let mut buffer = vec![0; 256 << 10];
    let warm = Instant::now() + time / 10;
    let (mut began, mut bytes) = (None, 0);
    loop {
        for (index, _) in events.wait() {
            let got = streams[index].read(&mut buffer).unwrap_or(0);
            bytes += got;
        }
        match began {
            None if Instant::now() >= warm => (began, bytes) = (Some(Instant::now()), 0),
            Some(began) if began.elapsed() >= time => return bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9,
            _ => {}
        }
    }
}

/// Answers per second, each connection waiting for one at a time.
fn requests(address: SocketAddrV4, count: usize, time: Duration) -> f64 {
    let mut events = Events::new();
    let mut streams: Vec<(TcpStream, usize)> = (0..count).map(|_| (TcpStream::connect(address).unwrap(), 0)).collect();
    for (index, (stream, _)) in streams.iter_mut().enumerate() {
        stream.set_nodelay(true).unwrap();
        events.add(stream, index, EpollFlags::EPOLLIN);
        stream.write_all(&[0; REQUEST]).unwrap();
    }
    let (began, mut answers) = (Instant::now(), 0);
    let mut buffer = [0; ANSWER];
    while began.elapsed() < time {
        for (index, _) in events.wait() {
            let (stream, got) = &mut streams[index];
            *got += stream.read(&mut buffer[*got..]).unwrap();
            if *got == ANSWER {
                *got = 0;
                answers += 1;
                stream.write_all(&[0; REQUEST]).unwrap();
            }
        }
    }
    f64::from(answers) / began.elapsed().as_secs_f64()
}

/// The median in µs of one request after the other.
fn latency(address: SocketAddrV4, time: Duration) -> f64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let began = Instant::now();
    let mut samples = Vec::new();
    while began.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(&[0; REQUEST]).unwrap();
        stream.read_exact(&mut [0; ANSWER]).unwrap();
        samples.push(asked.elapsed());
        // Low load: everybody is asleep again.
        std::thread::sleep(Duration::from_micros(200));
    }
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}

fn begin(address: SocketAddrV4) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&stream, sockopt::TcpNoDelay, &true).unwrap();
    match connect(stream.as_raw_fd(), &SockaddrIn::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => stream,
        Err(error) => panic!("connect: {error}"),
    }
}

/// Connections per second, each for one request, ended by the backend.
fn connections(address: SocketAddrV4, count: usize, time: Duration) -> f64 {
    let mut events = Events::new();
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    let mut streams: Vec<Option<(TcpStream, bool, usize)>> = (0..count).map(|_| None).collect();
    let start = |events: &Events, index: usize| {
        let stream = begin(address);
        events.add(&stream, index, flags);
        Some((TcpStream::from(stream), false, 0))
    };
    (0..count).for_each(|index| streams[index] = start(&events, index));
    let (began, mut done) = (Instant::now(), 0);
    let mut buffer = [0; 2 * ANSWER];
    while began.elapsed() < time {
        let ready: Vec<_> = events.wait().collect();
        for (index, what) in ready {
            let Some((stream, asked, got)) = &mut streams[index] else { continue };
            if !*asked && what.contains(EpollFlags::EPOLLOUT) {
                stream.write_all(&[0; REQUEST]).unwrap();
                *asked = true;
            }
            while what.contains(EpollFlags::EPOLLIN) {
                match stream.read(&mut buffer) {
                    Ok(0) => {
                        assert_eq!(*got, ANSWER, "an answer was cut short");
                        done += 1;
                        streams[index] = start(&events, index);
                        break;
                    }
                    Ok(more) => *got += more,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("read: {error}"),
                }
            }
        }
    }
    f64::from(done) / began.elapsed().as_secs_f64()
}

/// Answers per second, each socket waiting for one at a time.
fn udp(address: SocketAddrV4, count: usize, time: Duration) -> f64 {
    let mut events = Events::new();
    let ask = |socket: &UdpSocket| {
        // What is lost is asked again.
        socket.send(&[0; REQUEST]).ok();
        Instant::now()
    };
    let mut sockets: Vec<(UdpSocket, Instant)> = Vec::new();
    for index in 0..count {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        events.add(&socket, index, EpollFlags::EPOLLIN);
        let asked = ask(&socket);
        sockets.push((socket, asked));
    }
    let (began, mut answers, mut looked) = (Instant::now(), 0, Instant::now());
    while began.elapsed() < time {
        for (index, _) in events.wait() {
            let (socket, asked) = &mut sockets[index];
            if socket.recv(&mut [0; ANSWER]).is_ok() {
                answers += 1;
                *asked = ask(socket);
            }
        }
        if looked.elapsed() > LOST {
            looked = Instant::now();
            sockets
                .iter_mut()
                .filter(|(_, asked)| asked.elapsed() > LOST)
                .for_each(|(socket, asked)| *asked = ask(socket));
        }
    }
    f64::from(answers) / began.elapsed().as_secs_f64()
}

/// Opens connections, uses each once, and holds them until it is killed.
fn hold(address: SocketAddrV4, count: usize) {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[0; REQUEST]).unwrap();
        stream.read_exact(&mut [0; ANSWER]).unwrap();
        streams.push(stream);
    }
    println!("open");
    std::thread::sleep(Duration::MAX);
}
