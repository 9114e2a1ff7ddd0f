//! Pods on the real kernel. Needs root, and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod figures;
mod fixture;
mod isolation;
mod life;
