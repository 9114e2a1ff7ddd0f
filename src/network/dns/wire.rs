//! DNS messages on the wire: reading queries, walking through answers, putting answers together.
//!
//! What passes through the name server on its way from upstream stays bytes: only its header, its times to live and the
//! places of its records are looked at.

use std::net::IpAddr;
use std::ops::Range;

use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder, NameEncoding};

/// Of a header.
const HEADER: usize = 12;
/// The name in the question, for records.
const POINTER_TO_QUESTION: u16 = 0xc000 | HEADER as u16;
/// Of an OPT record without options.
const OPT: usize = 11;
/// Largest answer by UDP for a client that does not speak EDNS (RFC 1035).
const PLAIN_UDP: usize = 512;
/// Largest answer by UDP however much the client takes, so that a forged query gains little.
const MAX_UDP: usize = 4096;
/// What this server takes by UDP: fits every path unfragmented (DNS flag day 2020).
const OWN_UDP: u16 = 1232;
/// Largest message of all.
pub(super) const MAX_MESSAGE: usize = u16::MAX as usize;

const FLAG_RESPONSE: u8 = 0x80;
const FLAG_AUTHORITATIVE: u8 = 0x04;
const FLAG_TRUNCATED: u8 = 0x02;
const FLAG_RECURSION_DESIRED: u8 = 0x01;
const FLAG_RECURSION_AVAILABLE: u8 = 0x80;
const FLAG_AUTHENTIC: u8 = 0x20;
const FLAG_UNCHECKED: u8 = 0x10;
const CODE: u8 = 0x0f;
const EDNS_DNSSEC: u32 = 0x8000;

/// What is asked, as it was written.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Name, in the case it was asked in.
    pub(super) name: Name,
    /// Type.
    pub(super) kind: RecordType,
    /// Whether signatures are wanted too.
    pub(super) dnssec: bool,
    /// Whether the asker checks signatures itself.
    pub(super) unchecked: bool,
}

impl Question {
    /// As a plain resolver asks.
    pub(super) fn new(name: Name, kind: RecordType) -> Self {
        Self { name, kind, dnssec: false, unchecked: false }
    }

    /// The question section.
    pub(super) fn wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(wire_length(&self.name) + 5);
        for label in self.name.iter() {
            // A label has at most 63 bytes.
            wire.push(label.len() as u8);
            wire.extend_from_slice(label);
        }
        wire.push(0);
        wire.extend_from_slice(&u16::from(self.kind).to_be_bytes());
        wire.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
        wire
    }

    /// The same for every spelling of the same question.
    pub(super) fn key(&self) -> Vec<u8> {
        let mut key = self.wire();
        // The bytes of lengths are no letters.
        key[..wire_length(&self.name)].make_ascii_lowercase();
        key.push(u8::from(self.dnssec) | u8::from(self.unchecked) << 1);
        key
    }

    /// A query to ask another server with.
    pub(super) fn query(&self, id: u16, edns: bool) -> Vec<u8> {
        let mut query = vec![0; HEADER];
        query[..2].copy_from_slice(&id.to_be_bytes());
        query[2] = FLAG_RECURSION_DESIRED;
        query[3] = if self.unchecked { FLAG_UNCHECKED } else { 0 };
        set_count(&mut query, 0, 1);
        query.extend(self.wire());
        if edns {
            add_opt(&mut query, self.dnssec, 0);
        }
        query
    }

    /// Whether a message asks or answers this question; case does not count.
    pub(super) fn matches(&self, message: &[u8]) -> bool {
        let wire = self.wire();
        count(message, 0) == 1
            && message.get(HEADER..HEADER + wire.len()).is_some_and(|theirs| theirs.eq_ignore_ascii_case(&wire))
    }
}

/// A query of a client.
#[derive(Clone, Debug)]
pub(super) struct Query {
    header: Header,
    pub(super) question: Question,
    class: DNSClass,
    edns: Option<Edns>,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    size: u16,
    version: u8,
    dnssec: bool,
}

/// A packet that is no query this server can read.
#[derive(Debug, PartialEq)]
pub(super) enum Rejected {
    /// Nobody is to be answered.
    Silently,
    /// The answer.
    With(Vec<u8>),
}

impl Query {
    /// Reads a client's packet.
    pub(super) fn read(packet: &[u8]) -> Result<Self, Rejected> {
        let mut decoder = BinDecoder::new(packet);
        let header = Header::read(&mut decoder).map_err(|_| Rejected::Silently)?;
        // Answering an answer would let two servers talk for ever.
        if header.message_type == MessageType::Response {
            return Err(Rejected::Silently);
        }
        let reject = |code| Rejected::With(bare(&header, code));
        if header.op_code != OpCode::Query {
            return Err(reject(ResponseCode::NotImp));
        }
        let malformed = || reject(ResponseCode::FormErr);
        let HeaderCounts { queries, answers, authorities, .. } = header.counts;
        if (queries, answers, authorities) != (1, 0, 0) {
            return Err(malformed());
        }
        let name = Name::read(&mut decoder).map_err(|_| malformed())?;
        // The first name has nothing before it to point at.
        if decoder.index() != HEADER + wire_length(&name) {
            return Err(malformed());
        }
        let (Ok(kind), Ok(class)) = (RecordType::read(&mut decoder), DNSClass::read(&mut decoder)) else {
            return Err(malformed());
        };
        let edns = edns(packet).ok_or_else(malformed)?;
        let question =
            Question { name, kind, dnssec: edns.is_some_and(|e| e.dnssec), unchecked: header.checking_disabled };
        Ok(Self { header, question, class, edns })
    }

    /// Why this server does not even look for an answer.
    pub(super) fn objection(&self) -> Option<ResponseCode> {
        let kind = u16::from(self.question.kind);
        if self.edns.is_some_and(|e| e.version > 0) {
            Some(ResponseCode::BADVERS)
        } else if kind == 0 {
            Some(ResponseCode::FormErr)
        } else if self.class != DNSClass::IN || kind == u16::from(RecordType::OPT) || (128..256).contains(&kind) {
            // Other classes, and types that stand for something else than records: transfers, ANY (RFC 8482).
            Some(ResponseCode::Refused)
        } else {
            None
        }
    }

    /// Bytes the client takes in one packet.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |e| usize::from(e.size).clamp(PLAIN_UDP, MAX_UDP))
    }

    /// An answer without records.
    pub(super) fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        let answer = Answer { code, authoritative: false, ..Answer::default() };
        let high = (u16::from(code) >> 4) as u8;
        self.finish(answer.encode(&self.question), high, PLAIN_UDP)
    }

    /// Makes a message about this question (without OPT) the answer to this query, of `limit` bytes at most.
    pub(super) fn answer(&self, message: Vec<u8>, limit: usize) -> Vec<u8> {
        self.finish(message, 0, limit)
    }

    fn finish(&self, mut message: Vec<u8>, high_code: u8, limit: usize) -> Vec<u8> {
        let header = &self.header;
        message[..2].copy_from_slice(&header.id.to_be_bytes());
        let set = |flag: u8, is_set: bool| if is_set { flag } else { 0 };
        message[2] = FLAG_RESPONSE
            | message[2] & (FLAG_AUTHORITATIVE | FLAG_TRUNCATED)
            | set(FLAG_RECURSION_DESIRED, header.recursion_desired);
        let wants_authentic = header.authentic_data || self.question.dnssec;
        message[3] = FLAG_RECURSION_AVAILABLE
            | message[3] & (CODE | set(FLAG_AUTHENTIC, wants_authentic))
            | set(FLAG_UNCHECKED, header.checking_disabled);
        let question = if self.class == DNSClass::IN { self.question.wire() } else { self.foreign_question() };
        message[HEADER..HEADER + question.len()].copy_from_slice(&question);
        let opt = if self.edns.is_some() { OPT } else { 0 };
        if message.len() + opt > limit {
            shorten(&mut message, limit - opt);
        }
        if let Some(edns) = self.edns {
            add_opt(&mut message, edns.dnssec, high_code);
        }
        message
    }

    fn foreign_question(&self) -> Vec<u8> {
        let mut question = self.question.wire();
        let class = question.len() - 2;
        question[class..].copy_from_slice(&u16::from(self.class).to_be_bytes());
        question
    }
}

/// Bytes of a name that is not compressed.
fn wire_length(name: &Name) -> usize {
    name.iter().map(|label| 1 + label.len()).sum::<usize>() + 1
}

/// One header and nothing else, for what cannot be read.
fn bare(header: &Header, code: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(&header.metadata);
    metadata.response_code = code;
    metadata.recursion_available = true;
    let mut message = Vec::with_capacity(HEADER);
    // Twelve bytes always fit.
    let _ = Header { metadata, counts: HeaderCounts::default() }.emit(&mut BinEncoder::new(&mut message));
    message
}

/// The client's OPT record; `None` where the message is malformed.
fn edns(packet: &[u8]) -> Option<Option<Edns>> {
    let mut found = None;
    for record in records(packet)? {
        if record.kind == u16::from(RecordType::OPT) {
            if found.is_some() || packet[record.start] != 0 {
                return None;
            }
            found = Some(Edns {
                size: record.class,
                version: (record.ttl >> 16) as u8,
                dnssec: record.ttl & EDNS_DNSSEC != 0,
            });
        }
    }
    Some(found)
}

fn add_opt(message: &mut Vec<u8>, dnssec: bool, high_code: u8) {
    message.push(0);
    message.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
    message.extend_from_slice(&OWN_UDP.to_be_bytes());
    let ttl = u32::from(high_code) << 24 | if dnssec { EDNS_DNSSEC } else { 0 };
    message.extend_from_slice(&ttl.to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    let others = count(message, 3);
    set_count(message, 3, others + 1);
}

/// Keeps what fits of a message, whole records in order. Where answers or authorities are lost, the message says so;
/// additional records are a courtesy (RFC 2181, 9).
fn shorten(message: &mut Vec<u8>, limit: usize) {
    let mut kept = [0; 3];
    let mut end = question_end(message).unwrap_or(HEADER);
    for record in records(message).unwrap_or_default() {
        if record.data.end > limit {
            break;
        }
        kept[record.section] += 1;
        end = record.data.end;
    }
    message.truncate(end);
    if kept[..2] != [count(message, 1), count(message, 2)] {
        message[2] |= FLAG_TRUNCATED;
    }
    for (section, kept) in kept.into_iter().enumerate() {
        set_count(message, section + 1, kept);
    }
}

/// Where a record of a message lies.
#[derive(Debug)]
pub(super) struct RecordAt {
    /// 0 answer, 1 authority, 2 additional.
    pub(super) section: usize,
    /// Of its name.
    pub(super) start: usize,
    /// Type.
    pub(super) kind: u16,
    class: u16,
    /// Time to live, seconds.
    pub(super) ttl: u32,
    /// Where that is written.
    ttl_at: usize,
    /// Its data.
    pub(super) data: Range<usize>,
}

/// The records of a message with one question; `None` where it is malformed.
pub(super) fn records(message: &[u8]) -> Option<Vec<RecordAt>> {
    let mut at = question_end(message)?;
    let mut found = Vec::new();
    for section in 0..3 {
        for _ in 0..count(message, section + 1) {
            let start = at;
            let fixed = skip_name(message, at)?;
            let short = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
            let length = usize::from(short(fixed + 8)?);
            let ttl_at = fixed + 4;
            let ttl = u32::from(short(ttl_at)?) << 16 | u32::from(short(ttl_at + 2)?);
            let data = fixed + 10..fixed + 10 + length;
            message.get(data.clone())?;
            at = data.end;
            found.push(RecordAt { section, start, kind: short(fixed)?, class: short(fixed + 2)?, ttl, ttl_at, data });
        }
    }
    Some(found)
}

fn question_end(message: &[u8]) -> Option<usize> {
    match message.len() {
        0..HEADER => None,
        _ if count(message, 0) == 0 => Some(HEADER),
        _ if count(message, 0) == 1 => {
            let end = skip_name(message, HEADER)? + 4;
            (end <= message.len()).then_some(end)
        }
        _ => None,
    }
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// Of questions (0), answers (1), authorities (2) or additional records (3).
pub(super) fn count(message: &[u8], section: usize) -> u16 {
    let at = 4 + 2 * section;
    message.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn set_count(message: &mut [u8], section: usize, count: u16) {
    let at = 4 + 2 * section;
    message[at..at + 2].copy_from_slice(&count.to_be_bytes());
}

/// The response code of a message, without what EDNS adds.
pub(super) fn code(message: &[u8]) -> ResponseCode {
    ResponseCode::from_low(message.get(3).map_or(0, |flags| flags & CODE))
}

/// Whether a message is an answer with this ID.
pub(super) fn is_response(message: &[u8], id: u16) -> bool {
    message.len() >= HEADER && message[..2] == id.to_be_bytes() && message[2] & FLAG_RESPONSE != 0
}

/// Whether a message lacks what did not fit.
pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
}

/// Makes another server's answer one of this server: takes off the claim to authority, and the OPT record (it is meant
/// for the next hop alone) with what follows it. `None` where the message is malformed or EDNS says it failed.
pub(super) fn take_over(message: &mut Vec<u8>) -> Option<()> {
    let all = records(message)?;
    message[2] &= !FLAG_AUTHORITATIVE;
    message.truncate(all.last().map_or(question_end(message)?, |last| last.data.end));
    if let Some(opt) = all.iter().find(|record| record.section == 2 && record.kind == u16::from(RecordType::OPT)) {
        if opt.ttl >> 24 != 0 {
            return None;
        }
        let before = all.iter().filter(|record| record.section == 2 && record.start < opt.start).count();
        message.truncate(opt.start);
        // No more than were counted before.
        set_count(message, 3, before as u16);
    }
    Some(())
}

/// Seconds an answer may be kept: of the shortest-lived record, or what the zone says of names that do not exist
/// (RFC 2308). `None`: not at all.
pub(super) fn lifetime(message: &[u8]) -> Option<u32> {
    let all = records(message)?;
    if count(message, 1) > 0 {
        return all.iter().map(|record| record.ttl).min();
    }
    let authority = all.iter().find(|record| record.section == 1 && record.kind == u16::from(RecordType::SOA))?;
    let minimum = message[authority.data.clone()].last_chunk::<4>()?;
    Some(authority.ttl.min(u32::from_be_bytes(*minimum)))
}

/// Takes the seconds an answer was kept off its times to live.
pub(super) fn age(message: &mut [u8], seconds: u32) {
    for record in records(message).unwrap_or_default() {
        let left = record.ttl.saturating_sub(seconds);
        message[record.ttl_at..record.ttl_at + 4].copy_from_slice(&left.to_be_bytes());
    }
}

/// Lets another one of an answer's IPv4 addresses be the first.
pub(super) fn rotate(message: &mut [u8], by: usize) {
    let all = records(message).unwrap_or_default();
    let places: Vec<Range<usize>> = all
        .into_iter()
        .filter(|record| record.section == 0 && record.kind == u16::from(RecordType::A) && record.data.len() == 4)
        .map(|record| record.data)
        .collect();
    let addresses: Vec<[u8; 4]> = places.iter().filter_map(|at| message[at.clone()].try_into().ok()).collect();
    for (n, place) in places.into_iter().enumerate() {
        message[place].copy_from_slice(&addresses[(n + by) % addresses.len()]);
    }
}

/// The aliases and addresses an answer leads to.
pub(super) fn addresses(message: &[u8]) -> Vec<Record> {
    let read = |record: RecordAt| {
        let owner = Name::read(&mut BinDecoder::new(message).clone(u16::try_from(record.start).ok()?)).ok()?;
        let bytes = &message[record.data.clone()];
        let data = match RecordType::from(record.kind) {
            RecordType::A => Data::Address(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            RecordType::AAAA => Data::Address(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
            RecordType::CNAME => {
                let at = u16::try_from(record.data.start).ok()?;
                Data::Alias(Name::read(&mut BinDecoder::new(message).clone(at)).ok()?)
            }
            _ => return None,
        };
        Some(Record { owner, ttl: record.ttl, data })
    };
    records(message).unwrap_or_default().into_iter().filter(|record| record.section == 0).filter_map(read).collect()
}

/// What an answer's records say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Alias(Name),
    /// PTR.
    Pointer(Name),
    /// NS.
    NameServer(Name),
    /// SRV, of priority 0.
    Service { weight: u16, port: u16, target: Name },
    /// TXT.
    Text(&'static str),
    /// SOA.
    Authority { server: Name, mailbox: Name, negative_ttl: u32 },
}

impl Data {
    /// Type.
    pub(super) fn kind(&self) -> RecordType {
        match self {
            Data::Address(IpAddr::V4(_)) => RecordType::A,
            Data::Address(IpAddr::V6(_)) => RecordType::AAAA,
            Data::Alias(_) => RecordType::CNAME,
            Data::Pointer(_) => RecordType::PTR,
            Data::NameServer(_) => RecordType::NS,
            Data::Service { .. } => RecordType::SRV,
            Data::Text(_) => RecordType::TXT,
            Data::Authority { .. } => RecordType::SOA,
        }
    }

    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), hickory_proto::ProtoError> {
        match self {
            Data::Address(IpAddr::V4(address)) => encoder.emit_vec(&address.octets()),
            Data::Address(IpAddr::V6(address)) => encoder.emit_vec(&address.octets()),
            Data::Alias(name) | Data::Pointer(name) | Data::NameServer(name) => name.emit(encoder),
            Data::Service { weight, port, target } => {
                encoder.emit_u16(0)?;
                encoder.emit_u16(*weight)?;
                encoder.emit_u16(*port)?;
                // RFC 2782: never compressed.
                target.emit(&mut encoder.with_name_encoding(NameEncoding::Uncompressed))
            }
            Data::Text(text) => encoder.emit_character_data(text),
            Data::Authority { server, mailbox, negative_ttl } => {
                server.emit(encoder)?;
                mailbox.emit(encoder)?;
                // Serial, refresh, retry, expire: nobody transfers this zone.
                [1, 7200, 1800, 86400, *negative_ttl].into_iter().try_for_each(|number| encoder.emit_u32(number))
            }
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) owner: Name,
    pub(super) ttl: u32,
    pub(super) data: Data,
}

impl Record {
    fn emit(&self, asked: &Name, encoder: &mut BinEncoder<'_>) -> Result<(), hickory_proto::ProtoError> {
        // The encoder compresses the first names of a message only.
        if self.owner.eq_case(asked) { encoder.emit_u16(POINTER_TO_QUESTION) } else { self.owner.emit(encoder) }?;
        self.data.kind().emit(encoder)?;
        DNSClass::IN.emit(encoder)?;
        encoder.emit_u32(self.ttl)?;
        let length = encoder.place::<u16>()?;
        self.data.emit(encoder)?;
        let written = encoder.len_since_place(&length);
        // Shorter than the message.
        length.replace(encoder, written as u16)
    }
}

/// What this server itself says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) authoritative: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            code: ResponseCode::NoError,
            authoritative: true,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl Answer {
    /// Where an alias leads to that was found instead of what was asked for.
    pub(super) fn alias(&self, kind: RecordType) -> Option<&Name> {
        let leads_on = [RecordType::A, RecordType::AAAA].contains(&kind) && self.code == ResponseCode::NoError;
        match &self.answers.last()?.data {
            Data::Alias(target) if leads_on => Some(target),
            _ => None,
        }
    }

    /// Adds what there is to say about the name an alias leads to.
    pub(super) fn continue_with(&mut self, next: Answer) {
        self.code = next.code;
        self.answers.extend(next.answers);
        self.authorities = next.authorities;
        self.additionals.extend(next.additionals);
    }

    /// As a message without ID and OPT, see [`Query::answer`].
    pub(super) fn encode(&self, question: &Question) -> Vec<u8> {
        let mut message = Vec::new();
        let mut encoder = BinEncoder::new(&mut message);
        let mut counts = [0; 3];
        let mut is_cut = encoder.emit_vec(&[0; HEADER]).and_then(|()| emit_question(question, &mut encoder)).is_err();
        let sections = [&self.answers, &self.authorities, &self.additionals];
        for (section, record) in sections.into_iter().enumerate().flat_map(|(n, all)| all.iter().map(move |r| (n, r))) {
            let start = encoder.offset();
            if record.emit(&question.name, &mut encoder).is_err() {
                encoder.set_offset(start);
                encoder.trim();
                is_cut = true;
                break;
            }
            counts[section] += 1;
        }
        drop(encoder);
        message[2] = if self.authoritative { FLAG_AUTHORITATIVE } else { 0 } | if is_cut { FLAG_TRUNCATED } else { 0 };
        message[3] = self.code.low();
        set_count(&mut message, 0, 1);
        for (section, count) in counts.into_iter().enumerate() {
            set_count(&mut message, section + 1, count);
        }
        message
    }
}

fn emit_question(question: &Question, encoder: &mut BinEncoder<'_>) -> Result<(), hickory_proto::ProtoError> {
    question.name.emit(encoder)?;
    question.kind.emit(encoder)?;
    DNSClass::IN.emit(encoder)
}
