//! Service addresses that this node takes for its own: one AnyIP route (`local ADDRESS dev lo`) each.
//!
//! # Guarantees
//! The kernel never answers ARP for such an address. By itself it would, on every interface (`arp_ignore` 0: any local
//! address counts, and a route of type `local` makes an address local), so every node that knows a Service would claim
//! its load-balancer address, and on the way out ARP requests would carry it as their sender. [`LocalAddresses::open`]
//! therefore sets `arp_ignore` 1 (only addresses of the interface that was asked on) and `arp_announce` 2 (never another
//! interface's address as the sender), as kube-proxy does with `strictARP`. Who answers for an address is the
//! announcer's business alone.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::error::{Error, Result};
use super::links::{Links, code, failed};
use super::{Cidr, LOOPBACK};

/// Marks the routes of this program in the kernel's tables (`RTA_PROTOCOL`), so that it finds them again.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(117);

/// The kernel's table of what is local (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;

const STRICT_ARP: [(&str, u8); 2] =
    [("/proc/sys/net/ipv4/conf/all/arp_ignore", 1), ("/proc/sys/net/ipv4/conf/all/arp_announce", 2)];

/// The local addresses of the network namespace it was opened in. Every call is idempotent.
pub struct LocalAddresses {
    links: Links,
}

impl LocalAddresses {
    /// Keeps the kernel from answering ARP by itself for what will be local; see the module.
    ///
    /// # Errors
    /// When the settings cannot be made: then no address may become local.
    pub fn open() -> Result<Self> {
        for (path, wanted) in STRICT_ARP {
            let is = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
            if is.trim().parse::<u8>().is_ok_and(|is| is < wanted) {
                fs::write(path, wanted.to_string()).map_err(|e| Error::file("write", path, e))?;
            }
        }
        let links = Links::here().map_err(|e| super::failed("connect to", "netlink", e))?;
        Ok(Self { links })
    }

    /// Makes an address local.
    pub async fn ensure_local(&self, address: Ipv4Addr) -> Result<()> {
        self.add(address, 32).await
    }

    /// Makes every address of a range local.
    pub async fn ensure_local_range(&self, range: Cidr) -> Result<()> {
        self.add(range.network(), range.prefix()).await
    }

    /// Makes every address of this range local, and of no other range: the configuration may have changed.
    pub async fn ensure_only_range(&self, range: Cidr) -> Result<()> {
        for route in self.routes().await? {
            let is_range = (1..32).contains(&route.header.destination_prefix_length);
            let is_this = destination(&route) == Some(range.network())
                && route.header.destination_prefix_length == range.prefix();
            if is_range && !is_this {
                self.delete(route, range.network()).await?;
            }
        }
        self.ensure_local_range(range).await
    }

    /// Takes back [`LocalAddresses::ensure_local`].
    pub async fn drop_local(&self, address: Ipv4Addr) -> Result<()> {
        self.remove(address, 32).await
    }

    /// Takes back [`LocalAddresses::ensure_local_range`].
    pub async fn drop_local_range(&self, range: Cidr) -> Result<()> {
        self.remove(range.network(), range.prefix()).await
    }

    /// The single addresses that are local by [`LocalAddresses::ensure_local`], an earlier process's among them.
    pub async fn local(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let single = |m: &&RouteMessage| m.header.destination_prefix_length == 32;
        Ok(self.routes().await?.iter().filter(single).filter_map(destination).collect())
    }

    /// What is local by this program's routes.
    async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.links.handle().route().get(query).execute();
        let mut routes: Vec<RouteMessage> =
            routes.try_collect().await.map_err(|e| failed("list", "local routes", e))?;
        routes.retain(|m| {
            m.header.protocol == PROTOCOL
                && m.header.kind == RouteType::Local
                && u32::from(m.header.table) == TABLE_LOCAL
        });
        Ok(routes)
    }

    async fn add(&self, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let request = self.links.handle().route().add(route(address, prefix)).replace();
        request.execute().await.map_err(|e| failed("make local", address, e))
    }

    async fn remove(&self, address: Ipv4Addr, prefix: u8) -> Result<()> {
        self.delete(route(address, prefix), address).await
    }

    async fn delete(&self, route: RouteMessage, address: Ipv4Addr) -> Result<()> {
        match self.links.handle().route().del(route).execute().await {
            Err(e) if code(&e) != Some(libc::ESRCH) => Err(failed("give up", address, e)),
            _ => Ok(()),
        }
    }
}

fn route(address: Ipv4Addr, prefix: u8) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, prefix)
        .output_interface(LOOPBACK)
        .table_id(TABLE_LOCAL)
        .scope(RouteScope::Host)
        .kind(RouteType::Local)
        .protocol(PROTOCOL)
        .build()
}

/// Where a route leads to.
pub(super) fn destination(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}
