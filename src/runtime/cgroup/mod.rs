//! cgroups, version 1 and 2: made, limited, counted, killed and removed here; libcontainer only joins them.
//!
//! Names are absolute below the hierarchy's mount (`/umiak-1a2b/pod…/web-0`) and the same in all hierarchies.

mod devices;
mod limits;
mod stats;

pub(super) use devices::DeviceRule;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, Result};

/// Where the kernel's cgroup hierarchies are mounted.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    unified: bool,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Controllers of a version 1 hierarchy; empty for version 2 and for named hierarchies.
    controllers: Vec<String>,
}

/// Version 2 controllers handed down to pods.
const DELEGATED: [&str; 3] = ["cpu", "memory", "pids"];

impl Cgroups {
    /// Reads the mount table.
    pub(super) fn detect() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let table = fs::read_to_string(path).map_err(|source| error(path, source))?;
        let found = parse(&table);
        if found.hierarchies.is_empty() {
            return Err(error(
                "/sys/fs/cgroup",
                io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted"),
            ));
        }
        Ok(found)
    }

    /// True if everything is in the one version 2 hierarchy.
    pub(super) fn unified(&self) -> bool {
        self.unified
    }

    /// The directory of a cgroup in the hierarchy of a controller.
    fn directory(&self, controller: &str, name: &str) -> Option<PathBuf> {
        let has = |h: &&Hierarchy| self.unified || h.controllers.iter().any(|c| c == controller);
        self.hierarchies.iter().find(has).map(|h| below(&h.mount, name))
    }

    fn directories(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(move |h| below(&h.mount, name))
    }

    /// The controllers the kernel offers.
    pub(super) fn controllers(&self) -> Vec<String> {
        if self.unified {
            let read = fs::read_to_string(self.hierarchies[0].mount.join("cgroup.controllers")).unwrap_or_default();
            return read.split_whitespace().map(String::from).collect();
        }
        self.hierarchies.iter().flat_map(|h| h.controllers.clone()).collect()
    }

    /// Makes a cgroup and its ancestors in every hierarchy that has a controller.
    pub(super) fn create(&self, name: &str) -> Result<()> {
        for hierarchy in self.used() {
            let mut path = hierarchy.mount.clone();
            for part in name.split('/').filter(|p| !p.is_empty()) {
                if self.unified {
                    delegate(&path);
                }
                path.push(part);
                match fs::create_dir(&path) {
                    Ok(()) => inherit_cpuset(hierarchy, &path)?,
                    Err(found) if found.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(error(path, source)),
                }
            }
        }
        Ok(())
    }

    /// The hierarchies cgroups are made in: those that control something.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|h| self.unified || !h.controllers.is_empty())
    }

    /// Moves a process into an existing cgroup. Fails where that is gone: a process that stayed outside would be missed
    /// when all of the cgroup are killed.
    pub(super) fn join(&self, name: &str, pid: u32) -> Result<()> {
        self.used().try_for_each(|h| write(&below(&h.mount, name).join("cgroup.procs"), &pid.to_string()))
    }

    /// All processes in a cgroup and below it.
    pub(super) fn processes(&self, name: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for directory in self.directories(name) {
            each(&directory, &mut |cgroup| {
                let list = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
                // 0 stands for processes outside of our PID namespace: not ours.
                found.extend(list.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
            });
        }
        found
    }

    /// Sends SIGKILL to all processes in a cgroup and below it. They may take a moment to be gone.
    pub(super) fn kill(&self, name: &str) {
        let unified = self.unified.then(|| below(&self.hierarchies[0].mount, name));
        if unified.is_some_and(|d| fs::write(d.join("cgroup.kill"), "1").is_ok()) {
            return;
        }
        // Without `cgroup.kill` (version 1, kernels before 5.14) a fork can win the race: look again until it has not.
        let mut seen = BTreeSet::new();
        loop {
            let fresh: Vec<i32> = self.processes(name).difference(&seen).copied().collect();
            if fresh.is_empty() {
                return;
            }
            for pid in fresh {
                // SAFETY: sends a signal. The process was in the cgroup a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                seen.insert(pid);
            }
        }
    }

    /// Removes a cgroup and everything below it. Its processes must be gone.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.directories(name).try_for_each(|directory| remove_tree(&directory))
    }
}

fn below(mount: &Path, name: &str) -> PathBuf {
    mount.join(name.trim_start_matches('/'))
}

fn parse(table: &str) -> Cgroups {
    let mut version1 = Vec::new();
    let mut version2 = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
        let mount = PathBuf::from(mount.replace("\\040", " "));
        match kind {
            Some("cgroup") => {
                let names = options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children"));
                let controllers = names.filter(|o| !o.contains('=')).map(String::from).collect();
                version1.push(Hierarchy { mount, controllers });
            }
            Some("cgroup2") => version2.push(Hierarchy { mount, controllers: Vec::new() }),
            _ => {}
        }
    }
    // A host with any version 1 controller is driven by version 1, as systemd's hybrid layout intends.
    if version1.iter().any(|h| !h.controllers.is_empty()) {
        version1.extend(version2);
        return Cgroups { hierarchies: version1, unified: false };
    }
    version2.truncate(1);
    Cgroups { unified: !version2.is_empty(), hierarchies: version2 }
}

/// Hands the controllers down to the children of a version 2 cgroup. What the kernel does not have stays away; a limit that
/// needs it fails later, by name.
fn delegate(cgroup: &Path) {
    let file = cgroup.join("cgroup.subtree_control");
    let have = fs::read_to_string(&file).unwrap_or_default();
    for controller in DELEGATED.iter().filter(|c| !have.split_whitespace().any(|h| h == **c)) {
        if let Err(reason) = fs::write(&file, format!("+{controller}")) {
            tracing::debug!(%reason, controller, file = %file.display(), "controller not handed down");
        }
    }
}

/// A new version 1 cpuset takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    if !hierarchy.controllers.iter().any(|c| c == "cpuset") {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = path.parent().unwrap_or(path).join(file);
        let value = fs::read_to_string(&from).map_err(|source| error(&from, source))?;
        write(&path.join(file), value.trim())?;
    }
    Ok(())
}

fn each(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    if !directory.is_dir() {
        return;
    }
    visit(directory);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            each(&entry.path(), visit);
        }
    }
}

fn remove_tree(directory: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(directory, source)),
    };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(directory, source)),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|source| error(path, source))
}

fn error(path: impl Into<PathBuf>, source: io::Error) -> Error {
    Error::Cgroup { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HYBRID: &str = "\
32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
36 25 0:32 / /proc rw - proc proc rw
";

    #[test]
    fn mount_tables() {
        let hybrid = parse(HYBRID);
        assert!(!hybrid.unified());
        assert_eq!(hybrid.directory("cpuacct", "/a/b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(hybrid.directory("memory", "/a").unwrap(), Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!(hybrid.directory("pids", "/a"), None);
        assert_eq!(hybrid.directories("/a").count(), 4);

        let unified = parse("30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n");
        assert!(unified.unified());
        assert_eq!(unified.directory("pids", "/a").unwrap(), Path::new("/sys/fs/cgroup/a"));

        assert!(parse("36 25 0:32 / /proc rw - proc proc rw\n").hierarchies.is_empty());
    }

    #[test]
    fn life_of_a_real_cgroup() {
        let cgroups = Cgroups::detect().unwrap();
        let root = format!("/umiak-test-{}-cgroup", std::process::id());
        let name = format!("{root}/pod/web-0");
        cgroups.create(&name).unwrap();
        cgroups.create(&name).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        cgroups.join(&name, child.id()).unwrap();
        assert_eq!(cgroups.processes(&root), [child.id() as i32].into());
        cgroups.kill(&root);
        child.wait().unwrap();
        assert!(cgroups.processes(&root).is_empty());
        cgroups.remove(&root).unwrap();
        cgroups.join(&name, std::process::id()).unwrap_err();
        cgroups.remove(&root).unwrap();
        assert!(cgroups.directories(&root).all(|d| !d.exists()));
    }
}
