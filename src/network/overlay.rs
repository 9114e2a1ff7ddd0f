//! The VXLAN tunnel to nodes that are not on this node's segment.
//!
//! Nothing is learned and nothing is flooded: who is where follows from the nodes' addresses. A node's end of the tunnel
//! has the network address of its pods' range, which no pod has, and a hardware address made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::{LinkUnspec, LinkVxlan};

pub use crate::config::Vxlan;

use super::arp::Mac;
use super::error::{Error, Result};
use super::links::{Links, code, failed};
use super::{Cidr, mac};

/// The tunnel's interface.
pub(super) const DEVICE: &str = "umiak.vx";
/// MTU of an interface that says nothing else, bytes.
pub(super) const ETHERNET: u32 = 1500;
/// What VXLAN over IPv4 adds to a packet, bytes: IP, UDP, VXLAN and the inner Ethernet header.
const OVERHEAD: u32 = 50;
/// The smallest MTU of IPv4 hosts, bytes.
const SMALLEST: u32 = 576;

/// A node at the other end of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Far {
    /// The node's address.
    pub(super) address: Ipv4Addr,
    /// Its pods.
    pub(super) pods: Cidr,
}

impl Far {
    /// Hardware address of its end.
    fn mac(&self) -> Mac {
        mac(self.pods.network())
    }
}

/// This node's end.
pub(super) struct Overlay<'a> {
    pub(super) links: &'a Links,
    pub(super) vxlan: Vxlan,
    /// This node's pods.
    pub(super) pods: Cidr,
}

impl Overlay<'_> {
    /// Makes the tunnel lead to these nodes and no others; gives its interface. Without any there is no tunnel.
    ///
    /// # Errors
    /// [`Error::Overlay`] where the kernel has no VXLAN.
    pub(super) async fn settle(&self, far: &[Far], uplink_mtu: u32) -> Result<Option<u32>> {
        if far.is_empty() {
            self.links.delete(DEVICE).await?;
            return Ok(None);
        }
        let index = self.device(uplink_mtu.saturating_sub(OVERHEAD).max(SMALLEST)).await?;
        self.neighbours(index, far).await?;
        self.forwarding(index, far).await?;
        Ok(Some(index))
    }

    async fn device(&self, mtu: u32) -> Result<u32> {
        if let Some(link) = self.look_up().await?
            && !self.is_as_wanted(&link)
        {
            self.links.delete(DEVICE).await?;
        }
        if self.look_up().await?.is_none() {
            let Vxlan { vni, port } = self.vxlan;
            let message = LinkVxlan::new(DEVICE, vni).port(port).learning(false).mtu(mtu);
            let message = message.address(mac(self.pods.network()).to_vec()).build();
            self.links.handle().link().add(message).execute().await.map_err(unavailable)?;
        }
        let index = self.look_up().await?.ok_or_else(|| Error::Overlay("it disappeared".to_owned()))?.header.index;
        let up = LinkUnspec::new_with_index(index).up().mtu(mtu).build();
        self.links.handle().link().set(up).execute().await.map_err(unavailable)?;
        // What the host itself sends to far pods comes from here, so that answers find back through the tunnel.
        let address = self.pods.network();
        match self.links.handle().address().add(index, address.into(), 32).execute().await {
            Err(e) if code(&e) != Some(libc::EEXIST) => Err(failed("add address", address, e)),
            _ => Ok(index),
        }
    }

    async fn look_up(&self) -> Result<Option<LinkMessage>> {
        match self.links.handle().link().get().match_name(DEVICE).execute().try_next().await {
            Err(e) if code(&e) == Some(libc::ENODEV) => Ok(None),
            found => found.map_err(|e| failed("look up", DEVICE, e)),
        }
    }

    fn is_as_wanted(&self, link: &LinkMessage) -> bool {
        let infos = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let data = infos.into_iter().flatten().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        });
        let own = LinkAttribute::Address(mac(self.pods.network()).to_vec());
        data.is_some_and(|data| {
            [InfoVxlan::Id(self.vxlan.vni), InfoVxlan::Port(self.vxlan.port), InfoVxlan::Learning(false)]
                .iter()
                .all(|wanted| data.contains(wanted))
        }) && link.attributes.contains(&own)
    }

    /// Which hardware address a node's end has.
    async fn neighbours(&self, index: u32, far: &[Far]) -> Result<()> {
        let wanted: BTreeMap<Ipv4Addr, Mac> = far.iter().map(|f| (f.pods.network(), f.mac())).collect();
        let handle = self.links.handle().neighbours();
        let mut known = BTreeSet::new();
        for message in self.entries(index, AddressFamily::Inet).await? {
            let (address, mac) = parts(&message);
            match address {
                Some(address) if mac.is_some() && wanted.get(&address).copied() == mac => drop(known.insert(address)),
                _ => self.delete(message).await?,
            }
        }
        for (address, mac) in wanted.iter().filter(|(address, _)| !known.contains(*address)) {
            let add = handle.add(index, (*address).into()).link_layer_address(mac).replace();
            add.execute().await.map_err(|e| failed("add neighbour", address, e))?;
        }
        Ok(())
    }

    /// Which node has a hardware address.
    async fn forwarding(&self, index: u32, far: &[Far]) -> Result<()> {
        let wanted: BTreeMap<Mac, Ipv4Addr> = far.iter().map(|f| (f.mac(), f.address)).collect();
        let handle = self.links.handle().neighbours();
        let mut known = BTreeSet::new();
        for message in self.entries(index, AddressFamily::Bridge).await? {
            let (address, mac) = parts(&message);
            match mac {
                Some(mac) if address.is_some() && wanted.get(&mac).copied() == address => drop(known.insert(mac)),
                _ => self.delete(message).await?,
            }
        }
        for (mac, address) in wanted.iter().filter(|(mac, _)| !known.contains(*mac)) {
            let add = handle.add_bridge(index, mac).destination((*address).into()).flags(NeighbourFlags::Own).replace();
            add.execute().await.map_err(|e| failed("add tunnel to", address, e))?;
        }
        Ok(())
    }

    async fn entries(&self, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>> {
        let request = self.links.handle().neighbours().get().set_address_family(family).execute();
        let all: Vec<NeighbourMessage> = request.try_collect().await.map_err(|e| failed("list", "neighbours", e))?;
        // Groups the kernel itself talks to are nobody's place.
        let is_node = |m: &NeighbourMessage| parts(m).1.is_none_or(|mac| mac[0] & 1 == 0);
        Ok(all.into_iter().filter(|m| m.header.ifindex == index && is_node(m)).collect())
    }

    async fn delete(&self, message: NeighbourMessage) -> Result<()> {
        match self.links.handle().neighbours().del(message).execute().await {
            Err(e) if code(&e) != Some(libc::ENOENT) => Err(failed("delete", "neighbour", e)),
            _ => Ok(()),
        }
    }
}

fn parts(message: &NeighbourMessage) -> (Option<Ipv4Addr>, Option<Mac>) {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => address = Some(*to),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    (address, mac)
}

fn unavailable(error: rtnetlink::Error) -> Error {
    let Error::Netlink { cause, .. } = failed("create", DEVICE, error) else {
        return Error::Overlay("no answer from the kernel".to_owned());
    };
    Error::Overlay(cause)
}
