//! A local network for tests: hosts in network namespaces of their own, on one switch.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::arp::Mac;

/// A network namespace, alive while the value is.
pub(super) struct Netns(File);

impl Netns {
    pub(super) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(made.join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    pub(super) fn again(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    /// For `ip … netns PATH`.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs something on a thread inside.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let netns = self.again();
        std::thread::spawn(move || {
            setns(&netns.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub(super) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program inside, which must succeed.
    pub(super) fn run(&self, program: &str, words: &str) -> String {
        let (program, words) = (program.to_owned(), words.to_owned());
        self.inside(move || {
            let output = Command::new(&program).args(words.split_whitespace()).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {words}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub(super) fn ip(&self, words: &str) -> String {
        self.run("ip", words)
    }

    /// Plugs an interface of this host into a switch.
    pub(super) fn plug(&self, switch: &Switch, interface: &str, address: &str) {
        let port = format!("p{}", self.0.as_raw_fd());
        switch.0.ip(&format!("link add {port} type veth peer name {interface} netns {}", self.path()));
        switch.0.ip(&format!("link set {port} master br0 up"));
        self.ip(&format!("link set {interface} up"));
        self.ip(&format!("addr add {address} dev {interface}"));
    }

    pub(super) fn mac(&self, interface: &str) -> String {
        let shown = self.ip(&format!("-o link show dev {interface}"));
        shown.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap().to_owned()
    }

    pub(super) fn mac_bytes(&self, interface: &str) -> Mac {
        let text = self.mac(interface);
        let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    pub(super) fn index(&self, interface: &str) -> u32 {
        self.ip(&format!("-o link show dev {interface}")).split(':').next().unwrap().parse().unwrap()
    }

    /// The hardware address this host's kernel finds for an address, if any within the time.
    pub(super) fn resolve(&self, address: Ipv4Addr, within: Duration) -> Option<String> {
        self.ip("neigh flush all");
        self.inside(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // The address is what matters; what is sent to it is refused or lost.
            let _ = socket.send_to(b"x", (address, 9));
        });
        let end = Instant::now() + within;
        loop {
            let known = self.neighbour(address);
            if known.is_some() || Instant::now() > end {
                return known;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is in this host's neighbour table.
    pub(super) fn neighbour(&self, address: Ipv4Addr) -> Option<String> {
        let shown = self.ip(&format!("neigh show {address}"));
        shown.split_whitespace().skip_while(|w| *w != "lladdr").nth(1).map(str::to_owned)
    }
}

/// A switch: a namespace with a bridge.
pub(super) struct Switch(pub(super) Netns);

impl Switch {
    pub(super) fn new() -> Self {
        let netns = Netns::new();
        netns.ip("link add br0 type bridge");
        netns.ip("link set br0 up");
        Self(netns)
    }

    /// A host with `eth0` on this switch.
    pub(super) fn host(&self, address: &str) -> Netns {
        let host = Netns::new();
        host.plug(self, "eth0", address);
        host
    }
}

/// Waits until something is so.
pub(super) fn until(what: &str, test: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !test() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}
