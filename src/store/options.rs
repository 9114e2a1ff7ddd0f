//! How a store is opened.

use std::{collections::HashMap, path::PathBuf, time::Duration};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file. Its directory is made (0700) if missing.
    pub path: PathBuf,
    /// Memory for past changes, in bytes (compressed bodies and bookkeeping). Older changes are compacted.
    pub ring_bytes: usize,
    /// Longest time a lazy write stays in memory only.
    pub lazy_flush: Duration,
    /// Bounds of volatile objects by resource; others have [`Limits::default`].
    pub volatile: HashMap<String, Limits>,
    /// Resources whose bodies must leave no trace once deleted: they do not serve as compression dictionaries.
    pub private: Vec<String>,
}

impl Options {
    /// Defaults of a small board: a ring of 2 MiB, lazy writes within 5 s.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ring_bytes: 2 << 20,
            lazy_flush: Duration::from_secs(5),
            volatile: HashMap::new(),
            private: vec!["secrets".into(), "configmaps".into()],
        }
    }
}

/// Bounds of one resource's volatile objects. Past them the object written longest ago goes, as a delete in the watch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most objects.
    pub count: usize,
    /// Most bytes of compressed bodies.
    pub bytes: usize,
    /// Time an object stays after its last write.
    pub ttl: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { count: 20_000, bytes: 4 << 20, ttl: None }
    }
}
