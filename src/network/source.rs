//! Who a client is, for endpoints that want to know (`externalTrafficPolicy: Local`).
//!
//! The proxy connects to a pod of its own node from the client's address (`IP_TRANSPARENT`). The pod answers to that
//! address, through the node as its gateway, and the node must take the answer in instead of passing it on: one nftables
//! rule finds the socket it belongs to and marks it, and what is marked is routed here ([`super::intake`]).
//!
//! ```text
//! table ip BRIDGE-source {
//!   chain prerouting { type filter hook prerouting priority mangle;
//!     iifname "BRIDGE" ip saddr POD_CIDR socket transparent 1 meta mark set 0x756d6961 } }
//! ```
//!
//! # Where it does not work
//! Kernels without `nft_socket` (Linux before 4.18, or left out): endpoints see the bridge's address instead, which the
//! log says once. The policy itself, and that no other node is passed through, hold all the same. It is never done for
//! clients inside the cluster, whose answers would go past this node's proxy: pods of a bridge answer each other directly.

use super::Cidr;
use super::error::{Error, Result};
use super::intake::MARK;
use super::nft::{self, Chain, Interface};

const PRE_ROUTING: u32 = 0;
const PRIORITY_MANGLE: i32 = -150;

/// Marks answers of `pods` that are for the proxy's sockets.
///
/// # Errors
/// [`Error::SourceUnavailable`] where the kernel cannot.
pub(super) fn install(bridge: &str, pods: Cidr) -> Result<()> {
    let table = table(bridge);
    let chain =
        Chain { table: &table, name: "prerouting", kind: "filter", hook: PRE_ROUTING, priority: PRIORITY_MANGLE };
    let installed = nft::install(&chain, |rule| {
        rule.through(&Interface::In(bridge));
        rule.source_in(pods);
        rule.for_transparent_socket();
        rule.mark(MARK);
    });
    installed.map_err(|e| Error::SourceUnavailable(e.to_string()))
}

/// Removes the table. No error if there is none.
pub(super) fn remove(bridge: &str) -> Result<()> {
    nft::remove(&table(bridge)).map_err(|e| Error::SourceUnavailable(e.to_string()))
}

fn table(bridge: &str) -> String {
    format!("{bridge}-source")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::tests::on_a_node;

    #[test]
    fn the_rule_is_what_it_says() {
        on_a_node(async |_| {
            install("umiak0", "10.77.0.0/24".parse().unwrap()).unwrap();
            install("umiak0", "10.77.0.0/24".parse().unwrap()).unwrap();
            let rule = "iifname \"umiak0\" ip saddr 10.77.0.0/24 socket transparent 1 meta mark set 0x756d6961";
            assert!(tables().contains(rule), "{}", tables());
            remove("umiak0").unwrap();
            remove("umiak0").unwrap();
            assert_eq!(tables(), "");
        });
    }

    fn tables() -> String {
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}
