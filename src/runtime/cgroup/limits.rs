//! Limits of a cgroup.

use std::{fs, path::Path};

use super::{Cgroups, write};
use crate::runtime::{Error, Resources, Result};

impl Cgroups {
    /// Applies limits; what is `None` is left as it is. Fails with [`Error::MissingController`] where a limit needs a
    /// controller the kernel does not offer.
    pub(in crate::runtime) fn limit(&self, name: &str, resources: &Resources) -> Result<()> {
        let at = |controller: &'static str, file: &str, limit: &str| {
            let directory = self.directory(controller, name);
            let missing = || Error::MissingController { controller: controller.into(), limit: limit.into() };
            directory.map(|d| d.join(file)).filter(|f| f.exists()).ok_or_else(missing)
        };
        if let Some(shares) = resources.cpu_shares {
            let shares = shares.clamp(2, 262_144);
            match self.unified {
                true => write(&at("cpu", "cpu.weight", "CPU request")?, &weight(shares).to_string())?,
                false => write(&at("cpu", "cpu.shares", "CPU request")?, &shares.to_string())?,
            }
        }
        if let Some(quota) = resources.cpu_quota {
            let period = resources.cpu_period.unwrap_or(100_000);
            if self.unified {
                let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
                write(&at("cpu", "cpu.max", "CPU limit")?, &format!("{quota} {period}"))?;
            } else {
                write(&at("cpu", "cpu.cfs_period_us", "CPU limit")?, &period.to_string())?;
                write(&at("cpu", "cpu.cfs_quota_us", "CPU limit")?, &quota.to_string())?;
            }
        }
        if let Some(bytes) = resources.memory_limit {
            let file = if self.unified { "memory.max" } else { "memory.limit_in_bytes" };
            self.limit_memory(&at("memory", file, "memory limit")?, bytes)?;
        }
        if let Some(pids) = resources.pids_limit {
            write(&at("pids", "pids.max", "limit of processes")?, &pids.to_string())?;
        }
        Ok(())
    }

    /// Memory without swap: kubelet's default (`NoSwap`).
    fn limit_memory(&self, file: &Path, bytes: u64) -> Result<()> {
        let value = bytes.to_string();
        if self.unified {
            write(file, &value)?;
            let swap = file.with_file_name("memory.swap.max");
            return if swap.exists() { write(&swap, "0") } else { Ok(()) };
        }
        let with_swap = file.with_file_name("memory.memsw.limit_in_bytes");
        if !with_swap.exists() {
            return write(file, &value);
        }
        // The sum may never be below the memory alone: when raising, the sum goes first.
        let raising =
            fs::read_to_string(file).ok().and_then(|v| v.trim().parse::<u64>().ok()).is_some_and(|now| now < bytes);
        let order = if raising { [&*with_swap, file] } else { [file, &*with_swap] };
        order.into_iter().try_for_each(|f| write(f, &value))
    }

    /// Makes the kernel kill a whole container rather than one process of it when its memory is used up, as kubelet does on
    /// version 2.
    pub(in crate::runtime) fn kill_as_group(&self, name: &str) -> Result<()> {
        let file = self.directory("memory", name).map(|d| d.join("memory.oom.group"));
        file.filter(|f| f.exists()).map_or(Ok(()), |f| write(&f, "1"))
    }
}

/// A version 2 weight (1–10000, default 100) for version 1 shares (2–262144, default 1024), by the curve that maps both
/// ends and the default onto each other: 10^((l² + 125 l)/612 − 7/34) with l = log2(shares).
fn weight(shares: u64) -> u64 {
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn weights() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!(weight(512) < 100 && weight(2048) > 100);
    }

    #[test]
    fn limits_reach_the_kernel() {
        let cgroups = Cgroups::detect().unwrap();
        let name = format!("/umiak-test-{}-limits", std::process::id());
        cgroups.create(&name).unwrap();
        let mut resources = Resources {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: None,
            memory_limit: Some(64 << 20),
            pids_limit: Some(77),
        };
        let read = |controller, file: &str| {
            let path = cgroups.directory(controller, &name).unwrap().join(file);
            fs::read_to_string(path).unwrap().trim().to_owned()
        };
        for megabytes in [64, 96, 32] {
            resources.memory_limit = Some(megabytes << 20);
            cgroups.limit(&name, &resources).unwrap();
            let file = if cgroups.unified() { "memory.max" } else { "memory.limit_in_bytes" };
            assert_eq!(read("memory", file), (megabytes << 20).to_string());
        }
        assert_eq!(read("pids", "pids.max"), "77");
        if !cgroups.unified() {
            assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
        }
        cgroups.remove(&name).unwrap();
    }

    #[test]
    fn missing_controllers_are_named() {
        let cgroups = Cgroups { hierarchies: Vec::new(), unified: false };
        let resources = Resources { memory_limit: Some(1), ..Resources::default() };
        let error = cgroups.limit("/x", &resources).unwrap_err().to_string();
        assert_eq!(error, "the kernel has no memory cgroup controller, which the memory limit needs");
        cgroups.limit("/x", &Resources::default()).unwrap();
    }
}
