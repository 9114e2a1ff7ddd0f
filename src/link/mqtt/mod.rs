//! The link over MQTT 3.1.1: how nodes and server reach each other through a broker that neither of them trusts.
//!
//! From the bottom up: [`client`] speaks MQTT, [`Bus`] is the server's access to a broker (its own or another one),
//! [`seal`] runs a TLS session inside the messages, [`mux`] carries control messages and streams in that, and [`node`]
//! and [`accept`] give the two ends that the rest of Umiak knows.

mod backoff;
mod bus;
mod client;
mod control;
mod doubt;
mod join;
mod mux;
mod node;
mod packet;
mod records;
mod seal;
mod server;
mod session;
mod socket;
#[cfg(test)]
pub(crate) mod tests;
pub mod tls;
pub mod topic;

pub use bus::{Bus, BusError, Event, Inbox, RemoteConfig, remote};
pub use join::{JoinError, JoinStream, join};
pub use node::{LinkState, NodeConfig, TlsProvider, node};
pub use server::{Accepted, Allowed, Incoming, Sessions, accept};

pub(crate) use packet::{MAX_PACKET, PacketError, PacketReader, encode, publish};
pub(crate) use records::Records;
pub(crate) use socket::prepare;

/// The port of MQTT over TLS.
pub const PORT: u16 = 8883;

/// A number nobody can guess.
pub(crate) fn random() -> u64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 8];
    // Fails only where the kernel has no random numbers, in which case TLS has refused to work long before.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
