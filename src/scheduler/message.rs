//! Why a pod found no node, worded as Kubernetes words it.

use std::collections::BTreeMap;

use super::filter::Refusal;

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub fn unavailable<'a>(nodes: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut list: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    list.sort();
    format!("0/{nodes} nodes are available: {}.", list.join(", "))
}

/// What preemption can do for a pod that found no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hope {
    /// Pods are being removed for it.
    Victims,
    /// Pods are leaving the node it is to have.
    Leaving,
    /// `preemptionPolicy: Never`
    Never,
    /// Nothing.
    None,
}

/// The whole message: what the nodes say, and what preemption does about it.
pub fn failure(refusals: &[Refusal], hope: Hope) -> String {
    if refusals.is_empty() {
        return "no nodes available to schedule pods".to_owned();
    }
    let main = unavailable(refusals.len(), refusals.iter().flat_map(|r| &r.reasons).map(String::as_str));
    let text = match hope {
        Hope::Victims => return main,
        Hope::Leaving => "not eligible due to a terminating pod on the nominated node.".to_owned(),
        Hope::Never => "not eligible due to preemptionPolicy=Never.".to_owned(),
        Hope::None => unavailable(refusals.len(), refusals.iter().map(hopeless)),
    };
    format!("{main} preemption: {text}")
}

fn hopeless(refusal: &Refusal) -> &'static str {
    if refusal.resolvable {
        "No preemption victims found for incoming pod"
    } else {
        "Preemption is not helpful for scheduling"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(reasons: &[&str], resolvable: bool) -> Refusal {
        Refusal { reasons: reasons.iter().map(|r| (*r).to_owned()).collect(), resolvable }
    }

    #[test]
    fn people_read_what_they_know() {
        let selector = refusal(&["node(s) didn't match Pod's node affinity/selector"], false);
        let cpu = refusal(&["Insufficient cpu"], true);
        let both = refusal(&["Insufficient cpu", "Insufficient memory"], true);
        for (refusals, hope, expected) in [
            (vec![], Hope::None, "no nodes available to schedule pods"),
            (
                vec![selector.clone()],
                Hope::None,
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
                 preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            ),
            (
                vec![cpu.clone(), both, selector],
                Hope::None,
                "0/3 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector, \
                 2 Insufficient cpu. preemption: 0/3 nodes are available: \
                 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod.",
            ),
            (vec![cpu.clone()], Hope::Victims, "0/1 nodes are available: 1 Insufficient cpu."),
            (
                vec![cpu],
                Hope::Never,
                "0/1 nodes are available: 1 Insufficient cpu. \
                 preemption: not eligible due to preemptionPolicy=Never.",
            ),
        ] {
            assert_eq!(failure(&refusals, hope), expected);
        }
    }
}
