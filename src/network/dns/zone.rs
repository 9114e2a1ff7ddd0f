//! The names of the cluster: Kubernetes DNS-Based Service Discovery 1.1.0, pod names by address, and the addresses back
//! to names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::index::{self, Index};
use super::wire::{Answer, Data, Record};
use crate::cidr::Cidr;
use crate::network::services::{Endpoint, Protocol, Service};

/// Seconds an answer may be kept, as CoreDNS has it: names follow their Services at once.
const TTL: u32 = 5;
/// The version of the specification.
const VERSION: &str = "1.1.0";
/// Sum of the weights of one answer's SRV records.
const WEIGHTS: usize = 100;

/// What this server is the authority for.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Name,
    /// Its labels.
    labels: Vec<String>,
    /// The name server's own address.
    address: Ipv4Addr,
    /// Networks whose addresses have the cluster's names or none.
    networks: Vec<Cidr>,
}

/// What a name has; `None` where there is no such name.
type Found = Option<Answer>;

impl Zone {
    /// `domain` must be a DNS name; what of it is none is left out.
    pub(super) fn new(domain: &str, address: Ipv4Addr, networks: Vec<Cidr>) -> Self {
        let labels: Vec<String> = domain.split('.').filter(|l| !l.is_empty()).map(str::to_ascii_lowercase).collect();
        let domain = name(&labels.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_or_else(Name::root);
        Self { domain, labels, address, networks }
    }

    /// What there is to say about a name; `None` where others are to be asked. `turn` chooses the first of several
    /// addresses.
    pub(super) fn answer(&self, index: &Index, asked: &Name, kind: RecordType, turn: usize) -> Option<Answer> {
        let lower = asked.to_lowercase();
        // Names of the cluster are ASCII; what is not has no match.
        let labels: Vec<&str> = lower.iter().map(|label| std::str::from_utf8(label).unwrap_or_default()).collect();
        if let Some(inner) = labels.len().checked_sub(self.labels.len()).filter(|n| labels[*n..] == self.labels) {
            let found = self.inside(index, &labels[..inner], asked, kind);
            return Some(self.complete(found, kind, turn, &self.domain));
        }
        let address = reversed(&labels)?;
        let known = self.pointers(index, address, asked);
        let network = self.networks.iter().find(|network| matches!(address, IpAddr::V4(a) if network.contains(a)));
        if known.is_empty() && network.is_none() {
            return None;
        }
        let authority = match network {
            // The zones of reversed names are cut at whole bytes.
            Some(network) => asked.trim_to(usize::from(network.prefix() / 8) + 2),
            None => asked.clone(),
        };
        Some(self.complete(some(known), kind, turn, &authority))
    }

    /// What a name below the domain has, at least of this type.
    fn inside(&self, index: &Index, labels: &[&str], asked: &Name, kind: RecordType) -> Found {
        let one = |data| some(vec![record(asked, data)]);
        match labels {
            [] => {
                let server = self.below(&["ns", "dns"])?;
                let additionals = vec![record(&server, Data::Address(self.address.into()))];
                let answers = [self.start_of_authority(), Data::NameServer(server)];
                let answers = answers.into_iter().map(|data| record(asked, data)).collect();
                Some(Answer { answers, additionals, ..Answer::default() })
            }
            ["dns-version"] => one(Data::Text(VERSION)),
            ["ns", "dns"] => one(Data::Address(self.address.into())),
            // Names that have nothing but names below them.
            ["dns" | "svc" | "pod"] | [_, "pod"] => Some(Answer::default()),
            // As CoreDNS' `pods insecure`: the name says the address.
            [address, _, "pod"] => one(Data::Address(dashed(address)?)),
            [namespace, "svc"] => index.has_namespace(namespace).then(Answer::default),
            [inner @ .., service, namespace, "svc"] => {
                let service = index.get(namespace, service)?;
                match external_name(service) {
                    None => self.of_service(service, inner, asked, kind),
                    Some(target) if inner.is_empty() => one(Data::Alias(target?)),
                    Some(_) => None,
                }
            }
            _ => None,
        }
    }

    fn of_service(&self, service: &Service, inner: &[&str], asked: &Name, kind: RecordType) -> Found {
        let addresses = |addresses: Vec<IpAddr>| {
            some(addresses.into_iter().map(|address| record(asked, Data::Address(address))).collect())
        };
        match inner {
            // Every port: how peers look for each other when they do not know its name.
            [] if kind == RecordType::SRV => {
                let is_there = !index::addresses(service).is_empty();
                is_there.then(|| self.ports(service, asked, |_, _| true))
            }
            [] => addresses(index::addresses(service)),
            [protocol] if protocol.starts_with('_') => {
                let protocol = transport(protocol)?;
                let is_there = service.ports.iter().any(|port| port.protocol == protocol && !port.name.is_empty());
                is_there.then(Answer::default)
            }
            [port, protocol] => {
                let (port, protocol) = (port.strip_prefix('_').filter(|port| !port.is_empty())?, transport(protocol)?);
                let ports = self.ports(service, asked, |name, p| name == port && p == protocol);
                Some(ports).filter(|ports| !ports.answers.is_empty())
            }
            [host] => {
                let by_address = dashed(host);
                let is_called = |endpoint: &&Endpoint| match &endpoint.hostname {
                    Some(hostname) => hostname == host,
                    None => by_address == Some(endpoint.address),
                };
                let found = index::published(service).filter(is_called).map(|endpoint| endpoint.address);
                addresses(index::unique(found.collect()))
            }
            _ => None,
        }
    }

    /// SRV records of the ports that are wanted, with the addresses they lead to: of the Service, or of each endpoint of
    /// a headless one.
    fn ports(&self, service: &Service, asked: &Name, is_wanted: impl Fn(&str, Protocol) -> bool) -> Answer {
        let mut targets: Vec<(Name, u16)> = Vec::new();
        let mut hosts: Vec<(Name, IpAddr)> = Vec::new();
        if index::is_headless(service) {
            for slice in &service.slices {
                let ports: Vec<u16> =
                    slice.ports.iter().filter(|p| is_wanted(&p.name, p.protocol)).map(|p| p.port).collect();
                for endpoint in slice.endpoints.iter().filter(|e| index::is_published(service, e)) {
                    let Some(name) = self.host(service, endpoint).filter(|_| !ports.is_empty()) else { continue };
                    targets.extend(ports.iter().map(|port| (name.clone(), *port)));
                    hosts.push((name, endpoint.address));
                }
            }
        } else if let Some(name) = self.below(&[&service.name, &service.namespace, "svc"]) {
            let ports = service.ports.iter().filter(|port| is_wanted(&port.name, port.protocol));
            targets.extend(ports.map(|port| (name.clone(), port.port)));
            hosts.extend(index::addresses(service).into_iter().map(|address| (name.clone(), address)));
        }
        let (targets, hosts) = (index::unique(targets), index::unique(hosts));
        let weight = u16::try_from(WEIGHTS / targets.len().max(1)).unwrap_or_default().max(1);
        let service = |(target, port)| record(asked, Data::Service { weight, port, target });
        let host = |(name, address): (Name, IpAddr)| record(&name, Data::Address(address));
        Answer {
            answers: targets.into_iter().map(service).collect(),
            additionals: hosts.into_iter().map(host).collect(),
            ..Answer::default()
        }
    }

    /// PTR records: of the Service with this cluster address, else of the headless ones that have it for an endpoint.
    fn pointers(&self, index: &Index, address: IpAddr, asked: &Name) -> Vec<Record> {
        let services = index.at(address);
        let own = services.iter().filter(|service| !index::is_headless(service));
        let mut names: Vec<Name> =
            own.filter_map(|service| self.below(&[&service.name, &service.namespace, "svc"])).collect();
        if names.is_empty() {
            for service in services {
                let endpoints = index::published(service).filter(|endpoint| endpoint.address == address);
                names.extend(endpoints.filter_map(|endpoint| self.host(service, endpoint)));
            }
        }
        index::unique(names).into_iter().map(|name| record(asked, Data::Pointer(name))).collect()
    }

    /// Leaves of what was found what was asked for; or says why there is nothing.
    fn complete(&self, found: Found, kind: RecordType, turn: usize, authority: &Name) -> Answer {
        let missing = Answer { code: ResponseCode::NXDomain, ..Answer::default() };
        let mut answer = found.unwrap_or(missing);
        answer.answers.retain(|record| [kind, RecordType::CNAME].contains(&record.data.kind()));
        match answer.answers.len() {
            0 => {
                answer.authorities.push(record(authority, self.start_of_authority()));
                answer.additionals.clear();
            }
            several => answer.answers.rotate_left(turn % several),
        }
        answer
    }

    fn start_of_authority(&self) -> Data {
        let server = self.below(&["ns", "dns"]).unwrap_or_default();
        let mailbox = self.below(&["hostmaster"]).unwrap_or_default();
        Data::Authority { server, mailbox, negative_ttl: TTL }
    }

    /// The name of an endpoint.
    fn host(&self, service: &Service, endpoint: &Endpoint) -> Option<Name> {
        self.below(&[&hostname(endpoint), &service.name, &service.namespace, "svc"])
    }

    /// A name below the domain; `None` where it would be too long.
    fn below(&self, labels: &[&str]) -> Option<Name> {
        name(labels)?.append_domain(&self.domain).ok()
    }
}

fn record(owner: &Name, data: Data) -> Record {
    Record { owner: owner.clone(), ttl: TTL, data }
}

fn some(answers: Vec<Record>) -> Found {
    (!answers.is_empty()).then(|| Answer { answers, ..Answer::default() })
}

fn name(labels: &[&str]) -> Option<Name> {
    let start = Name::root();
    labels.iter().try_fold(start, |name, label| name.append_label(label.as_bytes()).ok())
}

/// Where a Service of type ExternalName leads to, if that is a name: an address is none, though it looks like one.
fn external_name(service: &Service) -> Option<Option<Name>> {
    let text = service.external_name.as_deref()?;
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_address = text.parse::<IpAddr>().is_ok();
    Some(name(&text.split('.').collect::<Vec<_>>()).filter(|_| !is_address))
}

/// What an endpoint is called below its Service.
fn hostname(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(hostname) => hostname.clone(),
        None => endpoint.address.to_string().replace(['.', ':'], "-"),
    }
}

/// `10-42-0-7` or `fd00--7`.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
    v4().or_else(|_| v6()).ok()
}

fn transport(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The address a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [bytes @ .., "in-addr", "arpa"] if bytes.len() == 4 => {
            let mut octets = [0; 4];
            for (octet, label) in octets.iter_mut().rev().zip(bytes) {
                *octet = label.parse().ok().filter(|n: &u8| n.to_string() == *label)?;
            }
            Some(octets.into())
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let mut bits = 0u128;
            for label in digits.iter().rev() {
                let digit = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
                bits = bits << 4 | digit;
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}
