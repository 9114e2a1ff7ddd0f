//! Sessions over a broker that does its worst, in virtual time.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::world::{Faults, NODE, Random, World};
use super::{Authority, resolver};
use crate::kinds::Object;
use crate::link::message::{
    Arrivals, Dependency, DesiredPod, EventReport, Order, PodName, Reference, Sequence, ToNode, ToServer,
};
use crate::link::mqtt::seal::{Seal, SessionId};
use crate::link::mqtt::tls::{SERVER_NAME, ServerTls};
use crate::link::mqtt::{Event, Incoming};
use crate::link::stream::{Channel, Frame, Stream, StreamRequest};
use crate::link::{Open, ServerEnd};

const LONG: Duration = Duration::from_secs(900);

fn event(number: u64, length: u64) -> ToServer {
    let pod = PodName { uid: "u".into(), namespace: "n".into(), name: "p".into() };
    let message = format!("{number} {}", "x".repeat(length as usize));
    ToServer::Event(EventReport { pod, field_path: String::new(), warning: false, reason: String::new(), message })
}

fn number(message: &ToServer) -> Option<u64> {
    let ToServer::Event(event) = message else { return None };
    event.message.split(' ').next().unwrap().parse().ok()
}

/// A pod of a version; its content does not compress.
fn pod(version: u64, length: u64) -> ToNode {
    let mut random = Random(version * 2 + 1);
    let data: String = (0..length).map(|_| char::from(b'#' + random.below(90) as u8)).collect();
    let pod: Object = json!({"version": version, "data": data}).as_object().unwrap().clone();
    ToNode::Pod(DesiredPod { pod, objects: Vec::new() })
}

fn version(message: &ToNode) -> u64 {
    let ToNode::Pod(pod) = message else { panic!() };
    let (version, data) = (pod.pod["version"].as_u64().unwrap(), pod.pod["data"].as_str().unwrap());
    assert_eq!(*message, self::pod(version, data.len() as u64), "it was changed on its way");
    version
}

/// As the fleet: on Hello everything, here the newest version, and from then on every change.
async fn fleet(
    mut end: ServerEnd,
    mut newest: tokio::sync::watch::Receiver<u64>,
    heard: tokio::sync::mpsc::UnboundedSender<u64>,
) {
    let mut sequence = Sequence::start();
    loop {
        let tell = tokio::select! {
            message = end.rx.recv() => match message {
                None => return,
                Some(envelope) if envelope.body == ToServer::Hello => true,
                Some(envelope) => {
                    let _ = heard.send(number(&envelope.body).unwrap());
                    false
                }
            },
            changed = newest.changed() => changed.is_ok(),
        };
        if tell {
            let version = *newest.borrow_and_update();
            if end.tx.send(sequence.wrap(pod(version, version % 7 * 3000))).await.is_err() {
                return;
            }
        }
    }
}

/// One run: what is said arrives, in order and unchanged, and when the worst is over both sides agree.
async fn run(seed: u64) {
    let mut random = Random(seed);
    let mut chance = |of: u64| if random.below(2) == 0 { 0 } else { random.below(of) };
    let faults = Faults {
        lost: chance(30),
        repeated: chance(100),
        swapped: chance(30),
        flipped: chance(20),
        cut_short: chance(20),
        replayed: chance(100),
        parted: false,
        delay: Duration::from_millis(chance(200)),
        rate: chance(100_000) + 8_000,
    };
    let mut world = World::new(seed, faults);
    let (newest, watched) = tokio::sync::watch::channel(1);
    let (heard, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut incoming = std::mem::replace(&mut world.incoming, tokio::sync::mpsc::channel(1).1);
    let serving = tokio::spawn(async move {
        while let Some(Incoming::Node(accepted)) = incoming.recv().await {
            assert_eq!(accepted.node, NODE);
            tokio::spawn(fleet(accepted.end, watched.clone(), heard.clone()));
        }
    });
    let mut sequence = Sequence::start();
    let mut arrivals = Arrivals::default();
    let (mut known, total) = (0, 120u64);
    let mut random = Random(seed ^ 0x5555);
    for round in 0..total {
        let say = world.node.tx.send(sequence.wrap(event(round, random.below(3000))));
        timeout(LONG, say).await.expect("the node is stuck").unwrap();
        if random.below(3) == 0 {
            newest.send_modify(|n| *n += 1);
        }
        match random.below(40) {
            0 => world.cut.notify_one(),
            1 => world.faults.send_modify(|f| f.parted = true),
            _ => world.faults.send_modify(|f| f.parted = false),
        }
        sleep(Duration::from_millis(random.below(1500))).await;
        while let Ok(envelope) = world.node.rx.try_recv() {
            assert_eq!(arrivals.judge(&envelope), Order::Next, "seed {seed}");
            known = version(&envelope.body);
        }
    }
    world.faults.send_replace(Faults::default());
    let healed = Instant::now();
    let last = *newest.borrow();
    while known < last {
        let envelope =
            timeout(LONG, world.node.rx.recv()).await.unwrap_or_else(|_| panic!("seed {seed}: no version {last}"));
        let envelope = envelope.unwrap();
        assert_eq!(arrivals.judge(&envelope), Order::Next, "seed {seed}");
        known = version(&envelope.body);
    }
    let mut next = 0;
    while next < total {
        let got =
            timeout(LONG, events.recv()).await.unwrap_or_else(|_| panic!("seed {seed}: no event {next}")).unwrap();
        assert!(got <= next, "seed {seed}: event {got} came before {next}");
        next = next.max(got + 1);
    }
    // The longest pause after refusals, and a handshake nobody answered.
    assert!(healed.elapsed() < Duration::from_secs(300 + 90 + 20), "seed {seed}: {:?}", healed.elapsed());
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_said_arrives_whatever_the_broker_does() {
    for seed in 1..=12 {
        run(seed * 0x9e37_79b9).await;
    }
}

async fn open(world: &mut World, end: &ServerEnd) -> (Stream, Stream) {
    let (ours, theirs) = Stream::pair();
    let request = StreamRequest::PortForward { pod: "u".into(), port: 1 };
    end.streams.send(Open { request, stream: theirs }).await.unwrap();
    (ours, timeout(LONG, world.node.streams.recv()).await.unwrap().unwrap().stream)
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_works() {
    let faults = Faults { rate: 8_000, delay: Duration::from_millis(500), ..Faults::default() };
    let mut world = World::new(7, faults);
    let begun = Instant::now();
    let mut end = world.end().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "connected after {:?}", begun.elapsed());
    end.rx.recv().await.unwrap();

    // A large object, and a stream beside it.
    let mut down = Sequence::start();
    let (mut ours, theirs) = open(&mut world, &end).await;
    let begun = Instant::now();
    end.tx.send(down.wrap(pod(1, 1 << 20))).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let asked = Instant::now();
    ours.tx.send(Frame { channel: Channel::Stdin, data: Bytes::from_static(b"ls\n") }).await.unwrap();
    let mut theirs = theirs;
    timeout(LONG, theirs.rx.recv()).await.unwrap().unwrap();
    let keystroke = asked.elapsed();
    assert!(keystroke < Duration::from_secs(3), "a keystroke took {keystroke:?}");
    assert_eq!(version(&timeout(LONG, world.node.rx.recv()).await.unwrap().unwrap().body), 1);
    assert!(begun.elapsed() < Duration::from_secs(220), "1 MiB took {:?}", begun.elapsed());

    // A stream that has more to say than the link can carry.
    let flood = tokio::spawn(async move {
        let data = Bytes::from(vec![b'x'; 32 * 1024]);
        while theirs.tx.send(Frame { channel: Channel::Stdout, data: data.clone() }).await.is_ok() {}
    });
    let drain = tokio::spawn(async move {
        let mut bytes = 0;
        let until = Instant::now() + Duration::from_secs(120);
        while let Ok(Some(frame)) = tokio::time::timeout_at(until, ours.rx.recv()).await {
            bytes += frame.data.len();
        }
        bytes
    });
    let mut up = Sequence::start();
    let mut worst = Duration::ZERO;
    sleep(Duration::from_secs(30)).await;
    for round in 0..20 {
        sleep(Duration::from_secs(2)).await;
        let said = Instant::now();
        world.node.tx.send(up.wrap(event(round, 10))).await.unwrap();
        assert_eq!(number(&timeout(LONG, end.rx.recv()).await.unwrap().unwrap().body), Some(round));
        worst = worst.max(said.elapsed());
    }
    assert!(worst < Duration::from_secs(2), "a status took {worst:?}");
    let bytes = drain.await.unwrap();
    assert!(bytes > 120 * 8_000 / 2, "{bytes} bytes in 120 s");
    flood.abort();
    assert!(world.incoming.try_recv().is_err(), "another session was needed");
}

#[tokio::test(start_paused = true)]
async fn a_stream_opens_beside_a_long_message() {
    let faults = Faults { rate: 8_000, delay: Duration::from_millis(250), ..Faults::default() };
    let mut world = World::new(7, faults);
    let mut end = world.end().await;
    end.rx.recv().await.unwrap();
    end.tx.send(Sequence::start().wrap(pod(1, 1 << 20))).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let asked = Instant::now();
    let (ours, mut theirs) = open(&mut world, &end).await;
    ours.tx.send(Frame { channel: Channel::Stdin, data: Bytes::from_static(b"ls\n") }).await.unwrap();
    timeout(LONG, theirs.rx.recv()).await.unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
}

/// A pod whose status is another each time it is told, with a large object that stays.
fn with_object(version: u64) -> ToNode {
    let reference = Reference { resource: "configmaps".into(), namespace: "n".into(), name: "large".into() };
    let ToNode::Pod(DesiredPod { pod: large, .. }) = pod(1, 1 << 20) else { panic!() };
    let pod = json!({"version": version}).as_object().unwrap().clone();
    ToNode::Pod(DesiredPod { objects: vec![Dependency { reference, object: Some(large) }], pod })
}

#[tokio::test(start_paused = true)]
async fn a_long_message_arrives_by_a_link_that_breaks() {
    let faults = Faults { rate: 8_000, delay: Duration::from_millis(250), ..Faults::default() };
    let mut world = World::new(7, faults);
    let cut = world.cut.clone();
    let breaking = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(60)).await;
            cut.notify_one();
        }
    });
    let begun = Instant::now();
    let mut sessions = 0;
    loop {
        let mut end = world.end().await;
        sessions += 1;
        assert_eq!(end.rx.recv().await.unwrap().body, ToServer::Hello);
        let told = with_object(sessions);
        end.tx.send(Sequence::start().wrap(told.clone())).await.unwrap();
        tokio::select! {
            _ = end.rx.recv() => {}
            heard = world.node.rx.recv() => {
                assert!(heard.unwrap().body == told, "it was changed on its way");
                break;
            }
        }
    }
    breaking.abort();
    // Without harm it takes 150 s.
    assert!(sessions > 2 && begun.elapsed() < Duration::from_secs(260), "{sessions} sessions, {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_session_in_which_nothing_is_said_is_silent() {
    let mut world = World::new(3, Faults::default());
    let mut end = world.end().await;
    end.rx.recv().await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let before = world.tap.lock().unwrap().len();
    sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(world.tap.lock().unwrap().len(), before);
}

#[tokio::test(start_paused = true)]
async fn an_old_beginning_disturbs_nobody() {
    let mut world = World::new(3, Faults::default());
    let mut end = world.end().await;
    end.rx.recv().await.unwrap();
    let old = world.tap.lock().unwrap().clone();
    for _ in 0..3 {
        for (topic, payload) in old.iter().filter(|(topic, _)| topic.contains("/u/")) {
            let (topic, payload) = (topic.clone(), payload.clone());
            world.to_server.send(Event::Message { topic, payload }).await.unwrap();
            sleep(Duration::from_millis(300)).await;
        }
        // The same beginning under the name of another session.
        let (topic, payload) = old.iter().find(|(topic, _)| topic.contains("/u/")).unwrap().clone();
        let mut payload = payload.to_vec();
        payload[0] ^= 1;
        world.to_server.send(Event::Message { topic, payload: payload.into() }).await.unwrap();
        sleep(Duration::from_millis(300)).await;
    }
    sleep(Duration::from_secs(100)).await;
    let mut sequence = Sequence::start();
    world.node.tx.send(sequence.wrap(event(1, 1))).await.unwrap();
    assert_eq!(number(&end.rx.recv().await.unwrap().body), Some(1), "the session was disturbed");
    assert!(world.incoming.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_node_with_another_nodes_certificate_is_refused() {
    let authority = Authority::new();
    let mut world = World::with(&authority, authority.node_tls("pi-2"), 5, Faults::default());
    timeout(Duration::from_secs(100), world.incoming.recv()).await.expect_err("it was let in");
    assert_eq!(world.state.borrow().connected, None);
}

/// Shakes hands; what the client and the server say to it.
fn handshake(client: &mut Seal, server: &mut Seal) -> (Result<(), String>, Result<(), String>) {
    let mut plain = bytes::BytesMut::new();
    for _ in 0..4 {
        while let Some(message) = client.take().unwrap() {
            if let Err(error) = server.open(message, &mut plain) {
                return (Ok(()), Err(error.to_string()));
            }
        }
        while let Some(message) = server.take().unwrap() {
            if let Err(error) = client.open(message, &mut plain) {
                return (Err(error.to_string()), Ok(()));
            }
        }
    }
    (Ok(()), Ok(()))
}

#[test]
fn only_the_server_is_taken_for_the_server() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let time = || std::sync::Arc::new(rustls::time_provider::DefaultTimeProvider);
    let tls = |ca: &Authority, leaf| ServerTls::new(ca.certificate.clone(), resolver(leaf), time()).unwrap();
    for (what, server, fits) in [
        ("the server", authority.server_tls(), true),
        ("the broker", tls(&authority, authority.server(&["broker.example"])), false),
        ("a node", tls(&authority, authority.client("system:node:pi-2")), false),
        ("another cluster", tls(&stranger, stranger.server(&[SERVER_NAME])), false),
    ] {
        let id = SessionId::first();
        let mut client = Seal::client(id, authority.node_tls(NODE).inner).unwrap();
        let mut server = Seal::server(id, server.inner).unwrap();
        let (client, _) = handshake(&mut client, &mut server);
        assert_eq!(client.is_ok(), fits, "{what}: {client:?}");
    }
    let id = SessionId::first();
    let mut client = Seal::client(id, authority.trusting(stranger.client("system:node:pi-1")).inner).unwrap();
    let mut server = Seal::server(id, authority.server_tls().inner).unwrap();
    let (_, server) = handshake(&mut client, &mut server);
    assert!(server.is_err(), "a node of another cluster was taken in");
}

#[test]
fn every_harm_to_a_message_is_seen() {
    let authority = Authority::new();
    let (node, server) = (authority.node_tls(NODE).inner, authority.server_tls().inner);
    let established = || {
        let id = SessionId::first();
        let (mut client, mut server) =
            (Seal::client(id, node.clone()).unwrap(), Seal::server(id, server.clone()).unwrap());
        assert_eq!(handshake(&mut client, &mut server), (Ok(()), Ok(())));
        client.seal(b"first").unwrap();
        let first = client.take().unwrap().unwrap();
        client.seal(b"second").unwrap();
        (server, first, client.take().unwrap().unwrap())
    };
    let mut plain = bytes::BytesMut::new();
    let (_, first, _) = established();
    for at in 20..first.len() {
        let (mut server, first, second) = established();
        let mut harmed = first.to_vec();
        harmed[at] ^= 0x10;
        let result = server.open(harmed.into(), &mut plain).and_then(|()| server.open(second, &mut plain));
        // Two bytes of a record's header mean nothing.
        assert!(result.is_err() || matches!(at, 21 | 22) && &plain[..] == b"firstsecond", "byte {at}");
        plain.clear();
    }
    for length in 20..first.len() {
        let (mut server, first, second) = established();
        let result = server.open(first.slice(..length), &mut plain).and_then(|()| server.open(second, &mut plain));
        assert!(result.is_err(), "cut to {length}");
        assert!(plain.is_empty());
    }
    let (mut server, _, second) = established();
    assert!(server.open(second, &mut plain).is_err(), "the second before the first");
    let (mut server, first, second) = established();
    let renumbered = [&first[..20], &second[20..]].concat();
    assert!(server.open(renumbered.into(), &mut plain).is_err(), "the second with the number of the first");
    assert!(plain.is_empty());
    let (mut server, first, second) = established();
    let mut foreign = first.to_vec();
    foreign[3] ^= 1;
    for message in [&foreign.into(), &first, &first, &second, &first] {
        server.open(message.clone(), &mut plain).unwrap();
    }
    assert_eq!(&plain[..], b"firstsecond", "what is of another session or came again was passed by");
}
