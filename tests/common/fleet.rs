//! Agents beside a [`Cluster`]: boards in network namespaces of their own on one switch, or behind a router that lets
//! them out and nobody in.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::bad_link::{BadLink, Conditions};
use super::{Clock, Cluster, Netns, PATIENCE, await_ready, binary, images, ip, launch, leaks, run, tail, text};

/// A switch; everything on it has an address in 192.168.77.0/24.
pub struct Lan {
    switch: Netns,
    used: u8,
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Lan {
    pub fn new() -> Self {
        let switch = Netns::new();
        ip(&switch, "link add br0 type bridge forward_delay 0");
        ip(&switch, "link set br0 up");
        Self { switch, used: 0 }
    }

    /// Plugs a namespace in; gives its address.
    pub fn plug(&mut self, netns: &Netns) -> String {
        let port = self.next_port();
        let far = &netns.0;
        ip(&self.switch, &format!("link add {port} type veth peer name {} netns {far}", leaks::UPLINK));
        self.connect(&port, netns)
    }

    /// Plugs a namespace in by a bad link.
    pub fn plug_badly(&mut self, netns: &Netns, conditions: Conditions) -> (String, BadLink) {
        let port = self.next_port();
        let link = BadLink::new([(&self.switch, &port), (netns, leaks::UPLINK)], conditions, 20);
        (self.connect(&port, netns), link)
    }

    fn next_port(&mut self) -> String {
        self.used += 1;
        format!("port{}", self.used)
    }

    fn connect(&self, port: &str, netns: &Netns) -> String {
        let address = format!("192.168.77.{}", self.used);
        ip(&self.switch, &format!("link set {port} master br0 up"));
        ip(netns, &format!("addr add {address}/24 dev {}", leaks::UPLINK));
        ip(netns, &format!("link set {} up", leaks::UPLINK));
        address
    }

    /// Takes the plug of an address out, or puts it in again.
    pub fn set_link(&self, address: &str, up: bool) {
        let port = address.rsplit('.').next().unwrap();
        ip(&self.switch, &format!("link set port{port} {}", if up { "up" } else { "down" }));
    }
}

/// A router between the switch and one namespace behind it.
pub struct Router {
    netns: Netns,
    /// Its address on the switch.
    outside: String,
}

impl Router {
    pub fn new(lan: &mut Lan, inside: &Netns) -> Self {
        let router = Netns::new();
        let outside = lan.plug(&router);
        let (name, uplink) = (&router.0, leaks::UPLINK);
        ip(inside, &format!("link add {uplink} type veth peer name inside netns {name}"));
        ip(inside, &format!("addr add 10.99.0.2/24 dev {uplink}"));
        ip(inside, &format!("link set {uplink} up"));
        ip(&router, "addr add 10.99.0.1/24 dev inside");
        ip(&router, "link set inside up");
        ip(inside, "route add default via 10.99.0.1");
        run(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
        let rules = format!(
            "table ip nat {{
               chain out {{
                 type nat hook postrouting priority 100
                 oifname {uplink} snat to {outside}
               }}
             }}
             table ip keep {{
               chain forward {{
                 type filter hook forward priority 0; policy drop;
                 iifname inside accept
                 ct state established accept
               }}
             }}\n"
        );
        super::run_with_input(router.command("nft").args(["-f", "-"]), &rules);
        Self { netns: router, outside }
    }
}

/// A board that is not the server: a data directory, a namespace, and the daemon when it runs.
pub struct Agent {
    pub name: String,
    pub netns: Netns,
    pub dir: TempDir,
    daemon: Option<Child>,
    starts: u32,
    router: Option<Router>,
    pub link: Option<BadLink>,
    pub address: String,
    /// How long becoming ready may take.
    pub patience: Duration,
    /// What the daemon takes for the time.
    pub clock: Clock,
}

impl Agent {
    /// A board on the switch that is no node yet.
    pub fn new(lan: &mut Lan, name: &str) -> Self {
        let netns = Netns::new();
        let address = lan.plug(&netns);
        Self::of(name, netns, address, None)
    }

    /// A board behind a router.
    pub fn behind_nat(lan: &mut Lan, name: &str) -> Self {
        let netns = Netns::new();
        let router = Router::new(lan, &netns);
        Self::of(name, netns, "10.99.0.2".to_owned(), Some(router))
    }

    /// A board at the end of a bad link.
    pub fn by_bad_link(lan: &mut Lan, name: &str, conditions: Conditions) -> Self {
        let netns = Netns::new();
        let (address, link) = lan.plug_badly(&netns, conditions);
        let mut agent = Self::of(name, netns, address, None);
        agent.link = Some(link);
        agent
    }

    fn of(name: &str, netns: Netns, address: String, router: Option<Router>) -> Self {
        let dir = tempfile::Builder::new().prefix("umiak-test-").tempdir().unwrap();
        Self {
            name: name.to_owned(),
            netns,
            dir,
            daemon: None,
            starts: 0,
            router,
            link: None,
            address,
            patience: PATIENCE,
            clock: Clock::default(),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The address whose plug in the switch is this board's.
    pub fn plug(&self) -> &str {
        self.router.as_ref().map_or(&self.address, |router| &router.outside)
    }

    /// `umiak` in this board's namespace.
    pub fn umiak(&self) -> Command {
        self.netns.command(binary())
    }

    /// Imports an archive into the board's image store.
    pub fn import(&self, archive: &Path) {
        run(self.umiak().args(["image", "import", "--data-dir"]).arg(self.data_dir()).arg(archive));
    }

    /// A shell, and a web server in two versions.
    pub fn import_all(&self) {
        for (file, recipe) in [("a.tar", images::BUSYBOX), ("b.tar", images::WEB), ("c.tar", images::WEB_NEW)] {
            self.import(&images::archive(self.dir.path(), file, &recipe));
        }
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start(&mut self, args: &[&str]) {
        assert!(self.daemon.is_none());
        let name = self.name.clone();
        let data_dir = self.data_dir().to_string_lossy().into_owned();
        let mut all = vec!["agent", "--log", "info,umiak=debug", "--node-name", &name, "--data-dir", &data_dir];
        all.extend(args);
        self.starts += 1;
        let (child, ready) = launch(&self.netns, self.dir.path(), self.starts, self.clock, &all);
        self.daemon = Some(child);
        ready.set_read_timeout(Some(self.patience)).unwrap();
        let got = await_ready(&ready);
        assert!(got.is_ok(), "the agent did not become ready: {got:?}\n{}", self.log());
    }

    /// Runs the agent, which must refuse to run; gives its standard error.
    pub fn fails(&self, args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args(["60", "nsenter", &format!("--net=/run/netns/{}", self.netns.0), "--"]).arg(binary());
        command.args(["agent", "--log", "warn", "--node-name", &self.name, "--data-dir"]).arg(self.data_dir());
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        text(&output.stderr)
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

    pub fn pid(&self) -> i32 {
        self.daemon.as_ref().unwrap().id() as i32
    }

    /// Ends the daemon with a signal. Pods go on.
    pub fn stop(&mut self, signal: Signal) {
        if let Some(mut child) = self.daemon.take() {
            kill(Pid::from_raw(child.id() as i32), signal).ok();
            child.wait().unwrap();
        }
    }

    /// Ends everything this board runs but keeps its files: what a power cut leaves.
    pub fn power_cut(&mut self) {
        self.stop(Signal::SIGKILL);
        leaks::kill_all(&self.data_dir(), &self.netns.0);
        leaks::forget_kernel_state(&self.data_dir(), &self.netns.0);
    }

    /// A board without power: nobody hears another packet of it. [`Lan::set_link`] is to bring its plug back.
    pub fn vanish(&mut self, lan: &Lan) {
        lan.set_link(self.plug(), false);
        self.power_cut();
    }

    /// Processes of this board's pods that a script marked, with their ids.
    pub fn processes(&self, mark: &str) -> Vec<String> {
        let mut found = Vec::new();
        for pid in leaks::processes(&self.data_dir(), &self.netns.0) {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if leaks::in_cgroup(pid, &self.data_dir()) && text(&cmdline).contains(mark) {
                found.push(pid.to_string());
            }
        }
        found.sort();
        found
    }

    /// Waits until no process that a script marked is left.
    pub fn until_no_process(&self, mark: &str) {
        let began = Instant::now();
        while let left @ [_, ..] = self.processes(mark).as_slice() {
            assert!(began.elapsed() < PATIENCE, "{mark:?} still runs: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// `umiak status --json`.
    pub fn status(&self) -> serde_json::Value {
        let text = run(self.umiak().args(["status", "--json", "--data-dir"]).arg(self.data_dir()));
        serde_json::from_str(&text).unwrap()
    }

    /// Removes everything and checks that nothing is left.
    pub fn finish(mut self) {
        self.clean();
        leaks::assert_none(self.dir.path(), &self.netns.0);
    }

    fn clean(&mut self) {
        self.stop(Signal::SIGTERM);
        if self.data_dir().join("umiak.lock").exists() {
            let done = self.umiak().args(["reset", "--yes", "--data-dir"]).arg(self.data_dir()).output().unwrap();
            assert!(done.status.success() || std::thread::panicking(), "reset: {}", text(&done.stderr));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent {}:\n{}", self.name, tail(&self.log(), 60));
        }
        self.clean();
    }
}

/// A server, two boards on its switch and one behind a router, all nodes and with images to run.
pub struct Fleet {
    pub lan: Lan,
    pub cluster: Cluster,
    /// `pi-1`, `pi-2`, `pi-nat`; each has the label `fleet=true`.
    pub agents: Vec<Agent>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    pub fn new() -> Self {
        let mut lan = Lan::new();
        let cluster = Cluster::on(&mut lan);
        let mut agents =
            vec![Agent::new(&mut lan, "pi-1"), Agent::new(&mut lan, "pi-2"), Agent::behind_nat(&mut lan, "pi-nat")];
        for agent in &mut agents {
            let token = cluster.token(&["--label", "fleet=true"]);
            agent.start(&["--token", &token]);
            agent.import_all();
        }
        agents.iter().for_each(|agent| cluster.until_node(&agent.name, "True"));
        Self { lan, cluster, agents }
    }

    /// Removes everything and checks that nothing is left.
    pub fn finish(self) {
        self.agents.into_iter().for_each(Agent::finish);
        self.cluster.finish();
    }
}

impl Cluster {
    /// The name of a pod with a label on a node.
    pub fn pod_on(&self, node: &str, selector: &str) -> String {
        let words = format!("get pods -l {selector} --field-selector spec.nodeName={node} -o name");
        let names = self.k(&words);
        names.lines().next().unwrap_or_else(|| panic!("no pod {selector} on {node}")).to_owned()
    }

    /// A server on a switch, that answers.
    pub fn on(lan: &mut Lan) -> Self {
        let mut cluster = Self::stopped();
        lan.plug(&cluster.netns);
        cluster.start_daemon();
        cluster
    }

    /// A token.
    pub fn token(&self, args: &[&str]) -> String {
        let mut command = self.umiak();
        command.args(["token", "create", "--quiet"]).args(args).arg("--data-dir").arg(self.data_dir());
        run(&mut command).trim().to_owned()
    }

    /// Makes a node of a board and waits until it is Ready.
    pub fn join(&self, agent: &mut Agent) {
        let token = self.token(&[]);
        agent.start(&["--token", &token]);
        self.until_node(&agent.name, "True");
    }

    /// Waits until the node's condition Ready has a status.
    pub fn until_node(&self, name: &str, status: &str) {
        let path = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
        self.until(&format!("get node {name} -o jsonpath={path}"), |s| s == status);
    }
}
