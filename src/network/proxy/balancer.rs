//! Who gets a client: the endpoints of one port of a Service, and the doors that lead to them.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use super::affinity::Affinity;
use super::policy::{Choice, Place, Ranges};
use super::{Backend, Frontend};
use crate::cidr::Cidr;
use crate::config::ProxyBalance;

/// Seconds that an endpoint which refused a connection is avoided while there are others.
const AVOID: u32 = 5;
/// No failure yet.
const NEVER: u32 = 0;

/// The endpoints of one port, shared by all its listeners. They change in one step, under open connections.
#[derive(Debug)]
pub(super) struct Pool {
    balance: ProxyBalance,
    endpoints: RwLock<Arc<Endpoints>>,
    /// Counts the picks: whose turn it is.
    turn: AtomicU32,
}

#[derive(Debug, Default)]
struct Endpoints {
    choice: Choice,
    /// As long as `choice.serving`.
    gauges: Vec<Arc<Gauge>>,
}

/// What is known of an endpoint; outlives changes of the others.
#[derive(Debug, Default)]
struct Gauge {
    /// Open connections.
    open: AtomicU32,
    /// Second of the last connection that could not be made.
    failed: AtomicU32,
}

/// Who asks for an endpoint.
pub(super) struct Visitor<'a> {
    pub(super) client: Ipv4Addr,
    /// Only endpoints of this node.
    pub(super) local: bool,
    pub(super) tried: &'a [SocketAddrV4],
    pub(super) affinity: Option<&'a Affinity>,
}

impl Pool {
    pub(super) fn new(balance: ProxyBalance, choice: Choice) -> Self {
        let pool = Self { balance, endpoints: RwLock::default(), turn: AtomicU32::new(0) };
        pool.set(choice);
        pool
    }

    /// Takes other endpoints; returns those that are gone. Connections to them go on, new ones avoid them from now on.
    pub(super) fn set(&self, choice: Choice) -> Vec<SocketAddrV4> {
        let before = self.endpoints();
        if before.choice == choice && !choice.serving.is_empty() {
            return Vec::new();
        }
        let gauges = choice.serving.iter().map(|place| match before.find(place.address) {
            Some(n) => before.gauges[n].clone(),
            None => Arc::default(),
        });
        let now = Endpoints { gauges: gauges.collect(), choice };
        let gone = before.choice.serving.iter().map(|place| place.address).filter(|a| now.find(*a).is_none()).collect();
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        gone
    }

    /// All endpoints that connections may be open to.
    pub(super) fn addresses(&self) -> Vec<SocketAddrV4> {
        self.endpoints().choice.serving.iter().map(|place| place.address).collect()
    }

    /// The endpoint for a visitor: the one it had, else by turn or by open connections; one that failed a moment ago only
    /// if nothing else is left.
    pub(super) fn pick(&self, visitor: &Visitor<'_>, now: u32) -> Option<Place> {
        let endpoints = self.endpoints();
        let positions = if visitor.local { &endpoints.choice.local } else { &endpoints.choice.cluster };
        let kept = visitor.affinity.and_then(|a| a.get(visitor.client, now));
        let usable = |n: &usize| !visitor.tried.contains(&endpoints.choice.serving[*n].address);
        let found = kept
            .and_then(|ip| endpoints.of(positions, ip).filter(usable))
            .or_else(|| self.next(&endpoints, positions, |n| usable(n) && !endpoints.gauges[*n].is_avoided(now)))
            .or_else(|| self.next(&endpoints, positions, usable))?;
        let place = endpoints.choice.serving[found];
        endpoints.gauges[found].open.fetch_add(1, Relaxed);
        if let Some(affinity) = visitor.affinity {
            affinity.set(visitor.client, *place.address.ip(), now);
        }
        Some(place)
    }

    /// A connection ended, or was never made.
    pub(super) fn release(&self, endpoint: SocketAddrV4, failed: bool, now: u32) {
        let endpoints = self.endpoints();
        let Some(n) = endpoints.find(endpoint) else { return };
        let gauge = &endpoints.gauges[n];
        // The endpoint may have been away meanwhile, and its count with it.
        gauge.open.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1)).ok();
        if failed {
            gauge.failed.store(now.max(NEVER + 1), Relaxed);
        }
    }

    /// Beginning with the one whose turn it is.
    fn next(&self, endpoints: &Endpoints, positions: &[u32], usable: impl Fn(&usize) -> bool) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Relaxed) as usize % positions.len().max(1);
        let (later, sooner) = positions.split_at(turn);
        let mut usable = sooner.iter().chain(later).map(|n| *n as usize).filter(usable);
        match self.balance {
            ProxyBalance::RoundRobin => usable.next(),
            ProxyBalance::LeastConnections => usable.min_by_key(|n| endpoints.gauges[*n].open.load(Relaxed)),
        }
    }

    fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Endpoints {
    fn find(&self, address: SocketAddrV4) -> Option<usize> {
        self.choice.serving.binary_search_by_key(&address, |place| place.address).ok()
    }

    /// The endpoint of this address among `positions`.
    fn of(&self, positions: &[u32], ip: Ipv4Addr) -> Option<usize> {
        positions.iter().map(|n| *n as usize).find(|n| *self.choice.serving[*n].address.ip() == ip)
    }
}

impl Gauge {
    fn is_avoided(&self, now: u32) -> bool {
        let failed = self.failed.load(Relaxed);
        failed != NEVER && now.saturating_sub(failed) < AVOID
    }
}

/// What decides over clients of one listener.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scope {
    /// A cluster address.
    Internal {
        /// `internalTrafficPolicy: Local`.
        local: bool,
    },
    /// A node port or an external address.
    External {
        /// `externalTrafficPolicy: Local`.
        local: bool,
        /// `loadBalancerSourceRanges`, at load-balancer addresses.
        ranges: Arc<Ranges>,
    },
}

/// What doors need to know of this node.
#[derive(Debug)]
pub(super) struct Around {
    /// Addresses of all pods of the cluster.
    pub(super) cluster_cidr: Cidr,
    /// This node's address.
    pub(super) node_address: Ipv4Addr,
    /// Whether endpoints can be connected to from the client's address.
    pub(super) keeps_source: AtomicBool,
}

/// One listener's frontend.
pub(super) struct Door {
    pub(super) scope: Scope,
    pub(super) pool: Arc<Pool>,
    pub(super) affinity: Option<Arc<Affinity>>,
    pub(super) around: Arc<Around>,
}

/// Whether both decide alike.
impl PartialEq for Door {
    fn eq(&self, other: &Self) -> bool {
        let same_clients = match (&self.affinity, &other.affinity) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        self.scope == other.scope && Arc::ptr_eq(&self.pool, &other.pool) && same_clients
    }
}

impl Door {
    /// Whether this client is to get an endpoint of this node, and whether that sees the client's own address; `None`: it
    /// is not let in.
    fn admit(&self, client: Ipv4Addr) -> Option<(bool, bool)> {
        match &self.scope {
            Scope::Internal { local } => Some((*local, false)),
            Scope::External { local, ranges } => {
                // The node itself comes from a loopback address to addresses that are no interface's.
                let seen_as = if client.is_loopback() { self.around.node_address } else { client };
                if !ranges.contains(seen_as) {
                    return None;
                }
                // As kube-proxy does, pods and the node are spared the way out and back in: they get any endpoint.
                let is_outside = *local && !self.around.cluster_cidr.contains(client) && !is_own(client);
                Some((is_outside, is_outside && self.around.keeps_source.load(Relaxed)))
            }
        }
    }
}

impl Frontend for Door {
    fn pick(&self, client: SocketAddrV4, tried: &[SocketAddrV4]) -> Option<Backend> {
        let (local, keep_source) = self.admit(*client.ip())?;
        let visitor = Visitor { client: *client.ip(), local, tried, affinity: self.affinity.as_deref() };
        let place = self.pool.pick(&visitor, seconds())?;
        Some(Backend { endpoint: place.address, keep_source: keep_source && place.is_own_pod })
    }

    fn release(&self, endpoint: SocketAddrV4, failed: bool) {
        self.pool.release(endpoint, failed, seconds());
    }
}

/// Whether an address is this host's: the kernel then answers from that address itself.
fn is_own(address: Ipv4Addr) -> bool {
    // Connecting a datagram socket sends nothing, it only looks up the route.
    let source = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((address, 9)).map(|()| socket))
        .and_then(|socket| socket.local_addr());
    address.is_loopback() || source.is_ok_and(|source| source.ip() == address)
}

/// Seconds since some moment before the first call, at least one.
fn seconds() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    u32::try_from(START.get_or_init(Instant::now).elapsed().as_secs()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::testing::{config, endpoint, service};
    use super::*;

    fn choice(endpoints: &str) -> Choice {
        let endpoints = endpoints.split(';').filter(|e| !e.is_empty()).map(endpoint).collect();
        let service = service("web", &[80], endpoints);
        Choice::of(&service, &service.ports[0], &config(), Some("z1"))
    }

    fn pool(balance: ProxyBalance, endpoints: &str) -> Pool {
        Pool::new(balance, choice(endpoints))
    }

    fn visitor(client: u8) -> Visitor<'static> {
        Visitor { client: Ipv4Addr::new(10, 42, 0, client), local: false, tried: &[], affinity: None }
    }

    fn last(place: Option<Place>) -> u8 {
        place.unwrap().address.ip().octets()[3]
    }

    const THREE: &str = "1 here ready;2 away ready;3 away ready";

    #[test]
    fn turns_are_even() {
        let pool = pool(ProxyBalance::RoundRobin, THREE);
        let mut counts = BTreeMap::new();
        for _ in 0..300 {
            *counts.entry(last(pool.pick(&visitor(9), 1))).or_insert(0) += 1;
        }
        assert_eq!(counts, BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
    }

    #[test]
    fn the_least_busy_one_is_taken() {
        let pool = pool(ProxyBalance::LeastConnections, THREE);
        let mut first: Vec<u8> = (0..3).map(|_| last(pool.pick(&visitor(9), 1))).collect();
        first.sort_unstable();
        assert_eq!(first, [1, 2, 3]);
        let two = pool.addresses()[1];
        pool.release(two, false, 1);
        assert_eq!(last(pool.pick(&visitor(9), 1)), 2);
        // What is open stays known when the endpoints change, and an endpoint that was away begins anew.
        assert_eq!(pool.set(choice("1 here ready;2 away ready")), ["10.42.1.3:8080".parse().unwrap()]);
        pool.release(two, false, 1);
        assert_eq!(last(pool.pick(&visitor(9), 1)), 2);
        pool.set(choice("1 here ready"));
        pool.set(choice("1 here ready;2 away ready"));
        pool.release(two, false, 1);
        assert_eq!([0; 2].map(|_| last(pool.pick(&visitor(9), 1))).iter().filter(|n| **n == 2).count(), 1);
    }

    #[test]
    fn what_was_tried_or_failed_is_avoided() {
        let pool = pool(ProxyBalance::RoundRobin, THREE);
        let all = pool.addresses();
        for _ in 0..6 {
            let picked = pool.pick(&Visitor { tried: &all[..2], ..visitor(9) }, 1);
            assert_eq!(last(picked), 3);
        }
        assert_eq!(pool.pick(&Visitor { tried: &all, ..visitor(9) }, 1), None);
        pool.release(all[0], true, 10);
        pool.release(all[1], true, 12);
        for (now, expected) in [(12, vec![3]), (15, vec![1, 3]), (17, vec![1, 2, 3])] {
            let mut picked: Vec<u8> = (0..12).map(|_| last(pool.pick(&visitor(9), now))).collect();
            picked.sort_unstable();
            picked.dedup();
            assert_eq!(picked, expected, "at {now}");
        }
        all.iter().for_each(|address| pool.release(*address, true, 20));
        assert!(pool.pick(&visitor(9), 20).is_some(), "all have failed: any is better than none");
    }

    #[test]
    fn a_client_keeps_its_pod_on_every_port() {
        let affinity = Affinity::new(60);
        let endpoints: Vec<_> = THREE.split(';').map(endpoint).collect();
        let service = service("web", &[80, 81], endpoints);
        let [http, admin] = [0, 1].map(|n| {
            Pool::new(ProxyBalance::RoundRobin, Choice::of(&service, &service.ports[n], &config(), Some("z1")))
        });
        let sticky = |client| Visitor { affinity: Some(&affinity), ..visitor(client) };
        let first = last(http.pick(&sticky(7), 1));
        for now in 2..50 {
            http.pick(&sticky(8), now);
            assert_eq!([last(http.pick(&sticky(7), now)), last(admin.pick(&sticky(7), now))], [first; 2]);
        }
        let tried = [SocketAddrV4::new(Ipv4Addr::new(10, 42, 1, first), 8080)];
        let other = last(http.pick(&Visitor { tried: &tried, ..sticky(7) }, 60));
        assert_ne!(other, first, "it refused the client");
        assert_eq!(last(http.pick(&sticky(7), 61)), other, "and is replaced for good");
    }

    fn door(scope: Scope, keeps_source: bool) -> Door {
        let around = Around {
            cluster_cidr: config().cluster_cidr,
            node_address: config().node_address,
            keeps_source: AtomicBool::new(keeps_source),
        };
        let pool = Arc::new(pool(ProxyBalance::RoundRobin, "1 here ready;2 away ready"));
        Door { scope, pool, affinity: None, around: Arc::new(around) }
    }

    fn external(local: bool, ranges: &[&str]) -> Scope {
        let ranges: Vec<String> = ranges.iter().map(|r| (*r).to_owned()).collect();
        Scope::External { local, ranges: Arc::new(Ranges::new(&ranges)) }
    }

    #[test]
    fn policies_by_where_the_client_is() {
        let (pod, outside, node) = ("10.42.7.7", "198.51.100.1", "127.0.0.1");
        // Endpoints it may get, and whether the one of this node sees the client's address.
        for (name, scope, client, expected, kept) in [
            ("internal", Scope::Internal { local: false }, pod, vec![1, 2], false),
            ("internal, from outside", Scope::Internal { local: false }, outside, vec![1, 2], false),
            ("internal, local", Scope::Internal { local: true }, pod, vec![1], false),
            ("external", external(false, &[]), outside, vec![1, 2], false),
            ("external, local", external(true, &[]), outside, vec![1], true),
            ("external, local, by a pod", external(true, &[]), pod, vec![1, 2], false),
            ("external, local, by the node", external(true, &[]), node, vec![1, 2], false),
            ("in range", external(true, &["198.51.100.0/24"]), outside, vec![1], true),
            ("out of range", external(false, &["198.51.101.0/24"]), outside, vec![], false),
            ("pods are no exception", external(false, &["198.51.100.0/24"]), pod, vec![], false),
            ("the node in range", external(false, &["192.168.1.0/24"]), node, vec![1, 2], false),
            ("the node out of range", external(false, &["192.168.2.0/24"]), node, vec![], false),
        ] {
            let client = SocketAddrV4::new(client.parse().unwrap(), 4000);
            let door = door(scope, true);
            let picked: Vec<Backend> = (0..4).filter_map(|_| door.pick(client, &[])).collect();
            let mut bytes: Vec<u8> = picked.iter().map(|b| b.endpoint.ip().octets()[3]).collect();
            bytes.sort_unstable();
            bytes.dedup();
            assert_eq!(bytes, expected, "{name}");
            assert_eq!(picked.iter().any(|b| b.keep_source), kept, "{name}: keeps the source");
        }
        let door = door(external(true, &[]), false);
        let picked = door.pick("198.51.100.1:4000".parse().unwrap(), &[]).unwrap();
        assert!(!picked.keep_source, "the kernel cannot");
    }

    #[test]
    fn without_endpoints_nobody_is_let_in() {
        let pool = pool(ProxyBalance::RoundRobin, "");
        assert_eq!(pool.pick(&visitor(9), 1), None);
        pool.release("10.42.1.1:8080".parse().unwrap(), true, 1);
    }
}
