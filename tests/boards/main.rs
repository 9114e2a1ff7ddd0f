//! A server and boards of its own: what the issue of fleets promises, seen from outside with the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod failover;
mod network;
mod offline;
mod presence;
mod readiness;
mod start;
mod streams;
mod verbs;
