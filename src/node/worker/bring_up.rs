//! From nothing to a running pod: volumes, sandbox, init containers in order, containers.

use k8s_openapi::api::core::v1::Container;
use tokio::time::Instant;

use super::super::container;
use super::super::disk::{Ended, Outcome};
use super::super::engine::{Engine, blocking};
use super::super::error::{Error, Result};
use super::super::pod::{ContainerSpec, Role};
use super::super::{files, volumes};
use super::{Waiting, Worker};

impl<E: Engine> Worker<E> {
    pub(super) async fn bring_up(&mut self) {
        if let Some(outcome) = self.verdict() {
            self.history.outcome = Some(outcome);
            self.save().await;
            return;
        }
        if let Some(at) = self.setup_retry.filter(|at| *at > Instant::now()) {
            self.wake(at);
            return;
        }
        if let Err(error) = self.set_up().await {
            self.setup_failed(&error);
            return;
        }
        (self.setup_retry, self.setup_problem) = (None, None);
        if !self.node.services.is_known() {
            // What the environment says of them is for good. The worker is woken when they are.
            return;
        }
        self.start_containers().await;
        // A container that could not be started at all may have decided the pod's fate.
        if let Some(outcome) = self.verdict() {
            self.history.outcome = Some(outcome);
            self.save().await;
        }
    }

    /// Volumes, sandbox, network and managed files, as far as they are missing.
    async fn set_up(&mut self) -> Result<()> {
        let config = container::sandbox(&self.pod)?;
        if self.volumes.is_none() || self.volumes_stale {
            let (dir, pod, facts) = (self.dir.volumes(), self.pod.clone(), self.facts.clone());
            let ready = blocking("setting up volumes", move || volumes::prepare(&dir, &pod, &facts)).await;
            self.volumes_stale = false;
            match ready {
                Ok(ready) => self.volumes = Some(ready),
                // Running containers keep what they have; the user learns of it.
                Err(error) if self.volumes.is_some() => self.mount_failed(&error),
                Err(error) => return Err(error),
            }
        }
        if self.sandbox.is_none() {
            self.history.sandbox += 1;
            if !self.history.containers.is_empty() {
                // Before: whoever finds this sandbox must not take earlier runs of init containers for runs in it.
                self.save().await;
            }
            let sandbox = self.node.engine.create(&config).await?;
            self.enter(Some(sandbox));
            self.initialized = false;
        }
        if self.facts.pod_ips.is_empty() {
            self.connect().await?;
        }
        Ok(())
    }

    /// Gives the sandbox its network and the files that tell of it. Idempotent.
    pub(super) async fn connect(&mut self) -> Result<()> {
        let Some(sandbox) = self.sandbox.clone() else { return Ok(()) };
        let addresses = match self.pod.host_network() {
            true => self.facts.host_ips.clone(),
            false => self.node.engine.attach(&sandbox).await?,
        };
        let mut facts = self.facts.clone();
        facts.pod_ips = addresses.clone();
        let (dir, pod, dns) = (self.dir.files(), self.pod.clone(), self.node.dns.clone());
        blocking("writing a pod's files", move || {
            std::fs::create_dir_all(&dir).map_err(|source| Error::File { op: "create", path: dir.clone(), source })?;
            files::write(&dir, &pod, &facts, &dns)
        })
        .await?;
        self.facts.pod_ips = addresses;
        Ok(())
    }

    fn mount_failed(&self, error: &Error) {
        let message = match error {
            Error::Volume { name, reason } => format!("MountVolume.SetUp failed for volume {name:?} : {reason}"),
            other => other.to_string(),
        };
        self.events.warning(&self.pod, None, "FailedMount", message);
    }

    fn setup_failed(&mut self, error: &Error) {
        let reason = match error {
            Error::Volume { .. } => {
                self.mount_failed(error);
                "ContainerCreating"
            }
            Error::Config(text) => {
                self.events.warning(&self.pod, None, "Failed", format!("Error: {text}"));
                "CreateContainerConfigError"
            }
            other => {
                let message = format!("Failed to create pod sandbox: {other}");
                self.events.warning(&self.pod, None, "FailedCreatePodSandBox", message);
                "ContainerCreating"
            }
        };
        self.setup_problem = Some(Waiting { reason, message: error.to_string() });
        let at = Instant::now() + self.setup.next(Instant::now());
        self.setup_retry = Some(at);
        self.wake(at);
    }

    async fn start_containers(&mut self) {
        let pod = self.pod.clone();
        for container in pod.containers.iter().filter(|c| c.role.starts_before()) {
            let name = &container.spec.name;
            if container.role == Role::Init {
                if self.initialized || self.done(name) {
                    continue;
                }
                if !self.running(name) {
                    self.start_when_due(container).await;
                }
                return;
            }
            if !self.running(name) {
                self.start_when_due(container).await;
            }
            let started = self.units.get(name).is_some_and(|u| u.now.running.is_some() && u.now.started);
            if !self.initialized && !started {
                return;
            }
        }
        self.initialized = true;
        for container in pod.containers.iter().filter(|c| !c.role.starts_before()) {
            if !self.running(&container.spec.name) {
                self.start_when_due(container).await;
            }
        }
    }

    /// Whether an init container has succeeded in this sandbox.
    fn done(&self, name: &str) -> bool {
        let history = self.history.containers.get(name).filter(|h| h.sandbox == self.history.sandbox);
        history.and_then(|h| h.ended.as_ref()).is_some_and(|e| e.code == 0)
    }

    /// Whether a container that ended this way is to run again.
    fn comes_back(&self, container: &ContainerSpec, ended: &Ended) -> bool {
        if self.units.get(&container.spec.name).is_some_and(|u| u.changed) {
            return true;
        }
        let policy = container.spec.restart_policy.as_deref().unwrap_or(self.pod.restart_policy());
        match (container.role, policy) {
            (Role::Ephemeral, _) => false,
            (Role::Sidecar, _) => true,
            // An init container of an earlier sandbox runs again, one of this sandbox if it failed.
            (Role::Init, "Never") => ended.code == 0,
            (Role::Init, _) => true,
            (Role::App, "Always") => true,
            (Role::App, "OnFailure") => ended.code != 0,
            (Role::App, _) => false,
        }
    }

    /// How the pod has ended, if it has.
    fn verdict(&self) -> Option<Outcome> {
        let ended = |name: &str| self.history.containers.get(name).and_then(|h| h.ended.as_ref());
        let outcome = |good: bool| Outcome {
            phase: if good { "Succeeded" } else { "Failed" }.to_owned(),
            reason: String::new(),
            message: String::new(),
        };
        let of_role = |role: Role| self.pod.containers.iter().filter(move |c| c.role == role);
        let final_end = |c: &&ContainerSpec| ended(&c.spec.name).is_some_and(|e| !self.comes_back(c, e));
        if of_role(Role::Init).any(|c| final_end(&c)) {
            return Some(outcome(false));
        }
        let all_over = of_role(Role::App).next().is_some() && of_role(Role::App).all(|c| final_end(&c));
        all_over.then(|| outcome(of_role(Role::App).all(|c| ended(&c.spec.name).is_some_and(|e| e.code == 0))))
    }

    /// Starts a container that does not run, unless it should not or must wait.
    async fn start_when_due(&mut self, container: &ContainerSpec) {
        let name = container.spec.name.clone();
        let generation = self.history.sandbox;
        let history = self.history.containers.get(&name);
        let last = history.and_then(|h| h.ended.clone().map(|e| (h.sandbox, e)));
        if last.as_ref().is_some_and(|(_, ended)| !self.comes_back(container, ended)) {
            return;
        }
        let crashed = last.is_some_and(|(sandbox, _)| sandbox == generation);
        let now = Instant::now();
        let unit = self.unit(&name);
        // The cause of a start that failed was shown; now it waits as after any crash.
        let not_started = unit.now.waiting.as_ref().is_some_and(|w| w.reason == "RunContainerError");
        match unit.retry_at.take() {
            Some(at) if at > now => {
                unit.retry_at = Some(at);
                self.wake(at);
                return;
            }
            Some(_) if !not_started => {}
            _ if crashed && !unit.changed => {
                let wait = unit.crash.next(now);
                if !wait.is_zero() {
                    unit.retry_at = Some(now + wait);
                    self.back_off(&container.spec, wait);
                    self.wake(now + wait);
                    return;
                }
            }
            _ => {}
        }
        self.start(container).await;
    }

    fn back_off(&mut self, container: &Container, wait: std::time::Duration) {
        let place = format!("{}_{}({})", self.pod.name(), self.pod.namespace(), self.pod.uid());
        let text = match wait.as_secs() {
            seconds @ 0..60 => format!("{seconds}s"),
            seconds => format!("{}m{}s", seconds / 60, seconds % 60),
        };
        let name = &container.name;
        let message = format!("back-off {text} restarting failed container={name} pod={place}");
        self.unit(name).now.waiting = Some(Waiting { reason: "CrashLoopBackOff", message });
        let message = format!("Back-off restarting failed container {name} in pod {place}");
        self.events.warning(&self.pod, Some(name), "BackOff", message);
    }
}

impl Role {
    /// Whether it runs before the pod's containers.
    pub(in crate::node) fn starts_before(self) -> bool {
        matches!(self, Role::Init | Role::Sidecar)
    }
}
