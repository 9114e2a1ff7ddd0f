//! The address of the host itself.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use super::overlay;

/// The address that packets to the outside would leave from; where there is no way out, that of the first interface that
/// has one, but for the pods' bridge and what else this daemon made.
pub fn host_address(bridge: &str) -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; the kernel only picks the route. 192.0.2.0/24 is never a real host.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).map(|()| socket))
        .and_then(|socket| socket.local_addr());
    if let Ok(address) = outward {
        return Some(address.ip());
    }
    let ours = ["lo", bridge, overlay::DEVICE];
    let found = nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        let outside = !ours.contains(&interface.interface_name.as_str()) && !address.is_link_local();
        outside.then_some(address)
    });
    found.map(IpAddr::V4)
}
