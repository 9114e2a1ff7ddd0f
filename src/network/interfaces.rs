//! The host's interfaces as far as addresses and routes of the cluster depend on them, and when they change.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use super::addresses::{PROTOCOL, destination};
use super::arp::Mac;
use super::error::Result;
use super::links::failed;

/// Changes come in bursts: an interface that comes up gets addresses and routes one after the other.
const SETTLE: Duration = Duration::from_millis(50);
/// Between a failed look at the interfaces and the next.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The routing table `main`.
pub(super) const TABLE_MAIN: u8 = 254;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    /// Bytes.
    pub(super) mtu: u32,
    /// An Ethernet that is up, has a carrier and speaks ARP.
    pub(super) speaks_arp: bool,
    /// Up, and no loopback.
    pub(super) is_up: bool,
    /// IPv4 addresses with the length of their prefix.
    pub(super) addresses: Vec<(Ipv4Addr, u8)>,
    /// Its default route's metric, if it has one.
    pub(super) default_route: Option<u32>,
}

impl Interface {
    /// Length of the prefix by which an address is on this interface's segment.
    pub(super) fn reaches(&self, address: Ipv4Addr) -> Option<u8> {
        let within = |(own, prefix): &&(Ipv4Addr, u8)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            *prefix < 32 && own.to_bits() & mask == address.to_bits() & mask
        };
        self.addresses.iter().filter(within).map(|(_, prefix)| *prefix).max()
    }

    /// An address of its own, or 0.0.0.0.
    pub(super) fn own(&self) -> Ipv4Addr {
        self.addresses.first().map_or(Ipv4Addr::UNSPECIFIED, |(own, _)| *own)
    }
}

/// The interface whose subnet has an address, by the longest prefix; one that is up before one that is down.
pub(super) fn on_link(interfaces: &[Interface], address: Ipv4Addr) -> Option<&Interface> {
    let reaching = interfaces.iter().filter_map(|i| Some((i.reaches(address)?, i)));
    reaching.max_by_key(|(prefix, i)| (i.is_up, *prefix, std::cmp::Reverse(i.index))).map(|(_, i)| i)
}

/// The interface that leads everywhere else.
pub(super) fn default_route(interfaces: &[Interface]) -> Option<&Interface> {
    let leading = interfaces.iter().filter(|i| i.is_up).filter_map(|i| Some((i.default_route?, i)));
    leading.min_by_key(|(metric, interface)| (*metric, interface.index)).map(|(_, i)| i)
}

/// What there is, and whether it was there all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The interfaces but for those of this program.
    pub(super) interfaces: Vec<Interface>,
    /// How often an interface went down or a route of this program was removed, and routes may be missing since.
    pub(super) losses: u64,
}

/// Keeps the interfaces of this namespace but those called `ours` in `to`; never ends.
///
/// Wakes up only when the kernel says that something changed.
pub(super) async fn follow(ours: &[&str], to: watch::Sender<Seen>) {
    loop {
        if let Err(error) = try_follow(ours, &to).await {
            tracing::error!(%error, "cannot see the network interfaces");
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
}

async fn try_follow(ours: &[&str], to: &watch::Sender<Seen>) -> Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
    let connect = |e| super::failed("connect to", "netlink", e);
    // Two sockets: a change that somebody else asked for carries the number of their request, and on the socket that
    // asks it could be taken for an answer.
    let (watching, _, mut changes) = rtnetlink::new_multicast_connection(&groups).map_err(connect)?;
    let (asking, handle, _) = rtnetlink::new_connection().map_err(connect)?;
    let mut losses = to.borrow().losses;
    let read_and_wait = async {
        loop {
            let mut now = read(&handle).await?;
            now.retain(|interface| !ours.contains(&interface.name.as_str()));
            to.send_if_modified(|seen| {
                let changed = seen.losses != losses || seen.interfaces != now;
                *seen = Seen { interfaces: now, losses };
                changed
            });
            let Some((change, _)) = changes.next().await else { return Ok(()) };
            losses += u64::from(is_loss(&change, &to.borrow()));
            tokio::time::sleep(SETTLE).await;
            while let Ok((change, _)) = changes.try_recv() {
                losses += u64::from(is_loss(&change, &to.borrow()));
            }
        }
    };
    tokio::select! {
        ended = read_and_wait => ended,
        () = watching => Ok(()),
        () = asking => Ok(()),
    }
}

fn is_loss(change: &NetlinkMessage<RouteNetlinkMessage>, seen: &Seen) -> bool {
    match &change.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => route.header.protocol == PROTOCOL,
        // The kernel tells of no route that goes with its interface.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let is_known = seen.interfaces.iter().any(|i| i.index == link.header.index);
            is_known && !link.header.flags.contains(LinkFlags::Up)
        }
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

async fn read(handle: &Handle) -> Result<Vec<Interface>> {
    let listed = |e| failed("list", "interfaces", e);
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(listed)?;
    let mut interfaces: Vec<Interface> = links.iter().filter_map(describe).collect();
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(listed)?;
    for message in addresses.iter().filter(|m| m.header.family == AddressFamily::Inet) {
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        let interface = interfaces.iter_mut().find(|i| i.index == message.header.index);
        if let (Some(interface), Some(address)) = (interface, local) {
            interface.addresses.push((address, message.header.prefix_len));
        }
    }
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> = handle.route().get(query).execute().try_collect().await.map_err(listed)?;
    let leads_out = |m: &&RouteMessage| {
        m.header.table == TABLE_MAIN && m.header.kind == RouteType::Unicast && destination(m).is_none()
    };
    for message in routes.iter().filter(leads_out) {
        let (mut out, mut metric) = (None, 0);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => out = Some(*index),
                RouteAttribute::Priority(priority) => metric = *priority,
                _ => {}
            }
        }
        if let Some(interface) = interfaces.iter_mut().find(|i| Some(i.index) == out) {
            interface.default_route = Some(interface.default_route.map_or(metric, |best| best.min(metric)));
        }
    }
    Ok(interfaces)
}

/// `None` for loopback, ports of bridges and what pods have: nothing is reached through them directly.
fn describe(message: &LinkMessage) -> Option<Interface> {
    let flags = message.header.flags;
    if flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        speaks_arp: false,
        is_up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        addresses: Vec::new(),
        default_route: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Controller(_) => return None,
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Vxlan)) => return None,
            _ => {}
        }
    }
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether && interface.mac != [0; 6];
    interface.speaks_arp = interface.is_up && is_ethernet && !flags.contains(LinkFlags::Noarp);
    Some(interface)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::network) fn interface(index: u32, addresses: &[(&str, u8)]) -> Interface {
        Interface {
            index,
            name: format!("eth{index}"),
            mac: [2, 0, 0, 0, 0, index as u8],
            mtu: 1500,
            speaks_arp: true,
            is_up: true,
            addresses: addresses.iter().map(|(a, p)| (a.parse().unwrap_or(Ipv4Addr::UNSPECIFIED), *p)).collect(),
            default_route: None,
        }
    }

    #[test]
    fn the_longest_prefix_and_the_lowest_metric_win() {
        let mut all = [
            interface(1, &[("10.0.0.5", 8)]),
            interface(2, &[("192.168.1.5", 24), ("10.1.0.5", 16)]),
            interface(3, &[("10.1.2.3", 32)]),
        ];
        let found = |all: &[Interface], address: &str| on_link(all, address.parse().ok()?).map(|i| i.index);
        assert_eq!(found(&all, "10.1.2.3"), Some(2));
        assert_eq!(found(&all, "10.2.2.3"), Some(1));
        assert_eq!(found(&all, "172.16.0.1"), None);
        assert_eq!(all[1].own(), Ipv4Addr::new(192, 168, 1, 5));
        all[1].is_up = false;
        assert_eq!(found(&all, "10.1.2.3"), Some(1));
        assert!(default_route(&all).is_none());
        (all[0].default_route, all[2].default_route) = (Some(600), Some(100));
        assert_eq!(default_route(&all).map(|i| i.index), Some(3));
    }
}
