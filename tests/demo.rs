//! The first thing a person types.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Netns, leaks, run};

#[test]
fn the_demo_ends_with_pods_that_answer_and_leaves_nothing() {
    let netns = Netns::new();
    let dir = tempfile::tempdir().unwrap();
    let said = run(netns.command(common::binary()).args(["demo", "--once"]).env("TMPDIR", dir.path()));
    assert_eq!(said.matches("/hostname   ->   hello-").count(), 6, "{said}");
    assert!(said.ends_with("nothing is left\n"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    leaks::assert_none(dir.path(), &netns.0);
}
