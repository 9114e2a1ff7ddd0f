//! Which endpoints of a Service take a client: kube-proxy's rules (pkg/proxy/topology.go), as pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use super::Config;
use crate::network::services::{Endpoint, Protocol, Service, ServicePort};

/// The endpoints of one port of a Service, by address.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// All that work, also those that get no new client because they terminate, or are meant for another zone.
    pub(super) serving: Vec<Place>,
    /// Positions in `serving` of those that take clients under the policy Cluster.
    pub(super) cluster: Vec<u32>,
    /// The same under the policy Local.
    pub(super) local: Vec<u32>,
}

/// One endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: SocketAddrV4,
    /// It is a pod of this node that answers through this node's bridge.
    pub(super) is_own_pod: bool,
}

struct Candidate<'a> {
    endpoint: &'a Endpoint,
    is_local: bool,
}

impl Candidate<'_> {
    fn is_last_resort(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

impl Choice {
    /// The endpoints that serve `port`.
    ///
    /// Ready ones first; those that terminate but still serve where there is no ready one (under the policy Local: on
    /// this node). An endpoint in several slices counts once, and as ready if one of them says so. Left out: IPv6, and
    /// what would lead back into the proxy for ever.
    pub(super) fn of(service: &Service, port: &ServicePort, here: &Config, zone: Option<&str>) -> Self {
        let candidates = candidates(service, port, here);
        let all: Vec<&Candidate<'_>> = candidates.values().collect();
        let near = Near::of(&all, &here.node, zone);
        let local = positions(&all, |c| c.is_local && c.endpoint.ready)
            .or_else(|| positions(&all, |c| c.is_local && c.is_last_resort()));
        let cluster =
            positions(&all, |c| c.endpoint.ready && near.takes(c)).or_else(|| positions(&all, |c| c.is_last_resort()));
        let place = |(address, c): (&SocketAddrV4, &Candidate<'_>)| Place {
            address: *address,
            is_own_pod: c.is_local && here.pod_cidr.contains(*address.ip()),
        };
        Choice {
            serving: candidates.iter().map(place).collect(),
            cluster: cluster.unwrap_or_default(),
            local: local.unwrap_or_default(),
        }
    }
}

/// `None` where there is none.
fn positions(all: &[&Candidate<'_>], takes: impl Fn(&Candidate<'_>) -> bool) -> Option<Vec<u32>> {
    let found: Vec<u32> = (0..).zip(all).filter(|(_, c)| takes(c)).map(|(n, _)| n).collect();
    (!found.is_empty()).then_some(found)
}

/// Which hints count: those for nodes before those for zones, and each only if every ready endpoint has some and one of
/// them is meant for this place.
enum Near<'a> {
    Node(&'a str),
    Zone(&'a str),
    Everywhere,
}

impl<'a> Near<'a> {
    fn of(all: &[&Candidate<'_>], node: &'a str, zone: Option<&'a str>) -> Self {
        let count = |near: &Self| {
            let mut ready = all.iter().filter(|c| c.endpoint.ready).map(|c| near.names(c)).peekable();
            let mut meant = false;
            ready.peek().is_some()
                && ready.all(|names| {
                    meant |= near.is_among(names);
                    !names.is_empty()
                })
                && meant
        };
        let places = [Some(Near::Node(node)), zone.map(Near::Zone)];
        places.into_iter().flatten().find(count).unwrap_or(Near::Everywhere)
    }

    fn names<'b>(&self, candidate: &Candidate<'b>) -> &'b [String] {
        match (self, &candidate.endpoint.hints) {
            (Near::Node(_), Some(hints)) => &hints.nodes,
            (Near::Zone(_), Some(hints)) => &hints.zones,
            (Near::Everywhere, _) | (_, None) => &[],
        }
    }

    fn is_among(&self, names: &[String]) -> bool {
        match self {
            Near::Node(place) | Near::Zone(place) => names.iter().any(|name| name == place),
            Near::Everywhere => true,
        }
    }

    fn takes(&self, candidate: &Candidate<'_>) -> bool {
        self.is_among(self.names(candidate))
    }
}

fn candidates<'a>(service: &'a Service, port: &ServicePort, here: &Config) -> BTreeMap<SocketAddrV4, Candidate<'a>> {
    let mut found: BTreeMap<SocketAddrV4, Candidate<'a>> = BTreeMap::new();
    for slice in &service.slices {
        let served = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol && p.port > 0);
        let Some(target) = served.map(|p| p.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| e.ready || e.serving) {
            let IpAddr::V4(ip) = endpoint.address else { continue };
            let address = SocketAddrV4::new(ip, target);
            if leads_back(service, port.protocol, address, here) {
                continue;
            }
            let is_local = endpoint.node.as_deref() == Some(&*here.node);
            if found.get(&address).is_none_or(|known| !known.endpoint.ready) {
                found.insert(address, Candidate { endpoint, is_local });
            }
        }
    }
    found
}

/// Whether connecting there would arrive here again: Kubernetes does not support Services as endpoints of Services.
fn leads_back(service: &Service, protocol: Protocol, address: SocketAddrV4, here: &Config) -> bool {
    let ip = *address.ip();
    let mut own_ports = service.ports.iter().filter(|p| p.protocol == protocol);
    let is_own_node_port = |ip: Ipv4Addr| ip == here.node_address || ip.is_loopback() || ip == here.pod_cidr.host(1);
    here.service_cidr.contains(ip)
        || ((service.external_ips.contains(&ip) || service.load_balancer_ips.contains(&ip))
            && own_ports.clone().any(|p| p.port == address.port()))
        || (is_own_node_port(ip) && own_ports.any(|p| p.node_port == Some(address.port())))
}

/// How many endpoints of this node are ready, on whatever port.
pub(super) fn local_ready(service: &Service, here: &Config) -> usize {
    let endpoints = service.slices.iter().flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|e| e.ready && e.node.as_deref() == Some(&*here.node)).map(|e| e.address);
    local.collect::<BTreeSet<IpAddr>>().len()
}

/// `loadBalancerSourceRanges`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ranges(Option<Vec<(u32, u32)>>);

impl Ranges {
    /// No ranges: everyone. A range that is no IPv4 range lets nobody in.
    pub(super) fn new(texts: &[String]) -> Self {
        Self((!texts.is_empty()).then(|| texts.iter().filter_map(|text| range(text.trim())).collect()))
    }

    pub(super) fn contains(&self, client: Ipv4Addr) -> bool {
        let within = |(network, mask): &(u32, u32)| client.to_bits() & mask == *network;
        self.0.as_ref().is_none_or(|ranges| ranges.iter().any(within))
    }
}

/// Network and mask.
fn range(text: &str) -> Option<(u32, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix: u32 = prefix.parse().ok().filter(|p| *p <= 32)?;
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    Some((address.to_bits() & mask, mask))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::{config, endpoint, service};
    use super::*;

    /// Last bytes of the addresses.
    fn chosen(choice: &Choice, positions: &[u32]) -> Vec<u8> {
        positions.iter().map(|n| choice.serving[*n as usize].address.ip().octets()[3]).collect()
    }

    #[test]
    fn endpoints_are_chosen_as_by_kube_proxy() {
        // Each endpoint: last byte of its address, then here/away, ready/terminating (and serving)/broken, zones, nodes.
        for (name, endpoints, cluster, local) in [
            ("none", "", vec![], vec![]),
            ("ready ones", "1 here ready;2 away ready;3 away broken", vec![1, 2], vec![1]),
            ("no ready one here", "1 here terminating;2 away ready", vec![2], vec![1]),
            ("no ready one at all", "1 here terminating;2 away terminating;3 here broken", vec![1, 2], vec![1]),
            ("none here", "2 away ready", vec![2], vec![]),
            ("hints", "1 here ready z1;2 away ready z2;3 away ready z1,z2", vec![1, 3], vec![1]),
            ("a hint is missing", "1 here ready;2 away ready z2", vec![1, 2], vec![1]),
            ("no hint for this zone", "1 here ready z2;2 away ready z3", vec![1, 2], vec![1]),
            ("hints of ready ones only", "1 away ready z1;2 away ready z2;3 away terminating", vec![1], vec![]),
            ("the node before the zone", "1 here ready z1 here;2 away ready z1 away", vec![1], vec![1]),
            ("meant for this node, not on it", "1 here ready - away;2 away ready - here", vec![2], vec![1]),
            (
                "the node's is broken",
                "1 here broken z1 here;2 away ready z1 away;3 away ready z2 other",
                vec![2],
                vec![],
            ),
            ("a node hint is missing", "1 here ready z1 here;2 away ready z1", vec![1, 2], vec![1]),
        ] {
            let endpoints: Vec<Endpoint> = endpoints.split(';').filter(|e| !e.is_empty()).map(endpoint).collect();
            let service = service("web", &[80], endpoints);
            let choice = Choice::of(&service, &service.ports[0], &config(), Some("z1"));
            assert_eq!(chosen(&choice, &choice.cluster), cluster, "{name}: cluster");
            assert_eq!(chosen(&choice, &choice.local), local, "{name}: local");
        }
    }

    #[test]
    fn an_endpoint_counts_once_and_only_for_its_port() {
        let mut service = service("web", &[80, 81], vec![endpoint("1 away terminating")]);
        let mut second = service.slices[0].clone();
        second.endpoints = vec![endpoint("1 away ready"), endpoint("2 away ready")];
        second.ports.truncate(1);
        service.slices.push(second);
        let first = Choice::of(&service, &service.ports[0], &config(), Some("z1"));
        assert_eq!(chosen(&first, &first.cluster), [1, 2]);
        let other = Choice::of(&service, &service.ports[1], &config(), Some("z1"));
        assert_eq!(chosen(&other, &other.cluster), [1]);
    }

    #[test]
    fn what_is_no_endpoint_is_skipped() {
        let mut service = service("web", &[80], Vec::new());
        service.ports[0].node_port = Some(30080);
        service.external_ips = vec!["192.0.2.1".parse().unwrap()];
        for (address, port, counts) in [
            ("10.42.0.9", 8080, true),
            ("198.51.100.1", 8080, true),
            ("fd00::1", 8080, false),
            ("10.43.0.77", 8080, false),
            ("192.0.2.1", 80, false),
            ("192.0.2.1", 81, true),
            ("192.168.1.10", 30080, false),
            ("192.168.1.10", 8080, true),
            ("127.0.0.1", 30080, false),
        ] {
            let endpoint = Endpoint { address: address.parse().unwrap(), ..endpoint("1 away ready") };
            service.slices[0].endpoints = vec![endpoint];
            service.slices[0].ports[0].port = port;
            let choice = Choice::of(&service, &service.ports[0], &config(), Some("z1"));
            assert_eq!(choice.cluster.len(), usize::from(counts), "{address}:{port}");
        }
    }

    #[test]
    fn own_pods_answer_through_the_bridge() {
        let mut host = endpoint("2 here ready");
        host.address = "192.168.1.10".parse().unwrap();
        let service = service("web", &[80], vec![endpoint("1 here ready"), host, endpoint("3 away ready")]);
        let choice = Choice::of(&service, &service.ports[0], &config(), Some("z1"));
        let own: Vec<bool> = choice.serving.iter().map(|p| p.is_own_pod).collect();
        assert_eq!(own, [true, false, false]);
    }

    #[test]
    fn source_ranges() {
        for (ranges, client, within) in [
            (vec![], "1.2.3.4", true),
            (vec!["10.0.0.0/8"], "10.200.3.4", true),
            (vec!["10.0.0.0/8"], "11.0.0.1", false),
            (vec!["10.1.2.3/8", " 11.0.0.1/32 "], "11.0.0.1", true),
            (vec!["0.0.0.0/0"], "9.9.9.9", true),
            (vec!["fd00::/8"], "1.2.3.4", false),
            (vec!["nonsense"], "1.2.3.4", false),
        ] {
            let texts: Vec<String> = ranges.iter().map(|t| (*t).to_owned()).collect();
            assert_eq!(Ranges::new(&texts).contains(client.parse().unwrap()), within, "{ranges:?} {client}");
        }
    }
}
