//! What a Deployment does next: one pure function from what is there to what is to be written
//! (`pkg/controller/deployment`: `deployment_controller.go`, `sync.go`, `rolling.go`, `recreate.go`).

use jiff::Timestamp;

use crate::controllers::model::{Annotations, Meta};
use crate::controllers::replicaset::plan::{self as replicaset, ReplicaSet};
use crate::events::EventKind;

use super::model::{Deployment, Status, condition};
use super::progress::{self, Next};
use super::revision::{self, DESIRED, MAX, REVISION};

/// What there is.
pub struct View<'a> {
    /// The Deployment.
    pub deployment: &'a Deployment,
    /// The ReplicaSets it manages.
    pub sets: Vec<ReplicaSet>,
    /// UIDs of the ReplicaSets that unfinished pods of it belong to, pods on their way out included.
    pub running: Vec<String>,
    /// What a set of the current template would be called.
    pub new_name: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan {
    /// A set to create for the current template.
    pub create: Option<Creation>,
    /// Sets to change.
    pub updates: Vec<Update>,
    /// Sets to delete, which have no pods.
    pub deletes: Vec<Meta>,
    /// The new status, if it differs.
    pub status: Option<Status>,
    /// The new revision annotation of the Deployment, if it differs.
    pub revision: Option<String>,
    /// What to tell people, with the events' reason.
    pub events: Vec<(EventKind, &'static str, String)>,
    /// When to look again.
    pub next: Next,
}

/// A set to create.
#[derive(Debug, PartialEq)]
pub struct Creation {
    /// Replicas to start with.
    pub replicas: i64,
    /// Its annotations.
    pub annotations: Annotations,
}

/// A change of a set.
#[derive(Debug)]
pub struct Update {
    /// Which set.
    pub set: Meta,
    /// Its replicas.
    pub replicas: i64,
    /// Its `minReadySeconds`.
    pub min_ready_seconds: i64,
    /// All of its annotations.
    pub annotations: Annotations,
}

/// Decides what to do.
pub fn plan(view: View<'_>) -> Plan {
    let View { deployment, mut sets, running, new_name, now } = view;
    sets.sort_by(|a, b| {
        let key = |set: &ReplicaSet| (set.metadata.creation_timestamp, set.metadata.name.clone());
        key(a).cmp(&key(b))
    });
    let new = revision::find_new(deployment, &sets);
    let before = sets.clone();
    let mut rollout =
        Rollout { deployment, sets, new, now, new_name, status: deployment.status.clone(), plan: Plan::default() };
    rollout.decide(&running);
    rollout.finish(before)
}

pub(super) struct Rollout<'a> {
    pub(super) deployment: &'a Deployment,
    /// In the order of their creation.
    pub(super) sets: Vec<ReplicaSet>,
    /// The place of the set of the current template.
    pub(super) new: Option<usize>,
    new_name: &'a str,
    pub(super) now: Timestamp,
    status: Status,
    pub(super) plan: Plan,
}

impl Rollout<'_> {
    fn decide(&mut self, running: &[String]) {
        if self.deployment.metadata.deleting() {
            self.status = progress::counts(self);
            return;
        }
        self.note_pause();
        if self.deployment.spec.paused {
            self.renew(false);
            self.scale();
            self.clean_up();
            self.status = progress::counts(self);
        } else if self.is_scaling() {
            self.renew(false);
            self.scale();
            self.status = progress::counts(self);
        } else {
            let busy = if self.deployment.rolling() { self.roll() } else { self.recreate(running) };
            if !busy && progress::complete(self.deployment, &self.deployment.status) {
                self.clean_up();
            }
            (self.status, self.plan.next) = progress::progress(self);
        }
    }

    /// The plan from how the sets were before and are to be now.
    fn finish(mut self, before: Vec<ReplicaSet>) -> Plan {
        for (old, new) in before.iter().zip(&self.sets) {
            let (was, is) = (&old.spec, &new.spec);
            if was.replicas != is.replicas
                || was.min_ready_seconds != is.min_ready_seconds
                || old.metadata.annotations != new.metadata.annotations
            {
                self.plan.updates.push(Update {
                    set: old.metadata.clone(),
                    replicas: is.replicas,
                    min_ready_seconds: is.min_ready_seconds,
                    annotations: new.metadata.annotations.clone(),
                });
            }
        }
        if self.status != self.deployment.status {
            self.plan.status = Some(self.status);
        }
        self.plan
    }

    /// Says in the Progressing condition that a rollout is paused or goes on: its deadline does not run meanwhile.
    fn note_pause(&mut self) {
        if self.deployment.progress_deadline().is_none() {
            return;
        }
        let reason = self.status.condition("Progressing").map_or("", |c| c.reason.as_str());
        let note = match (self.deployment.spec.paused, reason) {
            (_, "ProgressDeadlineExceeded") | (true, "DeploymentPaused") => return,
            (true, _) => condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", self.now),
            (false, "DeploymentPaused") => {
                condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", self.now)
            }
            (false, _) => return,
        };
        self.status.set_condition(note);
    }

    /// Whether the wanted number of replicas changed since the sets were last scaled.
    fn is_scaling(&self) -> bool {
        let wanted = self.deployment.spec.replicas;
        self.active().any(|i| self.annotated(i, DESIRED).is_some_and(|desired| desired != wanted))
    }

    /// Brings the set of the current template up to date, or makes one if there is none and `create` says so.
    pub(super) fn renew(&mut self, create: bool) {
        let highest_old = self.old().map(|i| revision::revision(&self.sets[i])).max().unwrap_or_default();
        let found = match self.new {
            Some(i) => {
                let set = &mut self.sets[i];
                revision::annotate(self.deployment, &mut set.metadata.annotations, highest_old);
                set.spec.min_ready_seconds = self.deployment.spec.min_ready_seconds;
                let no_condition = self.status.condition("Progressing").is_none();
                no_condition.then(|| ("FoundNewReplicaSet", format!("Found new replica set {:?}", set.metadata.name)))
            }
            None if create => Some(self.create_new(highest_old)),
            None => return,
        };
        if let Some((reason, text)) = found
            && self.deployment.progress_deadline().is_some()
        {
            self.status.set_condition(condition("Progressing", "True", reason, text, self.now));
        }
        let revision = self.new.and_then(|i| self.sets[i].metadata.annotations.get(REVISION));
        if revision != self.deployment.metadata.annotations.get(REVISION) {
            self.plan.revision = revision.cloned();
        }
    }

    fn create_new(&mut self, highest_old: i64) -> (&'static str, String) {
        let wanted = self.deployment.spec.replicas;
        let mut annotations = Annotations::new();
        revision::annotate(self.deployment, &mut annotations, highest_old);
        annotations.insert(DESIRED.to_owned(), wanted.to_string());
        annotations.insert(MAX.to_owned(), (wanted + self.deployment.max_surge()).to_string());
        let metadata = Meta { name: self.new_name.to_owned(), annotations: annotations.clone(), ..Meta::default() };
        let spec = replicaset::Spec {
            replicas: 0,
            min_ready_seconds: self.deployment.spec.min_ready_seconds,
            ..Default::default()
        };
        self.new = Some(self.sets.len());
        self.sets.push(ReplicaSet { metadata, spec, ..ReplicaSet::default() });
        let replicas = self.new_replicas();
        if let Some(set) = self.sets.last_mut() {
            set.spec.replicas = replicas;
        }
        self.plan.create = Some(Creation { replicas, annotations });
        if replicas > 0 {
            let text = format!("Scaled up replica set {} from 0 to {replicas}", self.new_name);
            self.plan.events.push((EventKind::Normal, "ScalingReplicaSet", text));
        }
        ("NewReplicaSetCreated", format!("Created new replica set {:?}", self.new_name))
    }

    /// How many replicas the set of the current template may have now.
    pub(super) fn new_replicas(&self) -> i64 {
        let wanted = self.deployment.spec.replicas;
        if !self.deployment.rolling() {
            return wanted;
        }
        let current = self.new.map(|i| self.sets[i].spec.replicas).unwrap_or_default();
        let room = wanted + self.deployment.max_surge() - self.total();
        if room <= 0 { current } else { current + room.min(wanted - current) }
    }

    /// Sets the replicas of a set; returns whether that changed them.
    pub(super) fn scale_to(&mut self, place: usize, replicas: i64) -> bool {
        let set = &mut self.sets[place];
        let from = std::mem::replace(&mut set.spec.replicas, replicas);
        if from == replicas {
            return false;
        }
        let direction = if from < replicas { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {} from {from} to {replicas}", set.metadata.name);
        self.plan.events.push((EventKind::Normal, "ScalingReplicaSet", text));
        self.annotate_scale(place);
        true
    }

    /// Notes in a set what the Deployment wanted when it was scaled.
    pub(super) fn annotate_scale(&mut self, place: usize) {
        let wanted = self.deployment.spec.replicas;
        let annotations = &mut self.sets[place].metadata.annotations;
        annotations.insert(DESIRED.to_owned(), wanted.to_string());
        annotations.insert(MAX.to_owned(), (wanted + self.deployment.max_surge()).to_string());
    }

    /// A number kept in an annotation of a set.
    pub(super) fn annotated(&self, place: usize, key: &str) -> Option<i64> {
        self.sets[place].metadata.annotations.get(key)?.parse().ok()
    }

    /// The sets of earlier templates.
    pub(super) fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |&i| Some(i) != new)
    }

    /// The sets that want pods.
    pub(super) fn active(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.sets.len()).filter(|&i| self.sets[i].spec.replicas > 0)
    }

    /// Pods all sets want together.
    pub(super) fn total(&self) -> i64 {
        self.sets.iter().map(|set| set.spec.replicas).sum()
    }

    /// Deletes the oldest revisions that nothing runs of, beyond the limit.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit else { return };
        let mut old: Vec<&ReplicaSet> = self.old().map(|i| &self.sets[i]).filter(|s| !s.metadata.deleting()).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        old.sort_by_key(|set| revision::revision(set));
        let idle = old.into_iter().take(surplus).filter(|set| {
            set.spec.replicas == 0
                && set.status.replicas == 0
                && set.metadata.generation <= set.status.observed_generation
        });
        self.plan.deletes = idle.map(|set| set.metadata.clone()).collect();
    }

    /// The status with the conditions set so far, for [`progress`].
    pub(super) fn status(&self) -> &Status {
        &self.status
    }
}
