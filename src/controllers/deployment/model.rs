//! A Deployment as its controller sees it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::controllers::model::{Condition, Meta, or_default};
use crate::controllers::replicaset::plan::{is_zero, one};
use crate::kinds::Object;

/// A Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Deployment {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: Spec,
    /// `status`
    pub status: Status,
}

/// `spec` of a Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// `replicas`
    #[serde(default = "one")]
    pub replicas: i64,
    /// `selector`, as it is.
    #[serde(deserialize_with = "or_default")]
    pub selector: Object,
    /// `template`, as it is.
    #[serde(deserialize_with = "or_default")]
    pub template: Object,
    /// `strategy`
    #[serde(deserialize_with = "or_default")]
    pub strategy: Strategy,
    /// `minReadySeconds`
    #[serde(deserialize_with = "or_default")]
    pub min_ready_seconds: i64,
    /// `revisionHistoryLimit`
    pub revision_history_limit: Option<i64>,
    /// `paused`
    #[serde(deserialize_with = "or_default")]
    pub paused: bool,
    /// `progressDeadlineSeconds`
    pub progress_deadline_seconds: Option<i64>,
}

/// `spec.strategy`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// `RollingUpdate` or `Recreate`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// `rollingUpdate`
    #[serde(deserialize_with = "or_default")]
    pub rolling_update: RollingUpdate,
}

/// `spec.strategy.rollingUpdate`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// `maxSurge`
    pub max_surge: Option<Amount>,
    /// `maxUnavailable`
    pub max_unavailable: Option<Amount>,
}

/// A number of pods, or a share of them such as `25%`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// That many.
    Number(i64),
    /// A percentage.
    Share(String),
}

impl Amount {
    /// How many of `total`; a share is rounded up or down.
    fn of(&self, total: i64, round_up: bool) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Share(text) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
                let hundredths = total.saturating_mul(percent);
                if round_up { hundredths.saturating_add(99).div_euclid(100) } else { hundredths.div_euclid(100) }
            }
        }
    }
}

/// `status` of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `observedGeneration`
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// `replicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub replicas: i64,
    /// `updatedReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub updated_replicas: i64,
    /// `readyReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    /// `availableReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    /// `unavailableReplicas`
    #[serde(skip_serializing_if = "is_zero")]
    pub unavailable_replicas: i64,
    /// `conditions`
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
    /// `collisionCount`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
}

impl Deployment {
    /// Whether pods are replaced a few at a time.
    pub fn rolling(&self) -> bool {
        self.spec.strategy.kind != "Recreate"
    }

    /// How many pods may exist beyond the wanted number, and how many of the wanted may be missing, during an update.
    /// Both zero could not go on: then one may be missing.
    fn fenceposts(&self) -> (i64, i64) {
        let amount = |amount: &Option<Amount>, round_up| {
            let share = Amount::Share("25%".to_owned());
            amount.as_ref().unwrap_or(&share).of(self.spec.replicas, round_up)
        };
        let surge = amount(&self.spec.strategy.rolling_update.max_surge, true);
        let unavailable = amount(&self.spec.strategy.rolling_update.max_unavailable, false);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// Pods that may exist beyond the wanted number.
    pub fn max_surge(&self) -> i64 {
        if self.rolling() { self.fenceposts().0 } else { 0 }
    }

    /// Pods that may be missing.
    pub fn max_unavailable(&self) -> i64 {
        if !self.rolling() || self.spec.replicas == 0 {
            return 0;
        }
        self.fenceposts().1.min(self.spec.replicas)
    }

    /// Seconds without progress after which a rollout has failed, if there is such a limit.
    pub fn progress_deadline(&self) -> Option<i64> {
        self.spec.progress_deadline_seconds.filter(|&seconds| seconds != i64::from(i32::MAX))
    }
}

impl Status {
    /// The condition of a type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// Removes the condition of a type.
    pub fn remove_condition(&mut self, kind: &str) {
        self.conditions.retain(|c| c.kind != kind);
    }

    /// Sets a condition. One with the same status and reason is left alone; the time of the last transition is that of
    /// the last change of the status.
    pub fn set_condition(&mut self, mut condition: Condition) {
        if let Some(old) = self.condition(&condition.kind) {
            if old.status == condition.status && old.reason == condition.reason {
                return;
            }
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time;
            }
        }
        self.remove_condition(&condition.kind);
        self.conditions.push(condition);
    }
}

/// A new condition of a Deployment.
pub fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        last_update_time: Some(now),
        last_transition_time: Some(now),
        reason: reason.to_owned(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_are_rounded_in_favour_of_progress_and_safety() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!(0), (0, 1)),
            (3, json!(0), json!("10%"), (0, 1)),
            (4, json!("100%"), json!(9), (4, 4)),
            (0, json!("25%"), json!("25%"), (0, 0)),
            (3, json!(null), json!(null), (1, 0)),
        ] {
            let d: Deployment = serde_json::from_value(json!({"spec": {"replicas": replicas, "strategy": {
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}
            }}}))
            .unwrap();
            assert_eq!((d.max_surge(), d.max_unavailable()), expected, "{replicas} {surge} {unavailable}");
        }
        let recreate: Deployment = serde_json::from_value(json!({"spec": {"strategy": {"type": "Recreate"}}})).unwrap();
        assert_eq!((recreate.max_surge(), recreate.max_unavailable()), (0, 0));
    }
}
