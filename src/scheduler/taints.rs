//! Taints and tolerations (`k8s.io/api/core/v1/toleration.go`), and which pods a NoExecute taint evicts, and when.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::model::or_default;

/// One of a node's `spec.taints`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    /// `key`
    pub key: String,
    /// `value`
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// `timeAdded`, of NoExecute taints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<Timestamp>,
}

/// One of a pod's `spec.tolerations`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// `key`; empty with `Exists` tolerates every key.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    /// `Equal` or `Exists`.
    #[serde(deserialize_with = "or_default")]
    pub operator: String,
    /// `value`
    #[serde(deserialize_with = "or_default")]
    pub value: String,
    /// `effect`; empty tolerates every effect.
    #[serde(deserialize_with = "or_default")]
    pub effect: String,
    /// `tolerationSeconds`, for NoExecute; `None` for ever.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            _ => false,
        }
    }
}

/// The first taint of one of `effects` that none of the tolerations tolerates.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    taints
        .iter()
        .find(|taint| effects.contains(&taint.effect.as_str()) && !tolerations.iter().any(|t| t.tolerates(taint)))
}

/// What the NoExecute taints of its node mean for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// It stays.
    Never,
    /// It is evicted at that time, which may have passed.
    At(Timestamp),
}

/// When a pod with these tolerations is evicted from a node with these taints. `now` stands in for taints that do not
/// say since when they are there.
pub fn eviction(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Eviction {
    let mut earliest = Eviction::Never;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let since = taint.time_added.unwrap_or(now);
        let mut matching = tolerations.iter().filter(|t| t.tolerates(taint)).peekable();
        let at = if matching.peek().is_none() {
            now
        } else {
            // The shortest of the tolerations that match counts; one without a limit tolerates for ever.
            let Some(seconds) = matching.filter_map(|t| t.toleration_seconds).min() else { continue };
            since.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX)
        };
        earliest = match earliest {
            Eviction::At(known) if known <= at => earliest,
            _ => Eviction::At(at),
        };
    }
    earliest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn taint(text: &str) -> Taint {
        let (key, effect) = text.split_once(':').unwrap();
        let (key, value) = key.split_once('=').unwrap_or((key, ""));
        Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned(), time_added: None }
    }

    fn toleration(value: Value) -> Toleration {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tolerations_tolerate() {
        for (t, taint_text, expected) in [
            (json!({"key": "a", "operator": "Exists"}), "a=b:NoSchedule", true),
            (json!({"key": "a", "operator": "Equal", "value": "b"}), "a=b:NoSchedule", true),
            (json!({"key": "a", "value": "c"}), "a=b:NoSchedule", false),
            (json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}), "a=b:NoSchedule", false),
            (json!({"operator": "Exists"}), "x:NoExecute", true),
            (json!({"key": "b", "operator": "Exists"}), "a:NoExecute", false),
        ] {
            assert_eq!(toleration(t.clone()).tolerates(&taint(taint_text)), expected, "{t} {taint_text}");
        }
    }

    #[test]
    fn no_execute_evicts_when_tolerations_end() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let after = |seconds| Eviction::At(now + SignedDuration::from_secs(seconds));
        let gone = || Taint { time_added: Some(now - SignedDuration::from_secs(100)), ..taint("gone:NoExecute") };
        let other = || taint("other:NoExecute");
        let tolerates = |key: &str, seconds: Value| {
            toleration(json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds}))
        };
        for (what, taints, tolerations, expected) in [
            ("no taint", vec![], vec![], Eviction::Never),
            ("another effect", vec![taint("a:NoSchedule")], vec![], Eviction::Never),
            ("not tolerated", vec![gone()], vec![], after(0)),
            ("for ever", vec![gone()], vec![tolerates("gone", json!(null))], Eviction::Never),
            ("for a while", vec![gone()], vec![tolerates("gone", json!(300))], after(200)),
            ("long past", vec![gone()], vec![tolerates("gone", json!(60))], after(-40)),
            ("the shorter", vec![gone()], vec![tolerates("gone", json!(300)), tolerates("", json!(150))], after(50)),
            ("since unknown", vec![other()], vec![tolerates("other", json!(30))], after(30)),
            ("one of two not", vec![gone(), other()], vec![tolerates("gone", json!(300))], after(0)),
        ] {
            assert_eq!(eviction(&taints, &tolerations, now), expected, "{what}");
        }
    }
}
