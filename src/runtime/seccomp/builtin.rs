//! The built-in profile: what a container may call without being able to harm the host, in the spirit of what other
//! container runtimes call `RuntimeDefault`.
//!
//! It is written as what is refused and why. All else that the system call tables know is allowed, which makes it a list of
//! allowed calls all the same: calls that are newer than the tables do not exist.

use super::{super::container::capability, Action, Arch, Branch, Condition, Table, Test};

/// Calls that need one of these capabilities, without `CAP_`, and are of no use or dangerous without it.
const PRIVILEGED: &[(&[&str], &[&str])] = &[
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["SYS_ADMIN", "SYSLOG"], &["syslog"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (&["SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd"]),
    (&["SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["SYS_TIME"], &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
];

/// Calls no capability opens: keys and swap belong to no namespace, the others are obsolete or a history of holes.
const NEVER: &[&str] = &[
    "_sysctl",
    "add_key",
    "create_module",
    "get_kernel_syms",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "query_module",
    "request_key",
    "swapoff",
    "swapon",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
];

/// The flags of `clone` that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Personalities that only change what programs are told: Linux, 32-bit Linux, each also as 2.6; and "ask".
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The tables of the native architecture and its sibling.
pub(super) fn tables(capabilities: u64) -> Vec<Table> {
    Arch::native().iter().map(|arch| table(*arch, capabilities)).collect()
}

/// The table of one architecture.
pub(super) fn table(arch: Arch, capabilities: u64) -> Table {
    let calls = arch.calls().into_iter().map(|(number, name)| (number, branches(name, capabilities)));
    Table { arch, calls: calls.collect(), otherwise: Action::FORBIDDEN, unknown: Action::NO_SUCH_CALL }
}

fn branches(name: &str, capabilities: u64) -> Vec<Branch> {
    let has = |names: &[&str]| names.iter().filter_map(|n| capability(n)).any(|bit| capabilities & bit != 0);
    let only_if =
        |test, value| vec![Branch { conditions: vec![Condition { argument: 0, test, value }], action: Action::ALLOW }];
    match name {
        _ if NEVER.contains(&name) => return vec![Branch::always(Action::FORBIDDEN)],
        "clone" if !has(&["SYS_ADMIN"]) => return only_if(Test::Masked(NEW_NAMESPACES), 0),
        // Its flags are in memory, where no filter can see them; without it libraries use `clone`.
        "clone3" if !has(&["SYS_ADMIN"]) => return vec![Branch::always(Action::NO_SUCH_CALL)],
        // Virtual machine sockets reach the hypervisor past all network namespaces.
        "socket" => return only_if(Test::NotEqual, libc::AF_VSOCK as u64),
        "personality" => return PERSONALITIES.iter().flat_map(|p| only_if(Test::Equal, *p)).collect(),
        _ => {}
    }
    let needed = PRIVILEGED.iter().find(|(_, calls)| calls.contains(&name));
    vec![Branch::always(match needed {
        Some((capabilities, _)) if !has(capabilities) => Action::FORBIDDEN,
        _ => Action::ALLOW,
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_system_call() {
        let known: std::collections::HashSet<_> = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm]
            .into_iter()
            .flat_map(Arch::calls)
            .map(|(_, n)| n)
            .collect();
        for name in NEVER.iter().chain(PRIVILEGED.iter().flat_map(|(_, calls)| *calls)) {
            assert!(known.contains(name), "{name}");
        }
        for name in PRIVILEGED.iter().flat_map(|(names, _)| *names) {
            assert!(capability(name).is_some(), "{name}");
        }
    }
}
