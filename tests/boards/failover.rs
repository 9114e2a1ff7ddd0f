//! A load-balancer address goes on answering when boards that have it die, with the server and without.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::fleet::{Agent, Lan};
use crate::common::leaks::UPLINK;
use crate::common::{Cluster, Netns, PATIENCE, fetch, images, manifests, run};
use nix::sys::signal::Signal;

const PROMISE: Duration = Duration::from_secs(3);
/// When the next in order dies at the same moment.
const PROMISE_OF_THE_SECOND: Duration = Duration::from_secs(7);

const POD: &str = "
terminationGracePeriodSeconds: 0
nodeSelector: {fleet: 'true'}
containers: [{name: web, image: nginx, imagePullPolicy: IfNotPresent}]
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
";

/// A host that asks a web server all the time, one request after the other, and remembers when it was answered.
struct Visitor {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Instant>>,
}

impl Visitor {
    fn of(host: &Netns, address: SocketAddr, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let task = host.within(move || {
            let mut answered = vec![Instant::now()];
            while !told.load(Ordering::Relaxed) {
                if fetch(address, patience).is_some() {
                    answered.push(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            answered.push(Instant::now());
            answered
        });
        Self { stop, task }
    }

    fn finish(self) -> Vec<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join().unwrap()
    }
}

/// The longest time without an answer.
fn gap(answered: &[Instant]) -> Duration {
    answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

/// One visitor alone may be unlucky: what the dead board had of his connection is lost.
fn judge(what: &str, visitors: [Visitor; 4], promise: Duration) {
    let mut answered: Vec<Vec<Instant>> = visitors.map(Visitor::finish).into();
    let each: Vec<Duration> = answered.iter().map(|one| gap(one)).collect();
    answered.push(answered.concat());
    let all = answered.last_mut().unwrap();
    all.sort();
    eprintln!("{what}: no answer for {:?} (each visitor: {each:?}); {} answers in all", gap(all), all.len());
    assert!(gap(all) < promise && all.len() > 100, "{what}");
    assert!(each.iter().all(|gap| *gap < promise + Duration::from_secs(3)), "{what}: {each:?}");
}

/// The hardware address of a board.
fn mac(agent: &Agent) -> String {
    let shown = run(agent.netns.command("ip").args(["-o", "link", "show", UPLINK]));
    shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

/// Whose address it is, as a host of the segment sees it.
fn owner(host: &Netns, address: &str, agents: &[Agent]) -> usize {
    let began = Instant::now();
    loop {
        let known = run(host.command("ip").args(["neigh", "show", address]));
        if let Some(n) = agents.iter().position(|agent| known.contains(&mac(agent))) {
            return n;
        }
        assert!(began.elapsed() < PATIENCE, "{known}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Scene {
    lan: Lan,
    cluster: Cluster,
    agents: Vec<Agent>,
    host: Netns,
    address: String,
}

impl Scene {
    fn new(boards: usize) -> Self {
        let mut lan = Lan::new();
        let cluster = Cluster::on(&mut lan);
        let mut agents: Vec<Agent> = (1..=boards).map(|n| Agent::new(&mut lan, &format!("pi-{n}"))).collect();
        for agent in &mut agents {
            agent.start(&["--token", &cluster.token(&["--label", "fleet=true"])]);
            agent.import(&images::archive(agent.dir.path(), "web.tar", &images::WEB));
            cluster.until_node(&agent.name, "True");
        }
        // A pod on each of the boards, and an address of their segment.
        cluster.apply(&manifests::pool("192.168.77.200-192.168.77.201"));
        cluster.apply(&manifests::web(boards, POD));
        cluster.apply(SERVICE);
        cluster.k("rollout status deployment web --timeout=90s");
        let path = "jsonpath={.status.loadBalancer.ingress[*].ip}";
        let address = cluster.until(&format!("get svc web -o {path}"), |ip| !ip.is_empty());
        let host = Netns::new();
        lan.plug(&host);
        let scene = Self { lan, cluster, agents, host, address };
        scene.until_answered();
        scene
    }

    fn target(&self) -> SocketAddr {
        (self.address.parse::<IpAddr>().unwrap(), 80).into()
    }

    fn until_answered(&self) {
        let (began, target) = (Instant::now(), self.target());
        while self.host.within(move || fetch(target, Duration::from_secs(1))).join().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "{} never answered", self.address);
        }
        // The first announcements are over, and the other board watches.
        std::thread::sleep(Duration::from_secs(3));
    }

    /// Some give up soon, some wait.
    fn visitors(&self) -> [Visitor; 4] {
        [500, 900, 4000, 5000].map(|millis| Visitor::of(&self.host, self.target(), Duration::from_millis(millis)))
    }

    /// The owner dies; gives it back.
    fn lose(&mut self, what: &str) -> Agent {
        let visitors = self.visitors();
        std::thread::sleep(Duration::from_millis(500));
        let mut dead = self.agents.remove(owner(&self.host, &self.address, &self.agents));
        dead.vanish(&self.lan);
        std::thread::sleep(Duration::from_secs(6));
        judge(what, visitors, PROMISE);
        assert_eq!(owner(&self.host, &self.address, &self.agents), 0);
        dead
    }

    fn finish(self) {
        self.agents.into_iter().for_each(Agent::finish);
        self.cluster.finish();
    }
}

#[test]
fn an_address_moves_when_its_board_dies() {
    std::thread::scope(|scope| {
        scope.spawn(with_the_server);
        scope.spawn(without_the_server);
        scope.spawn(the_next_with_it);
    });
}

fn with_the_server() {
    let mut scene = Scene::new(2);
    let mut dead = scene.lose("server up");

    // The board comes back, and nobody who asks notices.
    let visitors = scene.visitors();
    scene.lan.set_link(dead.plug(), true);
    dead.start(&[]);
    scene.cluster.until_node(&dead.name, "True");
    std::thread::sleep(Duration::from_secs(5));
    judge("on its return", visitors, PROMISE);
    scene.agents.push(dead);
    scene.finish();
}

fn without_the_server() {
    let mut scene = Scene::new(2);
    scene.cluster.stop_daemon(Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(2));
    let dead = scene.lose("server down");
    scene.cluster.start_daemon();
    scene.agents.push(dead);
    scene.finish();
}

/// The server is gone, and two of three boards lose their power at the same moment, the owner among them.
fn the_next_with_it() {
    let mut scene = Scene::new(3);
    scene.cluster.stop_daemon(Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(2));
    let visitors = scene.visitors();
    std::thread::sleep(Duration::from_millis(500));
    let owner_at = owner(&scene.host, &scene.address, &scene.agents);
    let mut dead = vec![scene.agents.remove(owner_at), scene.agents.remove(0)];
    dead.iter().for_each(|board| scene.lan.set_link(board.plug(), false));
    dead.iter_mut().for_each(Agent::power_cut);
    std::thread::sleep(Duration::from_secs(12));
    judge("two at once, server down", visitors, PROMISE_OF_THE_SECOND);
    assert_eq!(owner(&scene.host, &scene.address, &scene.agents), 0);
    scene.cluster.start_daemon();
    scene.agents.extend(dead);
    scene.finish();
}
