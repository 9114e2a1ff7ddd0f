//! Linux capabilities as a set of bits.

use std::io;

use super::super::{Error, Result, Security};

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What the container world gives a container that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities.
pub(in crate::runtime) type Set = u64;

/// The bit of a capability.
pub(in crate::runtime) fn bit(name: &str) -> Option<Set> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|number| 1 << number)
}

/// The names of a set as an OCI specification writes them.
pub(super) fn names(set: Set) -> Vec<String> {
    let all = NAMES.iter().enumerate();
    all.filter(|(number, _)| set & (1 << number) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
}

/// What a container gets: `drop: ALL` and `add: ALL` first, then single names, as in Kubernetes; nothing this process does
/// not have itself.
pub(super) fn of(security: &Security) -> Result<Set> {
    let all = (1 << NAMES.len()) - 1;
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    let mut set = DEFAULT.iter().filter_map(|name| bit(name)).sum();
    if security.privileged || security.add.iter().any(|n| is_all(&n)) {
        set = all;
    }
    if security.drop.iter().any(|n| is_all(&n)) && !security.privileged {
        set = if security.add.iter().any(|n| is_all(&n)) { all } else { 0 };
    }
    let lookup = |field: &str, name: &str| {
        let unknown = || Error::Invalid { field: field.into(), reason: format!("unknown capability {name:?}") };
        bit(name).ok_or_else(unknown)
    };
    for name in security.add.iter().filter(|n| !is_all(n)) {
        set |= lookup("securityContext.capabilities.add", name)?;
    }
    for name in security.drop.iter().filter(|n| !is_all(n)) {
        set &= !lookup("securityContext.capabilities.drop", name)?;
    }
    Ok(set & permitted())
}

/// What this process may hand on: its permitted set within its bounding set.
pub(in crate::runtime) fn permitted() -> Set {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|v| Set::from_str_radix(v.trim(), 16).ok()).unwrap_or_default()
    };
    field("CapPrm:") & field("CapBnd:")
}

/// Takes the rest of the set out of the bounding set. Needs SETPCAP.
pub(super) fn bound(set: Set) -> io::Result<()> {
    for number in (0..64).take_while(|n| bounded(*n).is_some()).filter(|n| set & (1 << n) == 0) {
        // SAFETY: prctl with numbers only.
        if bounded(number) == Some(true) && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn bounded(number: u64) -> Option<bool> {
    // SAFETY: prctl with numbers only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } {
        -1 => None,
        value => Some(value == 1),
    }
}

/// Makes this the effective and permitted set; inheritable and, with it, ambient become empty.
pub(super) fn set(set: Set) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u32| Data { effective: bits, permitted: bits, inheritable: 0 };
    let data = [half(set as u32), half((set >> 32) as u32)];
    // SAFETY: the structures are those of version 3: a header and two data elements.
    match unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        Security { add: own(add), drop: own(drop), ..Security::default() }
    }

    #[test]
    fn sets() {
        assert_eq!(bit("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(names(1 << 21 | 1), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        let default = of(&security(&[], &[])).unwrap();
        assert_eq!(names(default).len(), 14);
        let net = bit("NET_ADMIN").unwrap();
        assert_eq!(of(&security(&["net_admin"], &[])).unwrap(), default | net);
        assert_eq!(of(&security(&["NET_ADMIN"], &["ALL"])).unwrap(), net);
        assert_eq!(of(&security(&["ALL"], &["ALL"])).unwrap(), permitted());
        assert_eq!(of(&security(&[], &["CAP_CHOWN"])).unwrap(), default & !1);
        let error = of(&security(&["NOPE"], &[])).unwrap_err().to_string();
        assert_eq!(error, "securityContext.capabilities.add: unknown capability \"NOPE\"");
    }
}
