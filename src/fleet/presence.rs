//! Which nodes are there: a node whose link is dead becomes `Unknown`, one that is removed loses its session.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::time::sleep;

use super::{Fleet, MANAGER};
use crate::events::{EventKind, Reference};
use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::registry::{EventType, ListOptions, WriteOptions};

/// A link that is back within this time was never gone.
const BLINK: Duration = Duration::from_secs(1);
/// How long nodes have to come back after the server has started.
const START: Duration = Duration::from_secs(10);
/// Between a failed write or look and the next.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why nothing is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was heard of and is no longer.
    Silent,
    /// It has joined and said nothing yet.
    NeverHeard,
}

/// Marks everything a node says of itself as unknown.
pub fn mark_unknown(node: &mut Object, why: Why, now: Timestamp) {
    let time = meta::format_time(now);
    let (reason, message) = match why {
        Why::Silent => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
        Why::NeverHeard => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
    };
    let mut conditions = meta::list_at(node, "/status/conditions").to_vec();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let unknown = json!({
            "type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": time,
        });
        match conditions.iter_mut().find(|c| c["type"] == kind) {
            Some(known) if known["status"] == "Unknown" => {}
            Some(known) => {
                let heartbeat = known["lastHeartbeatTime"].take();
                *known = unknown;
                known["lastHeartbeatTime"] = heartbeat;
            }
            None => conditions.push(unknown),
        }
    }
    meta::set(node, "/status/conditions", conditions);
}

impl Fleet {
    /// Marks a node as unknown unless it is back in a moment.
    pub async fn lost(&self, name: &str) {
        sleep(BLINK).await;
        while !self.is_connected(name) {
            match self.mark_silent(name).await {
                Ok(()) => return,
                Err(status) => tracing::error!(node = name, %status, "cannot mark the node as unknown"),
            }
            sleep(TRY_AGAIN).await;
        }
    }

    async fn mark_silent(&self, name: &str) -> Result<(), Status> {
        let mut marked = None;
        let change = |node: &mut Object| {
            if !self.is_connected(name) {
                let before = node.clone();
                mark_unknown(node, Why::Silent, Timestamp::now());
                marked = (*node != before).then(|| Reference::to(node));
            }
            Ok(())
        };
        let options = WriteOptions::by(MANAGER);
        let part = Some(Subresource::Status);
        match self.registry.modify(&self.kinds.nodes, "", name, part, &options, change).await {
            Err(status) if status.code == 404 => return Ok(()),
            result => drop(result?),
        }
        if let Some(node) = marked {
            tracing::warn!(node = name, "the node is silent");
            let message = format!("Node {name} status is now: NodeNotReady");
            self.events.of("node-controller", "").record(&node, EventKind::Normal, "NodeNotReady", message);
        }
        Ok(())
    }

    /// Watches over all nodes; never ends.
    pub async fn watch_over(&self) {
        let silent = async {
            sleep(START).await;
            while let Err(status) = self.mark_absent().await {
                tracing::error!(%status, "cannot see which nodes are absent");
                sleep(TRY_AGAIN).await;
            }
        };
        let removed = async {
            loop {
                let Err(status) = self.follow_removals().await;
                if status.code != 410 {
                    tracing::error!(%status, "cannot see which nodes are removed");
                    sleep(TRY_AGAIN).await;
                }
            }
        };
        tokio::join!(silent, removed);
    }

    /// Marks those that have not come back after a start of the server.
    async fn mark_absent(&self) -> Result<(), Status> {
        for raw in self.registry.list(&self.kinds.nodes, &ListOptions::default())?.items {
            if !self.is_connected(&raw.key.name) {
                self.mark_silent(&raw.key.name).await?;
            }
        }
        Ok(())
    }

    async fn follow_removals(&self) -> Result<std::convert::Infallible, Status> {
        let mut changes = self.registry.watch(&self.kinds.nodes, None, None)?;
        for (name, uid) in self.sessions() {
            match self.registry.get(&self.kinds.nodes, "", &name) {
                Ok(node) if uid.is_none() || uid.as_deref() == Some(meta::uid(&node)) => {}
                Err(status) if status.code != 404 => return Err(status),
                _ => self.removed(&name),
            }
        }
        loop {
            let event = changes.next().await?;
            if event.kind == EventType::Deleted {
                self.removed(&event.object.key.name);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_unknown() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut node = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "x"}, {"type": "Mine", "status": "True"},
        ]}})
        .as_object()
        .unwrap()
        .clone();
        mark_unknown(&mut node, Why::Silent, at(7));
        let ready = meta::condition(&node, "Ready").unwrap();
        assert_eq!((&ready["status"], &ready["lastHeartbeatTime"]), (&json!("Unknown"), &json!("x")));
        assert_eq!(ready["reason"], "NodeStatusUnknown");
        assert_eq!(meta::condition(&node, "Mine").unwrap()["status"], "True");
        let before = node.clone();
        mark_unknown(&mut node, Why::Silent, at(9));
        assert_eq!(node, before);
    }
}
