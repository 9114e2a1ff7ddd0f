//! One container: image, configuration, start, hooks and probes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::time::Instant;

use super::super::check::{Action, Target, look};
use super::super::container::{self, Surroundings};
use super::super::disk::ContainerHistory;
use super::super::engine::{Engine, Sandbox, blocking};
use super::super::error::Error;
use super::super::pod::ContainerSpec;
use super::super::probes::{self, Finding, Found, Kind};
use super::super::service_env;
use super::{Hooked, Task, Waiting, Worker};
use crate::image::{self, Image, Reference};
use crate::runtime::{self, ContainerConfig, ContainerId, ContainerState, Exit};

/// How long a postStart hook may take; Kubernetes sets no limit, a worker's task needs one.
const HOOK_TIME: Duration = Duration::from_secs(3600);

/// How long the cause of a failed start stands before it gives way to the back-off.
const CAUSE_SHOWN: Duration = Duration::from_secs(1);

impl<E: Engine> Worker<E> {
    /// Makes and runs the next run of a container.
    pub(super) async fn start(&mut self, container: &ContainerSpec) {
        let spec = &container.spec;
        let image = match self.find_image(spec).await {
            Ok(image) => image,
            Err(waiting) => return self.postpone(&spec.name, waiting),
        };
        let before = self.history.containers.get(&spec.name).cloned();
        let attempt = before.as_ref().map_or(0, |h| h.attempt + u32::from(h.ended.is_some()));
        let config = match self.configure(spec, attempt, &image).await {
            Ok(config) => config,
            Err(error) => {
                self.events.warning(&self.pod, Some(&spec.name), "Failed", format!("Error: {error}"));
                let reason = match error {
                    Error::Config(_) => "CreateContainerConfigError",
                    _ => "CreateContainerError",
                };
                return self.postpone(&spec.name, Waiting { reason, message: error.to_string() });
            }
        };
        let signal = container::stop_signal(image.config.stop_signal.as_deref());
        self.history.containers.insert(
            spec.name.clone(),
            ContainerHistory {
                attempt,
                sandbox: self.history.sandbox,
                image: spec.image.clone().unwrap_or_default(),
                image_id: image.image_id().to_owned(),
                stop_signal: signal,
                ended: None,
                previous: before.as_ref().and_then(|h| h.ended.clone().or(h.previous.clone())),
            },
        );
        self.execute(spec, &config, before).await;
    }

    fn postpone(&mut self, name: &str, waiting: Waiting) {
        let now = Instant::now();
        let unit = self.unit(name);
        let at = now + unit.image.next(now);
        unit.retry_at = Some(at);
        unit.now.waiting = Some(waiting);
        self.wake(at);
    }

    /// The image; or why there is none.
    async fn find_image(&mut self, spec: &Container) -> Result<Image, Waiting> {
        let name = spec.image.clone().unwrap_or_default();
        let own = Some(spec.name.as_str());
        let reference: Reference = name.parse().map_err(|error: image::InvalidReference| {
            let message = format!("Failed to apply default image tag {name:?}: {error}");
            self.events.warning(&self.pod, own, "InspectFailed", &message);
            Waiting { reason: "InvalidImageName", message }
        })?;
        match self.node.engine.image(&reference).await {
            Ok(image) => {
                let message = format!("Container image {name:?} already present on machine");
                self.events.normal(&self.pod, own, "Pulled", message);
                Ok(image)
            }
            Err(image::Error::NotPresent(_)) if spec.image_pull_policy.as_deref() == Some("Never") => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                self.events.warning(&self.pod, own, "ErrImageNeverPull", &message);
                self.events.warning(&self.pod, own, "Failed", "Error: ErrImageNeverPull");
                Err(Waiting { reason: "ErrImageNeverPull", message })
            }
            Err(error) => Err(self.no_image(spec, &name, &error)),
        }
    }

    fn no_image(&mut self, spec: &Container, name: &str, error: &image::Error) -> Waiting {
        let own = Some(spec.name.as_str());
        let again = |w: &Waiting| matches!(w.reason, "ErrImagePull" | "ImagePullBackOff");
        let before = self.unit(&spec.name).now.waiting.clone().filter(again);
        if before.is_some() {
            self.events.normal(&self.pod, own, "BackOff", format!("Back-off pulling image {name:?}"));
            self.events.warning(&self.pod, own, "Failed", "Error: ImagePullBackOff");
            let message = format!("Back-off pulling image {name:?}: ErrImagePull: {error}");
            return Waiting { reason: "ImagePullBackOff", message };
        }
        self.events.warning(&self.pod, own, "Failed", format!("Failed to pull image {name:?}: {error}"));
        self.events.warning(&self.pod, own, "Failed", "Error: ErrImagePull");
        Waiting { reason: "ErrImagePull", message: error.to_string() }
    }

    async fn configure(&self, spec: &Container, attempt: u32, image: &Image) -> Result<ContainerConfig, Error> {
        let none = std::collections::BTreeMap::new();
        let links = self.pod.spec().enable_service_links.unwrap_or(true);
        let services = service_env::variables(&self.node.services.services.all(), self.pod.namespace(), links);
        let around = Surroundings {
            pod: &self.pod,
            facts: &self.facts,
            services: &services,
            volumes: self.volumes.as_ref().unwrap_or(&none),
            files: &self.dir.files(),
            termination: &self.dir.message(&spec.name, attempt),
            log: &self.dir.log(&spec.name, attempt),
            seccomp: &self.node.seccomp,
            capacity: self.facts.memory,
        };
        let config = container::config(&around, spec, attempt, image)?;
        let (dir, name) = (self.dir.clone(), spec.name.clone());
        blocking("preparing a container", move || dir.prepare_run(&name, attempt)).await?;
        Ok(config)
    }

    async fn execute(&mut self, spec: &Container, config: &ContainerConfig, before: Option<ContainerHistory>) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let id = config.id();
        for attempt in [id.attempt, id.attempt.wrapping_sub(1)] {
            // The run before, and one that was made but never started.
            let old = ContainerId { name: id.name.clone(), attempt };
            if sandbox.state().borrow().containers.contains_key(&old)
                && let Err(error) = sandbox.remove(&old).await
            {
                tracing::warn!(pod = self.pod.uid(), container = %old, %error, "cannot remove an ended container");
            }
        }
        // The record of this run must be on disk soon, the container need not wait for it: a later run found in the
        // sandbox counts as well.
        let (result, ()) = tokio::join!(sandbox.run(config), self.save());
        let own = Some(spec.name.as_str());
        match result {
            Ok(()) => {
                self.events.normal(&self.pod, own, "Created", format!("Created container: {}", spec.name));
                self.events.normal(&self.pod, own, "Started", format!("Started container {}", spec.name));
                self.started(&id, spec);
            }
            Err(error) => {
                self.events.warning(&self.pod, own, "Failed", format!("Error: {error}"));
                self.not_started(&id, spec, &error, before).await;
            }
        }
    }

    fn started(&mut self, id: &ContainerId, spec: &Container) {
        let state = self.state.borrow().containers.get(id).cloned();
        let since = match state {
            Some(ContainerState::Running { started_at, .. }) => super::seconds(started_at),
            _ => super::now(),
        };
        let unit = self.unit(&id.name);
        unit.now = super::Now { running: Some(since), ..super::Now::default() };
        (unit.retry_at, unit.changed) = (None, false);
        match spec.lifecycle.as_ref().and_then(|l| l.post_start.clone()) {
            Some(hook) => self.hook(id, spec, hook),
            None => self.watch_over(id, spec, Duration::ZERO),
        }
    }

    async fn not_started(
        &mut self,
        id: &ContainerId,
        spec: &Container,
        error: &runtime::Error,
        before: Option<ContainerHistory>,
    ) {
        if let runtime::Error::Start { reason, exit_code, .. } = error {
            let finished_at = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
            let exit = Exit {
                code: *exit_code,
                start_error: Some(reason.clone()),
                finished_at,
                signal: None,
                oom_killed: false,
                started_at: 0,
            };
            self.note_end(id, spec, &exit).await;
            self.save().await;
            let unit = self.unit(&id.name);
            unit.now.waiting = Some(Waiting { reason: "RunContainerError", message: reason.clone() });
            let at = Instant::now() + CAUSE_SHOWN;
            unit.retry_at = Some(at);
            self.wake(at);
            return;
        }
        // This run never came to be.
        match before {
            Some(before) => self.history.containers.insert(id.name.clone(), before),
            None => self.history.containers.remove(&id.name),
        };
        self.save().await;
        self.postpone(&id.name, Waiting { reason: "CreateContainerError", message: error.to_string() });
    }

    fn target(&self, id: &ContainerId, spec: &Container) -> Option<Target<E::Sandbox>> {
        let address = self.facts.pod_ips.first().or(self.facts.host_ips.first()).copied();
        Some(Target {
            sandbox: self.sandbox.clone()?,
            id: id.clone(),
            address: address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()),
            container: Arc::new(spec.clone()),
        })
    }

    fn hook(&mut self, id: &ContainerId, spec: &Container, hook: LifecycleHandler) {
        let Some(target) = self.target(id, spec) else { return };
        let (report, id) = (self.hooked.0.clone(), id.clone());
        let name = id.name.clone();
        let task = tokio::spawn(async move {
            let result = run_hook(&target, &hook, HOOK_TIME).await;
            // Nobody listens when the worker has ended.
            let _ = report.send(Hooked { id, result }).await;
        });
        self.unit(&name).watcher = Some(Task(task));
    }

    pub(super) fn take_hook(&mut self, hooked: Hooked) {
        let pod = self.pod.clone();
        let name = &hooked.id.name;
        let Some(container) = pod.container(name) else { return };
        let current = self.history.containers.get(name).is_some_and(|h| h.attempt == hooked.id.attempt);
        if !current || !self.running(name) {
            return;
        }
        match hooked.result {
            Ok(()) => self.watch_over(&hooked.id, &container.spec, Duration::ZERO),
            Err(why) => {
                let message = format!("PostStartHook failed: {why}");
                self.events.warning(&pod, Some(name), "FailedPostStartHook", message);
                self.stop(name, pod.grace(), "FailedPostStartHook");
            }
        }
    }

    /// Begins the probes of a running container; without any it is ready now.
    pub(super) fn watch_over(&mut self, id: &ContainerId, spec: &Container, age: Duration) {
        let target = self.target(id, spec);
        let found = self.found.0.clone();
        let unit = self.unit(&id.name);
        unit.now.started |= spec.startup_probe.is_none();
        unit.now.ready = (unit.now.ready || spec.readiness_probe.is_none()) && unit.now.started;
        let probed = spec.startup_probe.is_some() || spec.liveness_probe.is_some() || spec.readiness_probe.is_some();
        if let (true, Some(target)) = (probed, target) {
            let watch = probes::watch(target, age, unit.now.started && spec.startup_probe.is_some(), found);
            unit.watcher = Some(Task(tokio::spawn(watch)));
        }
    }

    pub(super) fn take_finding(&mut self, found: Found) {
        let pod = self.pod.clone();
        let name = &found.container;
        let Some(container) = pod.container(name) else { return };
        let current = self.history.containers.get(name).is_some_and(|h| h.attempt == found.attempt);
        if !current || !self.running(name) {
            return;
        }
        let spec = &container.spec;
        match (found.finding, found.kind) {
            (Finding::Failed(why), kind) => {
                let message = format!("{} probe failed: {why}", kind.title());
                self.events.warning(&pod, Some(name), "Unhealthy", message);
            }
            (Finding::Turned(well), Kind::Readiness) => self.unit(name).now.ready = well,
            (Finding::Turned(true), Kind::Liveness) => {}
            (Finding::Turned(true), Kind::Startup) => {
                let unit = self.unit(name);
                unit.now.started = true;
                unit.now.ready |= spec.readiness_probe.is_none();
            }
            (Finding::Turned(false), kind) => {
                let probe = if kind == Kind::Startup { &spec.startup_probe } else { &spec.liveness_probe };
                let grace = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
                let word = kind.title().to_lowercase();
                let message = format!("Container {name} failed {word} probe, will be restarted");
                self.stop(name, grace.unwrap_or(pod.grace()), &message);
            }
        }
    }
}

/// Runs a lifecycle hook.
pub(super) async fn run_hook<S: Sandbox>(
    target: &Target<S>,
    hook: &LifecycleHandler,
    time: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(time)).await;
        return Ok(());
    }
    let action = match (&hook.exec, &hook.http_get, &hook.tcp_socket) {
        (Some(exec), _, _) => Action::Exec(exec),
        (_, Some(http), _) => Action::Http(http),
        (_, _, Some(tcp)) => Action::Tcp(tcp),
        _ => return Err("invalid handler: it has no action".to_owned()),
    };
    look(target, action, time).await
}
