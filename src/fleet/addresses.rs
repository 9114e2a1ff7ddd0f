//! Which addresses the pods of each node have: a /24 of the cluster's range, kept in the node's `spec.podCIDR` and free
//! again when the Node object is gone.

use crate::cidr::Cidr;

/// Of each node's range.
const PREFIX: u8 = 24;

/// The range of the server's own node: the first. It is kept free where the server has none.
pub fn first(cluster: Cidr) -> Cidr {
    Cidr::new(cluster.network(), PREFIX)
}

/// A range for another node: the one it had if that is still free, else the one after the highest in use, from the
/// start again when the end is reached. So what has just been freed, and may live on in caches, comes last.
pub(super) fn next(cluster: Cidr, taken: &[Cidr], wanted: Option<Cidr>) -> Option<Cidr> {
    let count = 1u32 << (PREFIX - cluster.prefix().min(PREFIX));
    let nth = |n: u32| Cidr::new(cluster.host(n << (32 - PREFIX)), PREFIX);
    let number = |range: &Cidr| cluster.index(range.network()).map(|offset| offset >> (32 - PREFIX));
    let fits =
        |range: &Cidr| range.prefix() == PREFIX && number(range).is_some_and(|n| n > 0) && !taken.contains(range);
    if let Some(range) = wanted.filter(fits) {
        return Some(range);
    }
    let highest = taken.iter().filter_map(number).max().unwrap_or(0);
    (highest + 1..count).chain(1..=highest).map(nth).find(fits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_out_once() {
        let of = |text: &str| text.parse::<Cidr>().unwrap();
        let small = of("10.42.0.0/22");
        for (taken, wanted, expected) in [
            (vec![], None, Some("10.42.1.0/24")),
            (vec!["10.42.0.0/24", "10.42.1.0/24"], None, Some("10.42.2.0/24")),
            (vec!["10.42.2.0/24"], None, Some("10.42.3.0/24")),
            (vec!["10.42.3.0/24"], None, Some("10.42.1.0/24")),
            (vec!["10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"], None, None),
            (vec!["10.42.1.0/24"], Some("10.42.3.0/24"), Some("10.42.3.0/24")),
            (vec!["10.42.1.0/24"], Some("10.42.1.0/24"), Some("10.42.2.0/24")),
            (vec![], Some("10.42.0.0/24"), Some("10.42.1.0/24")),
            (vec![], Some("10.99.1.0/24"), Some("10.42.1.0/24")),
            (vec![], Some("10.42.2.0/25"), Some("10.42.1.0/24")),
        ] {
            let ranges: Vec<Cidr> = taken.iter().map(|t| of(t)).collect();
            assert_eq!(next(small, &ranges, wanted.map(of)), expected.map(of), "{taken:?} {wanted:?}");
        }
        assert_eq!(next(of("10.42.0.0/24"), &[], None), None);
        assert_eq!(first(small), of("10.42.0.0/24"));
    }
}
