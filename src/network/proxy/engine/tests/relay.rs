//! Bytes through a connection.

use std::net::Shutdown;

use super::*;

#[test]
fn what_goes_in_comes_out() {
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
    let (_bench, table, listen) = Bench::tcp(&[echo()]);
    let mut client = connect(listen);
    let sent: Vec<u8> = (0..20_000_000_u32).map(|i| (i / 7) as u8 ^ (i >> 13) as u8).collect();
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
