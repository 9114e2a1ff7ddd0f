//! Datagrams through flows.

use std::net::UdpSocket;

use super::*;

/// Answers every datagram with itself and its own name; ends with the test's process.
fn answering(name: &'static str) -> SocketAddrV4 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = v4(socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            let (count, client) = socket.recv_from(&mut buffer).unwrap();
            let answer = [&buffer[..count], name.as_bytes()].concat();
            socket.send_to(&answer, client).unwrap();
        }
    });
    address
}

fn client_of(address: SocketAddrV4) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(address).unwrap();
    socket
}

fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).unwrap();
    let mut buffer = vec![0; 65_536];
    let count = client.recv(&mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

#[test]
fn questions_are_answered_one_endpoint_per_client() {
    alone();
    let (bench, table) = (Bench::new(), Table::of(&[answering("-a")]));
    let listen = bench.listen(Protocol::Udp, &table);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client_of(listen.address)).collect();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            let question = format!("{round} {number}");
            assert_eq!(ask(client, question.as_bytes()), format!("{question}-a").as_bytes());
        }
    }
    assert_eq!(table.open(), 20);
    bench.engine.send(Command::Close(listen));
    table.wait_closed();
}

#[test]
fn datagrams_of_any_size_pass() {
    alone();
    let (bench, table) = (Bench::new(), Table::of(&[answering("")]));
    let client = client_of(bench.listen(Protocol::Udp, &table).address);
    for size in [0, 1, 1472, 9000, 65_507] {
        let question: Vec<u8> = (0..size).map(|i: u32| i as u8).collect();
        assert!(ask(&client, &question) == question, "{size}");
    }
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    alone();
    let (bench, table) = (Bench::new(), Table::of(&[answering("")]));
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = Listen { protocol: Protocol::Udp, address: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port) };
    bench.engine.send(Command::Listen(listen, table.clone()));
    assert!(matches!(bench.reports.recv_timeout(SOON), Ok(Report::Listening(_))));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    for host in [1, 2, 77] {
        let asked = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), port);
        client.send_to(b"who", asked).unwrap();
        assert_eq!(v4(client.recv_from(&mut [0; 9]).unwrap().1), asked);
    }
    assert_eq!(table.open(), 3);
}

#[test]
fn a_datagram_that_is_refused_goes_to_another() {
    alone();
    let nobody = v4(UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let (bench, table) = (Bench::new(), Table::of(&[nobody, answering("-b")]));
    let client = client_of(bench.listen(Protocol::Udp, &table).address);
    client.send(b"lost").unwrap();
    wait_for("the refusal", || *table.failed.lock().unwrap() == [nobody]);
    assert_eq!(ask(&client, b"kept"), b"kept-b");
    assert_eq!(table.open(), 1);
}

#[test]
fn a_forgotten_endpoint_gets_nothing_more() {
    alone();
    let (first, second) = (answering("-a"), answering("-b"));
    let (bench, table) = (Bench::new(), Table::of(&[first]));
    let listen = bench.listen(Protocol::Udp, &table);
    let client = client_of(listen.address);
    assert_eq!(ask(&client, b"1"), b"1-a");
    let next = Table::of(&[second]);
    bench.engine.send(Command::Listen(listen, next.clone()));
    assert_eq!(ask(&client, b"2"), b"2-a");
    bench.engine.send(Command::Forget(listen, vec![first]));
    table.wait_closed();
    assert_eq!(ask(&client, b"3"), b"3-b");
    assert_eq!(next.open(), 1);
}

#[test]
fn nobody_there_is_said_at_once() {
    alone();
    let (bench, table) = (Bench::new(), Table::of(&[]));
    let client = client_of(bench.listen(Protocol::Udp, &table).address);
    client.send(b"anyone?").unwrap();
    assert_eq!(client.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
