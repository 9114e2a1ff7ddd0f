//! The status of a Deployment: counts, and the conditions `kubectl rollout status` reads.

use std::time::Duration;

use crate::controllers::model::Condition;
use crate::controllers::replicaset::plan::ReplicaSet;

use super::model::{Deployment, Status, condition};
use super::plan::Rollout;

/// When to look again, if no change comes before.
pub type Next = Option<Duration>;

/// The counts over all sets and the Available condition.
pub(super) fn counts(rollout: &Rollout<'_>) -> Status {
    let deployment = rollout.deployment;
    let sum = |part: fn(&ReplicaSet) -> i64| rollout.sets.iter().map(part).sum::<i64>();
    let available = sum(|set| set.status.available_replicas);
    let mut status = Status {
        observed_generation: deployment.metadata.generation,
        replicas: sum(|set| set.status.replicas),
        updated_replicas: rollout.new.map(|i| rollout.sets[i].status.replicas).unwrap_or_default(),
        ready_replicas: sum(|set| set.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (rollout.total() - available).max(0),
        ..rollout.status().clone()
    };
    let enough = available >= deployment.spec.replicas - deployment.max_unavailable();
    let (value, reason, text) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    status.set_condition(condition("Available", value, reason, text, rollout.now));
    status
}

/// The status after a step of a rollout, and when its deadline is to be checked.
pub(super) fn progress(rollout: &Rollout<'_>) -> (Status, Next) {
    let mut status = counts(rollout);
    match rollout.deployment.progress_deadline() {
        Some(deadline) => note_progress(rollout, &mut status, deadline),
        None => status.remove_condition("Progressing"),
    }
    match replica_failure(rollout) {
        Some(failure) => status.set_condition(failure),
        None => status.remove_condition("ReplicaFailure"),
    }
    let next = deadline_check(rollout, &status);
    (status, next)
}

fn note_progress(rollout: &Rollout<'_>, status: &mut Status, deadline: i64) {
    let current = status.condition("Progressing").cloned();
    let was_complete = current.as_ref().is_some_and(|c| c.reason == "NewReplicaSetAvailable");
    if status.replicas == status.updated_replicas && was_complete {
        return;
    }
    let what = match rollout.new {
        Some(i) => format!("ReplicaSet {:?}", rollout.sets[i].metadata.name),
        None => format!("Deployment {:?}", rollout.deployment.metadata.name),
    };
    let new = |value, reason, text: String| condition("Progressing", value, reason, text, rollout.now);
    if complete(rollout.deployment, status) {
        status.set_condition(new("True", "NewReplicaSetAvailable", format!("{what} has successfully progressed.")));
    } else if advanced(&rollout.deployment.status, status) {
        let mut condition = new("True", "ReplicaSetUpdated", format!("{what} is progressing."));
        if let Some(current) = current {
            if current.status == "True" {
                condition.last_transition_time = current.last_transition_time;
            }
            // The deadline runs from the last progress, so that the time is renewed even if nothing else changes.
            status.remove_condition("Progressing");
        }
        status.set_condition(condition);
    } else if timed_out(rollout, current.as_ref(), deadline) {
        let text = format!("{what} has timed out progressing.");
        status.set_condition(new("False", "ProgressDeadlineExceeded", text));
    }
}

/// Whether all pods wanted run the current template and are available.
pub(super) fn complete(deployment: &Deployment, status: &Status) -> bool {
    let wanted = deployment.spec.replicas;
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn advanced(old: &Status, new: &Status) -> bool {
    new.updated_replicas > old.updated_replicas
        || new.replicas - new.updated_replicas < old.replicas - old.updated_replicas
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

fn timed_out(rollout: &Rollout<'_>, current: Option<&Condition>, deadline: i64) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_str() {
        "NewReplicaSetAvailable" => false,
        "ProgressDeadlineExceeded" => true,
        _ => seconds_left(rollout, current, deadline) < 0,
    }
}

fn seconds_left(rollout: &Rollout<'_>, condition: &Condition, deadline: i64) -> i64 {
    let since = condition.last_update_time.unwrap_or(rollout.now).as_second();
    // After the clock was set back no time has passed, rather than a negative one.
    deadline - (rollout.now.as_second() - since).max(0)
}

/// A rollout that is stuck changes nothing any more, so its deadline needs a timer.
fn deadline_check(rollout: &Rollout<'_>, status: &Status) -> Next {
    let deadline = rollout.deployment.progress_deadline()?;
    let current = status.condition("Progressing")?;
    let settled = matches!(current.reason.as_str(), "ProgressDeadlineExceeded" | "NewReplicaSetAvailable");
    if settled || complete(rollout.deployment, status) {
        return None;
    }
    let left = u64::try_from(seconds_left(rollout, current, deadline)).unwrap_or_default();
    Some(Duration::from_secs(left + 1))
}

/// The failure of the new set, or else that of an old one.
fn replica_failure(rollout: &Rollout<'_>) -> Option<Condition> {
    let of = |i: usize| rollout.sets[i].status.conditions.iter().find(|c| c.kind == "ReplicaFailure");
    let failure = rollout.new.and_then(of).or_else(|| rollout.old().find_map(of))?;
    Some(Condition { last_update_time: failure.last_transition_time, ..failure.clone() })
}
