//! From outside, or with the certificate of a board that went over to somebody else.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, LastWill, Packet, SubscribeReasonCode};
use rumqttc::mqttbytes::{Protocol, QoS};
use umiak::link::membership::{Reply, Token, cluster_id};

use crate::attacker::{Attacker, Heard, Papers, introduction, packet, publish, subscribe};
use crate::common::fleet::{Agent, Lan};
use crate::common::{Cluster, Netns, PATIENCE, images};

/// What nobody but pi-1 may read.
const SECRET: &str = "8Zq1vX0wT5kR7mJ3";

/// A cluster with a board that runs a pod, and somebody who means harm beside it.
struct Stage {
    lan: Lan,
    cluster: Cluster,
    victim: Agent,
    netns: Netns,
    address: String,
    dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        let mut lan = Lan::new();
        let cluster = Cluster::on(&mut lan);
        let mut victim = Agent::new(&mut lan, "pi-1");
        cluster.join(&mut victim);
        victim.import(&images::archive(victim.dir.path(), "busybox.tar", &images::BUSYBOX));
        cluster.k(&format!("create secret generic s --from-literal=word={SECRET}"));
        cluster.apply(
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 0, \
             containers: [{name: c, image: busybox, command: [sleep, '1000'], envFrom: [{secretRef: {name: s}}]}]}}",
        );
        cluster.wait_ready("a");
        let netns = Netns::new();
        let address = lan.plug(&netns);
        Self { lan, cluster, victim, netns, address, dir: tempfile::tempdir().unwrap() }
    }

    fn attacker(&self) -> Attacker<'_> {
        Attacker { netns: &self.netns, server: "192.168.77.1:8883".into(), dir: self.dir.path().to_owned() }
    }

    fn token(&self, args: &[&str]) -> Token {
        self.cluster.token(args).parse().unwrap()
    }

    /// Does what must be refused, and finds it in the log: one warning, of who, with these words.
    fn refused<T>(&self, what: &str, who: &str, words: &[&str], attack: impl FnOnce() -> T) -> T {
        let before = self.cluster.log().len();
        let outcome = attack();
        let began = Instant::now();
        let warnings = || {
            let log = self.cluster.log();
            let new = log[before..].lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
            new.map(str::to_owned).collect::<Vec<_>>()
        };
        while warnings().is_empty() {
            assert!(began.elapsed() < PATIENCE, "{what}: nothing was logged");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        let lines = warnings();
        eprintln!("{what}\n    {}", lines.join("\n    "));
        let [line] = lines.as_slice() else { panic!("{what}: {} lines", lines.len()) };
        for word in words.iter().chain([&who]) {
            assert!(line.contains(word), "{what}: the log does not say {word:?}");
        }
        assert!(!line.contains(SECRET));
        outcome
    }

    /// The board next door has noticed nothing: one session, no complaint, its pod as it was.
    fn assert_unharmed(&self) {
        let log = self.cluster.log();
        assert_eq!(log.matches("mqtt::server: the node is connected node=\"pi-1\"").count(), 1);
        let said = self.victim.log();
        let complaints: Vec<_> = said.lines().filter(|l| l.contains("link::") && l.contains("WARN")).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
        assert!(self.cluster.k("exec a -- env").contains(&format!("word={SECRET}\n")));
    }

    fn server_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.cluster.daemon_pid())).unwrap().count()
    }
}

fn connected_then(heard: &Heard) -> &[Packet] {
    let [Packet::ConnAck(ack), rest @ ..] = heard.packets.as_slice() else { panic!("{heard:?}") };
    assert_eq!(ack.code, ConnectReturnCode::Success);
    rest
}

#[test]
fn whoever_has_no_right_is_refused_and_named() {
    let stage = Stage::set();
    let a = stage.attacker();
    let me = stage.address.as_str();
    let files = stage.server_files();

    // Tokens.
    let used = stage.token(&[]);
    let papers = a.becomes(&used, "mallory");
    let short = stage.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    let named = stage.token(&["--node-name", "pi-7"]);
    let guessed = Token { secret: "0".repeat(32), ..named.clone() };
    let invented = Token { id: "abcdef".into(), ..guessed.clone() };
    let taken = stage.token(&[]);
    let mut told = Vec::new();
    for (what, token, name, words) in [
        ("a token that was used", &used, "eve", "the token is unknown"),
        ("a token that has expired", &short, "eve", "the token"),
        ("a guessed secret", &guessed, "eve", "the token is unknown"),
        ("an invented token", &invented, "eve", "the token is unknown"),
        ("a token for another node", &named, "eve", "the token is for node \"pi-7\""),
        ("the name of a node", &taken, "pi-1", "is taken by a node that is connected"),
        ("the name of the server's own node", &taken, "board", "is the server itself"),
    ] {
        let words = ["a certificate is refused", &token.id, name, words];
        let reply = stage.refused(what, me, &words, || a.joins(token, name));
        let Reply::Refused(refused) = reply else { panic!("{what}: granted") };
        told.push(refused.message);
    }
    assert_eq!(told[2], told[3], "the answer tells whether there is such a token");
    assert_eq!(stage.cluster.k("get nodes -o name"), "node/board\nnode/mallory\nnode/pi-1\n");

    // Certificates and identifiers.
    let cluster = cluster_id(&used.ca);
    let topic = |node: &str, rest: &str| format!("umiak/v1/{cluster}/system:node:{node}/{rest}");
    let admin = admin(&stage.cluster);
    let forged = Papers::forged("system:node:pi-1");
    let joining = "join-0123456789abcdef";
    let heard = stage.refused("a certificate of another cluster", me, &["UnknownIssuer"], || {
        a.says(Some(&forged), "pi-1", &subscribe(&[topic("pi-1", "d/#")]))
    });
    assert!(heard.ended && heard.packets.is_empty(), "{heard:?}");
    for (what, papers, id, words) in [
        (
            "the identifier of another node",
            Some(&papers),
            "pi-1",
            "\"pi-1\": it is the identifier of somebody else than mallory",
        ),
        ("its second connection", Some(&papers), "pi-1~s", "somebody else than mallory"),
        ("an identifier of wildcards", Some(&papers), "mallory/+#", "somebody else than mallory"),
        ("the server's identifier", Some(&papers), "umiak-server", "somebody else than mallory"),
        ("a node without a certificate", None, "pi-1", "somebody else than a client without certificate"),
        ("the administrator as a node", Some(&admin), "pi-1", "its certificate is not of a node"),
    ] {
        let heard = stage.refused(what, me, &["refused", words], || a.says(papers, id, &[]));
        let [Packet::ConnAck(ack)] = heard.packets.as_slice() else { panic!("{what}: {heard:?}") };
        assert!(ack.code != ConnectReturnCode::Success && heard.ended, "{what}: {heard:?}");
    }
    let willing = |topic: String, retain| {
        let mut hello = introduction("mallory");
        let message = Bytes::from_static(&[0; 8]);
        hello.last_will = Some(LastWill { topic, message, qos: QoS::AtMostOnce, retain });
        hello
    };
    let mut newer = introduction("mallory");
    newer.protocol = Protocol::V5;
    for (what, hello, words) in [
        ("the last will of another node", willing(topic("pi-1", "u/p"), false), "its last will is not allowed"),
        ("a last will that stays", willing(topic("mallory", "u/p"), true), "its last will is not allowed"),
        ("another protocol", newer, "it speaks another MQTT"),
    ] {
        let hello = packet(Packet::Connect(hello));
        let heard = stage.refused(what, me, &["refused \"mallory\"", words], || a.connect(Some(&papers)).says(&hello));
        assert!(heard.ended && heard.packets.len() == 1, "{what}: {heard:?}");
    }

    // Topics: whoever publishes where he may not is thrown out, and what he said is lost.
    let desired = br#"{"pod":{"metadata":{"name":"evil"}}}"#;
    for (what, papers, id, to) in [
        ("to the server as another node", Some(&papers), "mallory", topic("pi-1", "u/s")),
        ("another node's presence", Some(&papers), "mallory", topic("pi-1", "u/p")),
        ("to another node as the server", Some(&papers), "mallory", topic("pi-1", "d/s")),
        ("a reset of another node", Some(&papers), "mallory", topic("pi-1", "d/r")),
        ("to all as the server", Some(&papers), "mallory", format!("umiak/v1/{cluster}/all/d/server")),
        ("to itself as the server", Some(&papers), "mallory", topic("mallory", "d/s")),
        ("to who joins", Some(&papers), "mallory", format!("umiak/v1/{cluster}/join/{joining}/d")),
        ("to another cluster", Some(&papers), "mallory", topic("pi-1", "u/s").replace(&cluster, "c")),
        ("the broker's own topics", Some(&papers), "mallory", "$SYS/broker".into()),
        ("as a node, without a certificate", None, joining, topic("pi-1", "u/s")),
        ("to a node, without a certificate", None, joining, topic("pi-1", "d/s")),
    ] {
        let words = [id, ": may not publish to", &to];
        let heard = stage.refused(what, me, &words, || a.says(papers, id, &publish(&to, desired)));
        assert!(connected_then(&heard).is_empty() && heard.ended, "{what}: {heard:?}");
    }
    let theirs = ["#", "+/#", "$SYS/#", "umiak/v1/+/+/d/#", "umiak/#"].map(str::to_owned);
    let theirs: Vec<String> =
        theirs.into_iter().chain([topic("pi-1", "d/#"), topic("+", "d/s"), topic("mallory", "#")]).collect();
    for (what, papers, id) in
        [("every topic there is", Some(&papers), "mallory"), ("the same without a certificate", None, joining)]
    {
        let heard = stage.refused(what, me, &[id, ": may not subscribe to [\"#\", "], || {
            let mut wire = a.connect(papers);
            let mut heard = wire.says(&[packet(Packet::Connect(introduction(id))), subscribe(&theirs)].concat());
            // While it listens, the board next door is told something and answers.
            stage.cluster.k("exec a -- env");
            heard.packets.extend(wire.says(&packet(Packet::PingReq)).packets);
            heard
        });
        let [Packet::SubAck(ack), Packet::PingResp] = connected_then(&heard) else { panic!("{what}: {heard:?}") };
        assert_eq!(ack.return_codes, vec![SubscribeReasonCode::Failure; theirs.len()], "{what}");
    }

    // What is no MQTT, or no more.
    let whole = publish(&topic("mallory", "u/s"), desired);
    let flipped = [&[whole[0] ^ 0x10], &whole[1..]].concat();
    for (what, bytes, words) in [
        ("a packet of no type", vec![0xf0, 0], "malformed"),
        ("a packet that is too long", vec![0x30, 0xff, 0xff, 0x7f], "malformed"),
        ("a topic that is longer than its packet", vec![0x30, 3, 0, 9, b'x'], "malformed"),
        ("a packet cut short", [&whole[..whole.len() - 9], &[0xf0; 18]].concat(), "malformed"),
        ("a flipped bit", flipped, "malformed"),
        ("noise", b"GET / HTTP/1.1\r\n".repeat(9), "sent PUBACK"),
        ("a second introduction", packet(Packet::Connect(introduction("mallory"))), "sent CONNECT"),
        ("the broker's own words", vec![0x20, 2, 0, 0], "sent CONNACK"),
    ] {
        let heard = stage.refused(what, me, &[words], || a.says(Some(&papers), "mallory", &bytes));
        assert!(heard.no_message() && heard.ended, "{what}: {heard:?}");
    }
    let heard = stage.refused("MQTT without TLS", me, &["TLS handshake"], || {
        a.says_in_clear(&packet(Packet::Connect(introduction("pi-1"))))
    });
    assert!(heard.ended && heard.packets.is_empty(), "{heard:?}");

    // Messages to the server that only a session of this node could hold.
    let session = |number: u64| [&[7; 12][..], &number.to_be_bytes(), b"\x17\x03\x03\x00\x01x"].concat();
    for (what, rest, content, words) in [
        ("a message that is none", "u/s", b"x".to_vec(), "a message that belongs to no session"),
        ("a session that begins with noise", "u/s", session(0), "the session was disturbed"),
        ("a last will that is none", "u/p", b"x".to_vec(), "a last will that names no connection"),
    ] {
        let message = publish(&topic("mallory", rest), &content);
        let heard = stage.refused(what, "mallory", &[words], || a.says(Some(&papers), "mallory", &message));
        assert!(heard.no_message(), "{what}: {heard:?}");
    }

    // A board that was thrown out.
    stage.cluster.k("delete node mallory");
    let heard = stage.refused("a removed node", me, &["refused \"mallory\"", "is not valid any more"], || {
        a.says(Some(&papers), "mallory", &subscribe(&[topic("mallory", "d/#")]))
    });
    assert!(heard.ended && heard.packets.len() == 1, "{heard:?}");

    stage.assert_unharmed();
    let began = Instant::now();
    while stage.server_files() > files {
        assert!(began.elapsed() < PATIENCE, "connections are left: {} files, {files} before", stage.server_files());
        std::thread::sleep(Duration::from_millis(100));
    }
    flood(&stage, &topic("pi-1", "u/s"));
    stage.assert_unharmed();
    let Stage { lan: _lan, cluster, victim, .. } = stage;
    victim.finish();
    cluster.finish();
}

/// However often it is tried, and with however many words, the log stays small.
fn flood(stage: &Stage, to: &str) {
    let attacker = stage.attacker();
    let papers = attacker.becomes(&stage.token(&[]), "trudy");
    let before = stage.cluster.log().len();
    let mut wire = attacker.connect(Some(&papers));
    wire.says(&packet(Packet::Connect(introduction("trudy"))));
    let attempt = subscribe(&vec![format!("{to}{}", "x".repeat(1500)); 2]);
    wire.says(&attempt.repeat(1000));
    let log = stage.cluster.log()[before..].to_owned();
    let lines = log.lines().filter(|line| line.contains("may not subscribe")).count();
    assert!((50..200).contains(&lines), "{lines} lines for 1000 attempts");
    assert!(log.len() < 1 << 20, "{} bytes", log.len());
}

/// A certificate of the same CA that is not of a node.
fn admin(cluster: &Cluster) -> Papers {
    let config = std::fs::read_to_string(cluster.data_dir().join("admin.kubeconfig")).unwrap();
    let field = |name: &str| {
        let line = config.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        String::from_utf8(STANDARD.decode(line.trim_start_matches(':').trim()).unwrap()).unwrap()
    };
    Papers::of_pem(&field("client-certificate-data"), &field("client-key-data"))
}
