//! A bad link between two network namespaces: it loses frames, delays them, and has little room for them.
//!
//! Two TAP devices, and a thread between them that treats every frame as a link of the given [`Conditions`] would. The
//! kernels of many machines cannot do this themselves (netem).

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use super::Netns;

/// How bad a link is, each way.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Share of the frames that are lost, whatever else happens to them.
    pub loss: f64,
    /// Time on the way, one way.
    pub delay: Duration,
    /// Bits a second.
    pub rate: f64,
    /// Bytes that wait to be sent; what does not fit is lost.
    pub queue: usize,
}

/// What came by.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Frames that were to be carried, and those of them that were not.
    pub frames: u64,
    pub lost: u64,
    /// Bytes that were carried.
    pub bytes: u64,
    /// Ports from which TCP connections to the broker were begun.
    pub connections: BTreeSet<u16>,
}

/// The thread between the devices. Dropping it cuts the link.
pub struct BadLink {
    stop: Arc<AtomicBool>,
    conditions: Arc<Mutex<Conditions>>,
    traffic: Arc<Mutex<Traffic>>,
    thread: Option<JoinHandle<()>>,
}

impl BadLink {
    /// Makes a device in each namespace and joins them. The same `seed` loses the same frames.
    pub fn new(ends: [(&Netns, &str); 2], conditions: Conditions, seed: u64) -> Self {
        let taps = ends.map(|(netns, name)| tap(netns, name));
        let stop = Arc::new(AtomicBool::new(false));
        let conditions = Arc::new(Mutex::new(conditions));
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let way = || Way { free: Instant::now(), under_way: VecDeque::new() };
        let relay = Relay {
            taps,
            ways: [way(), way()],
            random: Random(seed | 1),
            conditions: conditions.clone(),
            traffic: traffic.clone(),
        };
        let stopped = stop.clone();
        let thread = Some(std::thread::spawn(move || relay.run(&stopped)));
        Self { stop, conditions, traffic, thread }
    }

    /// From now on it is like this.
    pub fn set(&self, conditions: Conditions) {
        *self.conditions.lock().unwrap() = conditions;
    }

    pub fn traffic(&self) -> Traffic {
        self.traffic.lock().unwrap().clone()
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().ok();
    }
}

struct Relay {
    taps: [File; 2],
    ways: [Way; 2],
    random: Random,
    conditions: Arc<Mutex<Conditions>>,
    traffic: Arc<Mutex<Traffic>>,
}

/// One direction.
struct Way {
    /// When the last frame will have been sent.
    free: Instant,
    /// Frames, and when they arrive.
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Relay {
    const LOOK: Duration = Duration::from_millis(50);

    fn run(mut self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::Relaxed) {
            let now = Instant::now();
            let next = self.ways.iter().filter_map(|way| way.under_way.front()).map(|(at, _)| *at).min();
            let wait = next.map_or(Self::LOOK, |at| at.saturating_duration_since(now).min(Self::LOOK));
            // Rounded up: not to spin for the last millisecond.
            let wait = PollTimeout::from(wait.as_micros().div_ceil(1000) as u16);
            let mut fds = [0, 1].map(|end| PollFd::new(self.taps[end].as_fd(), PollFlags::POLLIN));
            poll(&mut fds, wait).ok();
            for end in [0, 1] {
                self.take(end);
                self.deliver(end);
            }
        }
    }

    /// Takes what an end sends.
    fn take(&mut self, end: usize) {
        let Conditions { loss, delay, rate, queue } = *self.conditions.lock().unwrap();
        let mut buffer = [0; 65536];
        loop {
            let frame = match self.taps[end].read(&mut buffer) {
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The device is down, or its namespace gone.
                Err(_) => return,
            };
            let now = Instant::now();
            let way = &mut self.ways[end];
            let mut traffic = self.traffic.lock().unwrap();
            traffic.frames += 1;
            traffic.connections.extend(begun(frame));
            let backlog = way.free.saturating_duration_since(now).as_secs_f64() * rate / 8.0;
            if self.random.next() < loss || backlog as usize + frame.len() > queue {
                traffic.lost += 1;
                continue;
            }
            traffic.bytes += frame.len() as u64;
            way.free = way.free.max(now) + Duration::from_secs_f64(frame.len() as f64 * 8.0 / rate);
            way.under_way.push_back((way.free + delay, frame.to_vec()));
        }
    }

    /// Gives the other end what has arrived.
    fn deliver(&mut self, end: usize) {
        let now = Instant::now();
        let way = &mut self.ways[end];
        while way.under_way.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, frame)) = way.under_way.pop_front() else { return };
            // Fails while the device is down: then there is nobody.
            self.taps[1 - end].write_all(&frame).ok();
        }
    }
}

/// The port a frame begins a connection from, if it begins one to the broker.
fn begun(frame: &[u8]) -> Option<u16> {
    let ip = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let tcp = ip.get(usize::from(ip.first()? & 15) * 4..).filter(|_| ip.get(9) == Some(&6))?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let syn = tcp.get(13)? & 0x12 == 0x02;
    (syn && port(2)? == umiak::link::mqtt::PORT).then(|| port(0))?
}

/// xorshift64*.
struct Random(u64);

impl Random {
    /// Between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A TAP device in a namespace.
fn tap(netns: &Netns, name: &str) -> File {
    let (netns, name) = (format!("/run/netns/{}", netns.0), name.to_owned());
    // A thread of its own: it stays in the namespace until it ends.
    let made = std::thread::spawn(move || {
        setns(File::open(&netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let tun =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the descriptor is open and the request is one the kernel reads and writes within its size.
        let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        assert_eq!(done, 0, "make {name}: {}", std::io::Error::last_os_error());
        tun
    });
    made.join().unwrap()
}
