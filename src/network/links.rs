//! The few interface, address and route changes that pods need, as one call each.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::Cidr;
use super::error::{Error, Result};

/// A connection to the kernel about one network namespace. Dropping it closes it.
pub(super) struct Links {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What is asked about an interface.
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_bridge: bool,
    pub(super) controller: Option<u32>,
    pub(super) is_up: bool,
}

impl Links {
    /// About the namespace of the calling thread.
    pub(super) fn here() -> std::io::Result<Links> {
        let socket: TokioSocket = AsyncSocket::new(rtnetlink::sys::protocols::NETLINK_ROUTE)?;
        Ok(Links::on(socket))
    }

    /// About the namespace of a socket.
    pub(super) fn on(socket: TokioSocket) -> Links {
        // What the kernel says unasked is nothing: the socket joined no group.
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        Links { handle, driver: tokio::spawn(connection) }
    }

    /// For requests that have no call of their own here.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// None where there is no such interface.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Link>> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.map(|m| describe(&m))),
            Err(e) if code(&e) == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(failed("look up", name, e)),
        }
    }

    /// Names of a bridge's ports.
    pub(super) async fn ports(&self, bridge: u32) -> Result<HashSet<String>> {
        let links: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(|e| failed("list", "interfaces", e))?;
        Ok(links.iter().filter(|m| describe(m).controller == Some(bridge)).filter_map(name).collect())
    }

    /// A bridge that is up; one that is there is kept.
    pub(super) async fn ensure_bridge(&self, name: &str, mac: [u8; 6], mtu: u32) -> Result<u32> {
        if self.get(name).await?.is_none() {
            // With an address of its own the bridge does not change it with each port that comes and goes.
            let message = LinkBridge::new(name).address(mac.to_vec()).mtu(mtu).build();
            self.handle.link().add(message).execute().await.map_err(|e| failed("create bridge", name, e))?;
        }
        let link = self.get(name).await?.ok_or_else(|| missing(name))?;
        if !link.is_bridge {
            return Err(Error::Netlink {
                operation: "use bridge",
                subject: name.to_owned(),
                cause: "an interface of that name is no bridge".to_owned(),
            });
        }
        let up = LinkUnspec::new_with_index(link.index).up().mtu(mtu).build();
        self.handle.link().set(up).execute().await.map_err(|e| failed("set up bridge", name, e))?;
        Ok(link.index)
    }

    /// Makes a pair in one step: `host`, a port of `bridge`, here, and `eth0` in the pod's namespace. Only the host's
    /// end is up: the pod's end cannot be before its peer exists.
    ///
    /// The pod's hardware address follows from its IP address, so that neighbours' caches stay right when an address
    /// passes to another pod.
    pub(super) async fn add_pair(&self, host: &str, bridge: u32, pod: &OwnedFd, mac: [u8; 6], mtu: u32) -> Result<()> {
        let peer =
            LinkUnspec::new_with_name("eth0").setns_by_fd(pod.as_raw_fd()).address(mac.to_vec()).mtu(mtu).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(host, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(bridge)
            .mtu(mtu)
            .up()
            .build();
        self.handle.link().add(pair).execute().await.map_err(|e| failed("create pod interface", host, e))
    }

    /// Makes `host` a port of `bridge` and lets frames return where they came from, so that a pod reaches itself
    /// through a service.
    pub(super) async fn set_port(&self, host: &str, bridge: u32) -> Result<()> {
        let port = LinkMessageBuilder::<LinkBridgePort>::default()
            .name(host)
            .set_port_kind(rtnetlink::packet_route::link::InfoPortKind::Bridge)
            .append_info_data(InfoBridgePort::HairpinMode(true))
            .build();
        match self.get(host).await? {
            Some(link) if link.controller == Some(bridge) && link.is_up => {}
            Some(link) => {
                let join = LinkUnspec::new_with_index(link.index).controller(bridge).up().build();
                self.handle.link().set(join).execute().await.map_err(|e| failed("attach to bridge", host, e))?;
            }
            None => return Err(missing(host)),
        }
        self.handle.link().set_port(port).execute().await.map_err(|e| failed("set bridge port", host, e))
    }

    /// Brings an interface up.
    pub(super) async fn up(&self, index: u32, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(|e| failed("set up", name, e))
    }

    /// Removes an interface. No error if there is none.
    pub(super) async fn delete(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(e) if code(&e) != Some(libc::ENODEV) => Err(failed("delete", name, e)),
            _ => Ok(()),
        }
    }

    /// An interface's IPv4 addresses.
    pub(super) async fn addresses(&self, index: u32) -> Result<Vec<Ipv4Addr>> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list", "addresses", e))?;
        let own = messages.iter().filter(|m| m.header.index == index && m.header.family == AddressFamily::Inet);
        let addresses = own.flat_map(|m| &m.attributes).filter_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Gives an interface this IPv4 address and no other.
    pub(super) async fn set_address(&self, index: u32, address: Ipv4Addr, range: Cidr) -> Result<()> {
        let request = self.handle.address().add(index, address.into(), range.prefix());
        match request.execute().await {
            Err(e) if code(&e) == Some(libc::EEXIST) => self.drop_other_addresses(index, address).await,
            Err(e) => Err(failed("add address", address, e)),
            Ok(()) => self.drop_other_addresses(index, address).await,
        }
    }

    async fn drop_other_addresses(&self, index: u32, keep: Ipv4Addr) -> Result<()> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list", "addresses", e))?;
        for message in messages {
            let is_other = message.header.index == index
                && message.header.family == AddressFamily::Inet
                && !message.attributes.contains(&AddressAttribute::Local(keep.into()));
            if is_other {
                self.handle.address().del(message).execute().await.map_err(|e| failed("delete", "address", e))?;
            }
        }
        Ok(())
    }

    /// Sends everything that has no other route to `gateway`.
    pub(super) async fn set_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(gateway).build();
        let request = self.handle.route().add(route).replace();
        request.execute().await.map_err(|e| failed("add default route to", gateway, e))
    }
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_bridge: false,
        controller: None,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    link
}

fn name(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The kernel's error number, positive.
pub(super) fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

pub(super) fn failed(operation: &'static str, subject: impl Display, error: rtnetlink::Error) -> Error {
    let cause = match code(&error) {
        Some(code) => std::io::Error::from_raw_os_error(code).to_string(),
        None => error.to_string(),
    };
    Error::Netlink { operation, subject: subject.to_string(), cause }
}

fn missing(name: &str) -> Error {
    Error::Netlink { operation: "look up", subject: name.to_owned(), cause: "it disappeared".to_owned() }
}
