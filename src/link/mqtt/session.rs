//! The envelopes of either end on the messages of a session.
//!
//! On the wire there are bodies only: a session proves their order, and none is missing. Numbers are given on arrival, of
//! an epoch that is the receiver's own count of sessions, so that no clock of the other end matters.

use std::convert::Infallible;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::control::{decode, encode};
use crate::link::channel;
use crate::link::message::Envelope;

/// Takes what the application says and passes it on by `carry`, but for what is to be skipped. Nothing is lost when the future is
/// dropped.
pub(super) async fn speak<T: Serialize>(
    from: &mut channel::Receiver<Envelope<T>>,
    to: &channel::Sender<Bytes>,
    limit: usize,
    mut skip: impl FnMut(&T) -> bool,
    carry: impl Fn(Bytes) -> Bytes,
) -> Infallible {
    while let Ok(permit) = to.reserve().await {
        let Some(envelope) = from.recv().await else { break };
        if skip(&envelope.body) {
            continue;
        }
        match encode(&envelope.body, limit) {
            Ok(bytes) => permit.send(carry(bytes)),
            Err(error) => tracing::error!(%error, "a message that cannot be sent"),
        }
    }
    std::future::pending().await
}

/// Passes on to the application what comes in, once the other end has told its version; ends with the application.
pub(super) async fn listen<T: DeserializeOwned>(
    mut from: channel::Receiver<Bytes>,
    to: &channel::Sender<Envelope<T>>,
    limit: usize,
    epoch: u64,
    version: impl Future<Output = Option<u32>>,
) {
    let Some(version) = version.await else { return std::future::pending().await };
    let mut seq = 0;
    while let Ok(permit) = to.reserve().await {
        let bytes = tokio::select! {
            bytes = from.recv() => bytes,
            () = to.closed() => return,
        };
        let Some(bytes) = bytes else { return std::future::pending().await };
        match decode(&bytes, limit) {
            Ok(body) => {
                seq += 1;
                permit.send(Envelope { version, epoch, seq, body });
            }
            Err(error) => tracing::warn!(%error, version, "ignoring a message that cannot be understood"),
        }
    }
}
