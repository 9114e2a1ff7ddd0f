//! What a data directory's daemon left on the machine: processes, mounts, cgroups, interfaces.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::text;

/// Processes whose command line or root file system lies below a directory.
pub fn processes(dir: &Path) -> Vec<i32> {
    let needle = dir.to_string_lossy().into_owned();
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let path = entry.path();
        let cmdline = text(&fs::read(path.join("cmdline")).unwrap_or_default());
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        let rooted = mounts.lines().any(|line| line.contains(" / / ") && line.contains(&needle));
        if pid != own && (cmdline.contains(&needle) || cgroup.contains(&cgroup_name(dir)) || rooted) {
            found.push(pid);
        }
    }
    found
}

/// Ends all of them, shims and containers alike.
pub fn kill_all(dir: &Path) {
    while let pids @ [_, ..] = processes(dir).as_slice() {
        for pid in pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The last part of the cgroup root of a data directory.
pub fn cgroup_name(data_dir: &Path) -> String {
    umiak::server::cgroup_root(data_dir).trim_start_matches('/').to_owned()
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

/// Names of the network interfaces in a namespace, `lo` aside.
pub fn interfaces(netns: &str) -> Vec<String> {
    let output = Command::new("ip").args(["-n", netns, "-o", "link"]).output().unwrap();
    let name = |line: &str| line.split(": ").nth(1).map(|n| n.split('@').next().unwrap_or(n).to_owned());
    // Tunnel devices that the kernel itself puts into every namespace.
    let own =
        |n: &String| n != "lo" && !["sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0"].contains(&n.as_str());
    text(&output.stdout).lines().filter_map(name).filter(own).collect()
}

/// Fails if anything is left.
pub fn assert_none(dir: &Path, netns: &str) {
    let data = dir.join("data");
    assert_eq!(processes(dir), Vec::<i32>::new(), "processes left");
    assert_eq!(mounts(dir), Vec::<String>::new(), "mounts left");
    assert_eq!(cgroups(&data), Vec::<PathBuf>::new(), "cgroups left");
    assert_eq!(interfaces(netns), Vec::<String>::new(), "interfaces left");
    assert!(!data.exists(), "{} left", data.display());
}
