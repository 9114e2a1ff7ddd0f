//! Pod traffic leaves the node under the node's own address: one nftables table of our own.
//!
//! ```text
//! table ip BRIDGE {
//!   chain postrouting { type nat hook postrouting priority srcnat;
//!     ip saddr POD_CIDR ip daddr != CLUSTER_CIDR oifname != "BRIDGE" masquerade } }
//! ```

use super::Cidr;
use super::error::{Error, Result};
use super::nft::{self, Chain, Interface};

const POST_ROUTING: u32 = 4;
const PRIORITY_SRCNAT: i32 = 100;

/// Lets what comes from `pods` and leaves through anything but `bridge` be masqueraded, unless it goes to a pod of
/// another node, that is, to `cluster`.
///
/// # Errors
/// [`Error::MasqueradeUnavailable`] where the kernel has no nf_tables or no NAT.
pub(super) fn install(bridge: &str, pods: Cidr, cluster: Cidr) -> Result<()> {
    let chain =
        Chain { table: bridge, name: "postrouting", kind: "nat", hook: POST_ROUTING, priority: PRIORITY_SRCNAT };
    let installed = nft::install(&chain, |rule| {
        rule.source_in(pods);
        rule.destination_outside(cluster);
        rule.through(&Interface::NotOut(bridge));
        rule.masquerade();
    });
    installed.map_err(|e| Error::MasqueradeUnavailable(e.to_string()))
}

/// Removes the table. No error if there is none.
pub(super) fn remove(bridge: &str) -> Result<()> {
    nft::remove(bridge).map_err(|e| Error::MasqueradeUnavailable(e.to_string()))
}
