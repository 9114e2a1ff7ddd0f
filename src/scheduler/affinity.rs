//! Node affinity: which nodes a pod requires and prefers (`k8s.io/component-helpers/scheduling/corev1/nodeaffinity`).

use serde::Deserialize;

use super::model::{Labels, or_default};
use super::spread::PodAffinity;

/// `spec.affinity`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// `nodeAffinity`
    #[serde(deserialize_with = "or_default")]
    pub node_affinity: NodeAffinity,
    /// `podAffinity`
    #[serde(deserialize_with = "or_default")]
    pub pod_affinity: PodAffinity,
    /// `podAntiAffinity`
    #[serde(deserialize_with = "or_default")]
    pub pod_anti_affinity: PodAffinity,
}

/// `nodeAffinity`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    /// `requiredDuringSchedulingIgnoredDuringExecution`
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// `preferredDuringSchedulingIgnoredDuringExecution`
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "or_default")]
    pub preferred: Vec<Preference>,
}

/// Terms of which one must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// `nodeSelectorTerms`
    #[serde(deserialize_with = "or_default")]
    pub node_selector_terms: Vec<Term>,
}

/// A term with its weight.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Preference {
    /// `weight`, 1 to 100.
    pub weight: i64,
    /// `preference`
    pub preference: Term,
}

/// Requirements that must all hold. A term without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    /// `matchExpressions`, of labels.
    #[serde(deserialize_with = "or_default")]
    pub match_expressions: Vec<Requirement>,
    /// `matchFields`, of `metadata.name`.
    #[serde(deserialize_with = "or_default")]
    pub match_fields: Vec<Requirement>,
}

/// One requirement.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// Label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// The values the operator speaks of.
    #[serde(deserialize_with = "or_default")]
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether a value (`None`: absent) meets it.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|v| self.values.iter().any(|w| w == v));
        let numbers = || Some((value?.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
            "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
            // Validation lets nothing else in.
            _ => false,
        }
    }
}

impl Term {
    /// Whether a node meets all requirements.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let field = |key: &str| (key == "metadata.name").then_some(name);
        !(self.match_expressions.is_empty() && self.match_fields.is_empty())
            && self.match_expressions.iter().all(|r| r.holds(labels.get(&r.key).map(String::as_str)))
            && self.match_fields.iter().all(|r| r.holds(field(&r.key)))
    }
}

impl NodeSelector {
    /// Whether a node meets one of the terms.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(name, labels))
    }
}

/// Whether a node is what `nodeSelector` and the required node affinity ask for.
pub fn required(selector: &Labels, affinity: &NodeAffinity, name: &str, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && affinity.required.as_ref().is_none_or(|required| required.matches(name, labels))
}

/// The sum of the weights of the preferences a node meets.
pub fn preferred(affinity: &NodeAffinity, name: &str, labels: &Labels) -> i64 {
    affinity.preferred.iter().filter(|p| p.preference.matches(name, labels)).map(|p| p.weight).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn labels() -> Labels {
        [("disk", "ssd"), ("cores", "4")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn requirements_hold_as_documented() {
        for (key, operator, values, expected) in [
            ("disk", "In", vec!["ssd", "nvme"], true),
            ("disk", "In", vec!["hdd"], false),
            ("gpu", "In", vec!["yes"], false),
            ("disk", "NotIn", vec!["ssd"], false),
            ("gpu", "NotIn", vec!["yes"], true),
            ("disk", "Exists", vec![], true),
            ("gpu", "DoesNotExist", vec![], true),
            ("cores", "Gt", vec!["3"], true),
            ("cores", "Gt", vec!["4"], false),
            ("cores", "Lt", vec!["5"], true),
            ("disk", "Gt", vec!["3"], false),
            ("disk", "Like", vec!["ssd"], false),
        ] {
            let term: Term = serde_json::from_value(
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
            )
            .unwrap();
            assert_eq!(term.matches("pi", &labels()), expected, "{key} {operator} {values:?}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_requirements_are_not() {
        let node = |terms| serde_json::from_value::<NodeSelector>(json!({"nodeSelectorTerms": terms})).unwrap();
        let disk = json!({"key": "disk", "operator": "Exists"});
        let gpu = json!({"key": "gpu", "operator": "Exists"});
        let name = |n: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]});
        for (terms, expected) in [
            (json!([{"matchExpressions": [gpu]}, {"matchExpressions": [disk]}]), true),
            (json!([{"matchExpressions": [gpu, disk]}]), false),
            (json!([{}]), false),
            (json!([]), false),
            (json!([name("pi")]), true),
            (json!([name("other")]), false),
        ] {
            assert_eq!(node(terms.clone()).matches("pi", &labels()), expected, "{terms}");
        }
        let affinity: NodeAffinity =
            serde_json::from_value(json!({"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 10, "preference": {"matchExpressions": [disk]}},
                {"weight": 5, "preference": {"matchExpressions": [gpu]}},
                {"weight": 1, "preference": name("pi")},
            ]}))
            .unwrap();
        assert_eq!(preferred(&affinity, "pi", &labels()), 11);
        assert!(required(&Labels::new(), &affinity, "pi", &labels()));
        let selector: Labels = [("disk".to_owned(), "hdd".to_owned())].into();
        assert!(!required(&selector, &affinity, "pi", &labels()));
    }
}
