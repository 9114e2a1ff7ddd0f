//! What this node and its containers use, measured when somebody asks: an idle node measures nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until};

use super::engine::blocking;
use super::worker::Sandboxes;
use crate::kinds::status::Status;
use crate::link::stream::{Channel, Frame, MAX_FRAME};
use crate::link::usage::{Amount, Usage};
use crate::runtime::{ContainerId, ContainerState, Sandbox};

/// Between two samples, at least; who asks sooner gets the same answer.
const WINDOW: Duration = Duration::from_secs(1);
/// A sample older than this says nothing of now.
const RECENT: Duration = Duration::from_secs(60);

/// Measures a node's usage.
pub(super) struct Meter {
    sandboxes: Sandboxes<Sandbox>,
    /// The last two samples. Whoever asks while one is taken waits for it.
    samples: Mutex<Option<(Sample, Sample)>>,
}

/// Counters at one time.
struct Sample {
    at: Instant,
    node: Counters,
    pods: HashMap<String, HashMap<ContainerId, Counters>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    cpu_ns: u64,
    memory: u64,
}

impl Meter {
    pub(super) fn new(sandboxes: Sandboxes<Sandbox>) -> Self {
        Self { sandboxes, samples: Mutex::default() }
    }

    /// Writes the usage as JSON.
    pub(super) async fn serve(&self, tx: &mpsc::Sender<Frame>) -> Result<(), Status> {
        let usage = self.measure().await.map_err(Status::internal)?;
        let mut json = Bytes::from(serde_json::to_vec(&usage).map_err(Status::internal)?);
        while !json.is_empty() {
            let data = json.split_to(json.len().min(MAX_FRAME));
            if tx.send(Frame { channel: Channel::Stdout, data }).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The usage between the last sample, if it is recent, and now; takes up to [`WINDOW`].
    async fn measure(&self) -> super::Result<Usage> {
        let mut samples = self.samples.lock().await;
        let last = match samples.take() {
            Some((before, last)) if last.at.elapsed() < WINDOW => {
                let usage = usage(&before, &last);
                *samples = Some((before, last));
                return Ok(usage);
            }
            Some((_, last)) if last.at.elapsed() < RECENT => last,
            _ => self.sample().await?,
        };
        sleep_until(last.at + WINDOW).await;
        let now = self.sample().await?;
        let usage = usage(&last, &now);
        *samples = Some((last, now));
        Ok(usage)
    }

    async fn sample(&self) -> super::Result<Sample> {
        let sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        blocking("measuring what is used", move || {
            let pods = sandboxes.iter().map(|(uid, sandbox)| (uid.clone(), containers(sandbox))).collect();
            Ok(Sample { at: Instant::now(), node: machine(), pods })
        })
        .await
    }
}

fn containers(sandbox: &Sandbox) -> HashMap<ContainerId, Counters> {
    let state = sandbox.state().borrow().clone();
    let running = state.containers.into_iter().filter(|(_, state)| matches!(state, ContainerState::Running { .. }));
    running
        .filter_map(|(id, _)| {
            // Fails only for a container that is gone meanwhile.
            let stats = sandbox.stats(&id).ok()?;
            Some((id, Counters { cpu_ns: stats.cpu_ns, memory: stats.memory_working_set }))
        })
        .collect()
}

fn machine() -> Counters {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Counters { cpu_ns: busy(&read("/proc/stat")), memory: working_set(&read("/proc/meminfo")) }
}

/// Nanoseconds in which processors were neither idle, nor waiting, nor somebody else's (`/proc/stat`, proc_stat(5)).
fn busy(stat: &str) -> u64 {
    /// `USER_HZ`: 100 on every architecture that Linux's interface to programs has.
    const TICK_NS: u64 = 10_000_000;
    let first = stat.lines().find_map(|l| l.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
    // user, nice, system, (idle, iowait,) irq, softirq; guests are part of user and nice.
    [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum::<u64>() * TICK_NS
}

/// Bytes in use without the inactive file cache, as cAdvisor counts for the root of version 2 cgroups.
fn working_set(meminfo: &str) -> u64 {
    let kib = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    kib("MemTotal").saturating_sub(kib("MemFree")).saturating_sub(kib("Inactive(file)")) * 1024
}

/// What was used from one sample to another. A container that is in the second only began with nothing used.
fn usage(before: &Sample, now: &Sample) -> Usage {
    let window = now.at.duration_since(before.at);
    let amount = |before: Counters, now: Counters| {
        let used = u128::from(now.cpu_ns.saturating_sub(before.cpu_ns));
        let cpu = used * 1_000_000_000 / window.as_nanos().max(1);
        Amount { cpu: u64::try_from(cpu).unwrap_or(u64::MAX), memory: now.memory }
    };
    let mut pods: BTreeMap<String, BTreeMap<String, Amount>> = BTreeMap::new();
    for (uid, containers) in now.pods.iter().filter(|(_, containers)| !containers.is_empty()) {
        let earlier = |id: &ContainerId| before.pods.get(uid).and_then(|c| c.get(id)).copied().unwrap_or_default();
        let amounts = containers.iter().map(|(id, now)| (id.name.clone(), amount(earlier(id), *now)));
        pods.insert(uid.clone(), amounts.collect());
    }
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    Usage { window_ms, node: amount(before.node, now.node), pods }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counters_are_understood() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(busy(stat), (100 + 20 + 30 + 6 + 7) * 10_000_000);
        let meminfo = "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive:  250 kB\nInactive(file):  200 kB\n";
        assert_eq!(working_set(meminfo), 500 * 1024);
        assert_eq!((busy(""), working_set("")), (0, 0));
        let here = machine();
        assert!(here.cpu_ns > 0 && here.memory > 0, "{here:?}");
    }

    #[test]
    fn usage_is_the_difference_of_two_samples() {
        let start = Instant::now();
        let counters = |cpu_ns, memory| Counters { cpu_ns, memory };
        let id = |name: &str, attempt| ContainerId { name: name.into(), attempt };
        let sample = |seconds, node, containers: Vec<(ContainerId, Counters)>| Sample {
            at: start + Duration::from_secs(seconds),
            node,
            pods: [("u".to_owned(), containers.into_iter().collect()), ("empty".to_owned(), HashMap::new())].into(),
        };
        let before =
            sample(0, counters(5, 0), vec![(id("a", 0), counters(1_000, 1)), (id("b", 0), counters(9_000, 1))]);
        let now = sample(
            2,
            counters(4_000_000_005, 7),
            vec![(id("a", 0), counters(1_001_000, 2)), (id("b", 1), counters(3_000, 3))],
        );
        let usage = usage(&before, &now);
        assert_eq!((usage.window_ms, usage.node), (2000, Amount { cpu: 2_000_000_000, memory: 7 }));
        let expected = [("a", Amount { cpu: 500_000, memory: 2 }), ("b", Amount { cpu: 1_500, memory: 3 })];
        let expected = expected.map(|(name, amount)| (name.to_owned(), amount));
        assert_eq!(usage.pods, [("u".to_owned(), expected.into())].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sample_is_used_while_it_is_recent() {
        let meter = Meter::new(Sandboxes::default());
        let mut asked = Vec::new();
        for pause in [0, 0, 15, 100] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let began = Instant::now();
            let usage = meter.measure().await.unwrap();
            asked.push((began.elapsed().as_secs(), usage.window_ms / 1000));
        }
        assert_eq!(asked, [(1, 1), (0, 1), (0, 15), (1, 1)]);
    }
}
