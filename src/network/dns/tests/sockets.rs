//! The name server on real sockets, in a network namespace of its own, with name servers outside the cluster.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Edns, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{RData, Record};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::network::services::Services;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 43, 0, 10), 53);
const WEB: &str = "web.default.svc.cluster.local.";

/// Runs a test on a machine of its own: `lo` with the Services' network and 192.0.2.0/24, and a directory.
fn machine(test: impl FnOnce(&Path) + Send + 'static) {
    let machine = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Resolvers ask for no IPv4 addresses where there are none but the loopback's.
        for command in [
            "link set lo up",
            "address add 203.0.113.1/32 dev lo",
            "route add local 10.43.0.0/16 dev lo",
            "route add local 192.0.2.0/24 dev lo",
        ] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "{command}");
        }
        test(tempfile::tempdir().unwrap().path());
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Starts the name server on a thread of this machine; it lives as long as what is returned.
fn start(room: &Path, upstream: &str) -> tokio::sync::oneshot::Sender<()> {
    fs::write(room.join("resolv.conf"), upstream).unwrap();
    let config = Config { resolv_conf: room.join("resolv.conf"), behind_stub: room.join("behind"), ..config() };
    let view = Services::default();
    services().into_iter().for_each(|service| view.put(service));
    let (stop, stopped) = tokio::sync::oneshot::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! { _ = run(view, config) => {}, _ = stopped => {} }
        });
    });
    let up = Instant::now();
    while udp(&query(WEB, RecordType::A), Duration::from_millis(50)).is_none_or(|answer| answer.answers.is_empty()) {
        assert!(up.elapsed() < Duration::from_secs(5), "the name server does not answer");
    }
    stop
}

fn udp(query: &Message, patience: Duration) -> Option<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(SERVER).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    // Refused as long as nobody listens.
    socket.send(&query.to_vec().unwrap()).ok()?;
    let mut packet = [0; 65535];
    let length = socket.recv(&mut packet).ok()?;
    Some(Message::from_vec(&packet[..length]).unwrap())
}

fn answer(name: &str) -> Message {
    udp(&query(name, RecordType::A), Duration::from_secs(5)).expect("an answer")
}

fn send_tcp(stream: &mut TcpStream, query: &Message) {
    let query = query.to_vec().unwrap();
    stream.write_all(&(query.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
}

fn receive_tcp(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).unwrap();
    Message::from_vec(&message).unwrap()
}

/// A name server outside the cluster.
struct Outside {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Outside {
    /// Answers by UDP, and by TCP, as told; `None`: not at all.
    fn start(address: &str, answer: impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static) -> Self {
        let address: SocketAddr = format!("{address}:53").parse().unwrap();
        let (asked, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, log) = (asked.clone(), seen.clone());
        let respond = Arc::new(move |packet: &[u8], is_tcp: bool| {
            let query = Message::from_vec(packet).unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            log.lock().unwrap().push(query.clone());
            answer(&query, is_tcp)
        });
        let socket = UdpSocket::bind(address).unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        let by_tcp = respond.clone();
        thread::spawn(move || {
            let mut packet = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut packet) {
                if let Some(answer) = respond(&packet[..length], false) {
                    socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
                }
            }
        });
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let query = receive_tcp(&mut stream).to_vec().unwrap();
                if let Some(answer) = by_tcp(&query, true) {
                    send_tcp(&mut stream, &answer);
                }
            }
        });
        Self { address, asked, seen }
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

fn reply(query: &Message, code: ResponseCode, answers: Vec<Record>) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.add_query(query.queries[0].clone());
    message.insert_answers(answers);
    message
}

fn address_of(query: &Message, ttl: u32, last: u8) -> Record {
    Record::from_rdata(query.queries[0].name().clone(), ttl, RData::A(A::new(198, 51, 100, last)))
}

/// Knows every name, by the same address.
fn knows_all(last: u8) -> impl Fn(&Message, bool) -> Option<Message> + Send + Sync + 'static {
    move |query, _| Some(reply(query, ResponseCode::NoError, vec![address_of(query, 60, last)]))
}

#[test]
fn names_of_the_cluster_by_udp_and_tcp() {
    machine(|room| {
        let _server = start(room, "");
        assert_eq!(texts(&answer(WEB).answers), [format!("{WEB} A 10.43.1.1")]);
        let mut stream = TcpStream::connect(SERVER).unwrap();
        // Several queries at once, one of them byte by byte.
        for n in 0..5 {
            let mut query = query(WEB, RecordType::A);
            query.metadata.id = n;
            send_tcp(&mut stream, &query);
        }
        let slow = query(WEB, RecordType::A).to_vec().unwrap();
        for byte in (slow.len() as u16).to_be_bytes().iter().chain(&slow) {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        let ids: Vec<u16> = (0..6).map(|_| receive_tcp(&mut stream).metadata.id).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 4711]);
        // What is no query ends the connection.
        stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn without_name_servers_outside_names_fail_at_once() {
    machine(|room| {
        let _server = start(room, "nameserver 10.43.0.10\n");
        let start = Instant::now();
        assert_eq!(answer("www.example.com.").metadata.response_code, ResponseCode::ServFail);
        let alias = answer("outside.shop.svc.cluster.local.");
        assert_eq!(texts(&alias.answers), ["outside.shop.svc.cluster.local. CNAME www.example.com."]);
        // Nobody listens there, and the kernel says so.
        fs::write(room.join("resolv.conf"), "nameserver 192.0.2.77\n").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(answer("www.example.org.").metadata.response_code, ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    });
}

#[test]
fn outside_names_are_asked_once() {
    machine(|room| {
        let outside = Outside::start("192.0.2.1", |query, _| {
            let name = query.queries[0].name().to_ascii();
            Some(match name.split('.').next().unwrap() {
                "short" => reply(query, ResponseCode::NoError, vec![address_of(query, 1, 1)]),
                "never" => reply(query, ResponseCode::NoError, vec![address_of(query, 0, 1)]),
                "many" => {
                    let all = (1..4).map(|last| address_of(query, 60, last)).collect();
                    reply(query, ResponseCode::NoError, all)
                }
                "missing" => {
                    let mut answer = reply(query, ResponseCode::NXDomain, Vec::new());
                    let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 20);
                    answer.add_authority(Record::from_rdata(
                        Name::from_ascii("example.").unwrap(),
                        60,
                        RData::SOA(soa),
                    ));
                    answer
                }
                _ => reply(query, ResponseCode::NoError, vec![address_of(query, 60, 9)]),
            })
        });
        let _server = start(room, "nameserver 192.0.2.1\n");
        let first = answer("Www.Example.");
        assert_eq!(texts(&first.answers), ["Www.Example. A 198.51.100.9"], "in the client's case");
        assert!(!first.metadata.authoritative && first.metadata.recursion_available && first.edns.is_none());
        assert_eq!(texts(&answer("wwW.example.").answers), ["wwW.example. A 198.51.100.9"]);
        assert_eq!(outside.asked(), 1);
        assert_eq!(outside.seen.lock().unwrap()[0].queries[0].name().to_ascii(), "www.example.");

        for _ in 0..3 {
            let missing = answer("missing.example.");
            assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(missing.authorities.len(), 1);
        }
        assert_eq!(outside.asked(), 1, "that a name is missing is remembered");

        let firsts: std::collections::BTreeSet<String> =
            (0..6).map(|_| answer("many.example.").answers[0].data.to_string()).collect();
        assert_eq!(firsts.len(), 3, "addresses take turns");
        outside.asked();

        answer("never.example.");
        answer("never.example.");
        assert_eq!(outside.asked(), 2);
        answer("short.example.");
        thread::sleep(Duration::from_millis(1100));
        answer("short.example.");
        assert_eq!(outside.asked(), 2);

        let alias = answer("outside.shop.svc.cluster.local.");
        assert_eq!(
            texts(&alias.answers),
            ["outside.shop.svc.cluster.local. CNAME www.example.com.", "www.example.com. A 198.51.100.9",]
        );
    });
}

#[test]
fn the_same_question_is_asked_once_at_a_time() {
    machine(|room| {
        let outside = Outside::start("192.0.2.1", |query, _| {
            thread::sleep(Duration::from_millis(200));
            Some(reply(query, ResponseCode::NoError, vec![address_of(query, 0, 1)]))
        });
        let _server = start(room, "nameserver 192.0.2.1\n");
        let clients = UdpSocket::bind("0.0.0.0:0").unwrap();
        clients.connect(SERVER).unwrap();
        for id in 0..50 {
            let mut query = query("www.example.", RecordType::A);
            query.metadata.id = id;
            clients.send(&query.to_vec().unwrap()).unwrap();
        }
        clients.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut packet = [0; 512];
        for _ in 0..50 {
            let length = clients.recv(&mut packet).unwrap();
            assert_eq!(Message::from_vec(&packet[..length]).unwrap().answers.len(), 1);
        }
        assert_eq!(outside.asked(), 1);
    });
}

#[test]
fn a_silent_server_is_passed_over() {
    machine(|room| {
        let silent = Outside::start("192.0.2.1", |_, _| None);
        let other = Outside::start("192.0.2.2", knows_all(2));
        let _server = start(room, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        assert_eq!(answer("a.example.").answers.len(), 1);
        assert_eq!((silent.asked(), other.asked()), (1, 1));
        assert_eq!(answer("b.example.").answers.len(), 1);
        assert_eq!((silent.asked(), other.asked()), (0, 1), "it is asked last for a while");
    });
}

#[test]
fn upstream_down_names_of_the_cluster_still_answer() {
    machine(|room| {
        let first = Outside::start("192.0.2.1", |_, _| None);
        let second = Outside::start("192.0.2.2", |_, _| None);
        let _server = start(room, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        let asked = thread::spawn({
            let namespace = fs::File::open("/proc/thread-self/ns/net").unwrap();
            move || {
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let start = Instant::now();
                let code = answer("www.example.").metadata.response_code;
                (code, start.elapsed())
            }
        });
        for _ in 0..100 {
            let start = Instant::now();
            assert_eq!(answer(WEB).answers.len(), 1);
            assert!(start.elapsed() < Duration::from_millis(500));
            thread::sleep(Duration::from_millis(10));
        }
        let (code, took) = asked.join().unwrap();
        assert_eq!(code, ResponseCode::ServFail);
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(first.asked() >= 1 && second.asked() >= 1);
        assert_eq!(answer("www.example.").metadata.response_code, ResponseCode::ServFail);
        assert_eq!((first.asked(), second.asked()), (0, 0), "remembered for a moment");
    });
}

#[test]
fn servers_that_refuse_or_know_no_edns() {
    machine(|room| {
        let _refusing = Outside::start("192.0.2.1", |query, _| Some(reply(query, ResponseCode::Refused, Vec::new())));
        let old = Outside::start("192.0.2.2", |query, is_tcp| {
            if query.edns.is_some() {
                let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
                answer.metadata.response_code = ResponseCode::FormErr;
                return Some(answer);
            }
            knows_all(2)(query, is_tcp)
        });
        let _server = start(room, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        assert_eq!(answer("a.example.").answers.len(), 1);
        assert_eq!(old.asked(), 2);
        // Where all refuse, that is the answer.
        fs::write(room.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(answer("b.example.").metadata.response_code, ResponseCode::Refused);
    });
}

#[test]
fn long_answers_come_by_tcp() {
    machine(|room| {
        let outside = Outside::start("192.0.2.1", |query, is_tcp| {
            let name = query.queries[0].name().to_ascii();
            let all: Vec<Record> = (0..100).map(|last| address_of(query, 60, last)).collect();
            Some(if is_tcp && name.starts_with("deaf") {
                return None;
            } else if is_tcp {
                reply(query, ResponseCode::NoError, all)
            } else {
                let mut answer = reply(query, ResponseCode::NoError, all[..20].to_vec());
                answer.metadata.truncation = true;
                answer
            })
        });
        let _server = start(room, "nameserver 192.0.2.1\n");
        let short = answer("long.example.");
        assert!(short.metadata.truncation && (25..100).contains(&short.answers.len()), "{}", short.answers.len());
        let mut stream = TcpStream::connect(SERVER).unwrap();
        send_tcp(&mut stream, &query("long.example.", RecordType::A));
        let whole = receive_tcp(&mut stream);
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
        assert_eq!(outside.asked(), 2);
        let mut large = query("long.example.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        large.edns = Some(edns);
        assert_eq!(udp(&large, Duration::from_secs(5)).unwrap().answers.len(), 100);
        // Part of an answer is better than none.
        let part = answer("deaf.example.");
        assert_eq!((part.answers.len(), part.metadata.truncation), (20, true));
    });
}

#[test]
fn forged_answers_are_not_heard() {
    machine(|room| {
        let forger = UdpSocket::bind("192.0.2.66:0").unwrap();
        let real = UdpSocket::bind("192.0.2.1:53").unwrap();
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, client)) = real.recv_from(&mut packet) {
                let query = Message::from_vec(&packet[..length]).unwrap();
                let good = reply(&query, ResponseCode::NoError, vec![address_of(&query, 60, 1)]);
                let bad = reply(&query, ResponseCode::NoError, vec![address_of(&query, 60, 66)]);
                let mut other_id = bad.clone();
                other_id.metadata.id = other_id.metadata.id.wrapping_add(1);
                let mut other_question = bad.clone();
                other_question.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                let mut no_answer = bad.clone();
                no_answer.metadata.message_type = MessageType::Query;
                forger.send_to(&bad.to_vec().unwrap(), client).unwrap();
                for message in [other_id, other_question, no_answer, good] {
                    real.send_to(&message.to_vec().unwrap(), client).unwrap();
                }
                real.send_to(&[0; 5], client).unwrap();
            }
        });
        let _server = start(room, "nameserver 192.0.2.1\n");
        assert_eq!(texts(&answer("www.example.").answers), ["www.example. A 198.51.100.1"]);
    });
}

#[test]
fn the_nodes_list_is_followed() {
    machine(|room| {
        let first = Outside::start("192.0.2.1", knows_all(1));
        let second = Outside::start("192.0.2.2", knows_all(2));
        let _server = start(room, "nameserver 127.0.0.53\n");
        assert_eq!(answer("www.example.").metadata.response_code, ResponseCode::ServFail);
        let expect = |last: u8| {
            let expected = [format!("www.example. A 198.51.100.{last}")];
            let patience = Instant::now();
            while texts(&answer("www.example.").answers) != expected {
                assert!(patience.elapsed() < Duration::from_secs(5), "waiting for {last}");
                thread::sleep(Duration::from_millis(20));
            }
        };
        // What is behind the stub becomes known later.
        fs::write(room.join("behind"), format!("nameserver {}\n", first.address.ip())).unwrap();
        expect(1);
        // Replaced, as most do it.
        fs::write(room.join("new"), format!("nameserver {}\n", second.address.ip())).unwrap();
        fs::rename(room.join("new"), room.join("resolv.conf")).unwrap();
        expect(2);
        // A link into another directory, whose file changes.
        fs::create_dir(room.join("run")).unwrap();
        fs::write(room.join("run/list"), "nameserver 192.0.2.1\n").unwrap();
        fs::remove_file(room.join("resolv.conf")).unwrap();
        std::os::unix::fs::symlink("run/list", room.join("resolv.conf")).unwrap();
        expect(1);
        fs::write(room.join("run/list"), "nameserver 192.0.2.2\n").unwrap();
        expect(2);
    });
}

#[test]
fn aliases_of_outside_names_and_long_chains() {
    machine(|room| {
        let _outside = Outside::start("192.0.2.1", |query, _| {
            let name = query.queries[0].name().clone();
            let other = Name::from_ascii("cdn.example.").unwrap();
            let alias = Record::from_rdata(name, 60, RData::CNAME(CNAME(other.clone())));
            let address = Record::from_rdata(other, 60, RData::A(A::new(198, 51, 100, 7)));
            Some(reply(query, ResponseCode::NoError, vec![alias, address]))
        });
        let _server = start(room, "nameserver 192.0.2.1\n");
        assert_eq!(
            texts(&answer("outside.shop.svc.cluster.local.").answers),
            [
                "cdn.example. A 198.51.100.7",
                "outside.shop.svc.cluster.local. CNAME www.example.com.",
                "www.example.com. CNAME cdn.example.",
            ]
        );
    });
}

#[test]
fn resolvers_of_libraries() {
    machine(|room| {
        let _outside = Outside::start("192.0.2.1", knows_all(2));
        let _server = start(room, "nameserver 192.0.2.1\n");
        let list = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.43.0.10\noptions ndots:5\n";
        fs::write(room.join("pods"), list).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let bind = MsFlags::MS_BIND;
        mount(
            Some(&room.join("pods")),
            &fs::canonicalize("/etc/resolv.conf").unwrap(),
            None::<&str>,
            bind,
            None::<&str>,
        )
        .unwrap();
        for (command, expected) in [
            ("getent ahostsv4 web", "10.43.1.1"),
            ("getent ahosts web.default", "10.43.1.1"),
            ("getent ahosts pod-a.peers", "10.42.0.5"),
            ("getent ahosts inside.shop", "web.default.svc.cluster.local"),
            ("getent ahostsv4 www.example.com", "198.51.100.2"),
            ("getent hosts 10.43.1.1", "web.default.svc.cluster.local"),
            ("busybox nslookup web", "10.43.1.1"),
            (
                "busybox nslookup -type=srv _http._tcp.web.default.svc.cluster.local",
                "100 80 web.default.svc.cluster.local",
            ),
            ("busybox nslookup outside.shop.svc.cluster.local", "canonical name = www.example.com"),
            ("busybox nslookup 10.42.0.5", "pod-a.peers.default.svc.cluster.local"),
        ] {
            let (program, arguments) = command.split_once(' ').unwrap();
            let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains(expected), "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
        }
        let output = Command::new("getent").args(["ahosts", "nothing.default.svc.cluster.local."]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "no such name");
    });
}
