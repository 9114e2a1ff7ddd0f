//! What a node answers to [`StreamRequest::Usage`](super::stream::StreamRequest::Usage), as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a node and its pods use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Milliseconds over which the use of processors is averaged, up to now.
    pub window_ms: u64,
    /// The whole machine.
    pub node: Amount,
    /// By pod UID: its running containers, by name.
    pub pods: BTreeMap<String, BTreeMap<String, Amount>>,
}

/// An amount of what is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Billionths of a processor.
    pub cpu: u64,
    /// Bytes of the working set: what is in use without the inactive file cache.
    pub memory: u64,
}
