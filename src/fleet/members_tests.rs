//! Boards that join, come back, and are turned away.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;

use super::tokens::{self, NewToken};
use super::*;
use crate::events;
use crate::kinds::table::KindTable;
use crate::kinds::{Object, meta};
use crate::link::membership::{Granted, Reason, Refused, Reply, Request};
use crate::link::message::{NodeReport, PodName, PodReport, Sequence};
use crate::link::{NodeEnd, local};
use crate::pki::Ca;
use crate::pki::node::{NodeKey, Subject};
use crate::registry::{DeleteOptions, WriteOptions};
use crate::store::{Options, Store};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use members::{Cluster, Members};

struct Bench {
    dir: tempfile::TempDir,
    registry: Registry,
    members: Arc<Members>,
    _events: events::EventWriter,
}

/// A board with a key of its own.
struct Board {
    key: NodeKey,
    request: Request,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(dir.path().join("db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let (recorder, writer) = events::recorder();
        let fleet = Fleet::new(registry.clone(), recorder).unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("pki")).unwrap());
        let cluster = Cluster {
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            own_node: Some("server".into()),
            broker: None,
        };
        let members = Members::new(fleet, ca, cluster);
        Self { dir, registry, members, _events: writer }
    }

    fn board(&self, name: &str) -> Board {
        let number = std::fs::read_dir(self.dir.path()).unwrap().count();
        let key = NodeKey::open(&self.dir.path().join(format!("key.{number}"))).unwrap();
        let csr = STANDARD.encode(key.request().unwrap());
        let request = Request { name: name.into(), name_is_wanted: false, csr, token: None, pod_cidr: None };
        Board { key, request }
    }

    async fn token(&self, new: NewToken) -> Option<(String, String)> {
        let (id, secret, object) = new.make(tokens::now()).unwrap();
        let kind = self.registry.kinds().by_resource("secrets").unwrap();
        let object = object.as_object().unwrap().clone();
        self.registry.create(&kind, tokens::NAMESPACE, object, &WriteOptions::by("test")).await.unwrap();
        Some((id, secret))
    }

    async fn ask(&self, board: &Board) -> Result<Granted, Refused> {
        match self.members.decide(board.request.clone()).await {
            Reply::Granted(granted) => Ok(*granted),
            Reply::Refused(refused) => Err(refused),
        }
    }

    async fn join(&self, name: &str, new: NewToken) -> (Board, Result<Granted, Refused>) {
        let mut board = self.board(name);
        board.request.token = self.token(new).await;
        let answer = self.ask(&board).await;
        (board, answer)
    }

    fn nodes(&self) -> Arc<Kind> {
        self.registry.kinds().by_resource("nodes").unwrap()
    }

    fn node(&self, name: &str) -> Object {
        self.registry.get(&self.nodes(), "", name).unwrap()
    }

    async fn delete(&self, name: &str) {
        self.registry.delete(&self.nodes(), "", name, &DeleteOptions::now()).await.unwrap();
    }

    fn connect(&self, board: &Board, name: &str) -> NodeEnd {
        let member = self.members.admit(name, &board.key.fingerprint()).unwrap();
        let (server, node) = local::pair();
        let members = self.members.clone();
        tokio::spawn(async move {
            let node = member.name.clone();
            members.serve(&member, server).await;
            members.lost(&node).await;
        });
        node
    }

    async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        for _ in 0..600 {
            if test(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not {what}");
    }

    fn ready(&self, name: &str) -> String {
        meta::condition(&self.node(name), "Ready").unwrap()["status"].as_str().unwrap().to_owned()
    }
}

fn ready_report() -> ToServer {
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    ToServer::Node(NodeReport { labels: Object::new(), status })
}

#[tokio::test]
async fn a_board_joins_once_with_a_token() {
    let bench = Bench::start().await;
    let new = NewToken { ttl: Duration::from_secs(60), node: None, labels: vec![("site".into(), "roof".into())] };
    let (board, granted) = bench.join("pi", new).await;
    let granted = granted.unwrap();
    let node = bench.node("pi");
    assert_eq!(granted.pod_cidr.to_string(), "10.42.1.0/24");
    assert_eq!(meta::str_at(&node, "/spec/podCIDR"), "10.42.1.0/24");
    assert_eq!(meta::label(&node, "site"), Some("roof"));
    assert_eq!(meta::label(&node, "kubernetes.io/hostname"), Some("pi"));
    assert_eq!(bench.ready("pi"), "Unknown");
    let der = crate::pki::pem_certificates(&granted.certificate).unwrap();
    let subject = Subject::of(&der[0]).unwrap();
    assert_eq!((subject.node(), subject.key), (Some("pi"), board.key.fingerprint()));
    assert!(bench.members.counts(&subject));

    // The answer was lost, or the certificate ends: the key is enough.
    assert_eq!(bench.ask(&board).await.unwrap().name, "pi");
    let renewal = Board { key: board.key, request: Request { token: None, ..board.request.clone() } };
    assert_eq!(bench.ask(&renewal).await.unwrap().pod_cidr, granted.pod_cidr);

    // The token is used up.
    let mut other = bench.board("pi-2");
    other.request.token = board.request.token;
    let refused = bench.ask(&other).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Token, "{refused}");
    assert!(bench.registry.get(&bench.nodes(), "", "pi-2").is_err());
}

#[tokio::test]
async fn who_may_not_join_is_told_why() {
    let bench = Bench::start().await;
    let plain = NewToken::default;
    let named = |name: &str| NewToken { node: Some(name.into()), ..NewToken::default() };
    let (first, granted) = bench.join("pi", plain()).await;
    granted.unwrap();
    for (name, new, wanted, reason, says) in [
        ("pi", plain(), false, Reason::Name, "another key"),
        ("server", plain(), false, Reason::Name, "the server itself"),
        ("Not A Name", plain(), false, Reason::Name, "no node name"),
        ("b", named("a"), true, Reason::Name, "for node \"a\""),
    ] {
        let mut board = bench.board(name);
        (board.request.token, board.request.name_is_wanted) = (bench.token(new).await, wanted);
        let refused = bench.ask(&board).await.unwrap_err();
        assert_eq!(refused.reason, reason, "{name}: {refused}");
        assert!(refused.message.contains(says), "{refused}");
        // A refusal uses no token up.
        (board.request.name, board.request.name_is_wanted) = ("x".into(), false);
        let again = bench.ask(&board).await;
        assert!(again.is_ok(), "{again:?}");
        let given = again.unwrap().name;
        bench.delete(&given).await;
    }
    let expired = tokens::now() - Duration::from_secs(100);
    let (id, secret, object) = NewToken { ttl: Duration::from_secs(60), ..plain() }.make(expired).unwrap();
    let kind = bench.registry.kinds().by_resource("secrets").unwrap();
    let object = object.as_object().unwrap().clone();
    bench.registry.create(&kind, tokens::NAMESPACE, object, &WriteOptions::by("test")).await.unwrap();
    let (good, _) = bench.token(plain()).await.unwrap();
    for (token, says) in [
        (Some((id, secret)), "expired"),
        (Some((good, "guess".to_owned())), "unknown"),
        (Some(("../x".to_owned(), "y".to_owned())), "unknown"),
        (None, "removed"),
    ] {
        let mut board = bench.board("late");
        board.request.token = token;
        let refused = bench.ask(&board).await.unwrap_err();
        assert!(refused.message.contains(says), "{refused}");
    }
    let mut forged = bench.board("late");
    forged.request.csr = STANDARD.encode("nonsense");
    assert_eq!(bench.ask(&forged).await.unwrap_err().reason, Reason::Malformed);
    // Another key does not get the first one's certificate.
    assert!(bench.members.admit("pi", &bench.board("pi").key.fingerprint()).is_err());
    assert!(bench.members.admit("late", &first.key.fingerprint()).is_err());
}

#[tokio::test]
async fn a_token_for_a_node_replaces_the_board_behind_it() {
    let bench = Bench::start().await;
    let (old, granted) = bench.join("pi", NewToken::default()).await;
    let range = granted.unwrap().pod_cidr;
    let named = || NewToken { node: Some("pi".into()), ..NewToken::default() };
    let mut link = bench.connect(&old, "pi");
    bench.until("connected", |b| b.members.is_connected("pi")).await;
    let (_, refused) = bench.join("raspberrypi", named()).await;
    assert!(refused.unwrap_err().message.contains("connected"));
    link.rx.close();
    drop(link);
    bench.until("away", |b| !b.members.is_connected("pi")).await;
    let (new, granted) = bench.join("raspberrypi", named()).await;
    let granted = granted.unwrap();
    assert_eq!((granted.name.as_str(), granted.pod_cidr), ("pi", range));
    assert!(bench.members.admit("pi", &new.key.fingerprint()).is_ok());
    assert!(bench.members.admit("pi", &old.key.fingerprint()).is_err(), "the old key is dead");
}

#[tokio::test]
async fn deleting_a_node_ends_its_membership() {
    let bench = Bench::start().await;
    let members = bench.members.clone();
    let watching = tokio::spawn(async move { members.watch_over().await });
    tokio::task::yield_now().await;
    let (board, granted) = bench.join("pi", NewToken::default()).await;
    granted.unwrap();
    let mut link = bench.connect(&board, "pi");
    bench.until("connected", |b| b.members.is_connected("pi")).await;
    bench.delete("pi").await;
    bench.until("ended", |b| !b.members.is_connected("pi")).await;
    assert!(link.rx.recv().await.is_none());
    assert_eq!(bench.members.admit("pi", &board.key.fingerprint()).unwrap_err().reason, Reason::Unknown);
    assert_eq!(
        bench
            .ask(&Board { key: board.key, request: Request { token: None, ..board.request } })
            .await
            .unwrap_err()
            .reason,
        Reason::Unknown
    );
    // A Node of the same name, made anew, is another one.
    let (_, granted) = bench.join("pi", NewToken::default()).await;
    assert_eq!(granted.unwrap().pod_cidr.to_string(), "10.42.1.0/24");
    bench.members.tidy().await.unwrap();
    assert_eq!(bench.registry.store().count("nodekeys.umiak", None), 1);
    watching.abort();
}

#[tokio::test]
async fn a_dead_link_makes_a_node_unknown_and_a_new_one_ready() {
    let bench = Bench::start().await;
    let (board, granted) = bench.join("pi", NewToken::default()).await;
    granted.unwrap();
    let talk = async |link: &NodeEnd| {
        let mut sequence = Sequence::start();
        link.tx.send(sequence.wrap(ToServer::Hello)).await.unwrap();
        link.tx.send(sequence.wrap(ready_report())).await.unwrap();
    };
    let link = bench.connect(&board, "pi");
    talk(&link).await;
    bench.until("ready", |b| b.ready("pi") == "True").await;
    let began = std::time::Instant::now();
    drop(link);
    bench.until("unknown", |b| b.ready("pi") == "Unknown").await;
    assert!(began.elapsed() < Duration::from_secs(3));
    let link = bench.connect(&board, "pi");
    talk(&link).await;
    bench.until("ready", |b| b.ready("pi") == "True").await;

    // A second carrier takes the place of the first, and nobody notices.
    let second = bench.connect(&board, "pi");
    talk(&second).await;
    bench.until("replaced", |_| link.tx.is_closed()).await;
    drop(link);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(bench.ready("pi"), "True");
}

#[tokio::test]
async fn a_removed_node_cannot_bring_itself_back() {
    let bench = Bench::start().await;
    let (board, granted) = bench.join("pi", NewToken::default()).await;
    granted.unwrap();
    let link = bench.connect(&board, "pi");
    bench.delete("pi").await;
    let mut sequence = Sequence::start();
    for message in [ToServer::Hello, ready_report()] {
        link.tx.send(sequence.wrap(message)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.registry.get(&bench.nodes(), "", "pi").unwrap_err().code, 404);
}

#[tokio::test]
async fn a_member_has_no_say_in_what_is_not_its_own() {
    let bench = Bench::start().await;
    let (board, granted) = bench.join("pi", NewToken::default()).await;
    granted.unwrap();
    let link = bench.connect(&board, "pi");
    let kind = bench.registry.kinds().by_resource("pods").unwrap();
    let options = WriteOptions::by("test");
    let mut names = Vec::new();
    for (name, node) in [("foreign", "server"), ("own", "pi")] {
        let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "x"}]});
        let pod = json!({"metadata": {"name": name}, "spec": spec}).as_object().unwrap().clone();
        let made = bench.registry.create(&kind, "default", pod, &options).await.unwrap();
        names.push(PodName { uid: meta::uid(&made).into(), namespace: "default".into(), name: name.into() });
    }
    bench.registry.delete(&kind, "default", "foreign", &DeleteOptions::default()).await.unwrap();
    let mut sequence = Sequence::start();
    for (pod, ip) in [(&names[0], "10.42.1.9"), (&names[1], "10.42.0.9"), (&names[1], "10.42.1.9")] {
        let status = json!({"phase": "Running", "podIP": ip});
        let report = ToServer::PodStatus(PodReport { pod: pod.clone(), status });
        link.tx.send(sequence.wrap(report)).await.unwrap();
        link.tx.send(sequence.wrap(ToServer::PodGone(pod.clone()))).await.unwrap();
    }
    let get = |name: &str| bench.registry.get(&kind, "default", name).unwrap();
    bench.until("running", |_| meta::str_at(&get("own"), "/status/podIP") == "10.42.1.9").await;
    assert!(!meta::is_deleting(&get("own")));
    assert_eq!(meta::str_at(&get("foreign"), "/status/podIP"), "");
}
