//! Cluster addresses and the host's own listeners, side by side.
//!
//! A host program that listens at port 80 of all addresses leaves nobody else port 80 of any, and the other way round: a
//! Service with port 80 would keep a web server of the host, or a pod in the host's network, from starting. So where the
//! kernel has it (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.12), Services' listeners take whatever port is free at their
//! address, and a small program leads what is sent to the Service's port to them, before any other listener is asked:
//!
//! - the listener of this address and port, if there is one;
//! - else nobody, if it is a cluster address (not the name server's, which listens by itself): the client is refused,
//!   where it would get to a listener of all addresses otherwise, a node port or the host's sshd;
//! - else whoever listens.
//!
//! A UDP listener takes the Service's own port while that is free: a datagram that answers must come from there. Where a
//! host program has it, the listener is led to as one of TCP is, and answers through a raw socket ([`super::udp`]). What
//! is sent to a cluster address without a listener goes on as ever: the node's own clients ask from the address they
//! ask, and what comes for them may be an answer.
//!
//! The program ends with the process, whatever ends that; nothing is left behind. Where the kernel has none, listeners
//! take the very port they serve, and where another program has that the Service is not reached: the log says so.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::super::Listen;
use crate::cidr::Cidr;
use crate::network::services::Protocol;

/// Where a listener's protocol is in the second word of its key, after the port.
const PROTOCOL_SHIFT: u32 = 16;

/// Listeners there is room for, 16 bytes each of kernel memory from the start. More have to take their own ports.
const MAX_LISTENERS: u32 = 1 << 13;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROGRAM_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_SOCKHASH: u32 = 18;
const PROGRAM_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// A program and its table of listeners, at work in the network namespace of the thread that made it.
pub struct Steer {
    listeners: OwnedFd,
    /// Closing it ends the program's work.
    _link: OwnedFd,
}

impl Steer {
    /// Loads the program; `cluster` are the cluster addresses, `except` the one of them that is not looked after.
    ///
    /// # Errors
    /// Where the kernel knows no such program.
    pub fn new(cluster: Cidr, except: Ipv4Addr) -> io::Result<Self> {
        let map = MapCreate { kind: MAP_TYPE_SOCKHASH, key: 8, value: 8, entries: MAX_LISTENERS };
        let listeners = bpf(MAP_CREATE, &map)?;
        let program = program(listeners.as_fd(), cluster, except);
        let license = c"Apache-2.0";
        let loaded = bpf(
            PROGRAM_LOAD,
            &ProgramLoad {
                kind: PROGRAM_TYPE_SK_LOOKUP,
                count: program.len() as u32,
                instructions: program.as_ptr() as u64,
                license: license.as_ptr() as u64,
                attach: ATTACH_SK_LOOKUP,
                ..ProgramLoad::default()
            },
        )?;
        let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
        let link = bpf(
            LINK_CREATE,
            &LinkCreate {
                program: loaded.as_raw_fd().cast_unsigned(),
                target: namespace.as_raw_fd().cast_unsigned(),
                attach: ATTACH_SK_LOOKUP,
                flags: 0,
            },
        )?;
        Ok(Self { listeners, _link: link })
    }

    /// Leads what is sent to `listen` to this listener, for as long as that is open.
    pub(super) fn lead(&self, listen: Listen, listener: BorrowedFd<'_>) -> io::Result<()> {
        let protocol = match listen.protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        };
        let port = u32::from(listen.address.port()) | protocol.cast_unsigned() << PROTOCOL_SHIFT;
        let key = [listen.address.ip().octets(), port.to_ne_bytes()].concat();
        let value = u64::from(listener.as_raw_fd().cast_unsigned());
        let update = MapUpdate {
            map: self.listeners.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: key.as_ptr() as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        call(MAP_UPDATE, &update).map(drop)
    }
}

/// `union bpf_attr`, as far as each command reads it; see linux/bpf.h.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// bpf(2) for a command that makes a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are of the size stated, and what they point to lives in the callers until this returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one, on machines of either byte order that we run on.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

const LOAD_U32: u8 = 0x61;
const STORE_U32: u8 = 0x63;
const LOAD_MAP: u8 = 0x18;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const OR: u8 = 0x4f;
const SHIFT_LEFT: u8 = 0x67;
const AND_U32: u8 = 0x54;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_IF_ZERO: u8 = 0x15;
/// These compare the low 32 bits.
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_OTHER: u8 = 0x56;

/// In `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_ADDRESS: i16 = 40;
const LOCAL_PORT: i16 = 60;

/// In place of a register: the value is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

const MAP_LOOKUP: i32 = 1;
const SOCKET_RELEASE: i32 = 86;
const SOCKET_ASSIGN: i32 = 124;
const DROP: i32 = 0;
const PASS: i32 = 1;
/// `BPF_SK_LOOKUP_F_NO_REUSEPORT`: this very socket.
const NO_REUSEPORT: i32 = 2;

/// In the order of the list at the head of this file. Addresses are in network byte order, as they lie in memory.
fn program(listeners: BorrowedFd<'_>, cluster: Cidr, except: Ipv4Addr) -> [Instruction; 34] {
    let word = |bytes: [u8; 4]| i32::from_ne_bytes(bytes);
    let mask = word((!(cluster.size() - 1)).to_be_bytes());
    let (network, except) = (word(cluster.network().octets()), word(except.octets()));
    [
        op(MOVE, 6, 1, 0, 0),
        op(LOAD_U32, 2, 6, FAMILY, 0),
        op(JUMP_IF_OTHER, 2, 0, 29, libc::AF_INET),
        op(LOAD_U32, 8, 6, PROTOCOL, 0),
        op(LOAD_U32, 7, 6, LOCAL_ADDRESS, 0),
        op(STORE_U32, 10, 7, -8, 0),
        op(LOAD_U32, 3, 6, LOCAL_PORT, 0),
        op(MOVE, 2, 8, 0, 0),
        op(SHIFT_LEFT, 2, 0, 0, PROTOCOL_SHIFT as i32),
        op(OR, 3, 2, 0, 0),
        op(STORE_U32, 10, 3, -4, 0),
        // Two words long.
        op(LOAD_MAP, 1, PSEUDO_MAP_FD, 0, listeners.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(MOVE, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -8),
        op(CALL, 0, 0, 0, MAP_LOOKUP),
        op(JUMP_IF_ZERO, 0, 0, 9, 0),
        op(MOVE, 9, 0, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 9, 0, 0),
        op(SET, 3, 0, 0, NO_REUSEPORT),
        op(CALL, 0, 0, 0, SOCKET_ASSIGN),
        op(MOVE, 1, 9, 0, 0),
        op(CALL, 0, 0, 0, SOCKET_RELEASE),
        op(SET, 0, 0, 0, PASS),
        op(EXIT, 0, 0, 0, 0),
        // There is none.
        op(JUMP_IF_OTHER, 8, 0, 5, libc::IPPROTO_TCP),
        op(JUMP_IF_EQUAL, 7, 0, 4, except),
        op(AND_U32, 7, 0, 0, mask),
        op(JUMP_IF_OTHER, 7, 0, 2, network),
        op(SET, 0, 0, 0, DROP),
        op(EXIT, 0, 0, 0, 0),
        // Not ours.
        op(SET, 0, 0, 0, PASS),
        op(EXIT, 0, 0, 0, 0),
    ]
}
