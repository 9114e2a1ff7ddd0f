//! Names: a hundred thousand queries, and what becomes of them when nobody outside answers.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::common::{Cluster, run, run_with_input};
use crate::{idle, table};

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 43, 0, 10)), 53);
const SERVICES: usize = 100;
const QUERIES: usize = 100_000;
/// Each asks one question at a time, as fast as it is answered.
const CLIENTS: usize = 20;
/// Resolvers ask again after this long, or longer.
const LOST: Duration = Duration::from_secs(2);

/// A question and the code that answers it.
#[derive(Clone)]
struct Asked {
    packet: Vec<u8>,
    code: ResponseCode,
}

fn asked(name: &str, kind: RecordType, code: ResponseCode) -> Asked {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    Asked { packet: message.to_vec().unwrap(), code }
}

pub fn measure(cluster: &Cluster) {
    let service = |n: usize| {
        let ports = json!([{ "port": 80 }]);
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("s{n}") }, "spec": { "ports": ports } })
    };
    let services: Vec<Value> = (0..SERVICES).map(service).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": services }).to_string();
    run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), &list);
    let is_silent = outside(cluster);
    let (before, cpu_before) = (idle::pss(cluster.daemon_pid()), idle::cpu(cluster.daemon_pid()));
    // As pods ask: by the search list first.
    let mut questions = Vec::new();
    for n in 0..SERVICES {
        let name = format!("s{n}.default.svc.cluster.local.");
        questions.extend((0..5).map(|_| asked(&name, RecordType::A, ResponseCode::NoError)));
        questions.push(asked(&name, RecordType::AAAA, ResponseCode::NoError));
        for domain in ["default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."] {
            questions.push(asked(&format!("h{n}.example.{domain}"), RecordType::A, ResponseCode::NXDomain));
        }
        questions.push(asked(&format!("h{n}.example."), RecordType::A, ResponseCode::NoError));
    }
    inside(cluster, {
        let last = questions[questions.len() - 10].clone();
        move || {
            let start = Instant::now();
            while load(std::slice::from_ref(&last), 1).failures > 0 {
                assert!(start.elapsed() < Duration::from_secs(30), "the last Service has no name");
            }
        }
    });
    let figures = inside(cluster, move || load(&questions, QUERIES));
    let cpu = idle::cpu(cluster.daemon_pid()) - cpu_before;
    let how =
        format!("{CLIENTS} clients, {SERVICES} Services: 6 of 10 Services, 3 missing by the search list, 1 outside");
    table::at_most("DNS: failed of 100,000 queries", "", 0.0, figures.failures as f64, &how);
    table::plain("DNS: queries", "/s", QUERIES as f64 / figures.took.as_secs_f64(), &how);
    table::plain("DNS: answered, median", "ms", figures.percentile(50), &how);
    table::at_most("DNS: answered, p99", "ms", 2.0, figures.percentile(99), &how);
    table::plain("DNS: CPU per query", "µs", cpu / QUERIES as f64 * 1e6, "/proc/PID/stat, user and system; the daemon");
    let grown = idle::pss(cluster.daemon_pid()) - before;
    table::plain("DNS: memory after these queries", "MB", grown, "smaps_rollup; 100 outside names in the cache");
    is_silent.store(true, Ordering::SeqCst);
    unanswered(cluster);
}

/// Asks for outside names nobody answers for, and for the cluster's own meanwhile.
fn unanswered(cluster: &Cluster) {
    let own = [asked("s1.default.svc.cluster.local.", RecordType::A, ResponseCode::NoError)];
    let outside: Vec<Asked> =
        (0..CLIENTS).map(|n| asked(&format!("unknown{n}.example."), RecordType::A, ResponseCode::ServFail)).collect();
    let namespace = namespace(cluster);
    let failing = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        load(&outside, CLIENTS)
    });
    let figures = inside(cluster, move || load(&own, QUERIES / 10));
    let failing = failing.join().unwrap();
    let how = format!("no name server outside answers; {CLIENTS} outside names asked at the same time");
    let failures = (figures.failures + failing.failures) as f64;
    table::at_most("DNS, upstream down: cluster names unanswered, outside names not SERVFAIL", "", 0.0, failures, &how);
    table::at_most("DNS, upstream down: cluster names, p99", "ms", 2.0, figures.percentile(99), &how);
    table::at_most("DNS, upstream down: outside names, slowest", "ms", 2000.0, failing.percentile(100), &how);
}

struct Figures {
    /// Sorted, seconds.
    latencies: Vec<f64>,
    failures: usize,
    took: Duration,
}

impl Figures {
    /// Milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).map_or(f64::NAN, |seconds| seconds * 1e3)
    }
}

struct Client {
    socket: UdpSocket,
    /// Which question, and since when.
    asking: Option<(usize, Instant)>,
}

/// Asks the questions in turn until so many were asked; one without the right answer failed.
fn load(questions: &[Asked], total: usize) -> Figures {
    let mut clients: Vec<Client> = (0..CLIENTS.min(total))
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(SERVER).unwrap();
            socket.set_nonblocking(true).unwrap();
            Client { socket, asking: None }
        })
        .collect();
    let (mut next, mut done, mut failures) = (0, 0, 0);
    let mut latencies = Vec::with_capacity(total);
    let start = Instant::now();
    while done < total {
        for client in &mut clients {
            if client.asking.is_none() && next < total {
                let mut packet = questions[next % questions.len()].packet.clone();
                packet[..2].copy_from_slice(&(next as u16).to_be_bytes());
                client.asking = Some((next, Instant::now()));
                client.socket.send(&packet).unwrap();
                next += 1;
            }
        }
        let mut waiting: Vec<PollFd<'_>> =
            clients.iter().map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut waiting, PollTimeout::from(100u16)).unwrap();
        for client in &mut clients {
            let Some((number, since)) = client.asking else { continue };
            let mut packet = [0; 1500];
            match client.socket.recv(&mut packet) {
                Ok(length) => {
                    let is_own = packet[..2] == (number as u16).to_be_bytes();
                    let code = u16::from(packet[3] & 0x0f);
                    if !is_own {
                        continue;
                    }
                    failures += usize::from(code != u16::from(questions[number % questions.len()].code) || length < 12);
                    latencies.push(since.elapsed().as_secs_f64());
                }
                Err(_) if since.elapsed() < LOST => continue,
                Err(_) => failures += 1,
            }
            client.asking = None;
            done += 1;
        }
    }
    let took = start.elapsed();
    latencies.sort_by(f64::total_cmp);
    Figures { latencies, failures, took }
}

fn namespace(cluster: &Cluster) -> File {
    File::open(format!("/run/netns/{}", cluster.netns.0)).unwrap()
}

/// Runs something in the cluster's network namespace.
fn inside<T: Send + 'static>(cluster: &Cluster, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace(cluster);
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// A name server where the node's list has one; it falls silent when told.
fn outside(cluster: &Cluster) -> Arc<AtomicBool> {
    let list = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let server = list.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap().trim().to_owned();
    let address: IpAddr = server.parse().unwrap();
    if !address.is_loopback() {
        run(Command::new("ip").args(["-n", &cluster.netns.0, "address", "add", &server, "dev", "lo"]));
    }
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = is_silent.clone();
    let socket = inside(cluster, move || UdpSocket::bind((address, 53)).unwrap());
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut packet) {
            let query = Message::from_vec(&packet[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            let address = RData::A(A(Ipv4Addr::new(198, 51, 100, 7)));
            answer.add_answer(Record::from_rdata(question.name().clone(), 300, address));
            answer.add_query(question);
            if !silent.load(Ordering::SeqCst) {
                socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
            }
        }
    });
    is_silent
}
