//! Port-forward over numbered WebSocket channels: for the i-th port of the query 2i carries data and 2i + 1 errors;
//! the first message of each is the port as u16 LE.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Opener, Socket,
    forward::{Client, Output},
    idle::Idle,
    websocket::{Incoming, drive, incoming, message, receive, send_all, send_end, send_frames, split},
};
use crate::link::stream::{Channel, WINDOW};

/// Most ports of one request: channel numbers are bytes and 255 is taken.
pub(super) const MAX_PORTS: usize = 127;

/// Forwards one connection to each port; done when all of them are.
pub(super) async fn serve<S: Socket>(socket: S, ports: &[u16], open: Opener) {
    let (sink, mut source) = split(socket).await;
    let (out, queue) = mpsc::channel(WINDOW);
    let idle = Arc::new(Idle::new());
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (number, port) in (0..).step_by(2).zip(ports.iter().copied().take(MAX_PORTS)) {
        let (sender, input) = mpsc::channel(WINDOW);
        inputs.push(sender);
        let (open, out, idle) = (open.clone(), out.clone(), idle.clone());
        connections.spawn(async move {
            for channel in [number, number + 1] {
                // Fails only if the client is gone; then so will be everything after it.
                let _ = out.send(message(channel, &port.to_le_bytes())).await;
            }
            let client = Client { out, encode: move |output| encode(number, output), idle };
            client.forward(open, port, input).await;
        });
    }
    drop(out);
    let inbound = async {
        while let Some(message) = receive(&mut source).await {
            idle.touch();
            let incoming = incoming(message);
            let (Incoming::Data(channel, _) | Incoming::HalfClose(channel)) = &incoming;
            let Some(input) = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) else { continue };
            match incoming {
                Incoming::Data(_, data) => send_frames(input, Channel::Stdin, data).await,
                Incoming::HalfClose(_) => send_end(input, Channel::Stdin).await,
            }
        }
    };
    drive(inbound, send_all(sink, queue), &idle).await;
}

/// The protocol has no message for the end of a channel; an empty one says nothing.
fn encode(number: u8, output: Output) -> Message {
    match output {
        Output::Data(data) => message(number, &data),
        Output::Failed(text) => message(number + 1, text.as_bytes()),
        Output::Eof | Output::Closed => message(number, &[]),
    }
}
