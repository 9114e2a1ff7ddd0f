//! The messages between fleet and node, and their carriers.
//!
//! A carrier gives each side one end: [`NodeEnd`] and [`ServerEnd`]. There are two: the in-process channel of [`local`],
//! and [`mqtt`], for which the server brings a [`broker`] of its own.

pub mod broker;
pub mod channel;
pub mod local;
pub mod membership;
pub mod message;
pub mod mqtt;
pub mod stream;
pub mod underway;
pub mod usage;

use message::{Envelope, ToNode, ToServer};
use stream::{Stream, StreamRequest};
use underway::Underway;

/// Messages one direction may have under way.
pub const QUEUE: usize = 64;
/// Streams waiting to be taken by the node.
const OPENING: usize = 16;

/// A stream the server opens to a pod.
#[derive(Debug)]
pub struct Open {
    /// What it is for.
    pub request: StreamRequest,
    /// The node's end.
    pub stream: Stream,
}

/// The node's end of a carrier.
#[derive(Debug)]
pub struct NodeEnd {
    /// From the server, in order.
    pub rx: channel::Receiver<Envelope<ToNode>>,
    /// To the server.
    pub tx: channel::Sender<Envelope<ToServer>>,
    /// Streams the server opens.
    pub streams: channel::Receiver<Open>,
    /// What was said and may not have arrived.
    pub underway: Underway,
}

/// The server's end of a carrier to one node.
#[derive(Debug)]
pub struct ServerEnd {
    /// From the node, in order.
    pub rx: channel::Receiver<Envelope<ToServer>>,
    /// To the node.
    pub tx: channel::Sender<Envelope<ToNode>>,
    /// Opens streams.
    pub streams: channel::Sender<Open>,
}
