//! Pod sandboxes and containers: the shim, its protocol, OCI specs, executor, cgroups, seccomp.
//!
//! The daemon's half is [`Runtime`] and [`Sandbox`]. Each pod has one shim process (`umiak shim`) that holds the pod's
//! namespaces, is the parent of its containers and outlives the daemon. All state of the containers of a pod is one
//! [`SandboxState`] value behind a [`tokio::sync::watch`] channel: wait for `changed()`, then look.

mod cgroup;
mod client;
mod container;
mod error;
pub mod host;
mod protocol;
mod sandbox;
mod seccomp;
mod shim;
mod sys;
mod types;

pub use client::{Adopted, DeadSandbox, Runtime, RuntimeConfig};
pub use error::{Error, Result};
pub use sandbox::{Exec, Sandbox};
pub use shim::shim_main;
pub use types::*;
