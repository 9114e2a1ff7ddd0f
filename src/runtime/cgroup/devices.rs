//! Which device nodes a container may open: the devices controller on version 1, a small program on version 2.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{Cgroups, error, write};
use crate::runtime::Result;

/// One kind of device that may be used; all else is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime) struct DeviceRule {
    /// `b` or `c`; `a` for both.
    pub(in crate::runtime) kind: char,
    /// Major number; any if `None`.
    pub(in crate::runtime) major: Option<u32>,
    /// Minor number; any if `None`.
    pub(in crate::runtime) minor: Option<u32>,
    /// Any of `r`, `w`, `m`.
    pub(in crate::runtime) access: String,
}

impl DeviceRule {
    fn new(kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        Self { kind, major, minor, access: access.into() }
    }

    /// Everything.
    pub(in crate::runtime) fn all() -> Self {
        Self::new('a', None, None, "rwm")
    }

    /// What every container may use: nodes of any kind may be made, the harmless ones opened.
    pub(in crate::runtime) fn defaults() -> Vec<Self> {
        let mut rules = vec![Self::new('c', None, None, "m"), Self::new('b', None, None, "m")];
        // null, zero, full, random, urandom, tty, console, ptmx
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            rules.push(Self::new('c', Some(major), Some(minor), "rwm"));
        }
        rules.push(Self::new('c', Some(136), None, "rwm"));
        rules
    }

    fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        format!("{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

impl Cgroups {
    /// Denies all devices but these. On version 1 without a devices controller nothing can be denied: an error.
    pub(in crate::runtime) fn allow_devices(&self, name: &str, rules: &[DeviceRule]) -> Result<()> {
        let missing =
            || crate::runtime::Error::MissingController { controller: "devices".into(), limit: "device list".into() };
        let directory = self.directory("devices", name).ok_or_else(missing)?;
        if self.unified && rules.contains(&DeviceRule::all()) {
            return Ok(());
        }
        if self.unified {
            return attach(&directory, &program(rules)).map_err(|source| error(directory, source));
        }
        if rules.contains(&DeviceRule::all()) {
            return write(&directory.join("devices.allow"), "a");
        }
        write(&directory.join("devices.deny"), "a")?;
        rules.iter().try_for_each(|rule| write(&directory.join("devices.allow"), &rule.line()))
    }
}

/// One eBPF instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination register in the low half, source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | (source << 4), offset, immediate }
}

/// The context (register 1) is `{ access_type, major, minor }`; the kind is the low half of the first word, the access the
/// high half. Each rule is a chain of tests that jumps to the next rule at the first mismatch.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        match rule.kind {
            'b' => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, 1)),
            'c' => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, 2)),
            _ => {}
        }
        let denied =
            [('m', 1), ('r', 2), ('w', 4)].iter().filter(|(c, _)| !rule.access.contains(*c)).map(|(_, bit)| bit).sum();
        if denied != 0 {
            tests.push(instruction(MOVE_REGISTER, 6, 3, 0, 0));
            tests.push(instruction(AND, 6, 0, 0, denied));
            tests.push(instruction(JUMP_NOT_EQUAL, 6, 0, 0, 0));
        }
        tests.extend(rule.major.map(|n| instruction(JUMP_NOT_EQUAL, 4, 0, 0, n as i32)));
        tests.extend(rule.minor.map(|n| instruction(JUMP_NOT_EQUAL, 5, 0, 0, n as i32)));
        tests.extend([instruction(MOVE, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
        let length = tests.len();
        for (at, test) in tests.iter_mut().enumerate().filter(|(_, t)| t.code == JUMP_NOT_EQUAL) {
            test.offset = (length - at - 1) as i16;
        }
        code.extend(tests);
    }
    code.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads the program and ties it to the cgroup; it lives as long as that.
fn attach(directory: &std::path::Path, code: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure is the head of `union bpf_attr` for this command, of the given size; it points to the
    // instructions and a C string, which live until the call returns.
    let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>()) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned this descriptor to us alone.
    let program = unsafe { OwnedFd::from_raw_fd(program as i32) };
    let cgroup = std::fs::File::open(directory)?;
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above; both descriptors are open.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, size_of::<Attach>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Runs a program the way the kernel would.
    fn run(code: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let i = code[at];
            let (to, from) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            match i.code {
                LOAD_WORD => registers[to] = context[i.offset as usize / 4],
                MOVE => registers[to] = i.immediate as u32,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= i.immediate as u32,
                SHIFT_RIGHT => registers[to] >>= i.immediate,
                JUMP_NOT_EQUAL if registers[to] != i.immediate as u32 => at += i.offset as usize,
                JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn programs_decide_as_the_rules_say() {
        let (block, character, make, read, write) = (1, 2, 1, 2, 4);
        let mut rules = DeviceRule::defaults();
        rules.push(DeviceRule::new('b', Some(8), Some(0), "r"));
        let code = program(&rules);
        for (kind, access, major, minor, expected) in [
            (character, read | write, 1, 3, true),
            (character, read, 1, 1, false),
            (character, make, 1, 1, true),
            (character, read, 136, 42, true),
            (block, read, 8, 0, true),
            (block, write, 8, 0, false),
            (block, read | write, 8, 0, false),
            (block, make, 8, 1, true),
            (block, read, 1, 3, false),
        ] {
            assert_eq!(run(&code, kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
        }
        assert!(run(&program(&[DeviceRule::all()]), block, read | write | make, 9, 9));
        assert!(!run(&program(&[]), character, read, 1, 3));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        // Any cgroup of version 2 will do, also the empty hierarchy of a hybrid host.
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::PathBuf::from);
        let Some(mount) = mount.into_iter().find(|m| m.join("cgroup.subtree_control").exists()) else { return };
        let directory = mount.join(format!("umiak-test-{}-devices", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let result = attach(&directory, &program(&DeviceRule::defaults()));
        std::fs::remove_dir(&directory).unwrap();
        result.unwrap();
    }

    #[test]
    fn rules_as_version_1_wants_them() {
        let lines: Vec<_> = DeviceRule::defaults().iter().map(DeviceRule::line).collect();
        assert_eq!(lines[0], "c *:* m");
        assert_eq!(lines[2], "c 1:3 rwm");
        assert_eq!(lines.last().unwrap(), "c 136:* rwm");
    }
}
