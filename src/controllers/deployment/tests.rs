#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::model::{Deployment, condition};
use super::plan::{Plan, View, plan};
use super::revision::{DESIRED, HISTORY, REVISION};
use super::*;

/// A Deployment and its sets; pods are numbers in the status of the sets.
struct Cluster {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    events: Vec<String>,
}

impl Cluster {
    fn new(replicas: i64, strategy: Value) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas, "strategy": strategy, "template": {"spec": {"image": "1"}},
                "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            },
        }))
        .unwrap();
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        Self { deployment, sets: Vec::new(), now, events: Vec::new() }
    }

    fn rolling(replicas: i64, surge: i64, unavailable: i64) -> Self {
        let limits = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        Self::new(replicas, json!({"type": "RollingUpdate", "rollingUpdate": limits}))
    }

    fn image(&mut self, image: &str) {
        meta::set(&mut self.deployment.spec.template, "/spec/image", image);
        self.deployment.metadata.generation += 1;
    }

    fn replicas(&mut self, replicas: i64) {
        self.deployment.spec.replicas = replicas;
        self.deployment.metadata.generation += 1;
    }

    fn new_name(&self) -> String {
        format!("web-{}", meta::str_at(&self.deployment.spec.template, "/spec/image"))
    }

    /// Plans and carries the plan out.
    fn step(&mut self) -> Plan {
        let running = self.sets.iter().filter(|s| s.status.replicas > 0).map(|s| s.metadata.uid.clone()).collect();
        let new_name = self.new_name();
        let view =
            View { deployment: &self.deployment, sets: self.sets.clone(), running, new_name: &new_name, now: self.now };
        let plan = plan(view);
        if let Some(creation) = &plan.create {
            let mut set = ReplicaSet::default();
            set.metadata.name = new_name.clone();
            set.metadata.uid = new_name;
            set.metadata.creation_timestamp = Timestamp::from_second(self.sets.len().try_into().unwrap()).ok();
            set.metadata.annotations = creation.annotations.clone();
            set.spec.replicas = creation.replicas;
            set.spec.template = self.deployment.spec.template.clone();
            self.sets.push(set);
        }
        for update in &plan.updates {
            let set = self.sets.iter_mut().find(|s| s.metadata.uid == update.set.uid).unwrap();
            set.spec.replicas = update.replicas;
            set.metadata.annotations = update.annotations.clone();
        }
        self.sets.retain(|s| !plan.deletes.iter().any(|d| d.uid == s.metadata.uid));
        if let Some(status) = &plan.status {
            self.deployment.status = status.clone();
        }
        if let Some(revision) = &plan.revision {
            self.deployment.metadata.annotations.insert(REVISION.to_owned(), revision.clone());
        }
        self.events.extend(plan.events.iter().map(|(_, _, text)| text.clone()));
        plan
    }

    /// Pods come and go as the sets want; those of healthy sets become available.
    fn pods_follow(&mut self, healthy: impl Fn(&str) -> bool) {
        for set in &mut self.sets {
            set.status.replicas = set.spec.replicas;
            let available = if healthy(&set.metadata.name) { set.spec.replicas } else { 0 };
            (set.status.ready_replicas, set.status.available_replicas) = (available, available);
        }
    }

    /// Goes on until nothing changes; checks the limits of the strategy all the way.
    fn settle(&mut self) {
        for _ in 0..100 {
            let plan = self.step();
            let wanted = self.deployment.spec.replicas;
            let total: i64 = self.sets.iter().map(|s| s.spec.replicas).sum();
            assert!(total <= wanted + self.deployment.max_surge(), "{:?}", self.sizes());
            self.pods_follow(|_| true);
            if plan.create.is_none() && plan.updates.is_empty() && plan.status.is_none() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.sizes());
    }

    fn sizes(&self) -> Vec<(&str, i64)> {
        self.sets.iter().map(|s| (s.metadata.name.as_str(), s.spec.replicas)).collect()
    }

    fn condition(&self, kind: &str) -> (String, String, String) {
        let c = self.deployment.status.condition(kind).unwrap().clone();
        (c.status, c.reason, c.message)
    }

    fn revision(&self, set: usize) -> &str {
        &self.sets[set].metadata.annotations[REVISION]
    }
}

fn text(parts: (&str, &str, &str)) -> (String, String, String) {
    (parts.0.to_owned(), parts.1.to_owned(), parts.2.to_owned())
}

#[test]
fn a_new_deployment_creates_its_set_at_once() {
    let mut c = Cluster::rolling(3, 1, 0);
    let plan = c.step();
    assert_eq!(plan.create.unwrap().replicas, 3);
    assert_eq!(c.events, ["Scaled up replica set web-1 from 0 to 3"]);
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(c.condition("Progressing"), text(("True", "NewReplicaSetCreated", "Created new replica set \"web-1\"")));
    assert_eq!(
        c.condition("Available"),
        text(("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."))
    );
    c.pods_follow(|_| true);
    c.settle();
    assert_eq!(
        c.condition("Progressing"),
        text(("True", "NewReplicaSetAvailable", "ReplicaSet \"web-1\" has successfully progressed."))
    );
    assert_eq!(
        c.condition("Available"),
        text(("True", "MinimumReplicasAvailable", "Deployment has minimum availability."))
    );
    let s = &c.deployment.status;
    assert_eq!((s.replicas, s.updated_replicas, s.available_replicas, s.unavailable_replicas), (3, 3, 3, 0));
}

#[test]
fn a_rolling_update_keeps_its_limits() {
    for (replicas, surge, unavailable) in [(1, 1, 0), (3, 1, 0), (3, 0, 1), (10, 3, 2), (10, 10, 10), (5, 0, 5)] {
        let mut c = Cluster::rolling(replicas, surge, unavailable);
        c.settle();
        c.image("2");
        for _ in 0..50 {
            c.step();
            // Pods that are to go count as available no longer; new ones are not yet.
            let available: i64 = c.sets.iter().map(|s| s.spec.replicas.min(s.status.available_replicas)).sum();
            assert!(available >= replicas - unavailable, "{replicas} {surge} {unavailable}: {:?}", c.sizes());
            c.pods_follow(|_| true);
        }
        assert_eq!(c.sizes(), [("web-1", 0), ("web-2", replicas)]);
        assert_eq!((c.revision(0), c.revision(1)), ("1", "2"));
        assert_eq!(c.condition("Progressing").1, "NewReplicaSetAvailable");
    }
}

#[test]
fn the_steps_of_an_update_are_told() {
    let mut c = Cluster::rolling(2, 1, 0);
    c.settle();
    c.events.clear();
    c.image("2");
    c.settle();
    assert_eq!(
        c.events,
        [
            "Scaled up replica set web-2 from 0 to 1",
            "Scaled down replica set web-1 from 2 to 1",
            "Scaled up replica set web-2 from 1 to 2",
            "Scaled down replica set web-1 from 1 to 0",
        ]
    );
}

#[test]
fn going_back_uses_the_old_set_again() {
    let mut c = Cluster::rolling(2, 1, 0);
    c.settle();
    c.image("2");
    c.settle();
    c.image("1");
    c.settle();
    assert_eq!(c.sizes(), [("web-1", 2), ("web-2", 0)]);
    assert_eq!((c.revision(0), c.revision(1)), ("3", "2"));
    assert_eq!(c.sets[0].metadata.annotations[HISTORY], "1");
    assert_eq!(c.deployment.metadata.annotations[REVISION], "3");
}

#[test]
fn a_broken_update_stops_and_is_reported() {
    let mut c = Cluster::rolling(4, 1, 1);
    c.settle();
    c.image("bad");
    for _ in 0..20 {
        c.step();
        c.pods_follow(|name| name == "web-1");
    }
    assert_eq!(c.sizes(), [("web-1", 3), ("web-bad", 2)]);
    let plan = c.step();
    assert_eq!(plan.next, Some(std::time::Duration::from_secs(601)));
    c.now += jiff::SignedDuration::from_secs(601);
    let plan = c.step();
    assert_eq!(
        c.condition("Progressing"),
        text(("False", "ProgressDeadlineExceeded", "ReplicaSet \"web-bad\" has timed out progressing."))
    );
    assert_eq!(plan.next, None);

    // A third template replaces the broken pods first.
    c.image("3");
    for _ in 0..20 {
        c.step();
        c.pods_follow(|name| name != "web-bad");
    }
    assert_eq!(c.sizes(), [("web-1", 0), ("web-bad", 0), ("web-3", 4)]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut c = Cluster::new(2, json!({"type": "Recreate"}));
    c.settle();
    c.image("2");
    c.step();
    assert_eq!(c.sizes(), [("web-1", 0)]);
    assert!(c.step().create.is_none(), "old pods still run");
    c.sets[0].status.replicas = 0;
    let running = vec!["web-1".to_owned()];
    let view = View { deployment: &c.deployment, sets: c.sets.clone(), running, new_name: "web-2", now: c.now };
    assert!(plan(view).create.is_none(), "one is on its way out");
    c.settle();
    assert_eq!(c.sizes(), [("web-1", 0), ("web-2", 2)]);
    c.replicas(5);
    c.settle();
    assert_eq!(c.sizes(), [("web-1", 0), ("web-2", 5)]);
}

#[test]
fn scaling_during_a_rollout_is_proportional() {
    for (from, sizes, to, expected) in [
        // The example of Kubernetes' documentation.
        (10, [8, 5], 15, [11, 7]),
        (10, [8, 5], 5, [5, 3]),
        // What rounding leaves over goes to the newest.
        (10, [5, 5], 20, [9, 14]),
        (10, [8, 5], 0, [0, 0]),
    ] {
        let mut c = Cluster::rolling(from, 3, 2);
        c.settle();
        c.image("2");
        c.step();
        for (set, size) in c.sets.iter_mut().zip(sizes) {
            set.spec.replicas = size;
            set.metadata.annotations.insert(DESIRED.to_owned(), from.to_string());
        }
        c.replicas(to);
        c.step();
        assert_eq!(c.sizes(), [("web-1", expected[0]), ("web-2", expected[1])], "{from} to {to}");
    }
}

#[test]
fn scaling_does_not_roll_out() {
    let mut c = Cluster::rolling(3, 1, 0);
    c.settle();
    for replicas in [5, 0, 1] {
        c.replicas(replicas);
        c.settle();
        assert_eq!(c.sizes(), [("web-1", replicas)]);
        assert_eq!(c.revision(0), "1");
        assert_eq!(c.condition("Progressing").1, "NewReplicaSetAvailable");
        assert_eq!(c.deployment.status.observed_generation, c.deployment.metadata.generation);
    }
    assert_eq!(
        c.events[1..],
        [
            "Scaled up replica set web-1 from 3 to 5",
            "Scaled down replica set web-1 from 5 to 0",
            "Scaled up replica set web-1 from 0 to 1",
        ]
    );
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut c = Cluster::rolling(2, 1, 0);
    c.settle();
    c.deployment.spec.paused = true;
    c.image("2");
    c.replicas(3);
    c.settle();
    assert_eq!(c.sizes(), [("web-1", 3)]);
    assert_eq!(c.condition("Progressing"), text(("Unknown", "DeploymentPaused", "Deployment is paused")));
    c.deployment.spec.paused = false;
    let plan = c.step();
    assert!(plan.create.is_some());
    c.pods_follow(|_| true);
    c.settle();
    assert_eq!(c.sizes(), [("web-1", 0), ("web-2", 3)]);
}

#[test]
fn old_revisions_are_cleaned_up() {
    let mut c = Cluster::rolling(1, 1, 0);
    c.deployment.spec.revision_history_limit = Some(2);
    for image in ["1", "2", "3", "4", "5"] {
        c.image(image);
        c.settle();
    }
    assert_eq!(c.sizes(), [("web-3", 0), ("web-4", 0), ("web-5", 1)]);
    c.deployment.spec.revision_history_limit = Some(0);
    c.settle();
    assert_eq!(c.sizes(), [("web-5", 1)]);
}

#[test]
fn the_failure_of_a_set_is_shown() {
    let mut c = Cluster::rolling(1, 1, 0);
    c.step();
    c.sets[0].status.conditions = vec![condition("ReplicaFailure", "True", "FailedCreate", "quota", c.now)];
    c.step();
    assert_eq!(c.condition("ReplicaFailure"), text(("True", "FailedCreate", "quota")));
    c.sets[0].status.conditions.clear();
    c.step();
    assert!(c.deployment.status.condition("ReplicaFailure").is_none());
}

#[test]
fn nothing_is_written_when_nothing_changes() {
    for strategy in [json!({"type": "Recreate"}), json!({"type": "RollingUpdate"})] {
        let mut c = Cluster::new(3, strategy);
        c.settle();
        c.now += jiff::SignedDuration::from_hours(1);
        let plan = c.step();
        assert!(plan.create.is_none() && plan.status.is_none() && plan.revision.is_none() && plan.next.is_none());
        assert!(plan.updates.is_empty() && plan.deletes.is_empty() && plan.events.is_empty());
    }
}

#[test]
fn a_deployment_on_its_way_out_is_only_counted() {
    let mut c = Cluster::rolling(3, 1, 0);
    c.settle();
    c.image("2");
    c.deployment.metadata.deletion_timestamp = Some(c.now);
    let plan = c.step();
    assert!(plan.create.is_none() && plan.updates.is_empty());
    assert_eq!(c.deployment.status.observed_generation, c.deployment.metadata.generation);
}

#[test]
fn the_new_set_carries_the_hash() {
    let mut c = Cluster::rolling(3, 1, 0);
    c.deployment.spec.template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {}}).as_object().unwrap().clone();
    meta::set(&mut c.deployment.spec.selector, "/matchLabels/app", "web");
    let creation = Creation { replicas: 2, annotations: [(REVISION.to_owned(), "1".to_owned())].into() };
    assert_eq!(
        Value::Object(new_set(&c.deployment, &creation, "5d9").unwrap()),
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": "web-5d9", "namespace": "shop", "labels": {"app": "web", "pod-template-hash": "5d9"},
                "annotations": {REVISION: "1"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d",
                                     "controller": true, "blockOwnerDeletion": true}],
            },
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "web", "pod-template-hash": "5d9"}},
                "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": "5d9"}}, "spec": {}},
            },
        })
    );
}
