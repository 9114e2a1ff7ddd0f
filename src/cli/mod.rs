//! The command line: one file a command, parsing and printing only.

pub mod demo_web;
pub mod image;
