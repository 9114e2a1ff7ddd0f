//! Routes to the pods of other nodes: straight where a node is on the same segment, through a VXLAN tunnel
//! ([`super::overlay`]) where routers lie between.
//!
//! The kernel's own tables are the memory: what an earlier process left is found by its mark and put right.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use tokio::sync::watch;

use super::Cidr;
use super::addresses::{PROTOCOL, destination};
use super::error::{Error, Result};
use super::interfaces::{self, Interface, Seen, TABLE_MAIN};
use super::links::{Links, code, failed};
use super::overlay::{DEVICE, Far, Overlay, Vxlan};
use super::services::Peer;

/// Between a failed attempt and the next.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What routes depend on, beside the other nodes.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// This node's name.
    pub node: String,
    /// The addresses of this node's pods.
    pub pod_cidr: Cidr,
    /// The pods' bridge.
    pub bridge: String,
    /// The tunnel to nodes of other segments.
    pub vxlan: Vxlan,
}

/// Keeps the routes to the pods of all `peers`; never ends. Says in `problem` what keeps pods from being reached.
///
/// Woken by changes of nodes and interfaces only.
pub async fn run(config: RouteConfig, mut peers: watch::Receiver<Vec<Peer>>, problem: watch::Sender<Option<String>>) {
    let (to, mut seen) = watch::channel(Seen::default());
    let ours = [config.bridge.as_str(), DEVICE];
    let keep = async {
        // Before the interfaces are known nobody is near.
        let _ = seen.changed().await;
        loop {
            let (all, interfaces) = (peers.borrow_and_update().clone(), seen.borrow_and_update().interfaces.clone());
            let result = settle(&config, &all, &interfaces).await;
            let now = result.as_ref().err().map(Error::to_string);
            problem.send_if_modified(|before| {
                let is_news = *before != now;
                if let (true, Some(error)) = (is_news, &now) {
                    tracing::error!(error, "pods of other nodes cannot all be reached");
                }
                *before = now;
                is_news
            });
            tokio::select! {
                changed = peers.changed() => if changed.is_err() { return },
                _ = seen.changed() => {}
                () = tokio::time::sleep(TRY_AGAIN), if result.is_err() => {}
            }
        }
    };
    tokio::select! {
        () = interfaces::follow(&ours, to) => {}
        () = keep => {}
    }
}

/// Where packets to a range of pod addresses go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    gateway: Ipv4Addr,
    interface: u32,
    /// The gateway need not be in a subnet of the interface.
    is_onlink: bool,
}

/// By network address and prefix length.
type Hops = BTreeMap<(Ipv4Addr, u8), Hop>;

fn key(range: Cidr) -> (Ipv4Addr, u8) {
    (range.network(), range.prefix())
}

/// The routes that need no tunnel, and the nodes that do. Ranges that overlap this node's own are left out.
fn sort(config: &RouteConfig, peers: &[Peer], interfaces: &[Interface]) -> (Hops, Vec<Far>) {
    let (mut near, mut far) = (Hops::new(), Vec::new());
    let clashes = |range: Cidr| range.contains(config.pod_cidr.network()) || config.pod_cidr.contains(range.network());
    for peer in peers.iter().filter(|p| p.name != config.node && !clashes(p.pod_cidr)) {
        match interfaces::on_link(interfaces, peer.address).filter(|i| i.is_up) {
            Some(interface) => {
                let hop = Hop { gateway: peer.address, interface: interface.index, is_onlink: false };
                near.insert(key(peer.pod_cidr), hop);
            }
            None => far.push(Far { address: peer.address, pods: peer.pod_cidr }),
        }
    }
    (near, far)
}

async fn settle(config: &RouteConfig, peers: &[Peer], interfaces: &[Interface]) -> Result<()> {
    let links = Links::here().map_err(|e| super::failed("connect to", "netlink", e))?;
    let (mut wanted, far) = sort(config, peers, interfaces);
    let uplink = interfaces::default_route(interfaces).or(interfaces.first());
    let overlay = Overlay { links: &links, vxlan: config.vxlan, pods: config.pod_cidr };
    let tunnel = overlay.settle(&far, uplink.map_or(super::overlay::ETHERNET, |i| i.mtu)).await;
    if let Ok(Some(index)) = tunnel {
        let through = |f: &Far| (key(f.pods), Hop { gateway: f.pods.network(), interface: index, is_onlink: true });
        wanted.extend(far.iter().map(through));
    }
    let mut result = tunnel.map(drop);
    let found = ours(&links).await?;
    let mut kept = Vec::new();
    for message in found {
        match parse(&message) {
            Some((range, hop)) if wanted.get(&range) == Some(&hop) => kept.push(range),
            _ => delete(&links, message).await?,
        }
    }
    for (range, hop) in wanted.iter().filter(|(range, _)| !kept.contains(range)) {
        // One that cannot be made (its gateway is the host's own address, say) is no reason to leave the others out.
        result = result.and(add(&links, *range, *hop).await);
    }
    result
}

/// Removes the routes and the tunnel.
pub(super) async fn remove_all(links: &Links) -> Result<()> {
    for message in ours(links).await? {
        delete(links, message).await?;
    }
    links.delete(DEVICE).await
}

async fn ours(links: &Links) -> Result<Vec<RouteMessage>> {
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let all: Vec<RouteMessage> =
        links.handle().route().get(query).execute().try_collect().await.map_err(|e| failed("list", "routes", e))?;
    let is_ours = |m: &RouteMessage| {
        m.header.protocol == PROTOCOL && m.header.table == TABLE_MAIN && m.header.kind == RouteType::Unicast
    };
    Ok(all.into_iter().filter(is_ours).collect())
}

fn parse(message: &RouteMessage) -> Option<((Ipv4Addr, u8), Hop)> {
    let (mut gateway, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let is_onlink = message.header.flags.contains(RouteFlags::Onlink);
    let range = (destination(message)?, message.header.destination_prefix_length);
    Some((range, Hop { gateway: gateway?, interface: interface?, is_onlink }))
}

async fn add(links: &Links, (network, prefix): (Ipv4Addr, u8), hop: Hop) -> Result<()> {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network, prefix)
        .output_interface(hop.interface)
        .gateway(hop.gateway)
        .protocol(PROTOCOL);
    if hop.is_onlink {
        route = route.onlink();
    }
    let request = links.handle().route().add(route.build()).replace();
    request.execute().await.map_err(|e| failed("add route to", format!("{network}/{prefix} via {}", hop.gateway), e))
}

async fn delete(links: &Links, message: RouteMessage) -> Result<()> {
    match links.handle().route().del(message).execute().await {
        Err(e) if code(&e) != Some(libc::ESRCH) => Err(failed("delete", "route", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
