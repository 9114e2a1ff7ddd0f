//! A server of its own for each test: the real binary in a network namespace, driven by the real kubectl.
//!
//! Everything a [`Cluster`] makes is removed when it is dropped, also by a failing test, and [`Cluster::finish`]
//! checks that nothing is left.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

pub mod bad_link;
pub mod fleet;
pub mod images;
pub mod leaks;
pub mod manifests;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use tempfile::TempDir;

/// How long anything awaited may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace with loopback up.
pub struct Netns(pub String);

impl Netns {
    pub fn new() -> Self {
        let name = format!("um-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        run(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]));
        Self(name)
    }

    /// A command that runs in this namespace and sees the machine's own cgroups, unlike `ip netns exec`.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg("--").arg(program.as_ref());
        command
    }

    /// Works inside the namespace, on a thread of its own.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

/// What a web server answers, if anything.
pub fn fetch(address: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    page.contains("200 OK").then_some(page)
}

impl Drop for Netns {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.0]).status().ok();
    }
}

/// A data directory, a namespace, and the daemon when it runs.
pub struct Cluster {
    pub netns: Netns,
    pub dir: TempDir,
    daemon: Option<Child>,
    starts: u32,
    kubectl: PathBuf,
    /// What the daemon logs.
    pub log_filter: &'static str,
    /// More options of the daemon.
    pub server_args: Vec<&'static str>,
    /// What the daemon takes for the time, if not what it is: see [`Clock`].
    pub clock: Clock,
}

impl Cluster {
    /// A server that answers, with the node Ready.
    pub fn start() -> Self {
        let mut cluster = Self::stopped();
        cluster.start_daemon();
        cluster
    }

    /// Everything but the daemon, on a segment with one other host: 192.168.56.2 and, at its `eth0`, 192.168.56.100.
    pub fn on_a_wire() -> (Self, Netns) {
        let (cluster, host) = (Self::stopped(), Netns::new());
        ip(&cluster.netns, &format!("link add lan0 type veth peer name eth0 netns {}", host.0));
        for (netns, interface, address) in [(&cluster.netns, "lan0", 2), (&host, "eth0", 100)] {
            ip(netns, &format!("addr add 192.168.56.{address}/24 dev {interface}"));
            ip(netns, &format!("link set {interface} up"));
        }
        (cluster, host)
    }

    /// Everything but the daemon.
    pub fn stopped() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        let dir = tempfile::Builder::new().prefix("umiak-test-").tempdir().unwrap();
        let kubectl = kubectls().pop().expect("kubectl 1.27 or newer is needed: see README.md");
        Self {
            netns: Netns::new(),
            dir,
            daemon: None,
            starts: 0,
            kubectl,
            log_filter: "info,umiak=debug",
            server_args: Vec::new(),
            clock: Clock::default(),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log(&self) -> String {
        let log = |n| std::fs::read_to_string(self.dir.path().join(format!("umiak.{n}.log"))).unwrap_or_default();
        (1..=self.starts).map(log).collect()
    }

    /// Waits until the log says something.
    pub fn until_logged(&self, words: &str) {
        let began = Instant::now();
        while !self.log().contains(words) {
            assert!(began.elapsed() < PATIENCE, "never logged {words:?}:\n{}", tail(&self.log(), 40));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `umiak` in this cluster's namespace.
    pub fn umiak(&self) -> Command {
        self.netns.command(binary())
    }

    /// Imports an archive into the cluster's image store.
    pub fn import(&self, archive: &Path) {
        run(self.umiak().args(["image", "import", "--data-dir"]).arg(self.data_dir()).arg(archive));
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start_daemon(&mut self) {
        let ready = self.launch_daemon();
        let got = await_ready(&ready);
        assert!(got.is_ok(), "the daemon did not become ready: {got:?}\n{}", self.log());
    }

    /// How often the daemon was started.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// Starts the daemon; it says on the socket that it is ready.
    pub fn launch_daemon(&mut self) -> UnixDatagram {
        assert!(self.daemon.is_none());
        self.starts += 1;
        let data_dir = self.data_dir().to_string_lossy().into_owned();
        let mut args = vec!["server", "--node-name", "board", "--log", self.log_filter, "--data-dir", &data_dir];
        args.extend(&self.server_args);
        let (child, ready) = launch(&self.netns, self.dir.path(), self.starts, self.clock, &args);
        self.daemon = Some(child);
        ready
    }

    pub fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().unwrap().id() as i32
    }

    /// Ends the daemon with a signal, as systemd (SIGTERM) or a crash (SIGKILL) would. Pods go on.
    pub fn stop_daemon(&mut self, signal: nix::sys::signal::Signal) {
        if let Some(mut child) = self.daemon.take() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).ok();
            child.wait().unwrap();
        }
    }

    /// Ends everything this cluster runs but keeps its files: what a power cut leaves.
    pub fn power_cut(&mut self) {
        self.stop_daemon(nix::sys::signal::Signal::SIGKILL);
        leaks::kill_all(&self.data_dir(), &self.netns.0);
        leaks::forget_kernel_state(&self.data_dir(), &self.netns.0);
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Command {
        self.kubectl_of(&self.kubectl)
    }

    /// A certain kubectl as the administrator.
    pub fn kubectl_of(&self, program: &Path) -> Command {
        let mut command = self.netns.command(program);
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig"));
        command.env("HOME", self.dir.path());
        command
    }

    /// Runs kubectl with words separated by spaces and gives its standard output; it must succeed.
    pub fn k(&self, words: &str) -> String {
        run(self.kubectl().args(words.split_whitespace()))
    }

    /// Runs kubectl, which must fail, and gives its standard error.
    pub fn k_fails(&self, words: &str) -> String {
        let output = self.kubectl().args(words.split_whitespace()).output().unwrap();
        assert!(!output.status.success(), "kubectl {words} succeeded: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Applies a manifest from standard input.
    pub fn apply(&self, manifest: &str) -> String {
        run_with_input(self.kubectl().args(["apply", "-f", "-"]), manifest)
    }

    /// Waits until kubectl's output satisfies a test.
    pub fn until(&self, words: &str, test: impl Fn(&str) -> bool) -> String {
        self.until_within(PATIENCE, words, test)
    }

    /// Waits for that as long as `patience`.
    pub fn until_within(&self, patience: Duration, words: &str, test: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let output = self.kubectl().args(words.split_whitespace()).output().unwrap();
            let out = text(&output.stdout);
            if output.status.success() && test(&out) {
                return out;
            }
            if began.elapsed() > patience {
                let err = text(&output.stderr);
                panic!("kubectl {words}: not as awaited:\n{out}{err}\n--- daemon:\n{}", tail(&self.log(), 60));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// One value by JSONPath.
    pub fn value(&self, what: &str, path: &str) -> String {
        self.k(&format!("get {what} -o jsonpath={{{path}}}"))
    }

    /// Waits for pods (by name or `-l selector`) to be Ready.
    pub fn wait_ready(&self, pods: &str) {
        let output = self
            .kubectl()
            .args(["wait", "--for=condition=Ready", "--timeout=90s", "pod"])
            .args(pods.split_whitespace())
            .output()
            .unwrap();
        if !output.status.success() {
            let state = self.k("describe pods");
            panic!("{}{state}\n--- daemon:\n{}", text(&output.stderr), tail(&self.log(), 60));
        }
    }

    /// Removes everything and checks that nothing is left.
    pub fn finish(mut self) {
        self.clean();
        leaks::assert_none(self.dir.path(), &self.netns.0);
    }

    fn clean(&mut self) {
        self.stop_daemon(nix::sys::signal::Signal::SIGTERM);
        if self.data_dir().exists() {
            let done = self.umiak().args(["reset", "--yes", "--data-dir"]).arg(self.data_dir()).output().unwrap();
            assert!(done.status.success() || std::thread::panicking(), "reset: {}", text(&done.stderr));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon:\n{}", tail(&self.log(), 80));
        }
        self.clean();
    }
}

/// kubectl with its output on a pipe, ended when dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(cluster: &Cluster, words: &str) -> Self {
        let mut kubectl = cluster.kubectl();
        kubectl.args(words.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(kubectl.spawn().unwrap())
    }

    pub fn lines(&mut self) -> impl Iterator<Item = String> + Send + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines().map_while(Result::ok)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A daemon's clock, in the words of libfaketime (`+300d`, `@1970-01-02 00:00:00`); right if there are none.
#[derive(Clone, Copy, Default)]
pub struct Clock(pub Option<&'static str>);

impl Clock {
    /// Sets the clock of a program, which must be linked dynamically. What it waits for takes as long as ever.
    fn set(self, command: &mut Command) {
        let Some(time) = self.0 else { return };
        // `$LIB` is the loader's word for where libraries of this machine lie.
        command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1").env("FAKETIME", time);
        for switch in ["FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_DISABLE_SHM", "NO_FAKE_STAT"] {
            command.env(switch, "1");
        }
    }
}

/// Starts a daemon with its log in `dir`; it says on the socket that it is ready.
pub fn launch(netns: &Netns, dir: &Path, number: u32, clock: Clock, args: &[&str]) -> (Child, UnixDatagram) {
    let notify = dir.join(format!("notify.{number}"));
    let ready = UnixDatagram::bind(&notify).unwrap();
    ready.set_read_timeout(Some(PATIENCE)).unwrap();
    let log = std::fs::File::create(dir.join(format!("umiak.{number}.log"))).unwrap();
    let mut command = netns.command(binary());
    // SAFETY: umask is async-signal-safe. It is the systemd unit's: what pods see must not depend on it.
    unsafe {
        command.pre_exec(|| {
            umask(Mode::from_bits_truncate(0o077));
            Ok(())
        })
    };
    clock.set(&mut command);
    let child = command
        .args(args)
        .env("NOTIFY_SOCKET", &notify)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    (child, ready)
}

/// Waits for a daemon's first word.
pub fn await_ready(socket: &UnixDatagram) -> std::io::Result<()> {
    loop {
        match socket.recv(&mut [0; 64]) {
            // A machine that was asleep, for example.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

/// The binary under test: `UMIAK_BIN`, or the one cargo built.
pub fn binary() -> PathBuf {
    std::env::var_os("UMIAK_BIN").map_or_else(|| env!("CARGO_BIN_EXE_umiak").into(), PathBuf::from)
}

/// Every kubectl of this machine from 1.27 on, oldest first: `kubectl` in PATH and `kubectl.1.NN` beside it.
pub fn kubectls() -> Vec<PathBuf> {
    let Some(path) = std::env::var_os("PATH") else { return Vec::new() };
    let first = std::env::split_paths(&path).map(|d| d.join("kubectl")).find_map(|p| p.canonicalize().ok());
    let Some(first) = first else { return Vec::new() };
    let mut all: Vec<(u32, PathBuf)> = (27..=40)
        .map(|minor| (minor, first.with_file_name(format!("kubectl.1.{minor}"))))
        .filter(|(_, path)| path.exists())
        .collect();
    if all.is_empty() {
        all.push((0, first));
    }
    all.sort();
    all.into_iter().map(|(_, path)| path).collect()
}

/// Runs a command that must succeed; gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    checked(command, output)
}

/// `ip` in a namespace.
pub fn ip(netns: &Netns, words: &str) {
    run(Command::new("ip").args(["-n", &netns.0]).args(words.split_whitespace()));
}

/// Runs a command with standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    checked(command, output)
}

fn checked(command: &Command, output: Output) -> String {
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
