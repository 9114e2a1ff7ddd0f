//! Bytes through a connection, and how it ends.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use nix::sys::socket::{MsgFlags, send};

use super::super::sys::reset_on_close;
use super::*;

/// More than all buffers on the way.
const BULK: usize = 30_000_000;

fn bulk() -> Vec<u8> {
    (0..BULK as u32).map(|i| (i / 7) as u8 ^ (i >> 13) as u8).collect()
}

#[test]
fn what_goes_in_comes_out() {
    alone();
    let (_bench, table, listen) = Bench::tcp(&[echo()]);
    let mut client = connect(listen);
    for size in [1, 1000, 40_000] {
        let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
        client.write_all(&sent).unwrap();
        let mut got = vec![0; size];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"");
    table.wait_closed();
    assert!(table.failed.lock().unwrap().is_empty());
}

#[test]
fn bulk_arrives_whole_in_both_directions_at_once() {
    alone();
    let (_bench, table, listen) = Bench::tcp(&[echo()]);
    let mut client = connect(listen);
    let sent = bulk();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(&mut client) == sent);
    writing.join().unwrap();
    table.wait_closed();
}

#[test]
fn the_server_may_speak_first_and_end_first() {
    alone();
    let (told, hears) = channel();
    let told = Mutex::new(told);
    let greeting = server(move |mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        told.lock().unwrap().send(read_all(&mut stream)).unwrap();
    });
    let (_bench, table, listen) = Bench::tcp(&[greeting]);
    let mut client = connect(listen);
    assert_eq!(read_all(&mut client), b"220 ready\r\n");
    client.write_all(b"said after the end").unwrap();
    drop(client);
    assert_eq!(hears.recv_timeout(SOON).unwrap(), b"said after the end");
    table.wait_closed();
}

#[test]
fn who_sends_and_leaves_at_once_is_heard() {
    alone();
    let (told, hears) = channel();
    let told = Mutex::new(told);
    let listening = server(move |mut stream| told.lock().unwrap().send(read_all(&mut stream)).unwrap());
    let (_bench, table, listen) = Bench::tcp(&[listening]);
    for size in [1, 100_000, 3_000_000] {
        let mut client = connect(listen);
        client.write_all(&vec![7; size]).unwrap();
        drop(client);
        assert!(hears.recv_timeout(SOON).unwrap() == vec![7; size], "{size}");
    }
    table.wait_closed();
}

#[test]
fn a_reset_is_passed_on_as_one() {
    alone();
    for flood in [false, true] {
        // The server breaks it.
        let breaking = server(move |mut stream| {
            stream.read_exact(&mut [0]).unwrap();
            if flood {
                stream.set_nonblocking(true).unwrap();
                while stream.write(&[0; 65_536]).is_ok() {}
            }
            reset_on_close(&stream);
        });
        let (_bench, table, listen) = Bench::tcp(&[breaking]);
        let mut client = connect(listen);
        client.write_all(b"x").unwrap();
        let error = std::io::copy(&mut client, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "flood: {flood}");
        table.wait_closed();

        // The client breaks it.
        let (told, hears) = channel();
        let told = Mutex::new(told);
        let sending = server(move |mut stream| {
            stream.write_all(b"x").unwrap();
            let flooding = flood.then(|| std::io::copy(&mut std::io::repeat(0), &mut stream));
            let ended = flooding.unwrap_or_else(|| std::io::copy(&mut stream, &mut std::io::sink()));
            told.lock().unwrap().send(ended.unwrap_err().kind()).unwrap();
        });
        let (_bench, table, listen) = Bench::tcp(&[sending]);
        let mut client = connect(listen);
        client.read_exact(&mut [0]).unwrap();
        reset_on_close(&client);
        drop(client);
        let ended = hears.recv_timeout(SOON).unwrap();
        assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "flood: {flood}, {ended:?}");
        table.wait_closed();
    }
}

#[test]
fn urgent_data_travels_in_line_and_stops_nothing() {
    alone();
    let (_bench, _table, listen) = Bench::tcp(&[echo()]);
    let mut client = connect(listen);
    let mut got = [0; 3];
    for _ in 0..50 {
        client.write_all(b"a").unwrap();
        assert_eq!(send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB), Ok(1));
        client.write_all(b"b").unwrap();
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"a!b");
    }
}

#[test]
fn what_the_client_does_not_read_is_not_read_from_the_server() {
    alone();
    const ENDLESS: usize = 1 << 30;
    let sent = Arc::new(Mutex::new(0));
    let count = sent.clone();
    let sending = server(move |mut stream| {
        let mut left = ENDLESS;
        while left > 0 && stream.write_all(&[1; 65_536]).is_ok() {
            left -= 65_536;
            *count.lock().unwrap() += 65_536;
        }
    });
    let (_bench, table, listen) = Bench::tcp(&[sending]);
    let client = connect(listen);
    wait_for("the flow to stop", || {
        let before = *sent.lock().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        before > 0 && before == *sent.lock().unwrap()
    });
    // Four socket buffers and a pipe, not what the server had to say.
    assert!(*sent.lock().unwrap() < 64 << 20, "{} bytes are held", sent.lock().unwrap());
    let mut rest = client;
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while read < 100 << 20 {
        read += rest.read(&mut buffer).unwrap();
    }
    drop(rest);
    table.wait_closed();
}

#[test]
fn bulk_does_not_hold_up_others() {
    alone();
    let sending = server(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        while stream.write_all(&[1; 65_536]).is_ok() {}
    });
    let (bench, table, listen) = Bench::tcp(&[sending]);
    let answering = bench.listen(Protocol::Tcp, &Table::of(&[echo()]));
    let (stop, stopped) = sync_channel::<()>(0);
    let mut greedy = connect(listen);
    greedy.write_all(b"x").unwrap();
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while stopped.try_recv().is_err() {
            greedy.read_exact(&mut buffer).unwrap();
        }
    });
    let began = Instant::now();
    for _ in 0..4 {
        let mut client = connect(answering);
        for _ in 0..25 {
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    stop.send(()).unwrap();
    reading.join().unwrap();
    table.wait_closed();
}

#[test]
fn a_thousand_connections_at_once() {
    alone();
    const COUNT: u32 = 1000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = v4(listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let streams: Vec<TcpStream> = listener.incoming().take(COUNT as usize).map(Result::unwrap).collect();
        for mut stream in &streams {
            let mut number = [0; 4];
            stream.read_exact(&mut number).unwrap();
            stream.write_all(&number).unwrap();
        }
        streams
    });
    let (bench, table, listen) = Bench::tcp(&[endpoint]);
    let clients: Vec<TcpStream> = (0..COUNT).map(|_| connect(listen)).collect();
    clients.iter().zip(0..COUNT).for_each(|(mut client, number)| client.write_all(&number.to_be_bytes()).unwrap());
    for (mut client, number) in clients.iter().zip(0..COUNT) {
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(u32::from_be_bytes(got), number);
    }
    let streams = answering.join().unwrap();
    assert_eq!(table.open(), i64::from(COUNT));
    // Stopped in the middle of it, everything is accounted for and everybody is told.
    drop(bench);
    assert_eq!(table.open(), 0);
    assert_eq!((&clients[0]).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!((&streams[0]).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
