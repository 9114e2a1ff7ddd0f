//! A board that is cut off goes on by itself; when it is back, everything is as if it had never been away.
//!
//! `CUT_SECONDS` says for how long it is cut off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, images};
use serde_json::Value;

/// By when everything has to be settled after the link is back.
const PROMISE: Duration = Duration::from_secs(5);

/// What runs on the board: `up` and `down` are scaled while it is away, `goner` is deleted, the map changed, and `ill`
/// fails its probe once.
const PODS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {word: before}
---
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'touch /tmp/well; while true; do sleep 1; done # steady']
    readinessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 2}
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
---
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'sleep 1; exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: ill}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'touch /tmp/well; while true; do sleep 1; done # ill']
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: goner}
spec:
  nodeName: pi-1
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'trap exit TERM; while true; do sleep 0.1; done # goner']}]
";

fn deployment(name: &str, replicas: u8) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{ \
         nodeSelector: {{kubernetes.io/hostname: pi-1}}, terminationGracePeriodSeconds: 0, containers: [{{name: c, \
         image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'while true; do sleep 1; done # scaled']}}]}}}}}}}}"
    )
}

/// Where the cut is, and what else goes wrong meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// The board's own plug is out; the server loses power.
    Board,
    /// The same, and the board loses power, too.
    BoardAndPower,
    /// The server's plug is out: the board sees nothing but silence.
    Server,
}

/// All there is, by kind and name.
struct Seen(BTreeMap<(String, String), Value>);

impl Seen {
    fn now(cluster: &Cluster) -> Self {
        let all: Value = serde_json::from_str(&cluster.k("get nodes,pods,deployments -o json")).unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let key = |o: &Value| (text(&o["kind"]), text(&o["metadata"]["name"]));
        Self(all["items"].as_array().unwrap().iter().map(|o| (key(o), o.clone())).collect())
    }

    fn get(&self, kind: &str, name: &str) -> &Value {
        self.0.get(&(kind.to_owned(), name.to_owned())).unwrap_or(&Value::Null)
    }

    fn pods_of(&self, app: &str) -> Vec<&Value> {
        let of_app = |o: &&Value| o["kind"] == "Pod" && o["metadata"]["labels"]["app"] == app;
        self.0.values().filter(of_app).collect()
    }

    fn restarts(&self, pod: &str) -> u64 {
        self.get("Pod", pod)["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
    }

    fn is_ready(&self, kind: &str, name: &str) -> bool {
        let conditions = self.get(kind, name)["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    }
}

/// What has not come about yet.
fn missing(agent: &Agent, now: &Seen, crashes: u64) -> Vec<&'static str> {
    let setting = agent.processes("# steady").first().and_then(|pid| {
        let file = format!("/proc/{pid}/root/settings/word");
        std::fs::read_to_string(file).ok()
    });
    let available = |name: &str| now.get("Deployment", name)["status"]["availableReplicas"].as_u64();
    [
        ("the node is ready", now.is_ready("Node", "pi-1")),
        ("no taint is left", now.get("Node", "pi-1")["spec"]["taints"].is_null()),
        ("the healthy pod is ready", now.is_ready("Pod", "steady")),
        ("crashes are counted", now.restarts("crashing") >= crashes),
        ("the deleted pod is gone", now.get("Pod", "goner").is_null() && agent.processes("# goner").is_empty()),
        ("the setting has arrived", setting.as_deref() == Some("after")),
        ("three pods are up", available("up") == Some(3) && now.pods_of("up").len() == 3),
        ("one pod is left", available("down") == Some(1) && now.pods_of("down").len() == 1),
    ]
    .into_iter()
    .filter_map(|(what, is_so)| (!is_so).then_some(what))
    .collect()
}

/// Restarts of a pod's container, as the board itself knows them.
fn restarts(agent: &Agent, name: &str) -> u64 {
    let status = agent.status();
    let pod = status["pods"].as_array().unwrap().iter().find(|p| p["name"] == name).expect("it is there").clone();
    pod["restarts"].as_u64().unwrap_or_else(|| panic!("{pod}"))
}

/// Makes the pod fail its probe, and waits until it is over and noted.
fn fall_ill(agent: &Agent) {
    let pid = agent.processes("# ill").first().cloned().expect("it runs");
    std::fs::remove_file(format!("/proc/{pid}/root/tmp/well")).unwrap();
    let began = Instant::now();
    while restarts(agent, "ill") == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    // What no server hears of within 5 s is on disk soon after.
    let journal = agent.data_dir().join("node/events");
    while !std::fs::read_to_string(&journal).is_ok_and(|events| events.contains("liveness")) {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn cut_off(cut: Cut) {
    let duration = std::env::var("CUT_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let duration = Duration::from_secs(duration);
    let mut lan = Lan::new();
    let mut cluster = Cluster::on(&mut lan);
    let mut agent = Agent::new(&mut lan, "pi-1");
    cluster.join(&mut agent);
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(PODS);
    cluster.apply(&deployment("up", 2));
    cluster.apply(&deployment("down", 3));
    cluster.wait_ready("steady goner ill");
    cluster.k("rollout status deployment up --timeout=90s");
    cluster.k("rollout status deployment down --timeout=90s");
    cluster.until("get pod crashing -o jsonpath={.status.containerStatuses[0].restartCount}", |n| n == "1");
    let before = Seen::now(&cluster);
    let processes = agent.processes("# steady");
    let others = agent.processes("# scaled");

    let began = Instant::now();
    let plug = if cut == Cut::Server { "192.168.77.1" } else { agent.plug() }.to_owned();
    lan.set_link(&plug, false);
    fall_ill(&agent);
    if cut == Cut::BoardAndPower {
        agent.power_cut();
        agent.start(&[]);
    }
    if cut != Cut::Server {
        cluster.power_cut();
        cluster.start_daemon();
    }
    cluster.k("delete pod goner --wait=false");
    cluster.k("patch configmap settings -p {\"data\":{\"word\":\"after\"}}");
    cluster.k("scale deployment up --replicas=3");
    cluster.k("scale deployment down --replicas=1");
    std::thread::sleep(duration.saturating_sub(began.elapsed()));
    let crashes = restarts(&agent, "crashing");
    assert!(crashes > before.restarts("crashing"), "it went on crashing: {crashes}");
    if cut == Cut::Board {
        assert_eq!(agent.processes("# steady"), processes);
        assert_eq!(agent.processes("# scaled"), others);
    }
    let running = agent.processes("# steady");

    lan.set_link(&plug, true);
    let returned = Instant::now();
    let (mut now, mut left);
    loop {
        now = Seen::now(&cluster);
        left = missing(&agent, &now, crashes);
        if left.is_empty() || returned.elapsed() > Duration::from_secs(40) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = returned.elapsed();
    eprintln!("{cut:?} cut off for {duration:?}: all settled {took:?} after the return");
    assert!(left.is_empty() && took < PROMISE, "{cut:?}: {took:?}: {left:?}\n{}", agent.log());

    // Nobody noticed.
    let rebooted = cut == Cut::BoardAndPower;
    for name in ["steady", "crashing"] {
        assert_eq!(now.get("Pod", name)["metadata"]["uid"], before.get("Pod", name)["metadata"]["uid"]);
    }
    assert_eq!(agent.processes("# steady"), running, "nothing is restarted on return");
    assert_eq!(now.restarts("steady"), u64::from(rebooted));
    let container = |seen: &Seen| seen.get("Pod", "steady")["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&now) == container(&before), !rebooted);
    for app in ["up", "down"] {
        let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let (was, is): (Vec<_>, Vec<_>) =
            (before.pods_of(app).into_iter().map(uid).collect(), now.pods_of(app).into_iter().map(uid).collect());
        assert_eq!(is.iter().filter(|uid| was.contains(uid)).count(), was.len().min(is.len()), "{app}");
    }
    // What happened while nobody was there to hear of it.
    cluster.until("get events --field-selector involvedObject.name=ill,reason=Killing", |events| {
        events.contains("failed liveness probe")
    });
    let last =
        now.get("Pod", "crashing")["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"].clone();
    assert_eq!(last, 3);
    agent.finish();
    cluster.finish();
}

#[test]
fn nobody_notices_that_a_board_was_cut_off() {
    std::thread::scope(|scope| {
        for cut in [Cut::Board, Cut::BoardAndPower, Cut::Server] {
            scope.spawn(move || cut_off(cut));
        }
    });
}
