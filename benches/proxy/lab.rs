//! Three network namespaces on one bridge, and programs within them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};

/// Where the backend listens.
pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
/// The node, on which both proxies are.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The namespaces; they go when the bench's process does.
pub struct Lab {
    client: File,
    pub backend: File,
}

/// A program that ends with its owner.
pub struct Running(pub Child);

/// Processor time a process took since it started.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime: fields 14 and 15 of proc_pid_stat(5), of which the first two are cut off here.
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64
}

/// Processor time of all load generators that ended.
pub fn loads_cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}

/// Connections that are open.
pub struct Held {
    _process: Running,
    _said: BufReader<ChildStdout>,
}

impl Lab {
    pub fn new() -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // A plain bridge, wherever the kernel has br_netfilter.
        fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0").ok();
        run(Command::new("ip").args("link add bridge type bridge".split(' ')));
        run(Command::new("ip").args("link set bridge up".split(' ')));
        let [client, backend] = [1, 3].map(joined);
        Self { client, backend }
    }

    /// Puts a named namespace on the bridge, as [`NODE`].
    pub fn plug_node(&self, name: &str) {
        plug(&File::open(format!("/run/netns/{name}")).unwrap(), 2);
    }

    /// Has the client send what is for `address` by way of `gateway`.
    pub fn route(&self, address: Ipv4Addr, gateway: Ipv4Addr) {
        let words = format!("route add {address} via {gateway}");
        run(within(&self.client, Command::new("ip").args(words.split(' '))));
    }

    /// This program in one of the namespaces, in a role of its own.
    pub fn spawn(&self, namespace: &File, words: &[&str]) -> Running {
        Running(within(namespace, Command::new("/proc/self/exe").args(words)).spawn().unwrap())
    }

    /// What the load generator measured.
    pub fn load(&self, words: &[&str]) -> f64 {
        let mut command = Command::new("/proc/self/exe");
        let output =
            within(&self.client, command.arg("role-load").args(words)).stderr(Stdio::inherit()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.trim().parse().unwrap_or_else(|_| panic!("{words:?}: {said:?}"))
    }

    /// Opens connections of which each was used once, and holds them.
    pub fn hold(&self, address: SocketAddrV4, count: usize) -> Held {
        let mut command = Command::new("/proc/self/exe");
        command.args(["role-load", "hold", &address.to_string(), &count.to_string(), "0"]).stdout(Stdio::piped());
        let mut process = within(&self.client, &mut command).spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Held { _process: Running(process), _said: said }
    }

    /// Waits until somebody answers.
    pub fn wait_for(&self, address: SocketAddrV4) {
        let started = Instant::now();
        let mut command = Command::new("/proc/self/exe");
        let probe = within(&self.client, command.args(["role-load", "probe", &address.to_string(), "1", "0"]));
        while !probe.status().unwrap().success() {
            assert!(started.elapsed() < Duration::from_secs(10), "nobody answers at {address}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A namespace with an address on the bridge.
fn joined(number: u8) -> File {
    let namespace = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = namespace.join().unwrap();
    plug(&namespace, number);
    namespace
}

fn plug(namespace: &File, number: u8) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let host = format!("port{number}");
    run(Command::new("ip").args(["link", "add", &host, "type", "veth", "peer", "name", "eth0", "netns", &path]));
    run(Command::new("ip").args(["link", "set", &host, "master", "bridge", "up"]));
    // What boards have, whatever this machine is set to; where a namespace may not have that, reno, which is the same as
    // long as nothing is lost.
    let wished = std::env::var("CONGESTION").unwrap_or("cubic".to_owned());
    let set =
        format!("cd /proc/sys/net/ipv4; echo {wished} >tcp_congestion_control || echo reno >tcp_congestion_control");
    run(within(namespace, Command::new("sh").args(["-c", &set]).stderr(Stdio::null())));
    for words in ["link set lo up", "link set eth0 up", &format!("addr add 10.9.0.{number}/24 dev eth0")] {
        run(within(namespace, Command::new("ip").args(words.split(' '))));
    }
}

/// Makes a command run in a namespace.
fn within<'a>(namespace: &File, command: &'a mut Command) -> &'a mut Command {
    let namespace = namespace.try_clone().unwrap();
    // SAFETY: between fork and exec it makes one system call.
    unsafe { command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)) }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
