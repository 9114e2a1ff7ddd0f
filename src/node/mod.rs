//! The node half: pod workers, volumes, environment, logs, statistics.

mod container;
mod disk;
mod downward;
mod engine;
mod env;
mod error;
mod expand;
mod files;
mod pod;
mod resources;
mod volumes;

pub use error::{Error, Result};
