//! When this host may reach others that it could not reach before.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use tokio::sync::watch;

use super::interfaces::{self, Interface, Seen};
use super::overlay::DEVICE;

/// Counts in `to` whenever an interface that is up has an address or leads out, and did not before: a cable was put in, an
/// address came by DHCP. Never ends. `bridge` is the pods' bridge, which leads nowhere.
///
/// Woken by changes of interfaces only.
pub async fn follow(bridge: &str, to: watch::Sender<u64>) {
    let (tell, mut seen) = watch::channel(Seen::default());
    let ours = [bridge, DEVICE];
    let count = async {
        let mut before = None;
        while seen.changed().await.is_ok() {
            let now = ways(&seen.borrow_and_update().interfaces);
            if before.replace(now.clone()).is_some_and(|before| !now.is_subset(&before)) {
                to.send_modify(|n| *n += 1);
            }
        }
    };
    tokio::select! {
        () = interfaces::follow(&ours, tell) => {}
        () = count => {}
    }
}

/// The ways out of this host: an interface and an address of its own, or none for its default route.
fn ways(interfaces: &[Interface]) -> BTreeSet<(u32, Option<Ipv4Addr>)> {
    let up = interfaces.iter().filter(|i| i.is_up);
    up.flat_map(|i| {
        let own = i.addresses.iter().map(|(address, _)| (i.index, Some(*address)));
        own.chain(i.default_route.map(|_| (i.index, None)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::interfaces::tests::interface;

    #[test]
    fn what_is_gained_counts() {
        let before = vec![interface(1, &[("10.0.0.1", 24)])];
        let changed = |change: fn(&mut Vec<Interface>)| {
            let mut now = before.clone();
            change(&mut now);
            (!ways(&now).is_subset(&ways(&before)), !ways(&before).is_subset(&ways(&now)))
        };
        for (change, gained, lost) in [
            ((|_| {}) as fn(&mut Vec<Interface>), false, false),
            (|all| all[0].is_up = false, false, true),
            (|all| all[0].default_route = Some(100), true, false),
            (|all| all[0].addresses.clear(), false, true),
            (|all| all[0].mtu = 9000, false, false),
            (|all| all.push(interface(2, &[])), false, false),
            (|all| all.push(interface(2, &[("10.0.1.1", 24)])), true, false),
        ] {
            assert_eq!(changed(change), (gained, lost));
        }
    }
}
