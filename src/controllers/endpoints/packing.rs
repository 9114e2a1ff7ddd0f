//! Endpoints into slices with as few writes as possible (`staging/src/k8s.io/endpointslice/reconciler.go`).

use std::collections::{BTreeMap, HashMap};

use super::model::{Endpoint, Port, Slice};

/// Most endpoints of a slice, as kube-controller-manager's default.
pub const MAX: usize = 100;

/// What is in a slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// `ports`
    pub ports: Vec<Port>,
    /// `endpoints`
    pub endpoints: Vec<Endpoint>,
}

/// How existing slices become those wanted.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// New slices.
    pub create: Vec<Content>,
    /// Slices with other content, by name.
    pub update: Vec<(String, Content)>,
    /// Names of slices nobody needs.
    pub delete: Vec<String>,
}

/// A slice that stays as far as it is known.
struct Kept {
    name: String,
    endpoints: Vec<Endpoint>,
}

/// Packs endpoints, grouped by the ports they serve.
///
/// Of existing slices an endpoint stays where it is; new ones go first into slices that are written anyway, then into
/// one that has room for all that are left, then into new slices. `stale` tells which slices have to be written in any
/// case. With `placeholder` there is always at least one slice, empty if need be.
pub fn pack(
    mut existing: Vec<Slice>,
    desired: BTreeMap<Vec<Port>, Vec<Endpoint>>,
    placeholder: bool,
    stale: impl Fn(&Slice) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let mut untouched = 0;
    for (ports, endpoints) in desired.into_iter().filter(|(_, endpoints)| !endpoints.is_empty()) {
        let mine: Vec<Slice> = existing.extract_if(.., |slice| slice.ports == ports).collect();
        untouched += pack_ports(&mut plan, mine, ports, endpoints, &stale);
    }
    let mut empty = None;
    if placeholder && untouched + plan.create.len() + plan.update.len() == 0 {
        empty = existing.iter().position(|s| s.ports.is_empty() && s.endpoints.is_empty() && !stale(s));
        if empty.is_none() {
            plan.create.push(Content::default());
        }
    }
    let surplus = existing.into_iter().enumerate().filter(|(n, _)| Some(*n) != empty);
    plan.delete.extend(surplus.map(|(_, slice)| slice.metadata.name));
    // To write a slice anew is one write, to make one and delete another are two.
    while !plan.create.is_empty()
        && let Some(name) = plan.delete.pop()
    {
        plan.update.extend(plan.create.pop().map(|content| (name, content)));
    }
    plan
}

/// Packs the endpoints of one set of ports; returns how many slices stay as they are.
fn pack_ports(
    plan: &mut Plan,
    slices: Vec<Slice>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    stale: impl Fn(&Slice) -> bool,
) -> usize {
    let mut places = HashMap::new();
    let mut endpoints: Vec<Option<Endpoint>> = endpoints.into_iter().map(Some).collect();
    for (n, place) in endpoints.iter_mut().enumerate() {
        let Some(identity) = place.as_ref().map(Endpoint::identity) else { continue };
        // Somebody wrote it twice: the first counts.
        if *places.entry(identity).or_insert(n) != n {
            *place = None;
        }
    }
    let (mut written, mut untouched) = (Vec::new(), Vec::new());
    for slice in slices {
        let mut changed = stale(&slice);
        let mut kept = Vec::with_capacity(slice.endpoints.len());
        for old in &slice.endpoints {
            let new = places.get(&old.identity()).and_then(|n| endpoints.get_mut(*n)?.take());
            changed |= new.as_ref() != Some(old);
            kept.extend(new);
        }
        let overfull = kept.len().saturating_sub(MAX);
        if overfull > 0 {
            // Somebody filled it by hand: the rest is packed like new endpoints.
            endpoints.extend(kept.drain(MAX..).map(Some));
            changed = true;
        }
        let name = slice.metadata.name;
        match (kept.is_empty(), changed) {
            (true, _) => plan.delete.push(name),
            (false, true) => written.push(Kept { name, endpoints: kept }),
            (false, false) => untouched.push(Kept { name, endpoints: kept }),
        }
    }
    let mut left: Vec<Endpoint> = endpoints.into_iter().flatten().collect();
    written.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.len()));
    for slice in &mut written {
        let room = (MAX - slice.endpoints.len()).min(left.len());
        slice.endpoints.extend(left.drain(..room));
    }
    while left.len() >= MAX {
        let endpoints = left.drain(..MAX).collect();
        plan.create.push(Content { ports: ports.clone(), endpoints });
    }
    if !left.is_empty() {
        let fitting = untouched.iter().enumerate().filter(|(_, s)| s.endpoints.len() + left.len() <= MAX);
        match fitting.max_by_key(|(_, s)| s.endpoints.len()).map(|(n, _)| n) {
            Some(n) => {
                let mut slice = untouched.remove(n);
                slice.endpoints.append(&mut left);
                written.push(slice);
            }
            None => plan.create.push(Content { ports: ports.clone(), endpoints: left }),
        }
    }
    let update = |slice: Kept| (slice.name, Content { ports: ports.clone(), endpoints: slice.endpoints });
    plan.update.extend(written.into_iter().map(update));
    untouched.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::model::Meta;

    fn port(number: i64) -> Vec<Port> {
        vec![Port { protocol: "TCP".into(), port: Some(number), ..Port::default() }]
    }

    fn endpoints(numbers: impl IntoIterator<Item = usize>) -> Vec<Endpoint> {
        let endpoint =
            |n: usize| Endpoint { addresses: vec![format!("10.0.{}.{}", n / 256, n % 256)], ..Endpoint::default() };
        numbers.into_iter().map(endpoint).collect()
    }

    fn slice(name: &str, ports: Vec<Port>, endpoints: Vec<Endpoint>) -> Slice {
        let metadata = Meta { name: name.into(), ..Meta::default() };
        Slice { metadata, address_type: "IPv4".into(), endpoints, ports }
    }

    /// The sizes of what is made and written, and what is deleted.
    fn told(plan: &Plan) -> String {
        let created: Vec<_> = plan.create.iter().map(|c| c.endpoints.len()).collect();
        let mut updated: Vec<_> = plan.update.iter().map(|(name, c)| format!("{name}:{}", c.endpoints.len())).collect();
        updated.sort();
        format!("+{created:?} ~{updated:?} -{:?}", plan.delete)
    }

    fn packed(existing: &[Slice], desired: Vec<(i64, Vec<Endpoint>)>) -> Plan {
        let desired = desired.into_iter().map(|(number, endpoints)| (port(number), endpoints)).collect();
        pack(existing.to_vec(), desired, true, |slice| slice.metadata.name.starts_with("stale"))
    }

    #[test]
    fn few_writes() {
        let full = slice("full", port(80), endpoints(0..100));
        let half = slice("half", port(80), endpoints(100..150));
        let few = slice("few", port(80), endpoints(150..160));
        for (what, existing, desired, expected) in [
            ("first", vec![], vec![(80, endpoints(0..3))], "+[3] ~[] -[]"),
            ("many", vec![], vec![(80, endpoints(0..250))], "+[100, 100, 50] ~[] -[]"),
            ("none", vec![], vec![], "+[0] ~[] -[]"),
            ("two sets of ports", vec![], vec![(80, endpoints(0..2)), (81, endpoints(2..3))], "+[2, 1] ~[] -[]"),
            ("written twice", vec![few.clone()], vec![(80, endpoints((150..160).chain(150..155)))], "+[] ~[] -[]"),
            ("nothing new", vec![full.clone(), half.clone()], vec![(80, endpoints(0..150))], "+[] ~[] -[]"),
            (
                "one more goes where it fits best",
                vec![full.clone(), half.clone(), few.clone()],
                vec![(80, endpoints(0..161))],
                "+[] ~[\"half:51\"] -[]",
            ),
            (
                "what is written anyway is filled first",
                vec![half.clone(), few.clone()],
                vec![(80, endpoints((100..150).chain(151..163)))],
                "+[] ~[\"few:12\"] -[]",
            ),
            ("more than fits", vec![half.clone(), few.clone()], vec![(80, endpoints(100..260))], "+[100] ~[] -[]"),
            (
                "a slice runs empty",
                vec![full.clone(), few.clone()],
                vec![(80, endpoints(0..100))],
                "+[] ~[] -[\"few\"]",
            ),
            ("all gone", vec![few.clone()], vec![], "+[] ~[\"few:0\"] -[]"),
            ("still none", vec![slice("p", vec![], vec![])], vec![], "+[] ~[] -[]"),
            ("the first", vec![slice("p", vec![], vec![])], vec![(80, endpoints(0..1))], "+[] ~[\"p:1\"] -[]"),
            ("another port", vec![few.clone()], vec![(81, endpoints(150..160))], "+[] ~[\"few:10\"] -[]"),
            (
                "stale",
                vec![slice("stale", port(80), endpoints(0..2))],
                vec![(80, endpoints(0..2))],
                "+[] ~[\"stale:2\"] -[]",
            ),
            (
                "overfull",
                vec![slice("big", port(80), endpoints(0..130))],
                vec![(80, endpoints(0..130))],
                "+[30] ~[\"big:100\"] -[]",
            ),
            (
                "the same one twice",
                vec![few.clone(), slice("twin", port(80), endpoints(150..160))],
                vec![(80, endpoints(150..160))],
                "+[] ~[] -[\"twin\"]",
            ),
        ] {
            assert_eq!(told(&packed(&existing, desired)), expected, "{what}");
        }
    }

    #[test]
    fn without_placeholder_nothing_stays() {
        let plan = pack(vec![slice("s", port(80), endpoints(0..1))], BTreeMap::new(), false, |_| false);
        assert_eq!(told(&plan), "+[] ~[] -[\"s\"]");
    }

    #[test]
    fn an_endpoint_changes_in_its_place() {
        let mut changed = endpoints(0..3);
        changed[1].hostname = Some("h".into());
        let plan = packed(&[slice("s", port(80), endpoints(0..3))], vec![(80, changed.clone())]);
        assert_eq!(plan.update, [("s".to_owned(), Content { ports: port(80), endpoints: changed })]);
    }
}
