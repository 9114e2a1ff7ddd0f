//! What an attacker tries against the link, each refused, told in the server's log by one line that says who and what,
//! and of no use to him.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attacker;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod hostile_broker;
mod stranger;
