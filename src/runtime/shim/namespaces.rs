//! The namespaces of a pod.

use std::{
    fs,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::super::SandboxConfig;

const SHM_SIZE: u64 = 64 << 20;

/// Leaves the host's namespaces as the pod wants it, and sets up the new ones.
pub(super) fn enter(sandbox: &SandboxConfig) -> Result<(), String> {
    let mut flags = CloneFlags::empty();
    if !sandbox.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !sandbox.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(|e| format!("make namespaces: {e}"))?;
    if !sandbox.host_network {
        raise_loopback().map_err(|e| format!("set up the loopback interface: {e}"))?;
        if !sandbox.hostname.is_empty() {
            nix::unistd::sethostname(&sandbox.hostname)
                .map_err(|e| format!("set the host name {:?}: {e}", sandbox.hostname))?;
        }
        // Containers may ping and listen below 1024 without a capability, as with other runtimes.
        for (name, value) in
            [("net.ipv4.ping_group_range", "0 2147483647"), ("net.ipv4.ip_unprivileged_port_start", "0")]
        {
            // A kernel without one of them keeps its default.
            let _ = set_sysctl(name, value);
        }
    }
    for (name, value) in &sandbox.sysctls {
        check_sysctl(sandbox, name)?;
        set_sysctl(name, value).map_err(|e| format!("set sysctl {name}={value}: {e}"))?;
    }
    Ok(())
}

/// Refuses what would change the host.
fn check_sysctl(sandbox: &SandboxConfig, name: &str) -> Result<(), String> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    let refused = match name {
        _ if name.contains('/') || name.contains("..") => "is not a dotted name",
        _ if name.starts_with("net.") && sandbox.host_network => "needs a network namespace of its own, not the host's",
        _ if name.starts_with("net.") => return Ok(()),
        _ if ipc && sandbox.host_ipc => "needs an IPC namespace of its own, not the host's",
        _ if ipc => return Ok(()),
        _ => "is not a namespaced sysctl",
    };
    Err(format!("sysctl {name} {refused}"))
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(name.replace('.', "/")), value)
}

fn raise_loopback() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives during the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes the pod's `/dev/shm` in a mount namespace that holds nothing else: it lives as long as the descriptor, pins no
/// mount of the host and is seen by nobody.
pub(super) fn keep_shared_memory(directory: &Path, size: Option<u64>) -> Result<OwnedFd, String> {
    fn fail<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
        move |e| format!("shared memory: {what}: {e}")
    }
    let nothing = None::<&str>;
    let place = directory.join("shm");
    let host = File::open("/proc/self/ns/mnt").map_err(fail("open the mount namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(fail("unshare"))?;
    let keeper = File::open("/proc/self/ns/mnt").map_err(fail("open the mount namespace"))?;
    mount(nothing, "/", nothing, MsFlags::MS_PRIVATE | MsFlags::MS_REC, nothing)
        .map_err(fail("make mounts private"))?;
    let options = format!("mode=1777,size={}", size.unwrap_or(SHM_SIZE));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &place, Some("tmpfs"), flags, Some(&*options)).map_err(fail("mount"))?;
    std::env::set_current_dir(&place).map_err(fail("enter"))?;
    nix::unistd::pivot_root(".", ".").map_err(fail("pivot"))?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).map_err(fail("detach the host's mounts"))?;
    setns(&host, CloneFlags::CLONE_NEWNS).map_err(fail("return"))?;
    Ok(keeper.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sysctls() {
        let own = SandboxConfig::default();
        let host = SandboxConfig { host_network: true, host_ipc: true, ..SandboxConfig::default() };
        for (name, with_own, with_host) in [
            ("net.core.somaxconn", true, false),
            ("kernel.shmmax", true, false),
            ("kernel.sem", true, false),
            ("fs.mqueue.msg_max", true, false),
            ("kernel.panic", false, false),
            ("net.ipv4/../../kernel.panic", false, false),
        ] {
            assert_eq!(check_sysctl(&own, name).is_ok(), with_own, "{name}");
            assert_eq!(check_sysctl(&host, name).is_ok(), with_host, "{name}");
        }
    }
}
