//! What this board offers for running pods, and what to do about what it lacks: the facts behind `umiak check`.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
};

use super::{cgroup::Cgroups, container, sys};

/// One thing a node needs or would like to have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fact {
    /// What was looked at, in a few words.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty if all is well.
    pub remedy: &'static str,
}

/// How well a board does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Verdict {
    /// Nothing to do.
    Good,
    /// Something will not work, most will.
    Limited,
    /// No pod can run.
    Bad,
}

/// Free space below which pods had better not be started, in bytes.
const LITTLE_SPACE: u64 = 500 << 20;
/// Less free disk than this share is pressure.
const LOW_DISK_PERCENT: u64 = 10;
/// 2025-01-01: a clock before it has never been set.
const CLOCK_FLOOR: i64 = 1_735_689_600_000_000_000;

/// Looks at everything. `data_dir` is where images and pods will live; it, or the nearest directory above it, must exist.
/// Needs root for some answers; takes a few milliseconds.
pub fn probe(data_dir: &Path) -> Vec<Fact> {
    let mut facts = vec![root(), kernel()];
    facts.extend(cgroups());
    facts.extend([overlay(), seccomp(), network(), nftables(), swap(), clock(), space(data_dir)]);
    facts
}

fn fact(name: &'static str, verdict: Verdict, detail: impl Into<String>, remedy: &'static str) -> Fact {
    let remedy = if verdict == Verdict::Good { "" } else { remedy };
    Fact { name, verdict, detail: detail.into(), remedy }
}

/// `Good` or, if not, how bad that is.
fn or(fine: bool, otherwise: Verdict) -> Verdict {
    if fine { Verdict::Good } else { otherwise }
}

fn root() -> Fact {
    let held = container::permitted();
    let needed =
        ["SYS_ADMIN", "NET_ADMIN", "SYS_CHROOT", "SETUID", "SETGID", "SETPCAP", "MKNOD", "DAC_OVERRIDE", "KILL"];
    let missing: Vec<_> =
        needed.into_iter().filter(|n| container::capability(n).is_some_and(|bit| held & bit == 0)).collect();
    let detail = if missing.is_empty() { "all there".to_owned() } else { format!("missing: {}", missing.join(", ")) };
    fact("privileges", or(missing.is_empty(), Verdict::Bad), detail, "run as root")
}

fn kernel() -> Fact {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let version: Vec<u32> = release.split(['.', '-', '+']).take(2).map_while(|p| p.parse().ok()).collect();
    fact("kernel", or(version >= vec![5, 12], Verdict::Bad), release, "use a kernel of 5.12 or newer")
}

fn cgroups() -> Vec<Fact> {
    let found = match Cgroups::detect() {
        Ok(found) => found,
        Err(error) => return vec![fact("cgroups", Verdict::Bad, error.to_string(), "mount the cgroup file system")],
    };
    let version = if found.unified() { "version 2" } else { "version 1" };
    let controllers = found.controllers();
    let has = |name: &str| controllers.iter().any(|c| c == name);
    let mut facts = vec![fact("cgroups", Verdict::Good, version, "")];
    let text = |name| if has(name) { "available" } else { "not available" };
    facts.push(fact(
        "memory cgroup",
        or(has("memory"), Verdict::Limited),
        text("memory"),
        "memory limits and usage need it: on a Raspberry Pi add \"cgroup_enable=memory\" to /boot/firmware/cmdline.txt and reboot",
    ));
    facts.push(fact(
        "cpu cgroup",
        or(has("cpu"), Verdict::Limited),
        text("cpu"),
        "CPU limits need a kernel with CONFIG_CGROUP_SCHED and CONFIG_CFS_BANDWIDTH",
    ));
    facts.push(fact(
        "pids cgroup",
        or(has("pids"), Verdict::Limited),
        text("pids"),
        "limits of processes need a kernel with CONFIG_CGROUP_PIDS",
    ));
    if !found.unified() {
        facts.push(fact(
            "devices cgroup",
            or(has("devices"), Verdict::Bad),
            text("devices"),
            "containers need a kernel with CONFIG_CGROUP_DEVICE",
        ));
    }
    facts
}

/// The file systems the kernel knows, or could load.
fn knows_filesystem(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|l| l.split_whitespace().last() == Some(name)) || module(name)
}

/// True if a module is loaded, built in or could be loaded.
fn module(name: &str) -> bool {
    if Path::new("/sys/module").join(name.replace('-', "_")).exists() {
        return true;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let directory = Path::new("/lib/modules").join(release.trim());
    let same = |file: &str| file.split('.').next().is_some_and(|f| f.replace('-', "_") == name.replace('-', "_"));
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        let text = fs::read_to_string(directory.join(list)).unwrap_or_default();
        text.lines().filter_map(|l| l.split(':').next()?.rsplit('/').next()).any(same)
    })
}

fn overlay() -> Fact {
    let fine = knows_filesystem("overlay");
    fact(
        "overlay file system",
        or(fine, Verdict::Bad),
        if fine { "available" } else { "not available" },
        "containers need a kernel with CONFIG_OVERLAY_FS",
    )
}

fn seccomp() -> Fact {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let fine = actions.split_whitespace().any(|a| a == "errno");
    let detail = if fine { "available" } else { "not available" };
    fact(
        "seccomp filters",
        or(fine, Verdict::Limited),
        detail,
        "only pods with seccompProfile Unconfined can run: use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn network() -> Fact {
    let missing: Vec<_> = ["bridge", "veth"].into_iter().filter(|&kind| !ask_kernel(move || new_link(kind))).collect();
    let detail = if missing.is_empty() {
        "bridge and veth available".to_owned()
    } else {
        format!("missing: {}", missing.join(", "))
    };
    fact(
        "pod network",
        or(missing.is_empty(), Verdict::Limited),
        detail,
        "only pods with hostNetwork can run: use a kernel with CONFIG_BRIDGE and CONFIG_VETH",
    )
}

fn nftables() -> Fact {
    let fine = ask_kernel(nftables_generation);
    let detail = if fine { "available" } else { "not available" };
    fact(
        "nf_tables",
        or(fine, Verdict::Limited),
        detail,
        "pods reach the world outside only where it routes back to them: use a kernel with CONFIG_NF_TABLES and CONFIG_NFT_MASQ",
    )
}

/// Asks in a network namespace that is gone afterwards: that of a thread of its own.
fn ask_kernel(question: impl FnOnce() -> io::Result<()> + Send + 'static) -> bool {
    let asked = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        question()
    });
    asked.join().is_ok_and(|answer| answer.is_ok())
}

/// Makes an interface of a kind.
fn new_link(kind: &str) -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    const IFLA_INFO_KIND: u16 = 1;
    let information = attribute(libc::IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, kind.as_bytes()));
    let interface = [0; 16];
    netlink(libc::NETLINK_ROUTE, RTM_NEWLINK, CREATE, &[&interface[..], &information].concat())
}

fn nftables_generation() -> io::Result<()> {
    const NFT_MSG_GETGEN: u16 = 16;
    netlink(libc::NETLINK_NETFILTER, (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | NFT_MSG_GETGEN, 0, &[0; 4])
}

/// A netlink attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Sends one request and waits for its acknowledgement.
fn netlink(protocol: i32, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let length = (16 + body.len()) as u32;
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    // SAFETY: takes numbers and returns a new descriptor or -1.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor to us alone.
    let mut socket = fs::File::from(unsafe { OwnedFd::from_raw_fd(socket) });
    socket.write_all(&[&header[..], body].concat())?;
    loop {
        let mut answer = [0; 4096];
        let length = socket.read(&mut answer)?;
        // An acknowledgement is an error message with error 0; what comes before it is the answer proper.
        let [k0, k1] = [answer[4], answer[5]];
        if length >= 20 && i32::from(u16::from_ne_bytes([k0, k1])) == libc::NLMSG_ERROR {
            let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
    }
}

fn swap() -> Fact {
    let lines = fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count();
    let on_disk =
        fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1).any(|l| !l.starts_with("/dev/zram"));
    let detail = if lines <= 1 {
        "none"
    } else if on_disk {
        "on a disk"
    } else {
        "compressed memory"
    };
    fact("swap", or(!on_disk, Verdict::Limited), detail, "swapping wears flash out: use zram instead")
}

fn clock() -> Fact {
    let set = sys::now() >= CLOCK_FLOOR;
    let rtc = Path::new("/dev/rtc0").exists() || Path::new("/dev/rtc").exists();
    let detail = match (set, rtc) {
        (true, true) => "set, with a hardware clock",
        (true, false) => "set, but there is no hardware clock",
        (false, _) => "not set",
    };
    fact(
        "clock",
        or(set, Verdict::Limited),
        detail,
        "certificates need the time: let it be synchronised (systemd-timesyncd, chrony)",
    )
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// All of it.
    pub size: u64,
    /// What programs may still take.
    pub free: u64,
}

impl Disk {
    /// The one below a path.
    ///
    /// # Errors
    /// When there is no such path.
    pub fn below(path: &Path) -> nix::Result<Self> {
        let found = nix::sys::statvfs::statvfs(path)?;
        // These numbers are 32 bits wide on 32-bit boards.
        #[allow(clippy::unnecessary_cast)]
        let (unit, all, free) = (found.fragment_size() as u64, found.blocks() as u64, found.blocks_available() as u64);
        Ok(Self { size: unit * all, free: unit * free })
    }

    /// Whether a node with it has DiskPressure and takes no more pods (kubelet's `nodefs.available<10%`).
    pub fn is_low(&self) -> bool {
        self.free.saturating_mul(100) < self.size.saturating_mul(LOW_DISK_PERCENT)
    }
}

fn space(data_dir: &Path) -> Fact {
    let existing = data_dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    match Disk::below(existing) {
        Ok(disk) => free_space(disk, existing),
        Err(_) => fact(
            "free disk space",
            Verdict::Limited,
            format!("unknown below {}", existing.display()),
            "check the data directory",
        ),
    }
}

fn free_space(disk: Disk, at: &Path) -> Fact {
    let detail = format!("{} of {} MiB at {}", disk.free >> 20, disk.size >> 20, at.display());
    let (verdict, remedy) = match (disk.is_low(), disk.free < LITTLE_SPACE) {
        (true, _) => (Verdict::Bad, "below a tenth a node has DiskPressure and takes no pods: make room"),
        (false, little) => {
            (or(!little, Verdict::Limited), "images need room: make some, or choose another data directory")
        }
    };
    fact("free disk space", verdict, detail, remedy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_host_can_run_pods() {
        let facts = probe(Path::new("/does/not/exist/yet"));
        for fact in &facts {
            assert_ne!(fact.verdict, Verdict::Bad, "{fact:?}");
            assert!(!fact.detail.is_empty());
            assert_eq!(fact.remedy.is_empty(), fact.verdict == Verdict::Good, "{fact:?}");
        }
        let named = |name| facts.iter().find(|f| f.name == name).unwrap();
        assert_eq!(named("overlay file system").verdict, Verdict::Good);
        assert_eq!(named("pod network").verdict, Verdict::Good, "{:?}", named("pod network"));
        assert_eq!(named("nf_tables").verdict, Verdict::Good);
        assert_eq!(named("clock").verdict, Verdict::Good);
    }

    #[test]
    fn little_disk_is_told_from_too_little() {
        for (size, free, expected) in [
            (100 << 30, 20 << 30, Verdict::Good),
            (100 << 30, 9 << 30, Verdict::Bad),
            (2 << 30, 400 << 20, Verdict::Limited),
            (2 << 30, 100 << 20, Verdict::Bad),
        ] {
            let fact = free_space(Disk { size, free }, Path::new("/data"));
            assert_eq!(fact.verdict, expected, "{fact:?}");
        }
    }

    #[test]
    fn unknown_modules_are_not_there() {
        assert!(!module("no_such_module") && !knows_filesystem("nosuchfs") && !ask_kernel(|| new_link("nosuchkind")));
    }
}
