//! System call filters, for `seccomp(2)` to load in the executor: the built-in profile and profile files, compiled here.

mod assemble;
mod builtin;
mod profile;

use std::collections::BTreeMap;

use super::{Result, Seccomp};

/// Compiles a profile for a process with these capabilities, as classic BPF: one instruction a word, as in memory. Empty
/// for no filter.
///
/// Covers the native architecture and its 32-bit sibling, since boards run 32-bit images on 64-bit kernels. System calls
/// of any other architecture end the process.
pub(super) fn compile(profile: &Seccomp, capabilities: u64) -> Result<Vec<u64>> {
    match profile {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::RuntimeDefault => Ok(assemble::assemble(&builtin::tables(capabilities))),
        Seccomp::Localhost(path) => Ok(assemble::assemble(&profile::load(path, capabilities)?)),
    }
}

/// What a filter does with a system call: a return value of `SECCOMP_RET_*`, with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    const LOG: Self = Self(libc::SECCOMP_RET_LOG);
    const TRAP: Self = Self(libc::SECCOMP_RET_TRAP);
    const KILL_THREAD: Self = Self(libc::SECCOMP_RET_KILL_THREAD);
    const KILL_PROCESS: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);
    const NO_SUCH_CALL: Self = Self::fail(libc::ENOSYS as u32);
    const FORBIDDEN: Self = Self::fail(libc::EPERM as u32);

    /// The call fails with this error number.
    const fn fail(errno: u32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | (errno & 0xffff))
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `argument & mask == value`.
    Masked(u64),
}

/// A test of one argument, as 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    argument: u8,
    test: Test,
    value: u64,
}

/// An action that is taken if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Branch {
    conditions: Vec<Condition>,
    action: Action,
}

impl Branch {
    fn always(action: Action) -> Self {
        Self { conditions: Vec::new(), action }
    }
}

/// What happens to the calls of one architecture. The first branch whose conditions hold decides.
#[derive(Debug)]
struct Table {
    arch: Arch,
    calls: BTreeMap<u32, Vec<Branch>>,
    /// For calls that are listed but none of whose branches holds.
    otherwise: Action,
    /// For calls that are not listed.
    unknown: Action,
}

/// An architecture the kernel distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arch {
    X86_64,
    X86,
    Aarch64,
    Arm,
}

impl Arch {
    /// The native one and its 32-bit sibling.
    fn native() -> &'static [Self] {
        match std::env::consts::ARCH {
            "x86_64" => &[Self::X86_64, Self::X86],
            "aarch64" => &[Self::Aarch64, Self::Arm],
            "arm" => &[Self::Arm],
            _ => &[Self::X86],
        }
    }

    /// `AUDIT_ARCH_*`.
    fn number(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// All system calls with their names.
    fn calls(self) -> Vec<(u32, &'static str)> {
        macro_rules! calls {
            ($module:ident) => {
                syscalls::$module::Sysno::iter().map(|call| (call.id() as u32, call.name())).collect()
            };
        }
        let mut calls: Vec<_> = match self {
            Self::X86_64 => calls!(x86_64),
            Self::X86 => calls!(x86),
            Self::Aarch64 => calls!(aarch64),
            Self::Arm => calls!(arm),
        };
        if self == Self::Arm {
            // Private calls of the architecture: <asm/unistd.h>, __ARM_NR_BASE.
            let private = ["breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"];
            calls.extend((0x0f_0001..).zip(private));
        }
        calls
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{assemble::tests::run, *};
    use crate::runtime::Error;

    #[test]
    fn the_built_in_profile_decides_as_expected() {
        let admin = 1 << 21;
        let plain = compile(&Seccomp::RuntimeDefault, 0).unwrap();
        let privileged = compile(&Seccomp::RuntimeDefault, admin).unwrap();
        assert!(plain.len() < 4096, "{}", plain.len());
        let number = |arch: Arch, name: &str| arch.calls().into_iter().find(|(_, n)| *n == name).unwrap().0;
        let (allow, forbidden, unknown) = (Action::ALLOW, Action::FORBIDDEN, Action::NO_SUCH_CALL);
        for (name, arguments, without, with) in [
            ("read", [0; 6], allow, allow),
            ("execve", [0; 6], allow, allow),
            ("capset", [0; 6], allow, allow),
            ("mount", [0; 6], forbidden, allow),
            ("clone", [17, 0, 0, 0, 0, 0], allow, allow),
            ("clone", [0x1000_0000, 0, 0, 0, 0, 0], forbidden, allow),
            ("clone3", [0; 6], unknown, allow),
            ("keyctl", [0; 6], forbidden, forbidden),
            ("io_uring_setup", [0; 6], forbidden, forbidden),
            ("socket", [2, 0, 0, 0, 0, 0], allow, allow),
            ("socket", [40, 0, 0, 0, 0, 0], forbidden, forbidden),
            ("personality", [0xffff_ffff, 0, 0, 0, 0, 0], allow, allow),
            ("personality", [0x40000, 0, 0, 0, 0, 0], forbidden, forbidden),
        ] {
            for arch in Arch::native() {
                let call = number(*arch, name);
                assert_eq!(run(&plain, arch.number(), call, arguments), without, "{arch:?} {name}");
                assert_eq!(run(&privileged, arch.number(), call, arguments), with, "{arch:?} {name}");
            }
        }
        let native = Arch::native()[0].number();
        for call in [9999, u32::MAX, 0x4000_0000] {
            assert_eq!(run(&plain, native, call, [0; 6]), unknown, "{call}");
        }
        assert_eq!(run(&plain, 0xc000_0015, 0, [0; 6]), Action::KILL_PROCESS);
    }

    #[test]
    fn every_architecture_compiles() {
        for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm] {
            let filter = assemble::assemble(&[builtin::table(arch, 0)]);
            for (number, name) in arch.calls() {
                let action = run(&filter, arch.number(), number, [0; 6]);
                let expected = [Action::ALLOW, Action::FORBIDDEN, Action::NO_SUCH_CALL];
                assert!(expected.contains(&action), "{arch:?} {name}");
            }
            let read = arch.calls().into_iter().find(|(_, n)| *n == "read").unwrap().0;
            assert_eq!(run(&filter, arch.number(), read, [0; 6]), Action::ALLOW);
        }
        let tls = assemble::assemble(&[builtin::table(Arch::Arm, 0)]);
        assert_eq!(run(&tls, Arch::Arm.number(), 0x0f_0005, [0; 6]), Action::ALLOW);
    }

    #[test]
    fn profile_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            compile(&Seccomp::Localhost(path.clone()), 0)
        };
        let filter = load(
            r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
                 "syscalls": [
                   { "names": ["mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5 },
                   { "name": "kill", "action": "SCMP_ACT_KILL_PROCESS", "args": [{ "index": 1, "value": 9, "op": "SCMP_CMP_EQ" }] },
                   { "names": ["mount"], "action": "SCMP_ACT_LOG", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                   { "names": ["chroot"], "action": "SCMP_ACT_TRAP", "excludes": { "caps": ["CAP_SYS_CHROOT"] }, "includes": { "minKernel": "4.8" } }
                 ] }"#,
        )
        .unwrap();
        let arch = Arch::native()[0];
        let number = |name: &str| arch.calls().into_iter().find(|(_, n)| *n == name).unwrap().0;
        for (name, arguments, expected) in [
            ("mkdirat", [0; 6], Action::fail(5)),
            ("kill", [1, 9, 0, 0, 0, 0], Action::KILL_PROCESS),
            ("kill", [1, 15, 0, 0, 0, 0], Action::ALLOW),
            ("mount", [0; 6], Action::ALLOW),
            ("chroot", [0; 6], Action::TRAP),
        ] {
            assert_eq!(run(&filter, arch.number(), number(name), arguments), expected, "{name}");
        }
        assert_eq!(run(&filter, arch.number(), 9999, [0; 6]), Action::ALLOW);
        for (text, message) in [
            ("{", "EOF"),
            (r#"{ "defaultAction": "SCMP_ACT_NOPE" }"#, "SCMP_ACT_NOPE"),
            (r#"{ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x" }"#, "listenerPath"),
            (
                r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["kill"], "action": "SCMP_ACT_NOTIFY" }] }"#,
                "NOTIFY",
            ),
        ] {
            let error = load(text).unwrap_err();
            assert!(matches!(&error, Error::Invalid { reason, .. } if reason.contains(message)), "{error}");
        }
        let missing = compile(&Seccomp::Localhost("/does/not/exist".into()), 0).unwrap_err().to_string();
        assert!(missing.contains("/does/not/exist"), "{missing}");
    }
}
