//! Umiak: Kubernetes for a fleet of small boards, in one small daemon.
//!
//! One room per concern; calls go down this list only.

pub mod cli;
pub mod server;
pub mod agent;
pub mod daemon;

pub mod api;
pub mod controllers;
pub mod scheduler;
pub mod fleet;
pub mod events;
pub mod registry;
pub mod node;
pub mod link;
pub mod runtime;
pub mod image;
pub mod network;
pub mod store;
pub mod kinds;

pub mod config;
pub mod pki;
pub mod clock;
pub mod cidr;
pub mod pools;
pub mod files;
mod inotify;
pub mod memory;
