//! Which node announces which load-balancer address.
//!
//! Every node computes it for itself from what the server told all of them, so they agree without talking: the nodes that
//! may, ordered by a hash of node and address (rendezvous hashing: a node that goes takes nothing along but its own).
//! All of them keep an eye on whoever has it: when it goes, the next in order that is there takes it, without a server.
//! Where they do not agree, because one has not heard the news yet, ARP itself keeps them apart (see `arp`).

use std::cmp::Reverse;
use std::net::Ipv4Addr;

use super::arp::Role;
use super::interfaces::{self, Interface};

use super::services::{Endpoint, Peer, Service};

/// What one node knows of itself and the others.
pub(super) struct Place<'a> {
    /// Its name.
    pub(super) node: &'a str,
    /// All nodes, as the server told; without this one, or empty, if the server never did.
    pub(super) peers: &'a [Peer],
    /// Its interfaces.
    pub(super) interfaces: &'a [Interface],
}

impl Place<'_> {
    /// The interface to announce an address on and what this node is to it; `None`: it has nothing to do with it.
    /// `services` are those that have the address.
    pub(super) fn role(&self, address: Ipv4Addr, services: &[&Service]) -> Option<(&Interface, Role)> {
        let has = |interface: &Interface| interface.addresses.iter().any(|(own, _)| *own == address);
        if self.interfaces.iter().any(has) {
            // The host's own address: the kernel answers for it.
            return None;
        }
        let (interface, near) = self.segment(address)?;
        let is_me = |peer: &&Peer| peer.name == self.node;
        let may = self.peers.iter().find(is_me).is_none_or(|me| me.announces);
        let others = self.peers.iter().filter(|p| p.announces && !is_me(p) && near.contains(&p.name.as_str()));
        let mut nodes: Vec<&str> = others.map(|p| p.name.as_str()).collect();
        nodes.extend(may.then_some(self.node));
        let nodes = ordered(address, services, nodes);
        let role = match nodes.iter().position(|name| *name == self.node)? {
            0 => Role::Owner { alone: nodes.len() == 1 },
            before => Role::Standby { rank: u32::try_from(before).unwrap_or(u32::MAX) },
        };
        Some((interface, role))
    }

    /// The interface whose segment an address belongs to, and the nodes on it.
    ///
    /// An address of no segment may be announced where the default route leads, as a router is told to send it here. But
    /// with nodes elsewhere too nobody could say on which of the segments it is meant to be: then only a node with an
    /// interface in its subnet has to do with it.
    fn segment(&self, address: Ipv4Addr) -> Option<(&Interface, Vec<&str>)> {
        let others = self.peers.iter().filter(|p| p.name != self.node);
        if let Some(interface) = interfaces::on_link(self.interfaces, address) {
            let near = others.filter(|p| interface.reaches(p.address).is_some());
            return interface.speaks_arp.then(|| (interface, near.map(|p| p.name.as_str()).collect()));
        }
        let interface = interfaces::default_route(self.interfaces).filter(|i| i.speaks_arp)?;
        let all: Vec<&Peer> = others.collect();
        let together = all.iter().all(|p| interface.reaches(p.address).is_some());
        together.then(|| (interface, all.iter().map(|p| p.name.as_str()).collect()))
    }
}

/// The nodes that may have an address, the one that should first.
fn ordered<'a>(address: Ipv4Addr, services: &[&Service], mut nodes: Vec<&'a str>) -> Vec<&'a str> {
    let serves = |node: &str, test: fn(&Endpoint) -> bool| {
        let mut endpoints = services.iter().flat_map(|s| &s.slices).flat_map(|slice| &slice.endpoints);
        endpoints.any(|e| e.node.as_deref() == Some(node) && test(e))
    };
    // As the proxy does: where no endpoint is ready, one that still works will do.
    let ready = |e: &Endpoint| e.ready;
    let working = |e: &Endpoint| e.serving && e.terminating;
    let any_ready = services.iter().flat_map(|s| &s.slices).flat_map(|slice| &slice.endpoints).any(ready);
    let has_local = |node: &str| serves(node, if any_ready { ready } else { working });
    if services.iter().any(|s| s.external_local) {
        nodes.retain(|node| has_local(node));
    }
    nodes.sort_by_cached_key(|node| (Reverse(has_local(node)), Reverse(score(node, address)), *node));
    nodes
}

/// The same on every node and in every version: FNV-1a, then mixed (the finalizer of SplitMix64), because FNV leaves
/// names that differ in their last letter close to each other.
fn score(node: &str, address: Ipv4Addr) -> u64 {
    let bytes = node.bytes().chain([b'#']).chain(address.octets());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::interfaces::tests::interface;
    use crate::network::services::Slice;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);

    fn peers(names: &[&str]) -> Vec<Peer> {
        let peer = |(n, name): (usize, &&str)| Peer {
            name: (*name).into(),
            address: Ipv4Addr::new(192, 168, 1, n as u8 + 1),
            pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(),
            announces: true,
        };
        names.iter().enumerate().map(peer).collect()
    }

    fn service(local: bool, nodes: &[(&str, bool)]) -> Service {
        let endpoint = |(node, ready): &(&str, bool)| Endpoint {
            address: "10.42.0.9".parse().unwrap(),
            hostname: None,
            node: Some((*node).into()),
            hints: None,
            ready: *ready,
            serving: true,
            terminating: !*ready,
        };
        let slices = vec![Slice { ports: Vec::new(), endpoints: nodes.iter().map(endpoint).collect() }];
        Service { external_local: local, slices, ..Service::default() }
    }

    /// The roles as each node sees its own.
    fn roles(peers: &[Peer], service: &Service) -> Vec<String> {
        let show = |peer: &Peer| {
            let interfaces = [interface(1, &[(&peer.address.to_string(), 24)])];
            let place = Place { node: &peer.name, peers, interfaces: &interfaces };
            let role = place.role(ADDRESS, &[service]).map(|(_, role)| role);
            match role {
                Some(Role::Owner { alone: true }) => "alone".to_owned(),
                Some(Role::Owner { alone: false }) => "owner".to_owned(),
                Some(Role::Standby { rank }) => format!("standby {rank}"),
                None => "-".to_owned(),
            }
        };
        peers.iter().map(show).collect()
    }

    #[test]
    fn nodes_agree() {
        let all = peers(&["a", "b", "c", "d"]);
        let seen = roles(&all, &Service::default());
        let mut sorted = seen.clone();
        sorted.sort();
        assert_eq!(sorted, ["owner", "standby 1", "standby 2", "standby 3"]);

        // The owner goes: the standby follows, nothing else moves.
        let owner = seen.iter().position(|r| r == "owner").unwrap();
        let standby = seen.iter().position(|r| r == "standby 1").unwrap();
        for change in [|p: &mut Vec<Peer>, i: usize| p[i].announces = false, |p: &mut Vec<Peer>, i| drop(p.remove(i))] {
            let mut left = all.clone();
            change(&mut left, owner);
            let name = &all[standby].name;
            let at = left.iter().position(|p| p.name == *name).unwrap();
            assert_eq!(roles(&left, &Service::default())[at], "owner");
        }
        assert_eq!(roles(&all[..1], &Service::default()), ["alone"]);
    }

    #[test]
    fn nodes_with_endpoints_come_first() {
        let all = peers(&["a", "b", "c"]);
        for node in ["a", "b", "c"] {
            let at = all.iter().position(|p| p.name == node).unwrap();
            assert_eq!(roles(&all, &service(false, &[(node, true)]))[at], "owner");
            let local = roles(&all, &service(true, &[(node, true)]));
            assert_eq!(local[at], "alone");
            assert_eq!(local.iter().filter(|r| *r == "-").count(), 2);
        }
        assert_eq!(roles(&all, &service(true, &[])), ["-", "-", "-"]);
        assert_eq!(
            roles(&all, &service(true, &[("b", false)])),
            ["-", "alone", "-"],
            "terminating is better than none"
        );
        assert_eq!(roles(&all, &service(true, &[("b", false), ("c", true)])), ["-", "-", "alone"]);
    }

    #[test]
    fn only_nodes_of_the_segment_count() {
        let mut all = peers(&["a", "b"]);
        all[1].address = Ipv4Addr::new(10, 9, 0, 1);
        let here = [interface(1, &[("192.168.1.1", 24)])];
        let role = |node, peers: &[Peer], interfaces: &[Interface], address| {
            let place = Place { node, peers, interfaces };
            place.role(address, &[]).map(|(interface, role)| (interface.index, role))
        };
        assert_eq!(role("a", &all, &here, ADDRESS), Some((1, Role::Owner { alone: true })));
        // It has no interface in the subnet, and others may have.
        let mut there = [interface(7, &[("10.9.0.1", 24)])];
        there[0].default_route = Some(0);
        assert_eq!(role("b", &all, &there, ADDRESS), None);
        assert_eq!(role("b", &[], &there, ADDRESS), Some((7, Role::Owner { alone: true })), "a router sends it here");
        // The host's own address, an interface that is no Ethernet, not allowed.
        assert_eq!(role("a", &all, &here, Ipv4Addr::new(192, 168, 1, 1)), None);
        let mut deaf = here.to_vec();
        deaf[0].speaks_arp = false;
        assert_eq!(role("a", &all, &deaf, ADDRESS), None);
        // Its interface is down: never through another one.
        deaf[0].is_up = false;
        let other = Interface { default_route: Some(0), ..interface(2, &[("10.0.0.1", 24)]) };
        assert_eq!(role("a", &[], &[deaf.remove(0), other], ADDRESS), None);
        all[0].announces = false;
        assert_eq!(role("a", &all, &here, ADDRESS), None);
    }

    #[test]
    fn addresses_spread() {
        let all = peers(&["pi-1", "pi-2", "pi-3", "pi-4"]);
        let mut owned = [0; 4];
        for n in 0..=255 {
            let first = ordered(Ipv4Addr::new(192, 168, 1, n), &[], all.iter().map(|p| p.name.as_str()).collect())[0];
            owned[all.iter().position(|p| p.name == first).unwrap()] += 1;
        }
        assert!(owned.iter().all(|n| (40..=90).contains(n)), "{owned:?}");
    }
}
