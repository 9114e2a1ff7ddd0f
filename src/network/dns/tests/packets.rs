//! Packets of every kind: well formed, too long, refused, broken.

use hickory_proto::op::{Edns, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use super::*;
use crate::network::dns::wire::{self, Rejected};

fn with_edns(mut query: Message, size: u16, version: u8, dnssec: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_version(version).set_dnssec_ok(dnssec);
    query.edns = Some(edns);
    query
}

/// As it comes back by UDP.
fn by_udp(server: &Server, query: &Message) -> (Message, usize) {
    let query = Query::read(&query.to_vec().unwrap()).unwrap();
    let answer = server.answer_at_once(&query, query.udp_limit()).unwrap();
    (Message::from_vec(&answer).unwrap(), answer.len())
}

fn crowd(size: u8) -> Server {
    let endpoints = (0..size).map(|n| endpoint(&format!("10.42.7.{n}"), None, true)).collect();
    let ports = [("p", Protocol::Tcp, 1)];
    server(vec![Service { slices: vec![slice(&[("p", 1)], endpoints)], ..service("default/crowd", None, &ports) }])
}

#[test]
fn answers_are_cut_to_what_the_client_takes() {
    let server = crowd(250);
    let question = query("crowd.default.svc.cluster.local.", RecordType::A);
    for (asked, limit) in [
        (question.clone(), 512),
        (with_edns(question.clone(), 100, 0, false), 512),
        (with_edns(question.clone(), 1232, 0, false), 1232),
        (with_edns(question.clone(), 65535, 0, false), 4096),
    ] {
        let (answer, length) = by_udp(&server, &asked);
        assert!(length <= limit && length + 40 > limit, "{length} of {limit}");
        assert_eq!(answer.metadata.truncation, limit < 4096);
        assert_eq!(answer.edns.is_some(), asked.edns.is_some());
    }
    let all = ask(&server, &question).unwrap();
    assert_eq!((all.answers.len(), all.metadata.truncation), (250, false));
}

#[test]
fn additional_records_are_left_out_without_a_word() {
    let server = crowd(6);
    let (answer, length) = by_udp(&server, &query("_p._tcp.crowd.default.svc.cluster.local.", RecordType::SRV));
    assert!(length <= 512);
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), 6);
    assert!((1..6).contains(&answer.additionals.len()), "{answer:?}");
}

#[test]
fn edns_is_answered_in_kind() {
    let server = server(services());
    let plain = query("web.default.svc.cluster.local.", RecordType::A);
    assert!(by_udp(&server, &plain).0.edns.is_none());
    let edns = by_udp(&server, &with_edns(plain.clone(), 4096, 0, true)).0.edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, true));
    let (answer, _) = by_udp(&server, &with_edns(plain, 4096, 1, false));
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!(answer.edns.unwrap().version(), 0);
    assert!(answer.answers.is_empty());
}

#[test]
fn what_is_not_answered_is_refused() {
    let server = server(services());
    let name = "web.default.svc.cluster.local.";
    for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT, RecordType::Unknown(254)] {
        let (answer, _) = by_udp(&server, &query(name, kind));
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{kind}");
        assert_eq!(answer.queries[0].query_type(), kind);
    }
    for class in [DNSClass::CH, DNSClass::ANY, DNSClass::Unknown(77)] {
        let mut message = query(name, RecordType::A);
        message.queries[0].set_query_class(class);
        let (answer, _) = by_udp(&server, &message);
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{class}");
        assert_eq!(answer.queries[0].query_class(), class);
    }
}

#[test]
fn what_is_no_query_is_turned_away() {
    let good = query("web.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let code = |packet: &[u8]| match Query::read(packet) {
        Ok(query) => query.objection(),
        Err(Rejected::Silently) => None,
        Err(Rejected::With(answer)) => {
            assert!(answer.len() <= packet.len(), "no more than was sent");
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.metadata.id, answer.metadata.message_type), (4711, MessageType::Response));
            Some(answer.metadata.response_code)
        }
    };
    assert_eq!(code(&good), None);
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        assert_eq!(code(&changed(2, u8::from(opcode) << 3)), Some(ResponseCode::NotImp), "{opcode}");
    }
    let form_error = Some(ResponseCode::FormErr);
    let mut pointing_at_itself = good[..12].to_vec();
    pointing_at_itself.extend([0xc0, 12, 0, 1, 0, 1]);
    let mut pointing_at_the_header = good[..12].to_vec();
    pointing_at_the_header.extend([0xc0, 4, 0, 1, 0, 1]);
    let mut too_long = good[..12].to_vec();
    too_long.extend((0..5).flat_map(|_| std::iter::once(63).chain([b'a'; 63])).chain([0, 0, 1, 0, 1]));
    for (what, packet) in [
        ("no question", changed(5, 0)),
        ("two questions", changed(5, 2)),
        ("an answer", changed(7, 1)),
        ("an authority", changed(9, 1)),
        ("an additional record that is not there", changed(11, 1)),
        ("a label longer than the packet", changed(12, 60)),
        ("a label of an unknown kind", changed(12, 0x80)),
        ("a pointer to itself", pointing_at_itself),
        ("a pointer into the header", pointing_at_the_header),
        ("a name too long", too_long),
        ("no type", good[..good.len() - 4].to_vec()),
        ("no class", good[..good.len() - 2].to_vec()),
    ] {
        assert_eq!(code(&packet), form_error, "{what}");
    }
    let mut twice = with_edns(query("a.", RecordType::A), 1232, 0, false).to_vec().unwrap();
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert_eq!(code(&twice), form_error, "two OPT records");
    for (what, packet) in [("nothing", vec![]), ("half a header", good[..11].to_vec()), ("an answer", changed(2, 0x80))]
    {
        assert_eq!(Query::read(&packet).unwrap_err(), Rejected::Silently, "{what}");
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let server = server(services());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let seeds = [
        query("inside.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap(),
        with_edns(query("_peer._tcp.peers.default.svc.cluster.local.", RecordType::SRV), 600, 0, true)
            .to_vec()
            .unwrap(),
        query("5.0.42.10.in-addr.arpa.", RecordType::PTR).to_vec().unwrap(),
    ];
    let answers: Vec<Vec<u8>> =
        seeds.iter().map(|seed| server.answer_at_once(&Query::read(seed).unwrap(), MAX_MESSAGE).unwrap()).collect();
    let mut answered = 0;
    for round in 0..20_000 {
        let mut packet = match round % 4 {
            0 => (0..random(64)).map(|_| random(256) as u8).collect(),
            _ => seeds[random(seeds.len())].clone(),
        };
        for _ in 0..random(6) {
            if !packet.is_empty() {
                let at = random(packet.len());
                packet[at] = random(256) as u8;
            }
        }
        packet.truncate(packet.len() - random(3).min(packet.len()));
        match Query::read(&packet) {
            Ok(query) => {
                if let Some(answer) = server.answer_at_once(&query, query.udp_limit()) {
                    assert!(answer.len() <= query.udp_limit());
                    Message::from_vec(&answer).expect("a whole message");
                    answered += 1;
                }
            }
            Err(Rejected::With(answer)) => assert_eq!(answer.len(), 12),
            Err(Rejected::Silently) => {}
        }
        // Answers from outside.
        let mut message = answers[random(answers.len())].clone();
        for _ in 0..1 + random(4) {
            let at = random(message.len());
            message[at] = random(256) as u8;
        }
        message.truncate(message.len() - random(8));
        let known = message.clone();
        wire::lifetime(&message);
        wire::addresses(&message);
        wire::rotate(&mut message, 1);
        wire::age(&mut message, 3);
        assert_eq!(message.len(), known.len());
        let _ = wire::take_over(&mut message);
    }
    assert!(answered > 300, "{answered}");
}
