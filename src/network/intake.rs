//! Taking in what is sent to addresses that are not this host's: routing rules, one for each port somebody listens at.
//!
//! ```text
//! ip rule  to 192.0.2.7 ipproto tcp dport 80 lookup 30061 protocol 117   a Service's external address
//! ip rule  fwmark 0x756d6961 lookup 30061 protocol 117                   answers, see network::source
//! ip route local default dev lo table 30061 protocol 117 src 127.0.0.1
//! ```
//!
//! # Why rules and not a local route for each address
//! Only the ports of Services are taken in: an external address that is another node's own, the usual case, keeps its
//! other ports, the API's among them. And the kernel answers no ARP for it: what is no TCP or UDP packet matches no rule
//! (for an address of the table `local` it would answer on every interface, see [`super::addresses`]).
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
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::LOOPBACK;
use super::addresses::PROTOCOL;
use super::error::Result;
use super::links::{Links, code, failed};
use super::services::Protocol;

/// The table in which everything is local.
const TABLE: u32 = 30061;
/// Place of the rules: after the table `local` (0), before everything else.
const PRIORITY: u32 = 100;
/// Marks packets that are to be taken in wherever they are sent to; an unlikely number ("umia").
pub(super) const MARK: u32 = 0x756d_6961;

/// What is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// What is sent to this port.
    To(Protocol, SocketAddrV4),
    /// What carries [`MARK`].
    Marked,
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

impl Rule {
    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.attributes =
            vec![RuleAttribute::Priority(PRIORITY), RuleAttribute::Table(TABLE), RuleAttribute::Protocol(PROTOCOL)];
        match self {
            Rule::To(protocol, to) => {
                message.header.dst_len = 32;
                message.attributes.extend([
                    RuleAttribute::Destination((*to.ip()).into()),
                    RuleAttribute::IpProtocol(number(protocol)),
                    RuleAttribute::DestinationPortRange(RulePortRange { start: to.port(), end: to.port() }),
                ]);
            }
            Rule::Marked => message.attributes.push(RuleAttribute::FwMark(MARK)),
        }
        message
    }

    /// `None`: of an earlier version of this program.
    fn parse(message: &RuleMessage) -> Option<Rule> {
        let (mut ip, mut protocol, mut port, mut is_marked) = (None, None, None, false);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Destination(IpAddr::V4(to)) => ip = Some(*to),
                RuleAttribute::IpProtocol(IpProtocol::Tcp) => protocol = Some(Protocol::Tcp),
                RuleAttribute::IpProtocol(IpProtocol::Udp) => protocol = Some(Protocol::Udp),
                RuleAttribute::DestinationPortRange(range) if range.start == range.end => port = Some(range.start),
                RuleAttribute::FwMark(mark) => is_marked = *mark == MARK,
                RuleAttribute::Priority(priority) if *priority != PRIORITY => return None,
                RuleAttribute::Table(table) if *table != TABLE => return None,
                _ => {}
            }
        }
        match (ip, protocol, port) {
            (Some(ip), Some(protocol), Some(port)) => Some(Rule::To(protocol, SocketAddrV4::new(ip, port))),
            (None, None, None) if is_marked => Some(Rule::Marked),
            _ => None,
        }
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
