//! Listening, and finding somebody who answers.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect as join, listen, socket};

use super::*;

fn echoes(listen: Listen) -> bool {
    let mut client = connect(listen);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    read_all(&mut client) == b"hello"
}

fn is_refused(listen: Listen) -> bool {
    let mut client = connect(listen);
    let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    client.read(&mut [0]).is_err_and(refused)
}

#[test]
fn who_refuses_is_passed_over_before_the_client_notices() {
    alone();
    let (one, other) = (refusing(), refusing());
    let (_bench, table, listen) = Bench::tcp(&[one, other, echo()]);
    assert!(echoes(listen));
    table.wait_closed();
    assert_eq!(*table.failed.lock().unwrap(), [one, other]);
}

#[test]
fn where_nobody_is_left_the_client_is_told_at_once() {
    alone();
    for endpoints in [vec![], vec![refusing()], vec![refusing(), refusing()]] {
        let began = Instant::now();
        let (_bench, table, listen) = Bench::tcp(&endpoints);
        assert!(is_refused(listen));
        assert!(began.elapsed() < Duration::from_secs(2));
        table.wait_closed();
        assert_eq!(*table.failed.lock().unwrap(), endpoints);
    }
}

/// A listener that answers nobody: its queue is full.
fn silent() -> (SocketAddrV4, Vec<std::os::fd::OwnedFd>) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = || socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let listener = stream();
    bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address: SockaddrIn = nix::sys::socket::getsockname(listener.as_raw_fd()).unwrap();
    let mut held = vec![listener];
    for _ in 0..4 {
        let filler = stream();
        // In progress, and stays so once the queue is full.
        join(filler.as_raw_fd(), &address).ok();
        held.push(filler);
    }
    (SocketAddrV4::new(address.ip(), address.port()), held)
}

#[test]
fn who_does_not_answer_is_passed_over_with_nothing_lost() {
    alone();
    let (mute, _held) = silent();
    let (_bench, table, listen) = Bench::tcp(&[mute, echo()]);
    let began = Instant::now();
    assert!(echoes(listen));
    assert!((1..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    table.wait_closed();
    assert_eq!(*table.failed.lock().unwrap(), [mute]);
}

#[test]
fn a_client_that_leaves_while_nobody_answers_is_forgotten() {
    alone();
    let (mute, _held) = silent();
    let (_bench, table, listen) = Bench::tcp(&[mute]);
    let client = connect(listen);
    wait_for("the attempt", || table.open() == 1);
    super::super::sys::reset_on_close(&client);
    drop(client);
    table.wait_closed();
}

#[test]
fn connections_outlive_their_frontend_and_their_listener() {
    alone();
    let (bench, first, listen) = Bench::tcp(&[echo()]);
    let mut client = connect(listen);
    let talk = |client: &mut TcpStream| {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    };
    talk(&mut client);
    let second = Table::of(&[echo()]);
    bench.engine.send(Command::Listen(listen, second.clone()));
    wait_for("the exchange", || {
        assert!(echoes(listen));
        !second.open.lock().unwrap().is_empty()
    });
    talk(&mut client);
    bench.engine.send(Command::Close(listen));
    wait_for("the listener to close", || TcpStream::connect(listen.address).is_err());
    talk(&mut client);
    assert_eq!(first.open(), 1);
    drop(client);
    first.wait_closed();
    second.wait_closed();
    bench.engine.send(Command::Listen(listen, second.clone()));
    assert!(matches!(bench.reports.recv_timeout(SOON), Ok(Report::Listening(at)) if at == listen));
    assert!(echoes(listen));
}

#[test]
fn an_address_in_use_is_reported_and_can_be_asked_for_again() {
    alone();
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Listen { protocol: Protocol::Tcp, address: v4(taken.local_addr().unwrap()) };
    let table = Table::of(&[echo()]);
    bench.engine.send(Command::Listen(listen, table.clone()));
    match bench.reports.recv_timeout(SOON).unwrap() {
        Report::Failed(at, error) => assert_eq!((at, error.kind()), (listen, ErrorKind::AddrInUse)),
        other => panic!("{other:?}"),
    }
    drop(taken);
    bench.engine.send(Command::Listen(listen, table));
    assert!(matches!(bench.reports.recv_timeout(SOON), Ok(Report::Listening(_))));
    assert!(echoes(listen));
}

#[test]
fn a_node_port_and_a_service_may_have_the_same_port() {
    alone();
    let (bench, _table, own) = Bench::tcp(&[echo()]);
    let every = Listen { address: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, own.address.port()), ..own };
    bench.engine.send(Command::Listen(every, Table::of(&[])));
    assert!(matches!(bench.reports.recv_timeout(SOON), Ok(Report::Listening(at)) if at == every));
    assert!(echoes(own));
    let other = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), own.address.port());
    assert!(is_refused(Listen { address: other, ..own }));
}

#[test]
fn the_clients_address_is_kept_where_that_is_wished_for() {
    alone();
    let naming = server(|mut stream| {
        let name = stream.peer_addr().unwrap().ip().to_string();
        stream.write_all(name.as_bytes()).unwrap();
    });
    let table = Arc::new(Table { endpoints: Mutex::new(vec![naming]), keep_source: true, ..Table::default() });
    let bench = Bench::new();
    let listen = bench.listen(Protocol::Tcp, &table);
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 9, 8, 7, 0)).unwrap();
    join(socket.as_raw_fd(), &SockaddrIn::from(listen.address)).unwrap();
    assert_eq!(read_all(&mut TcpStream::from(socket)), b"127.9.8.7");
    table.wait_closed();
}

#[test]
fn an_engine_without_listeners_is_no_thread() {
    alone();
    let bench = Bench::new();
    bench.engine.send(Command::Close(Listen { protocol: Protocol::Tcp, address: refusing() }));
    assert!(bench.engine.thread.lock().unwrap().is_none());
}
