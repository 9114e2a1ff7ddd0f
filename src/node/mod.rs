//! The node half: pod workers, volumes, environment, logs, statistics.

mod check;
mod container;
mod disk;
mod downward;
mod engine;
mod env;
mod error;
mod events;
mod expand;
mod files;
mod outbox;
mod pod;
mod probes;
mod resources;
mod status;
mod volumes;
mod worker;

pub use error::{Error, Result};
