//! The in-process carrier: three bounded channels.

use super::underway::Underway;
use super::{NodeEnd, OPENING, QUEUE, ServerEnd, channel};

/// Two connected ends.
pub fn pair() -> (ServerEnd, NodeEnd) {
    let (down_tx, down_rx) = channel::channel(QUEUE);
    let (up_tx, up_rx) = channel::channel(QUEUE);
    let (open_tx, open_rx) = channel::channel(OPENING);
    let node = NodeEnd { rx: down_rx, tx: up_tx, streams: open_rx, underway: Underway::default() };
    (ServerEnd { rx: up_rx, tx: down_tx, streams: open_tx }, node)
}
