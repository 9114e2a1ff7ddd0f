//! nf_tables, straight to the kernel (`nfnetlink`, see linux/netfilter/nf_tables.h for the numbers): the `nft` program is
//! absent from small systems.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

use super::Cidr;

const NETLINK_NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 10;
const FAMILY_IPV4: u8 = 2;
const HEADER: usize = 16;
const NESTED: u16 = 1 << 15;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const REGISTER_1: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const NETWORK_HEADER: u32 = 1;
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;
const INTERFACE_NAME: usize = 16;
const SOCKET_TRANSPARENT: u32 = 0;

/// A chain of one rule, in a table of its own.
pub(super) struct Chain<'a> {
    /// Name of the table, at most 31 characters.
    pub(super) table: &'a str,
    /// Name of the chain.
    pub(super) name: &'a str,
    /// `filter` or `nat`.
    pub(super) kind: &'a str,
    /// Number of the hook it hangs on.
    pub(super) hook: u32,
    /// Its place among the chains of the hook.
    pub(super) priority: i32,
}

/// Makes the chain and its rule. A table of that name is replaced in the same transaction, so there is no moment without
/// it.
pub(super) fn install(chain: &Chain<'_>, rule: impl FnOnce(&mut Attributes)) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.table(NEW_TABLE, CREATE, chain.table);
    batch.table(DELETE_TABLE, 0, chain.table);
    batch.table(NEW_TABLE, CREATE, chain.table);
    batch.message(NEW_CHAIN, CREATE, |m| {
        m.text(1, chain.table);
        m.text(3, chain.name);
        m.nested(4, |hook| {
            hook.number(1, chain.hook);
            hook.number(2, chain.priority.cast_unsigned());
        });
        m.text(7, chain.kind);
    });
    batch.message(NEW_RULE, CREATE | APPEND, |m| {
        m.text(1, chain.table);
        m.text(2, chain.name);
        m.nested(4, rule);
    });
    batch.commit()
}

/// Removes a table. No error if there is none.
pub(super) fn remove(table: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.table(DELETE_TABLE, 0, table);
    match batch.commit() {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Where a packet comes in or goes out.
pub(super) enum Interface<'a> {
    /// It came in through this one.
    In(&'a str),
    /// It goes out, but not through this one.
    NotOut(&'a str),
}

/// Netlink attributes; numbers are big-endian throughout nf_tables.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    /// Only packets whose source lies in `range`.
    pub(super) fn source_in(&mut self, range: Cidr) {
        self.network_of(SOURCE_ADDRESS, range);
        self.compare(EQUAL, &range.network().octets());
    }

    /// Only packets whose destination lies outside `range`.
    pub(super) fn destination_outside(&mut self, range: Cidr) {
        self.network_of(DESTINATION_ADDRESS, range);
        self.compare(NOT_EQUAL, &range.network().octets());
    }

    /// Loads an address of the header without its bits beyond the prefix of `range`.
    fn network_of(&mut self, field: u32, range: Cidr) {
        self.expression("payload", |e| {
            e.number(1, REGISTER_1);
            e.number(2, NETWORK_HEADER);
            e.number(3, field);
            e.number(4, 4);
        });
        self.expression("bitwise", |e| {
            e.number(1, REGISTER_1);
            e.number(2, REGISTER_1);
            e.number(3, 4);
            e.nested(4, |mask| mask.bytes(1, &(!(range.size() - 1)).to_be_bytes()));
            e.nested(5, |xor| xor.bytes(1, &[0; 4]));
        });
    }

    /// Only packets of this way.
    pub(super) fn through(&mut self, interface: &Interface<'_>) {
        let (key, operation, name) = match interface {
            Interface::In(name) => (META_INPUT_NAME, EQUAL, name),
            Interface::NotOut(name) => (META_OUTPUT_NAME, NOT_EQUAL, name),
        };
        self.expression("meta", |e| {
            e.number(1, REGISTER_1);
            e.number(2, key);
        });
        let mut padded = [0; INTERFACE_NAME];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.compare(operation, &padded);
    }

    /// Only packets for a socket of this host that speaks from an address that is not the host's (`IP_TRANSPARENT`).
    pub(super) fn for_transparent_socket(&mut self) {
        self.expression("socket", |e| {
            e.number(1, SOCKET_TRANSPARENT);
            e.number(2, REGISTER_1);
        });
        self.compare(EQUAL, &[1]);
    }

    /// Marks the packet for routing rules.
    pub(super) fn mark(&mut self, mark: u32) {
        self.expression("immediate", |e| {
            e.number(1, REGISTER_1);
            e.nested(2, |data| data.bytes(1, &mark.to_ne_bytes()));
        });
        self.expression("meta", |e| {
            e.number(2, META_MARK);
            e.number(3, REGISTER_1);
        });
    }

    /// Gives the packet the address of the interface it leaves through.
    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    fn compare(&mut self, operation: u32, value: &[u8]) {
        self.expression("cmp", |e| {
            e.number(1, REGISTER_1);
            e.number(2, operation);
            e.nested(3, |data| data.bytes(1, value));
        });
    }

    /// One step of a rule: a list element of a name and its data.
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.nested(1, |element| {
            element.text(1, name);
            element.nested(2, fill);
        });
    }
}

/// A transaction: all of it or nothing.
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    fn new() -> Batch {
        let mut batch = Batch { bytes: Vec::new(), messages: 0 };
        batch.raw(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        batch
    }

    fn table(&mut self, kind: u16, flags: u16, name: &str) {
        self.message(kind, flags, |m| m.text(1, name));
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        self.raw(SUBSYSTEM << 8 | kind, flags | ACK, FAMILY_IPV4, 0, &attributes.0);
    }

    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, payload: &[u8]) {
        self.bytes.extend(((HEADER + 4 + payload.len()) as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(payload);
        self.messages += 1;
    }

    /// Sends the transaction; the kernel has worked it off and queued every answer before the call returns.
    fn commit(mut self) -> io::Result<()> {
        let asked = self.messages - 1;
        self.raw(BATCH_END, 0, 0, SUBSYSTEM, &[]);
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.send_to(&self.bytes, &SocketAddr::new(0, 0), 0)?;
        let mut answered = 0;
        while answered < asked {
            let (datagram, _) = socket.recv_from_full()?;
            for code in answers(&datagram) {
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                answered += 1;
            }
        }
        Ok(())
    }
}

/// Error codes of a datagram's NLMSG_ERROR messages; 0 acknowledges.
fn answers(mut datagram: &[u8]) -> Vec<i32> {
    const NLMSG_ERROR: u16 = 2;
    let mut codes = Vec::new();
    while let (Some(length), Some(kind), Some(code)) = (field(datagram, 0), field(datagram, 4), field(datagram, HEADER))
    {
        if u16::from_ne_bytes(kind) == NLMSG_ERROR {
            codes.push(i32::from_ne_bytes(code));
        }
        let next = (u32::from_ne_bytes(length) as usize).next_multiple_of(4).clamp(HEADER, datagram.len());
        datagram = &datagram[next..];
    }
    codes
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
