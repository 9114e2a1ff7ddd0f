//! `service.kubernetes.io/topology-mode: Auto`: each zone is given as many of a Service's endpoints as it has of the
//! nodes' processors, its own ones first (`staging/src/k8s.io/endpointslice/topologycache`).
//!
//! Where the shares would leave an endpoint with more than a fifth above its fair part, or cannot be known, there are no
//! hints and every endpoint serves every zone.

use std::collections::BTreeMap;

use serde_json::json;

use crate::controllers::model::Meta;

use super::model::Endpoint;

/// How much more than its fair part an endpoint may get.
const OVERLOAD: f64 = 0.2;
/// The older name of the annotation, which goes before the other.
const ANNOTATIONS: [&str; 2] = ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"];

/// Processors of each zone in thousandths, as far as they count.
pub type Processors = BTreeMap<String, i64>;

/// Why there are no hints, for the Service's events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Zones or processors of the nodes are unknown, or there is only one zone.
    #[error("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")]
    Nodes,
    /// Not even one endpoint for each zone.
    #[error("Insufficient number of endpoints ({endpoints} endpoints, {zones} zones)")]
    Few {
        /// Ready ones.
        endpoints: usize,
        /// That have processors.
        zones: usize,
    },
    /// Some zone would be short of endpoints however they are given out.
    #[error(
        "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
         ({endpoints} endpoints, {zones} zones)"
    )]
    Overload {
        /// Ready ones.
        endpoints: usize,
        /// That have processors.
        zones: usize,
    },
    /// An endpoint's node is in no zone.
    #[error("One or more endpoints do not have a zone specified")]
    NoZone,
}

/// Whether a Service asks for it.
pub fn is_wanted(service: &Meta) -> bool {
    let mode = ANNOTATIONS.iter().find_map(|name| service.annotations.get(*name));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// Says of every endpoint which zone it is meant for. The same endpoints in the same order get the same hints.
///
/// # Errors
/// Then no endpoint has a hint.
pub fn allocate(processors: Option<&Processors>, endpoints: &mut [&mut Endpoint]) -> Result<(), Problem> {
    let result = try_allocate(processors, endpoints);
    if result.is_err() {
        endpoints.iter_mut().for_each(|endpoint| endpoint.hints = None);
    }
    result
}

fn try_allocate(processors: Option<&Processors>, endpoints: &mut [&mut Endpoint]) -> Result<(), Problem> {
    let mut ready: Vec<&mut Endpoint> = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        endpoint.hints = None;
        if endpoint.conditions.ready != Some(false) {
            ready.push(endpoint);
        }
    }
    let wanted = shares(processors.filter(|zones| zones.len() > 1).ok_or(Problem::Nodes)?, ready.len())?;
    let mut had: BTreeMap<&str, f64> = BTreeMap::new();
    let zones: Vec<String> = ready.iter().map(|e| e.zone.clone().ok_or(Problem::NoZone)).collect::<Result<_, _>>()?;
    zones.iter().for_each(|zone| *had.entry(zone).or_default() += 1.0);
    let (mut gives, mut takes) = exchange(&wanted, &had);
    for (endpoint, own) in ready.iter_mut().zip(&zones) {
        let left = gives.get_mut(own.as_str()).filter(|left| **left > 0);
        let given_to = match (left, takes.first_entry()) {
            (Some(left), Some(mut zone)) => {
                *left -= 1;
                *zone.get_mut() -= 1;
                let name = (*zone.key()).to_owned();
                if *zone.get() == 0 {
                    zone.remove();
                }
                name
            }
            _ => own.clone(),
        };
        endpoint.hints = Some(json!({"forZones": [{ "name": given_to }]}));
    }
    Ok(())
}

/// How many endpoints each zone should have.
fn shares(processors: &Processors, endpoints: usize) -> Result<BTreeMap<&str, f64>, Problem> {
    let zones = processors.len();
    if zones > endpoints {
        return Err(Problem::Few { endpoints, zones });
    }
    let total: i64 = processors.values().sum();
    let mut left = endpoints as f64;
    let mut wanted = BTreeMap::new();
    for (zone, processors) in processors {
        let fair = *processors as f64 / total as f64 * endpoints as f64;
        let least = (fair / (1.0 + OVERLOAD)).ceil();
        left -= least;
        wanted.insert(zone.as_str(), fair.max(least));
    }
    if left < 0.0 { Err(Problem::Overload { endpoints, zones }) } else { Ok(wanted) }
}

/// How many endpoints which zones give away, and which zones take as many: from where there are most too many to where
/// most are missing, as long as it comes to a whole one.
fn exchange<'a>(
    wanted: &BTreeMap<&'a str, f64>,
    had: &BTreeMap<&'a str, f64>,
) -> (BTreeMap<&'a str, u32>, BTreeMap<&'a str, u32>) {
    let mut more: BTreeMap<&str, f64> = BTreeMap::new();
    let mut less: BTreeMap<&str, f64> = BTreeMap::new();
    for (zone, wanted) in wanted {
        let over = had.get(zone).copied().unwrap_or_default() - wanted;
        if over > 0.0 {
            more.insert(zone, over)
        } else {
            less.insert(zone, -over)
        };
    }
    let (mut gives, mut takes) = (BTreeMap::new(), BTreeMap::new());
    while let (Some((from, over)), Some((to, missing))) = (most(&mut more), most(&mut less)) {
        if *over + *missing < 1.0 {
            break;
        }
        *gives.entry(from).or_default() += 1;
        *takes.entry(to).or_default() += 1;
        *over -= 1.0;
        *missing -= 1.0;
    }
    (gives, takes)
}

fn most<'a, 'b>(zones: &'b mut BTreeMap<&'a str, f64>) -> Option<(&'a str, &'b mut f64)> {
    let some = zones.iter_mut().filter(|(_, n)| **n > 0.0).max_by(|a, b| a.1.total_cmp(b.1));
    some.map(|(zone, n)| (*zone, n))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::model::Conditions;
    use super::*;

    /// A letter is a ready endpoint of that zone, a small one is not ready, `-` is in no zone.
    fn endpoints(zones: &str) -> Vec<Endpoint> {
        let one = |c: char| Endpoint {
            conditions: Conditions { ready: Some(!c.is_lowercase()), ..Conditions::default() },
            zone: c.is_alphabetic().then(|| c.to_string()),
            ..Endpoint::default()
        };
        zones.chars().map(one).collect()
    }

    /// The zones that endpoints are meant for, `.` for none.
    fn hints(processors: &[(&str, i64)], zones: &str) -> Result<String, String> {
        let processors: Processors = processors.iter().map(|(zone, n)| ((*zone).to_owned(), n * 1000)).collect();
        let mut endpoints = endpoints(zones);
        endpoints.iter_mut().for_each(|e| e.hints = Some(json!({"forZones": [{"name": "old"}]})));
        let result = allocate(Some(&processors), &mut endpoints.iter_mut().collect::<Vec<_>>());
        let hint =
            |e: &Endpoint| e.hints.as_ref().map_or(".", |h| h["forZones"][0]["name"].as_str().unwrap()).to_owned();
        let told: String = endpoints.iter().map(hint).collect();
        assert!(result.is_ok() || told.chars().all(|c| c == '.'), "{told}");
        result.map(|()| told).map_err(|e| e.to_string())
    }

    #[test]
    fn zones_get_their_share() {
        let (even, three) = (&[("A", 4), ("B", 4)][..], &[("A", 4), ("B", 4), ("C", 4)][..]);
        for (processors, zones, expected) in [
            (even, "AB", "AB"),
            (even, "AABB", "AABB"),
            (even, "AAaBB", "AA.BB"),
            (even, "AAAB", "BAAB"),
            (even, "AAAA", "BBAA"),
            (three, "AAABBB", "CAACBB"),
            (&[("A", 2), ("B", 4)][..], "AAABBB", "BAABBB"),
            // A zone without nodes that count gives none away, as in Kubernetes.
            (even, "AABBZZ", "AABBZZ"),
        ] {
            let told = hints(processors, zones);
            assert_eq!(told.as_deref(), Ok(expected), "{processors:?} {zones}");
        }
    }

    #[test]
    fn no_hints_are_better_than_wrong_ones() {
        let even = &[("A", 4), ("B", 4)][..];
        for (processors, zones, expected) in [
            (&[("A", 4)][..], "AA", "Insufficient Node information"),
            (even, "A", "Insufficient number of endpoints (1 endpoints, 2 zones)"),
            (even, "Aab", "Insufficient number of endpoints (1 endpoints, 2 zones)"),
            (even, "AABB--", "One or more endpoints do not have a zone specified"),
            (&[("A", 10), ("B", 1), ("C", 1)][..], "AAA", "Unable to allocate minimum"),
            (even, "ABA", "Unable to allocate minimum"),
        ] {
            let told = hints(processors, zones);
            assert!(told.as_ref().is_err_and(|e| e.starts_with(expected)), "{processors:?} {zones}: {told:?}");
        }
    }

    #[test]
    fn the_annotation_decides() {
        for (annotations, expected) in [
            (json!({}), false),
            (json!({"service.kubernetes.io/topology-mode": "Auto"}), true),
            (json!({"service.kubernetes.io/topology-mode": "auto"}), true),
            (json!({"service.kubernetes.io/topology-mode": "Disabled"}), false),
            (json!({"service.kubernetes.io/topology-aware-hints": "auto"}), true),
            (
                json!({"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "off"}),
                false,
            ),
        ] {
            let meta: Meta = serde_json::from_value(json!({ "annotations": annotations })).unwrap();
            assert_eq!(is_wanted(&meta), expected, "{annotations}");
        }
    }
}
