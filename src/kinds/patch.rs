//! The three ways to patch an object that `PATCH` takes besides server-side apply.
//!
//! All work on the object's JSON and leave defaulting, pruning and validation to the caller.

pub mod json;
pub mod merge;
pub mod strategic;
