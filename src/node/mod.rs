//! The node half: pod workers, volumes, environment, logs, statistics.

mod downward;
mod env;
mod error;
mod expand;
mod pod;
mod resources;

pub use error::{Error, Result};
