//! From a running pod to nothing: containers, then sidecars in reverse order, then what was made for them.

use std::time::Duration;

use tokio::time::Instant;

use super::super::engine::{Engine, Sandbox, blocking};
use super::super::error::Result;
use super::super::pod::Role;
use super::super::volumes;
use super::stop::period;
use super::{Flow, Worker};

/// A removed pod gets no longer than this.
const REMOVAL_GRACE: i64 = 2;
/// Between two tries to clean up.
const TRY_AGAIN: Duration = Duration::from_secs(10);

impl<E: Engine> Worker<E> {
    pub(super) async fn wind_down(&mut self) -> Flow {
        if self.stop_all() {
            return Flow::Wait;
        }
        if !self.cleaned {
            // A pod that was never started leaves no sandbox: its containers wait for nothing any more.
            if let Err(error) = self.clean().await {
                tracing::error!(pod = self.pod.uid(), %error, "cannot clean up after the pod");
                self.wake_in(TRY_AGAIN);
                return Flow::Wait;
            }
            self.cleaned = true;
            self.save_unless_removed().await;
        }
        if self.removed {
            let dir = self.dir.clone();
            if let Err(error) = blocking("removing a pod's directory", move || dir.remove()).await {
                tracing::error!(pod = self.pod.uid(), %error, "cannot remove the pod's directory");
                self.wake_in(TRY_AGAIN);
                return Flow::Wait;
            }
            return Flow::Gone;
        }
        if self.pod.deleting() {
            // The last status first; the outbox keeps that order. Saying it again does no harm.
            self.publish();
            self.node.outbox.gone(self.pod.pod_name());
        }
        Flow::Wait
    }

    async fn save_unless_removed(&mut self) {
        if !self.removed {
            self.save().await;
        }
    }

    /// Ends what runs; whether anything still does.
    fn stop_all(&mut self) -> bool {
        let grace = if self.removed { self.pod.grace().min(REMOVAL_GRACE) } else { self.pod.grace() };
        let since = *self.winding_since.get_or_insert_with(Instant::now);
        let deadline = since + period(grace);
        let pod = self.pod.clone();
        let running = |worker: &Self, sidecar: bool| -> Vec<String> {
            let wanted = pod.containers.iter().filter(|c| (c.role == Role::Sidecar) == sidecar);
            wanted.map(|c| c.spec.name.clone()).filter(|name| worker.running(name)).collect()
        };
        let mut first = running(self, false);
        if first.is_empty() {
            first = running(self, true).pop().into_iter().collect();
        }
        for name in &first {
            self.stop_by(name, deadline, &format!("Stopping container {name}"));
        }
        !first.is_empty()
    }

    async fn clean(&mut self) -> Result<()> {
        for unit in self.units.values_mut() {
            (unit.watcher, unit.stop, unit.now.waiting) = (None, None, None);
        }
        match self.sandbox.clone() {
            Some(sandbox) => sandbox.destroy().await?,
            None => self.node.engine.cleanup(self.pod.uid()).await?,
        }
        self.enter(None);
        if !self.pod.host_network() {
            self.node.engine.detach(self.pod.uid()).await?;
        }
        self.volumes = None;
        let dir = self.dir.volumes();
        blocking("removing volumes", move || volumes::remove(&dir)).await
    }
}
