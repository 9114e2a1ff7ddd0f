//! What a data directory's daemon left on the machine: processes, mounts, cgroups, interfaces.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::text;

/// Processes of a data directory: named in their command line, in a pod's cgroup, or (a shim that has not got so far)
/// in the network namespace of the daemon.
pub fn processes(data_dir: &Path, netns: &str) -> Vec<i32> {
    let (directory, pods) = (data_dir.to_string_lossy().into_owned(), cgroup_name(data_dir));
    let namespace = fs::metadata(format!("/run/netns/{netns}")).map(|m| m.ino()).ok();
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let path = entry.path();
        let cmdline = text(&fs::read(path.join("cmdline")).unwrap_or_default());
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let lives_in = fs::metadata(path.join("ns/net")).map(|m| m.ino()).ok();
        let inside = namespace.is_some() && lives_in == namespace;
        if pid != own && (cmdline.contains(&directory) || cgroup.contains(&pods) || inside) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process is in a cgroup of a data directory's pods.
pub fn in_cgroup(pid: i32, data_dir: &Path) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|c| c.contains(&cgroup_name(data_dir)))
}

/// Those of them that ended and were not waited for.
pub fn zombies(data_dir: &Path, netns: &str) -> Vec<i32> {
    let own = processes(data_dir, netns);
    let is_zombie = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        // The parent of a container's own orphan is that container.
        let parent = |f: Option<&str>| f.and_then(|p| p.parse().ok()).is_some_and(|p| own.contains(&p));
        fields.next() == Some("Z") && parent(fields.next())
    };
    own.iter().copied().filter(is_zombie).collect()
}

/// Ends all of them, shims and containers alike.
pub fn kill_all(data_dir: &Path, netns: &str) {
    while let pids @ [_, ..] = processes(data_dir, netns).as_slice() {
        for pid in pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The last part of the cgroup root of a data directory.
pub fn cgroup_name(data_dir: &Path) -> String {
    umiak::daemon::cgroup_root(data_dir).trim_start_matches('/').to_owned()
}

/// Every cgroup directory, in any hierarchy, of a data directory's pods.
pub fn cgroups(data_dir: &Path) -> Vec<PathBuf> {
    let name = cgroup_name(data_dir);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    std::iter::once(PathBuf::from("/sys/fs/cgroup"))
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(&name))
        .filter(|path| path.is_dir())
        .collect()
}

/// Mounts of this mount namespace below a directory.
pub fn mounts(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect()
}

/// The interface by which a test connects a namespace to others.
pub const UPLINK: &str = "uplink";

/// Names of the network interfaces in a namespace, `lo` and the uplink aside.
pub fn interfaces(netns: &str) -> Vec<String> {
    let output = Command::new("ip").args(["-n", netns, "-o", "link"]).output().unwrap();
    let name = |line: &str| line.split(": ").nth(1).map(|n| n.split('@').next().unwrap_or(n).to_owned());
    // Tunnel devices that the kernel itself puts into every namespace.
    let own = |n: &String| {
        n != "lo" && n != UPLINK && !["sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0"].contains(&n.as_str())
    };
    text(&output.stdout).lines().filter_map(name).filter(own).collect()
}

/// Takes away what lives in the kernel: mounts, cgroups, interfaces.
pub fn forget_kernel_state(data_dir: &Path, netns: &str) {
    for line in mounts(data_dir) {
        let target = line.split(' ').nth(4).unwrap();
        nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    cgroups(data_dir).iter().for_each(|root| remove_cgroup(root));
    for name in interfaces(netns) {
        // The other end of a pair goes with the first, and with its pod's namespace.
        Command::new("ip").args(["-n", netns, "link", "del", &name]).output().unwrap();
    }
}

fn remove_cgroup(dir: &Path) {
    let children =
        fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    children.for_each(|child| remove_cgroup(&child.path()));
    // A process leaves its cgroup a moment after its end.
    while fs::remove_dir(dir).is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Fails if anything is left.
pub fn assert_none(dir: &Path, netns: &str) {
    let data = dir.join("data");
    assert_eq!(processes(&data, netns), Vec::<i32>::new(), "processes left");
    assert_eq!(mounts(&data), Vec::<String>::new(), "mounts left");
    assert_eq!(cgroups(&data), Vec::<PathBuf>::new(), "cgroups left");
    assert_eq!(interfaces(netns), Vec::<String>::new(), "interfaces left");
    assert!(!data.exists(), "{} left", data.display());
}
