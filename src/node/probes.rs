//! Probes: when to look, and what a series of looks means.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::check::{Action, Target, look};
use super::engine::Sandbox;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The others wait for its first success.
    Startup,
    /// A failure restarts the container.
    Liveness,
    /// Decides whether the container gets traffic.
    Readiness,
}

impl Kind {
    /// As events name it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What a prober tells its pod worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// One look failed; with kubelet's text.
    Failed(String),
    /// A threshold was reached: the probe's result is this now.
    Turned(bool),
}

/// A finding of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Container name.
    pub(super) container: String,
    /// Its run.
    pub(super) attempt: u32,
    /// Which probe.
    pub(super) kind: Kind,
    /// What was found.
    pub(super) finding: Finding,
}

/// Looks after one run of a container as long as it is polled: first the startup probe, then the others beside each
/// other. `running` is how long the container has run already.
pub(super) async fn watch<S: Sandbox>(target: Target<S>, running: Duration, started: bool, found: mpsc::Sender<Found>) {
    let container: &Container = &target.container;
    let since = Instant::now().checked_sub(running).unwrap_or_else(Instant::now);
    let run = |kind: Kind, probe: &Probe| {
        let (probe, target, found) = (probe.clone(), target.clone(), found.clone());
        async move {
            let id = target.id.clone();
            let report = |finding| {
                let found = found.clone();
                let message = Found { container: id.name.clone(), attempt: id.attempt, kind, finding };
                async move { found.send(message).await.is_ok() }
            };
            let seconds = probe.timeout_seconds.unwrap_or(1).max(1);
            let timeout = Duration::from_secs(u64::from(seconds.unsigned_abs()));
            let look_once = || async {
                match action(&probe) {
                    Some(action) => look(&target, action, timeout).await,
                    None => Ok(()),
                }
            };
            series(kind, &probe, since, look_once, report).await;
        }
    };
    if let (Some(probe), false) = (&container.startup_probe, started) {
        run(Kind::Startup, probe).await;
    }
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            run(Kind::Liveness, probe).await;
        }
    };
    let readiness = async {
        if let Some(probe) = &container.readiness_probe {
            run(Kind::Readiness, probe).await;
        }
    };
    tokio::join!(liveness, readiness);
}

fn action(probe: &Probe) -> Option<Action<'_>> {
    if let Some(exec) = &probe.exec {
        return Some(Action::Exec(exec));
    }
    if let Some(http) = &probe.http_get {
        return Some(Action::Http(http));
    }
    probe.tcp_socket.as_ref().map(Action::Tcp)
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

/// Looks every period until the probe's work is done (startup: succeeded or failed; liveness: failed) or nobody listens.
async fn series<L, R>(kind: Kind, probe: &Probe, since: Instant, look: impl Fn() -> L, report: impl Fn(Finding) -> R)
where
    L: Future<Output = Result<(), String>>,
    R: Future<Output = bool>,
{
    let at_least_one = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1);
    let (enough_good, enough_bad) =
        (at_least_one(probe.success_threshold, 1), at_least_one(probe.failure_threshold, 3));
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let mut ticks = tokio::time::interval_at(since + seconds(probe.initial_delay_seconds, 0), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut good, mut bad) = (0, 0);
    let mut result = None;
    loop {
        ticks.tick().await;
        let turned = match look().await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                (good >= enough_good).then_some(true)
            }
            Err(why) => {
                (good, bad) = (0, bad + 1);
                if !report(Finding::Failed(why)).await {
                    return;
                }
                (bad >= enough_bad).then_some(false)
            }
        };
        if turned.is_none() || turned == result {
            continue;
        }
        result = turned;
        if let Some(well) = turned
            && (!report(Finding::Turned(well)).await || kind == Kind::Startup || (kind == Kind::Liveness && !well))
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Runs a probe over scripted looks; answers what was reported, with seconds since the start.
    async fn play(kind: Kind, probe: Probe, looks: &[bool]) -> Vec<(u64, Finding)> {
        let (at, reports) = (Cell::new(0), RefCell::new(Vec::new()));
        let since = Instant::now();
        let look = || {
            let n = at.replace(at.get() + 1);
            async move { if looks[n] { Ok(()) } else { Err("bad".to_owned()) } }
        };
        let report = |finding: Finding| {
            reports.borrow_mut().push((since.elapsed().as_secs(), finding));
            // Stops with the script.
            let go_on = at.get() < looks.len();
            async move { go_on }
        };
        series(kind, &probe, since, look, report).await;
        reports.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn thresholds_and_times() {
        let probe = Probe {
            initial_delay_seconds: Some(5),
            period_seconds: Some(2),
            failure_threshold: Some(2),
            success_threshold: Some(2),
            ..Probe::default()
        };
        let bad = || Finding::Failed("bad".into());
        let played = play(Kind::Readiness, probe.clone(), &[false, true, true, true, false, true, false, false]).await;
        let expected = [(5, bad()), (9, Finding::Turned(true)), (13, bad()), (17, bad()), (19, bad())];
        assert_eq!(played, expected);
        let liveness = Probe { failure_threshold: None, success_threshold: None, ..probe.clone() };
        let played = play(Kind::Liveness, liveness, &[true, false, false, false, true]).await;
        let expected = [(5, Finding::Turned(true)), (7, bad()), (9, bad()), (11, bad()), (11, Finding::Turned(false))];
        assert_eq!(played, expected);
        let startup = Probe { success_threshold: None, initial_delay_seconds: None, ..probe };
        let played = play(Kind::Startup, startup, &[false, true, true]).await;
        assert_eq!(played, [(0, bad()), (2, Finding::Turned(true))]);
    }
}
