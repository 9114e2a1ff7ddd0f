//! Announces addresses on the segments they belong to: answers ARP for them and for no other.
//!
//! One packet socket an interface; [`claim`] decides, this drives. A segment is quiet and asleep while nobody asks for
//! one of its addresses and no other node watches them.

mod claim;
mod frame;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use claim::{Claim, Output};
use socket::Socket;

pub use claim::{News, Role};
pub use frame::{Mac, show};

/// The interface of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Interface index.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
    /// An address of its own, or 0.0.0.0.
    pub own: Ipv4Addr,
}

/// What this node is to the addresses of a segment.
pub type Roles = BTreeMap<Ipv4Addr, Role>;

/// Something happened to an address.
pub type Told = (Ipv4Addr, News);

/// Looks after the addresses on one interface as `roles` says, until `roles` is closed or the interface fails (it is
/// gone, say). Dropping the future gives every address up.
///
/// # Errors
/// When the packet socket cannot be opened or used.
pub async fn run(port: Port, mut roles: watch::Receiver<Roles>, news: mpsc::Sender<Told>) -> io::Result<()> {
    let socket = Socket::open(port.index)?;
    let mut segment = Segment { port, socket, claims: BTreeMap::new(), news };
    roles.mark_changed();
    loop {
        let due = segment.claims.values().filter_map(Claim::due).min();
        tokio::select! {
            changed = roles.changed() => match changed {
                Ok(()) => {
                    let roles = roles.borrow_and_update().clone();
                    segment.set_roles(&roles)?;
                }
                Err(_) => return Ok(()),
            },
            frame = segment.socket.next() => {
                let frame = frame?;
                for address in [frame.sender, frame.target] {
                    segment.with(address, |claim, now| claim.heard(&frame, now))?;
                    if frame.sender == frame.target {
                        break;
                    }
                }
            }
            () = sleep_until(due), if due.is_some() => {
                let now = Instant::now();
                let ready: Vec<Ipv4Addr> = segment.claims.iter()
                    .filter(|(_, claim)| claim.due().is_some_and(|due| due <= now)).map(|(address, _)| *address).collect();
                for address in ready {
                    segment.with(address, Claim::tick)?;
                }
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

struct Segment {
    port: Port,
    socket: Socket,
    claims: BTreeMap<Ipv4Addr, Claim>,
    news: mpsc::Sender<Told>,
}

impl Segment {
    fn set_roles(&mut self, roles: &Roles) -> io::Result<()> {
        let now = Instant::now();
        let before: Vec<Ipv4Addr> = self.claims.keys().copied().collect();
        self.claims.retain(|address, _| roles.contains_key(address));
        for (address, role) in roles {
            let Port { mac, own, .. } = self.port;
            let fresh = || Claim::new(*address, mac, own, *role, now);
            self.claims.entry(*address).or_insert_with(fresh).set_role(*role, now);
        }
        let addresses: Vec<Ipv4Addr> = self.claims.keys().copied().collect();
        if before != addresses {
            self.socket.listen_for(&addresses)?;
        }
        Ok(())
    }

    fn with(&mut self, address: Ipv4Addr, step: impl FnOnce(&mut Claim, Instant) -> Output) -> io::Result<()> {
        let Some(claim) = self.claims.get_mut(&address) else { return Ok(()) };
        let output = step(claim, Instant::now());
        for frame in &output.frames {
            self.socket.send(frame)?;
        }
        if let Some(news) = output.news
            && self.news.try_send((address, news)).is_err()
        {
            tracing::debug!(%address, ?news, "nobody takes the news");
        }
        Ok(())
    }
}

/// What an intruder on the segment does.
#[cfg(test)]
pub(super) mod testing {
    #![allow(clippy::unwrap_used)]
    use super::frame::Frame;
    use super::*;

    fn with_socket(interface: u32, work: impl FnOnce(&Socket)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(&Socket::open(interface).unwrap()) });
    }

    /// Claims an address.
    pub(in crate::network) fn announce(interface: u32, mac: Mac, address: Ipv4Addr) {
        with_socket(interface, |socket| {
            Frame::announcement(mac, address).iter().for_each(|frame| socket.send(frame).unwrap());
        });
    }

    /// Sends frames that name an address and are broken in every way.
    pub(in crate::network) fn send_raw(interface: u32, mac: Mac, address: Ipv4Addr) {
        with_socket(interface, |socket| {
            let good = Frame::request(mac, Ipv4Addr::UNSPECIFIED, None, address).bytes();
            for length in 14..good.len() {
                socket.send_bytes(&good[..length]).unwrap();
            }
            for at in 12..22 {
                let mut bad = good;
                bad[at] ^= 0x40;
                socket.send_bytes(&bad).unwrap();
            }
        });
    }
}
