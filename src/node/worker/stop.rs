//! Ending one container: preStop hook, stop signal, grace, SIGKILL.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;
use tokio::time::{Instant, timeout_at};

use super::super::check::Target;
use super::super::engine::{Engine, Sandbox};
use super::super::events::Recorder;
use super::super::pod::Desired;
use super::start::run_hook;
use super::{Stopping, Task, Worker};
use crate::runtime::{ContainerId, ContainerState};

/// Kubernetes gives every container at least this long between its stop signal and SIGKILL.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// Between two SIGKILLs for a container that does not go (its processes hang in the kernel).
const KILL_AGAIN: Duration = Duration::from_secs(10);
/// No period counts for longer, a hundred years: the API bounds none, and no clock holds them all.
const LONGEST: u64 = 100 * 365 * 24 * 3600;

/// A period of the API; a negative one is none.
pub(super) fn period(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(LONGEST))
}

impl<E: Engine> Worker<E> {
    /// Begins to end a running container, or hastens it. `why` is the text of the event.
    pub(super) fn stop(&mut self, name: &str, grace_seconds: i64, why: &str) {
        self.stop_by(name, Instant::now() + period(grace_seconds), why);
    }

    /// Like [`Worker::stop`], with the time by which it is to be over.
    pub(super) fn stop_by(&mut self, name: &str, deadline: Instant, why: &str) {
        let pod = self.pod.clone();
        let (Some(sandbox), Some(container)) = (self.sandbox.clone(), pod.container(name)) else { return };
        let Some(history) = self.history.containers.get(name) else { return };
        let hastened = match self.units.get(name).and_then(|u| u.stop.as_ref()) {
            Some(stop) if stop.deadline <= deadline => return,
            Some(_) => true,
            None => false,
        };
        if !hastened {
            self.events.normal(&pod, Some(name), "Killing", why);
        }
        let id = ContainerId { name: name.to_owned(), attempt: history.attempt };
        let signal = if history.stop_signal == 0 { libc::SIGTERM } else { history.stop_signal };
        let address = self.facts.pod_ips.first().or(self.facts.host_ips.first()).copied();
        let target = Target {
            sandbox,
            id,
            address: address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()),
            container: std::sync::Arc::new(container.spec.clone()),
        };
        let hook = container.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()).filter(|_| !hastened);
        let events = self.events.clone();
        let (services, addresses) = (self.node.services.clone(), self.facts.pod_ips.clone());
        let drains = pod.deleting() && !pod.host_network();
        let task = tokio::spawn(async move {
            let drained = async {
                if drains {
                    // No grace left (a forced deletion): no waiting either.
                    let _ = timeout_at(deadline, services.drained(&addresses)).await;
                }
            };
            let hooked = async {
                if let Some(hook) = hook {
                    pre_stop(&target, &hook, deadline, &events, &pod).await;
                }
            };
            // Clients are led away before the container stops listening.
            tokio::join!(drained, hooked);
            end(&target.sandbox, &target.id, signal, deadline).await;
        });
        self.unit(name).stop = Some(Stopping { _task: Task(task), deadline });
    }

    /// Restarts containers whose image was changed in place.
    pub(super) fn restart_changed(&mut self) {
        let pod = self.pod.clone();
        for container in &pod.containers {
            let name = &container.spec.name;
            let image = container.spec.image.as_deref().unwrap_or_default();
            let other = self.history.containers.get(name).is_some_and(|h| h.image != image);
            if other && self.running(name) {
                self.unit(name).changed = true;
                let why = format!("Container {name} definition changed, will be restarted");
                self.stop(name, pod.grace(), &why);
            }
        }
    }
}

async fn pre_stop<S: Sandbox>(
    target: &Target<S>,
    hook: &LifecycleHandler,
    deadline: Instant,
    events: &Recorder,
    pod: &Desired,
) {
    let time = deadline.saturating_duration_since(Instant::now());
    let result = match timeout_at(deadline, run_hook(target, hook, time)).await {
        Ok(result) => result,
        Err(_) => Err("it took longer than the grace period".to_owned()),
    };
    if let Err(why) = result {
        let message = format!("PreStopHook failed: {why}");
        events.warning(pod, Some(&target.id.name), "FailedPreStopHook", message);
    }
}

async fn end<S: Sandbox>(sandbox: &S, id: &ContainerId, signal: i32, deadline: Instant) {
    let deadline = deadline.max(Instant::now() + LEAST_GRACE);
    send(sandbox, id, signal).await;
    if timeout_at(deadline, ended(sandbox, id)).await.is_ok() {
        return;
    }
    loop {
        send(sandbox, id, libc::SIGKILL).await;
        if tokio::time::timeout(KILL_AGAIN, ended(sandbox, id)).await.is_ok() {
            return;
        }
    }
}

async fn send<S: Sandbox>(sandbox: &S, id: &ContainerId, signal: i32) {
    if let Err(error) = sandbox.signal(id, signal).await {
        tracing::warn!(pod = sandbox.uid(), container = %id, signal, %error, "cannot signal a container");
    }
}

async fn ended<S: Sandbox>(sandbox: &S, id: &ContainerId) {
    let over = |state: &crate::runtime::SandboxState| {
        !state.alive || matches!(state.containers.get(id), None | Some(ContainerState::Exited(_)))
    };
    // An error means that the shim is gone, and the container with it.
    let _ = sandbox.state().wait_for(over).await;
}
