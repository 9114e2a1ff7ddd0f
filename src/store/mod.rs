//! Objects in SQLite: compare-and-swap, index, watch ring, durability classes. Knows bytes and keys, not Kubernetes.
