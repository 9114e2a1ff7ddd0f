//! Load-balancer addresses on a wire where not everybody behaves, frame by frame.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Cluster, Netns, PATIENCE, images, ip, manifests, run};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: busybox, imagePullPolicy: Never, command: [httpd, -f]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
";

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 200);
const OURS: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 100);
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const EVERYBODY: [u8; 6] = [0xff; 6];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Longer than any answer takes.
const QUIET: Duration = Duration::from_millis(400);

/// The other end of the node's cable.
struct Wire(OwnedFd);

impl Wire {
    fn open(host: &Netns) -> Self {
        let netns = std::fs::File::open(format!("/run/netns/{}", host.0)).unwrap();
        let open = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let protocol = 0x0806_u16.to_be();
            // SAFETY: no pointers; the result is checked.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: the descriptor was just made and is nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: all fields are integers, for which zero is a value.
            let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            (place.sll_family, place.sll_protocol) = (libc::AF_PACKET as u16, protocol);
            place.sll_ifindex = nix::net::if_::if_nametoindex("eth0").unwrap() as i32;
            let (pointer, length) = (std::ptr::from_ref(&place).cast(), size_of::<libc::sockaddr_ll>() as u32);
            // SAFETY: the address outlives the call and its length is its own.
            assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), pointer, length) }, 0);
            Self(fd)
        };
        std::thread::spawn(open).join().unwrap()
    }

    fn send(&self, frame: &[u8]) {
        // A cable that is unplugged takes nothing.
        nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty()).ok();
    }

    /// What the node says about an address within a time: operation, the sender's MAC and the target.
    fn heard(&self, about: Ipv4Addr, time: Duration) -> Vec<(u8, [u8; 6], Ipv4Addr)> {
        self.heard_if(time, |sender| sender == about)
    }

    fn heard_if(&self, time: Duration, counts: impl Fn(Ipv4Addr) -> bool) -> Vec<(u8, [u8; 6], Ipv4Addr)> {
        let (began, mut heard) = (Instant::now(), Vec::new());
        while let Some(left) = time.checked_sub(began.elapsed()) {
            let left = libc::timeval { tv_sec: left.as_secs() as i64, tv_usec: i64::from(left.subsec_micros()).max(1) };
            nix::sys::socket::setsockopt(&self.0, nix::sys::socket::sockopt::ReceiveTimeout, &left.into()).unwrap();
            let mut frame = [0; 64];
            let Ok(length) =
                nix::sys::socket::recv(self.0.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty())
            else {
                continue;
            };
            let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
            if length >= 42 && counts(address(28)) {
                heard.push((frame[21], frame[22..28].try_into().unwrap(), address(38)));
            }
        }
        heard
    }

    /// Waits until the node announces the address; its MAC.
    fn announced(&self) -> [u8; 6] {
        let began = Instant::now();
        loop {
            let heard = self.heard(ADDRESS, Duration::from_millis(100));
            if let Some((_, mac, _)) = heard.iter().find(|(_, _, target)| *target == ADDRESS) {
                return *mac;
            }
            assert!(began.elapsed() < PATIENCE, "never announced");
        }
    }

    /// Forgets what has arrived.
    fn drain(&self) {
        self.heard(ADDRESS, Duration::from_millis(50));
    }

    /// The answers to a request for an address.
    fn ask(&self, address: Ipv4Addr) -> Vec<[u8; 6]> {
        self.drain();
        self.send(&frame(REQUEST, [2, 0, 0, 0, 0, 1], OURS, address));
        let replies =
            self.heard(address, QUIET).into_iter().filter(|(operation, _, to)| (*operation, *to) == (REPLY, OURS));
        replies.map(|(_, mac, _)| mac).collect()
    }
}

fn frame(operation: u8, mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [&EVERYBODY[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    [&head[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

#[test]
fn on_a_wire_with_others() {
    let (mut cluster, host) = Cluster::on_a_wire();
    let wire = Wire::open(&host);
    cluster.start_daemon();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(&manifests::pool("192.168.56.200-192.168.56.210"));
    cluster.apply(MANIFEST);
    let mac = wire.announced();
    let shown = run(cluster.netns.command("ip").args(["-o", "link", "show", "lan0"]));
    let colons: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(shown.contains(&format!("link/ether {}", colons.join(":"))), "the MAC of the interface: {shown}");

    // Frames that are none, and questions for others.
    let good = frame(REQUEST, STRANGER, OURS, ADDRESS);
    wire.drain();
    for (at, byte) in [(12, 9), (15, 2), (17, 1), (18, 8), (19, 16), (20, 1), (21, 0), (21, 9), (22, 1)] {
        let mut bad = good.clone();
        bad[at] = byte;
        // A sender whose two MACs differ may be a proxy; the frame is one.
        if at != 22 {
            wire.send(&bad);
        }
    }
    (14..42).for_each(|length| wire.send(&good[..length]));
    wire.send(&[&good[..], &[0xaa; 1400]].concat()[..1400]);
    let said = wire.heard(ADDRESS, QUIET);
    assert!(
        said.iter().filter(|(operation, _, _)| *operation == REPLY).count() <= 1,
        "one was only too long: {said:?}"
    );
    let others =
        ["192.168.56.201", "192.168.56.3", "10.42.0.1", "10.43.0.1", "10.43.0.10", "0.0.0.0", "255.255.255.255"];
    let others: Vec<Ipv4Addr> = others.iter().map(|other| other.parse().unwrap()).collect();
    others.iter().for_each(|other| wire.send(&frame(REQUEST, [2, 0, 0, 0, 0, 1], OURS, *other)));
    let answers = wire.heard_if(QUIET, |sender| others.contains(&sender));
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(wire.ask(ADDRESS), [mac], "one answer");

    // The cable is pulled and plugged in; the node gets other addresses.
    for change in [
        &["link set lan0 down", "link set lan0 up"][..],
        &["addr del 192.168.56.2/24 dev lan0", "addr add 192.168.56.3/24 dev lan0"],
    ] {
        change.iter().for_each(|words| ip(&cluster.netns, words));
        wire.announced();
        assert_eq!(wire.ask(ADDRESS), [mac], "after {change:?}");
    }
    ip(&cluster.netns, "addr del 192.168.56.3/24 dev lan0");
    ip(&cluster.netns, "addr add 192.168.57.3/24 dev lan0");
    let began = Instant::now();
    while !wire.ask(ADDRESS).is_empty() {
        assert!(began.elapsed() < PATIENCE, "still answered, though it is no address of this segment");
    }
    ip(&cluster.netns, "addr add 192.168.56.2/24 dev lan0");
    wire.announced();
    assert_eq!(wire.ask(ADDRESS), [mac]);
    let since_held = Instant::now();

    // Somebody insists on the address: contradicted once, then left alone.
    std::thread::sleep(Duration::from_secs(6).saturating_sub(since_held.elapsed()));
    wire.drain();
    let mut heard = Vec::new();
    for _ in 0..12 {
        wire.send(&frame(REPLY, STRANGER, ADDRESS, ADDRESS));
        heard.extend(wire.heard(ADDRESS, Duration::from_millis(150)));
    }
    assert!((1..=2).contains(&heard.len()), "one defence, in two forms: {heard:?}");
    assert_eq!(wire.ask(ADDRESS), [[0; 6]; 0], "it is the stranger's now");
    let events = cluster.until("describe svc web", |t| t.contains("stops announcing it for a while"));
    assert!(
        events.contains("AddressConflict") && events.contains("02:00:00:00:00:66 claims 192.168.56.200"),
        "{events}"
    );
    let table = cluster.k("get events --field-selector reason=AddressConflict -o name");
    assert_eq!(table.lines().count(), 2, "no storm: {table}");

    cluster.k("delete svc/web pod/web --wait=true");
    cluster.stop_daemon(Signal::SIGTERM);
    ip(&cluster.netns, "link del lan0");
    cluster.finish();
}
