//! Taking in what is sent to addresses that are not this host's: routing rules, one for each port somebody listens at.
//!
//! ```text
//!  98: fwmark 0x756d6961 lookup 30061                    answers, see network::source
//!  99: not to 192.0.2.0/28 goto 101                      where there are many rules of the next kind
//! 100: to 192.0.2.7 ipproto tcp dport 80 lookup 30061    a Service's external address
//! 101: nop                                               where rule 99 leads to
//! ip route local default dev lo table 30061 src 127.0.0.1
//! ```
//!
//! # Why rules and not a local route for each address
//! Only the ports of Services are taken in: an external address that is another node's own, the usual case, keeps its
//! other ports, the API's among them. And the kernel answers no ARP for it: what is no TCP or UDP packet matches no rule
//! (for an address of the table `local` it would answer on every interface, see [`super::addresses`]).
//!
//! # What it costs
//! The kernel goes through the rules one by one, twice for a packet (where to, and whether it may come from there): with
//! 500 of them a packet that is forwarded takes 11 µs instead of 4. So where there are many, what is sent to none of
//! the addresses passes them over at once; rules of others, a VPN's for instance, come after all of these.
//!
//! # What it asks of the listeners
//! `IP_TRANSPARENT`: without it the kernel sends nothing from an address that is not in the table `local`. The node's
//! own clients come from 127.0.0.1, which is the route's preferred source, because the address itself would not do.
//!
//! The kernel's rules are the truth: those of an earlier process are found and go on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::LOOPBACK;
use super::addresses::PROTOCOL;
use super::error::Result;
use super::links::{Links, code, failed};
use super::services::Protocol;

/// The table in which everything is local.
const TABLE: u32 = 30061;
/// Places of the rules: after the table `local` (0), before everything else.
const PRIORITY_MARKED: u32 = 98;
const PRIORITY_SKIP: u32 = 99;
const PRIORITY_TO: u32 = 100;
const PRIORITY_ON: u32 = 101;
/// Rules for ports from which on others pass them over.
const MANY: usize = 8;
/// The widest range that is worth it: the others would be too few.
const WIDEST: u8 = 8;
/// Marks packets that are to be taken in wherever they are sent to; an unlikely number ("umia").
pub(super) const MARK: u32 = 0x756d_6961;

/// What is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// What is sent to this port.
    To(Protocol, SocketAddrV4),
    /// What carries [`MARK`].
    Marked,
    /// Where [`Rule::Skip`] leads to.
    On,
    /// What is sent to none of these addresses passes over the rules for ports.
    Skip(Ipv4Addr, u8),
}

/// The rules of the network namespace it was opened in.
pub(super) struct Intake {
    links: Links,
    installed: BTreeSet<Rule>,
    has_route: bool,
}

impl Intake {
    /// Finds the rules that are there.
    pub(super) async fn open() -> Result<Self> {
        let links = Links::here().map_err(|e| super::failed("connect to", "netlink", e))?;
        let mut installed = BTreeSet::new();
        for message in ours(&links).await? {
            match Rule::parse(&message) {
                Some(rule) => drop(installed.insert(rule)),
                None => delete(&links, message).await?,
            }
        }
        Ok(Self { links, installed, has_route: false })
    }

    /// Takes in this and nothing else. What cannot be done does not keep the rest from being done.
    ///
    /// # Errors
    /// The first thing that could not be done, for instance because the kernel has no routing rules
    /// (`CONFIG_IP_MULTIPLE_TABLES`).
    pub(super) async fn set(&mut self, wanted: &BTreeSet<Rule>) -> Result<()> {
        let mut result = Ok(());
        let wanted: &BTreeSet<Rule> = &wanted.iter().copied().chain(pass_over(wanted)).collect();
        for rule in self.installed.difference(wanted).copied().collect::<Vec<_>>() {
            match delete(&self.links, rule.message()).await {
                Ok(()) => drop(self.installed.remove(&rule)),
                Err(error) => result = result.and(Err(error)),
            }
        }
        for rule in wanted.difference(&self.installed).copied().collect::<Vec<_>>() {
            match add(&self.links, rule).await {
                Ok(()) => drop(self.installed.insert(rule)),
                Err(error) => result = result.and(Err(error)),
            }
        }
        // Only after a rule was accepted: a kernel without rules has no tables either, and would take this for the main
        // one's.
        if !self.installed.is_empty() && !self.has_route {
            let request = self.links.handle().route().add(route()).replace();
            request.execute().await.map_err(|e| failed("make local", "what rules say", e))?;
            self.has_route = true;
        }
        result
    }
}

/// Removes all rules and routes of this program.
pub(super) async fn remove_all(links: &Links) -> Result<()> {
    for message in ours(links).await? {
        delete(links, message).await?;
    }
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = links.handle().route().get(query).execute();
    let routes: Vec<RouteMessage> = routes.try_collect().await.map_err(|e| failed("list", "routes", e))?;
    for route in routes.into_iter().filter(|route| route.header.protocol == PROTOCOL) {
        match links.handle().route().del(route).execute().await {
            Err(e) if code(&e) != Some(libc::ESRCH) => return Err(failed("delete", "route", e)),
            _ => {}
        }
    }
    Ok(())
}

/// The rules that spare others the way through those for ports, where these are many.
fn pass_over(wanted: &BTreeSet<Rule>) -> impl Iterator<Item = Rule> + use<> {
    let addresses = wanted.iter().filter_map(|rule| match rule {
        Rule::To(_, to) => Some(to.ip().to_bits()),
        _ => None,
    });
    let (mut count, mut different, mut first) = (0, 0, None);
    for address in addresses {
        count += 1;
        different |= *first.get_or_insert(address) ^ address;
    }
    let prefix = different.leading_zeros() as u8;
    let network = first.unwrap_or_default() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let skips = (count >= MANY && prefix >= WIDEST).then(|| [Rule::On, Rule::Skip(network.into(), prefix)]);
    skips.into_iter().flatten()
}

impl Rule {
    fn priority(self) -> u32 {
        match self {
            Rule::To(..) => PRIORITY_TO,
            Rule::Marked => PRIORITY_MARKED,
            Rule::On => PRIORITY_ON,
            Rule::Skip(..) => PRIORITY_SKIP,
        }
    }

    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(self.priority()), RuleAttribute::Protocol(PROTOCOL)];
        match self {
            Rule::To(protocol, to) => {
                message.header.dst_len = 32;
                message.attributes.extend([
                    RuleAttribute::Table(TABLE),
                    RuleAttribute::Destination((*to.ip()).into()),
                    RuleAttribute::IpProtocol(number(protocol)),
                    RuleAttribute::DestinationPortRange(RulePortRange { start: to.port(), end: to.port() }),
                ]);
            }
            Rule::Marked => message.attributes.extend([RuleAttribute::Table(TABLE), RuleAttribute::FwMark(MARK)]),
            Rule::On => message.header.action = RuleAction::Nop,
            Rule::Skip(network, prefix) => {
                message.header.action = RuleAction::Goto;
                message.header.flags = RuleFlags::Invert;
                message.header.dst_len = prefix;
                let (to, on) = (RuleAttribute::Destination(network.into()), RuleAttribute::Goto(PRIORITY_ON));
                message.attributes.extend([to, on]);
            }
        }
        message
    }

    /// `None`: of an earlier version of this program.
    fn parse(message: &RuleMessage) -> Option<Rule> {
        let (mut ip, mut protocol, mut port, mut is_marked, mut place) = (None, None, None, false, 0);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Destination(IpAddr::V4(to)) => ip = Some(*to),
                RuleAttribute::IpProtocol(IpProtocol::Tcp) => protocol = Some(Protocol::Tcp),
                RuleAttribute::IpProtocol(IpProtocol::Udp) => protocol = Some(Protocol::Udp),
                RuleAttribute::DestinationPortRange(range) if range.start == range.end => port = Some(range.start),
                RuleAttribute::FwMark(mark) => is_marked = *mark == MARK,
                RuleAttribute::Priority(priority) => place = *priority,
                RuleAttribute::Table(table) if *table != TABLE && *table != 0 => return None,
                _ => {}
            }
        }
        let rule = match (message.header.action, ip, protocol, port) {
            (RuleAction::ToTable, Some(ip), Some(protocol), Some(port)) => {
                Rule::To(protocol, SocketAddrV4::new(ip, port))
            }
            (RuleAction::ToTable, None, None, None) if is_marked => Rule::Marked,
            (RuleAction::Nop, None, None, None) => Rule::On,
            (RuleAction::Goto, Some(network), None, None) => Rule::Skip(network, message.header.dst_len),
            _ => return None,
        };
        (place == rule.priority()).then_some(rule)
    }
}

fn number(protocol: Protocol) -> IpProtocol {
    match protocol {
        Protocol::Tcp => IpProtocol::Tcp,
        Protocol::Udp => IpProtocol::Udp,
    }
}

async fn ours(links: &Links) -> Result<Vec<RuleMessage>> {
    let all = links.handle().rule().get(IpVersion::V4).execute().try_collect::<Vec<_>>().await;
    match all {
        // A kernel without rules.
        Err(e) if code(&e) == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(failed("list", "routing rules", e)),
        Ok(all) => {
            let is_ours = |m: &RuleMessage| m.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
            Ok(all.into_iter().filter(is_ours).collect())
        }
    }
}

async fn add(links: &Links, rule: Rule) -> Result<()> {
    let mut request = links.handle().rule().add();
    *request.message_mut() = rule.message();
    match request.execute().await {
        Err(e) if code(&e) != Some(libc::EEXIST) => Err(failed("add routing rule for", format!("{rule:?}"), e)),
        _ => Ok(()),
    }
}

async fn delete(links: &Links, message: RuleMessage) -> Result<()> {
    match links.handle().rule().del(message).execute().await {
        Err(e) if code(&e) != Some(libc::ENOENT) => Err(failed("delete", "routing rule", e)),
        _ => Ok(()),
    }
}

fn route() -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(LOOPBACK)
        .table_id(TABLE)
        .scope(RouteScope::Host)
        .kind(RouteType::Local)
        .protocol(PROTOCOL)
        .pref_source(Ipv4Addr::LOCALHOST)
        .build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::tests::on_a_node;

    fn to(last: u8, port: u16) -> Rule {
        Rule::To(Protocol::Tcp, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), port))
    }

    fn ip(words: &str) -> Vec<String> {
        let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn many_rules_are_passed_over() {
        for (rules, expected) in [
            (vec![], None),
            ((1..=7).map(|port| to(7, port)).collect(), None),
            ((1..=8).map(|port| to(7, port)).collect(), Some(Rule::Skip(Ipv4Addr::new(192, 0, 2, 7), 32))),
            ((16..=27).map(|last| to(last, 80)).collect(), Some(Rule::Skip(Ipv4Addr::new(192, 0, 2, 16), 28))),
            (
                (1..=9)
                    .map(|n| Rule::To(Protocol::Udp, SocketAddrV4::new(Ipv4Addr::new(n << 4, 0, 2, n), 80)))
                    .collect(),
                None,
            ),
        ] {
            let rules: Vec<Rule> = rules;
            let skips: Vec<Rule> = pass_over(&rules.iter().copied().collect()).collect();
            assert_eq!(skips.last().copied(), expected, "{rules:?}");
        }
    }

    #[test]
    fn what_is_taken_in_stays_so() {
        on_a_node(async |_| {
            Links::here().unwrap().up(LOOPBACK, "lo").await.unwrap();
            let mut intake = Intake::open().await.unwrap();
            let wanted: BTreeSet<Rule> = (1..=10).map(|n| to(16 + n, 80)).chain([Rule::Marked]).collect();
            intake.set(&wanted).await.unwrap();
            let ours = |line: &String| ["98:", "99:", "100:", "101:"].iter().any(|place| line.starts_with(place));
            let shown: Vec<String> = ip("rule show").into_iter().filter(ours).collect();
            assert_eq!(shown.len(), 13, "{shown:#?}");
            assert!(shown[1].contains("not from all to 192.0.2.16/28 goto 101") && !shown[1].contains("unresolved"));
            assert!(ip("route get 192.0.2.18 ipproto tcp dport 80")[0].starts_with("local 192.0.2.18"));
            for other in ["192.0.2.18 ipproto tcp dport 81", "192.0.2.1 ipproto tcp dport 80"] {
                assert!(!ip(&format!("route get {other}")).iter().any(|line| line.starts_with("local")), "{other}");
            }
            // The next process finds them all, and a change needs no others.
            let mut intake = Intake::open().await.unwrap();
            assert_eq!(intake.installed.len(), 13);
            let few: BTreeSet<Rule> = wanted.into_iter().take(3).collect();
            intake.set(&few).await.unwrap();
            assert_eq!(ip("rule show").iter().filter(|line| ours(line)).count(), 3);
            intake.set(&BTreeSet::new()).await.unwrap();
            assert_eq!(ip("rule show").iter().filter(|line| ours(line)).count(), 0);
        });
    }
}
