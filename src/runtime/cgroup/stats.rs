//! What a cgroup uses.

use std::{fs, path::Path};

use super::Cgroups;
use crate::runtime::Stats;

impl Cgroups {
    /// Reads the counters; those of missing controllers are 0.
    pub(in crate::runtime) fn stats(&self, name: &str) -> Stats {
        let memory = self.directory("memory", name).unwrap_or_default();
        let (usage, inactive, rss) = match self.unified {
            true => ("memory.current", "inactive_file", "anon"),
            false => ("memory.usage_in_bytes", "total_inactive_file", "total_rss"),
        };
        let cpu_ns = match self.unified {
            true => keyed(&self.directory("cpu", name).unwrap_or_default().join("cpu.stat"), "usage_usec") * 1000,
            false => number(&self.directory("cpuacct", name).unwrap_or_default().join("cpuacct.usage")),
        };
        let statistics = memory.join("memory.stat");
        let memory_usage = number(&memory.join(usage));
        Stats {
            cpu_ns,
            memory_usage,
            memory_working_set: memory_usage.saturating_sub(keyed(&statistics, inactive)),
            memory_rss: keyed(&statistics, rss),
            pids: number(&self.directory("pids", name).unwrap_or_default().join("pids.current")),
        }
    }

    /// How many processes of the cgroup and below it the kernel has killed for want of memory.
    pub(in crate::runtime) fn oom_kills(&self, name: &str) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        keyed(&self.directory("memory", name).unwrap_or_default().join(file), "oom_kill")
    }
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|v| v.trim().parse().ok()).unwrap_or_default()
}

fn keyed(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut pairs = text.lines().filter_map(|l| l.split_once(' '));
    pairs.find(|(k, _)| *k == key).and_then(|(_, v)| v.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn counters_move() {
        let cgroups = Cgroups::detect().unwrap();
        let name = format!("/umiak-test-{}-stats", std::process::id());
        cgroups.create(&name).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "read x; while :; do :; done"]).stdin(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        cgroups.join(&name, child.id()).unwrap();
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while cgroups.stats(&name).cpu_ns == 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let stats = cgroups.stats(&name);
        assert!(stats.cpu_ns > 0 && stats.pids == 1, "{stats:?}");
        assert_eq!(cgroups.oom_kills(&name), 0);
        cgroups.kill(&name);
        child.wait().unwrap();
        cgroups.remove(&name).unwrap();
        assert_eq!(cgroups.stats(&name), Stats::default());
    }
}
