//! The messages between fleet and node, and their carriers.

pub mod stream;
