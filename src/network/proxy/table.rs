//! From Services to listeners: who is let in where, and what the engine has to be told of a change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::affinity::Affinity;
use super::balancer::{Around, Door, Pool, Scope};
use super::policy::{Choice, Ranges};
use super::{Command, Config, Listen};
use crate::network::services::{Protocol, Service, ServiceName, ServicePort};

/// All Services that are proxied. Every change ends in commands for the engine.
pub(super) struct Table {
    config: Config,
    around: Arc<Around>,
    /// The zone the node is in (`topology.kubernetes.io/zone`).
    zone: Option<String>,
    services: BTreeMap<ServiceName, Entry>,
    /// Who has a listener.
    owners: HashMap<Listen, ServiceName>,
    /// Who would have it, were it not another's: two Services may name the same external address and port.
    waiting: BTreeSet<(Listen, ServiceName)>,
    commands: Vec<Command>,
}

struct Entry {
    service: Arc<Service>,
    affinity: Option<Arc<Affinity>>,
    /// As long as `service.ports`.
    pools: Vec<Arc<Pool>>,
}

impl Table {
    pub(super) fn new(config: Config, around: Arc<Around>) -> Self {
        Self {
            config,
            around,
            zone: None,
            services: BTreeMap::new(),
            owners: HashMap::new(),
            waiting: BTreeSet::new(),
            commands: Vec::new(),
        }
    }

    /// What the engine is to be told since the last call, in order.
    pub(super) fn commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Takes all Services as they are; the others are gone.
    pub(super) fn replace(&mut self, all: Vec<Arc<Service>>) {
        let kept: BTreeSet<ServiceName> = all.iter().map(|service| service.id()).collect();
        let gone: Vec<ServiceName> = self.services.keys().filter(|id| !kept.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.remove(id));
        all.into_iter().for_each(|service| self.put(service));
    }

    /// The zone of this node changed: other endpoints may be meant for it.
    pub(super) fn set_zone(&mut self, zone: Option<String>) {
        self.zone = zone;
        let all: Vec<Arc<Service>> = self.services.values().map(|entry| entry.service.clone()).collect();
        all.into_iter().for_each(|service| self.put(service));
    }

    /// Takes a Service as it is now.
    pub(super) fn put(&mut self, service: Arc<Service>) {
        let id = service.id();
        let known = self.services.get(&id);
        if !is_proxied(&service) || known.is_some_and(|entry| entry.service.uid != service.uid) {
            self.remove(&id);
        }
        if !is_proxied(&service) {
            return;
        }
        let before = self.services.remove(&id);
        let is_same = before.as_ref().is_some_and(|entry| is_same_but_for_endpoints(&entry.service, &service));
        let (entry, gone) = self.entry(service, before.as_ref());
        if !is_same {
            let old = before.as_ref().map(|entry| entry.doors(&self.around)).unwrap_or_default();
            self.relisten(&id, &old, entry.doors(&self.around));
        }
        for (protocol, pool, gone) in gone {
            if protocol == Protocol::Udp {
                self.forget(&id, &entry, &pool, gone);
            }
        }
        self.services.insert(id, entry);
    }

    /// The Service is gone: its listeners close at once.
    pub(super) fn remove(&mut self, id: &ServiceName) {
        let Some(entry) = self.services.remove(id) else { return };
        let old = entry.doors(&self.around);
        self.relisten(id, &old, BTreeMap::new());
    }

    /// The Service that has this listener.
    pub(super) fn owner(&self, listen: Listen) -> Option<&Arc<Service>> {
        self.owners.get(&listen).and_then(|id| self.services.get(id)).map(|entry| &entry.service)
    }

    /// Asks for a listener that could not be had once more. `false`: nobody wants it any more.
    pub(super) fn retry(&mut self, listen: Listen) -> bool {
        let Some(entry) = self.owners.get(&listen).and_then(|id| self.services.get(id)) else { return false };
        match entry.doors(&self.around).remove(&listen) {
            Some(door) => self.commands.push(Command::Listen(listen, Arc::new(door))),
            None => return false,
        }
        true
    }

    /// Listeners at addresses that are not the cluster's own: packets to them must be taken in by rule.
    pub(super) fn outer(&self) -> BTreeSet<Listen> {
        let is_outer = |listen: &&Listen| {
            let ip = *listen.address.ip();
            !ip.is_unspecified() && !self.config.service_cidr.contains(ip)
        };
        self.owners.keys().filter(is_outer).copied().collect()
    }

    /// Whether some Service wants its endpoints to see who their clients are.
    pub(super) fn wants_source(&self) -> bool {
        self.services.values().any(|entry| entry.service.external_local)
    }

    /// The Services with a health check port.
    pub(super) fn health_checks(&self) -> impl Iterator<Item = (u16, &Arc<Service>)> {
        let services = self.services.values().map(|entry| &entry.service);
        services.filter(|s| s.external_local).filter_map(|s| Some((s.health_check_node_port?, s)))
    }

    /// Takes over what is known of the Service, and gives the endpoints that are gone.
    fn entry(&self, service: Arc<Service>, before: Option<&Entry>) -> (Entry, Vec<Gone>) {
        let affinity = service.affinity_seconds.map(|seconds| {
            let kept = before.and_then(|entry| entry.affinity.clone()).filter(|kept| kept.timeout() == seconds);
            kept.unwrap_or_else(|| Arc::new(Affinity::new(seconds)))
        });
        let mut gone = Vec::new();
        let mut pools = Vec::with_capacity(service.ports.len());
        for port in &service.ports {
            let choice = Choice::of(&service, port, &self.config, self.zone.as_deref());
            let pool = match before.and_then(|entry| entry.pool(port)) {
                Some(pool) => {
                    gone.push((port.protocol, pool.clone(), pool.set(choice)));
                    pool
                }
                None => Arc::new(Pool::new(self.config.balance, choice)),
            };
            pools.push(pool);
        }
        (Entry { service, affinity, pools }, gone)
    }

    /// From the old listeners of a Service to the new ones.
    fn relisten(&mut self, id: &ServiceName, old: &BTreeMap<Listen, Door>, new: BTreeMap<Listen, Door>) {
        for (listen, door) in old.iter().filter(|(listen, _)| !new.contains_key(*listen)) {
            self.waiting.remove(&(*listen, id.clone()));
            if self.owners.get(listen) == Some(id) {
                self.owners.remove(listen);
                self.close(*listen, door);
            }
        }
        for (listen, door) in new {
            match self.owners.get(&listen) {
                Some(owner) if owner == id => {
                    if old.get(&listen) != Some(&door) {
                        self.commands.push(Command::Listen(listen, Arc::new(door)));
                    }
                }
                Some(owner) => {
                    if self.waiting.insert((listen, id.clone())) {
                        let (namespace, service) = (&id.namespace, &id.name);
                        let taken_by = format!("{}/{}", owner.namespace, owner.name);
                        tracing::warn!(namespace, service, %listen, taken_by, "another Service has this address and port");
                    }
                }
                None => self.claim(listen, id.clone(), door),
            }
        }
    }

    fn claim(&mut self, listen: Listen, id: ServiceName, door: Door) {
        self.owners.insert(listen, id);
        self.commands.push(Command::Listen(listen, Arc::new(door)));
    }

    /// Ends a listener, or hands it to the Service that waits for it.
    fn close(&mut self, listen: Listen, door: &Door) {
        if listen.protocol == Protocol::Udp {
            self.commands.push(Command::Forget(listen, door.pool.addresses()));
        }
        let first = (listen, ServiceName { namespace: String::new(), name: String::new() });
        let next = self.waiting.range(first..).next().filter(|(l, _)| *l == listen).cloned();
        let Some(next) = next else { return self.commands.push(Command::Close(listen)) };
        self.waiting.remove(&next);
        let (_, id) = next;
        match self.services.get(&id).and_then(|entry| entry.doors(&self.around).remove(&listen)) {
            Some(door) => self.claim(listen, id, door),
            None => self.commands.push(Command::Close(listen)),
        }
    }

    fn forget(&mut self, id: &ServiceName, entry: &Entry, pool: &Arc<Pool>, gone: Vec<SocketAddrV4>) {
        if gone.is_empty() {
            return;
        }
        for (listen, door) in entry.doors(&self.around) {
            if Arc::ptr_eq(&door.pool, pool) && self.owners.get(&listen) == Some(id) {
                self.commands.push(Command::Forget(listen, gone.clone()));
            }
        }
    }
}

/// The endpoints that a port no longer has.
type Gone = (Protocol, Arc<Pool>, Vec<SocketAddrV4>);

impl Entry {
    /// The pool of a port with the same name and protocol.
    fn pool(&self, port: &ServicePort) -> Option<Arc<Pool>> {
        let same = |p: &ServicePort| p.name == port.name && p.protocol == port.protocol;
        self.service.ports.iter().position(same).map(|n| self.pools[n].clone())
    }

    /// Where the Service listens, and who answers there.
    fn doors(&self, around: &Arc<Around>) -> BTreeMap<Listen, Door> {
        let service = &*self.service;
        let external = |ranges: &Arc<Ranges>| Scope::External { local: service.external_local, ranges: ranges.clone() };
        let (everyone, some) = (Arc::new(Ranges::default()), Arc::new(Ranges::new(&service.source_ranges)));
        let mut doors = BTreeMap::new();
        for (port, pool) in service.ports.iter().zip(&self.pools) {
            let mut open = |ip: Ipv4Addr, number: u16, scope: Scope| {
                let listen = Listen { protocol: port.protocol, address: SocketAddrV4::new(ip, number) };
                let (pool, affinity, around) = (pool.clone(), self.affinity.clone(), around.clone());
                doors.insert(listen, Door { scope, pool, affinity, around });
            };
            for ip in &service.cluster_ips {
                open(*ip, port.port, Scope::Internal { local: service.internal_local });
            }
            if let Some(node_port) = port.node_port {
                open(Ipv4Addr::UNSPECIFIED, node_port, external(&everyone));
            }
            for ip in &service.external_ips {
                open(*ip, port.port, external(&everyone));
            }
            // After the external ones: for an address that is both, the source ranges count.
            for ip in &service.load_balancer_ips {
                open(*ip, port.port, external(&some));
            }
        }
        doors
    }
}

/// Not those without an address of their own, nor the name server's: the node answers that itself.
fn is_proxied(service: &Service) -> bool {
    let is_dns = service.namespace == "kube-system" && service.name == "kube-dns";
    !service.cluster_ips.is_empty() && service.external_name.is_none() && !is_dns
}

/// Whether the listeners stay as they are.
fn is_same_but_for_endpoints(before: &Service, now: &Service) -> bool {
    before.ports == now.ports
        && before.cluster_ips == now.cluster_ips
        && before.external_ips == now.external_ips
        && before.load_balancer_ips == now.load_balancer_ips
        && before.source_ranges == now.source_ranges
        && before.affinity_seconds == now.affinity_seconds
        && before.internal_local == now.internal_local
        && before.external_local == now.external_local
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::testing::{config, endpoint, service};
    use super::*;
    use crate::network::services::Endpoint;

    fn table() -> Table {
        let config = config();
        let around = Around {
            cluster_cidr: config.cluster_cidr,
            node_address: config.node_address,
            keeps_source: AtomicBool::new(false),
        };
        Table::new(config, Arc::new(around))
    }

    fn endpoints(text: &str) -> Vec<Endpoint> {
        text.split(';').filter(|e| !e.is_empty()).map(endpoint).collect()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    /// The commands as text, sorted.
    fn told(table: &mut Table) -> Vec<String> {
        let mut told: Vec<String> = table
            .commands()
            .into_iter()
            .map(|command| match command {
                Command::Listen(listen, _) => format!("listen {listen}"),
                Command::Close(listen) => format!("close {listen}"),
                Command::Forget(listen, gone) => format!("forget {listen} {gone:?}"),
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn every_address_and_port_is_listened_at() {
        let mut table = table();
        let mut web = service("web", &[80, 81], endpoints("1 here ready"));
        web.ports[0].node_port = Some(30080);
        web.external_ips = vec![ip("192.0.2.1")];
        web.load_balancer_ips = vec![ip("192.0.2.2")];
        table.put(Arc::new(web.clone()));
        let all = [
            "0.0.0.0:30080",
            "10.43.0.100:80",
            "10.43.0.100:81",
            "192.0.2.1:80",
            "192.0.2.1:81",
            "192.0.2.2:80",
            "192.0.2.2:81",
        ];
        assert_eq!(told(&mut table), all.map(|a| format!("listen tcp {a}")));
        let outer: Vec<String> = table.outer().iter().map(|l| l.address.to_string()).collect();
        assert_eq!(outer, all[3..]);
        table.put(Arc::new(web.clone()));
        assert_eq!(told(&mut table), [""; 0], "nothing changed");
        web.slices[0].endpoints = endpoints("2 away ready");
        table.put(Arc::new(web.clone()));
        assert_eq!(told(&mut table), [""; 0], "endpoints change without the engine's noticing");
        web.ports.truncate(1);
        web.external_ips.clear();
        table.put(Arc::new(web.clone()));
        let closed = ["10.43.0.100:81", "192.0.2.1:80", "192.0.2.1:81", "192.0.2.2:81"];
        assert_eq!(told(&mut table), closed.map(|a| format!("close tcp {a}")));
        web.external_local = true;
        table.put(Arc::new(web.clone()));
        let external = ["0.0.0.0:30080", "192.0.2.2:80"];
        assert_eq!(told(&mut table), external.map(|a| format!("listen tcp {a}")), "another policy, another frontend");
        table.remove(&web.id());
        assert_eq!(
            told(&mut table),
            ["0.0.0.0:30080", "10.43.0.100:80", "192.0.2.2:80"].map(|a| format!("close tcp {a}"))
        );
        assert!(table.outer().is_empty());
    }

    #[test]
    fn some_services_are_not_proxied() {
        let mut table = table();
        let plain = service("web", &[80], endpoints("1 here ready"));
        table.put(Arc::new(plain.clone()));
        assert_eq!(told(&mut table), ["listen tcp 10.43.0.100:80"]);
        let headless = Service { cluster_ips: Vec::new(), ..plain.clone() };
        let external = Service { external_name: Some("example.org".into()), ..plain.clone() };
        let dns = Service { namespace: "kube-system".into(), name: "kube-dns".into(), ..plain.clone() };
        for (other, expected) in [(headless, vec!["close tcp 10.43.0.100:80"]), (external, vec![]), (dns, vec![])] {
            table.put(Arc::new(other));
            assert_eq!(told(&mut table), expected);
        }
        table.replace(vec![Arc::new(plain)]);
        assert_eq!(told(&mut table), ["listen tcp 10.43.0.100:80"], "and back");
        table.replace(Vec::new());
        assert_eq!(told(&mut table), ["close tcp 10.43.0.100:80"]);
    }

    #[test]
    fn flows_to_endpoints_that_are_gone_end() {
        let mut table = table();
        let mut dns = service("dns", &[53], endpoints("1 here ready;2 away ready"));
        dns.ports[0].protocol = Protocol::Udp;
        dns.slices[0].ports[0].protocol = Protocol::Udp;
        dns.ports[0].node_port = Some(30053);
        table.put(Arc::new(dns.clone()));
        table.commands();
        for (endpoints_now, expected) in [
            // What terminates goes on with the clients it has.
            ("1 here terminating;2 away ready", vec![]),
            (
                "2 away ready",
                vec!["forget udp 0.0.0.0:30053 [10.42.1.1:8080]", "forget udp 10.43.0.100:53 [10.42.1.1:8080]"],
            ),
        ] {
            dns.slices[0].endpoints = endpoints(endpoints_now);
            table.put(Arc::new(dns.clone()));
            assert_eq!(told(&mut table), expected);
        }
        table.remove(&dns.id());
        let last = ["0.0.0.0:30053", "10.43.0.100:53"];
        let closed = last.map(|a| format!("close udp {a}")).into_iter();
        let expected: Vec<String> = closed.chain(last.map(|a| format!("forget udp {a} [10.42.1.2:8080]"))).collect();
        assert_eq!(told(&mut table), expected);
    }

    #[test]
    fn an_address_two_services_want_is_one_after_the_others() {
        let mut table = table();
        let mut one = service("one", &[80], endpoints("1 here ready"));
        one.external_ips = vec![ip("192.0.2.1")];
        let two = Service { cluster_ips: vec![ip("10.43.0.101")], name: "two".into(), uid: "2".into(), ..one.clone() };
        let three =
            Service { cluster_ips: vec![ip("10.43.0.102")], name: "three".into(), uid: "3".into(), ..one.clone() };
        for service in [&one, &two, &three] {
            table.put(Arc::new(service.clone()));
        }
        let shared = Listen { protocol: Protocol::Tcp, address: "192.0.2.1:80".parse().unwrap() };
        assert_eq!(table.owner(shared).map(|s| s.id()), Some(one.id()));
        table.remove(&three.id());
        table.commands();
        table.remove(&one.id());
        assert_eq!(told(&mut table), ["close tcp 10.43.0.100:80", "listen tcp 192.0.2.1:80"]);
        assert_eq!(table.owner(shared).map(|s| s.id()), Some(two.id()));
        assert!(table.retry(shared));
        assert_eq!(told(&mut table), ["listen tcp 192.0.2.1:80"]);
        table.remove(&two.id());
        assert_eq!(told(&mut table), ["close tcp 10.43.0.101:80", "close tcp 192.0.2.1:80"]);
        assert!(!table.retry(shared));
    }

    #[test]
    fn a_recreated_service_begins_anew() {
        let mut table = table();
        let web = service("web", &[80], endpoints("1 here ready"));
        table.put(Arc::new(web.clone()));
        table.commands();
        table.put(Arc::new(Service { uid: "other".into(), ..web }));
        assert_eq!(told(&mut table), ["close tcp 10.43.0.100:80", "listen tcp 10.43.0.100:80"]);
    }
}
