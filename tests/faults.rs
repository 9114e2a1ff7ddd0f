//! Bad surroundings: one clear line each, a non-zero exit, nothing lost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use common::{Cluster, Netns, images, run, text};
use nix::sys::signal::Signal;

fn umiak() -> Command {
    Command::new(common::binary())
}

/// The command fails, and says why in one line that has all of `words`.
fn fails_with(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(words.iter().all(|word| last.contains(word)), "{words:?} not in {last:?}");
    assert!(stderr.lines().filter(|line| line.starts_with("umiak: ")).count() == 1, "{stderr}");
}

fn server(netns: &Netns, data_dir: &std::path::Path) -> Command {
    let mut command = netns.command(common::binary());
    command.args(["server", "--node-name", "board", "--data-dir"]).arg(data_dir);
    command
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::start();
    let other = cluster.dir.path().join("other");
    let output = cluster.umiak().args(["server", "--bridge", "um1", "--data-dir"]).arg(&other).output().unwrap();
    fails_with(&output, &["6443", "in use"]);
    run(cluster.umiak().args(["reset", "--yes", "--data-dir"]).arg(&other));
    cluster.finish();
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let cluster = Cluster::start();
    let output = server(&cluster.netns, &cluster.data_dir()).output().unwrap();
    fails_with(&output, &["data", "in use"]);
    let output = cluster.umiak().args(["reset", "--yes", "--data-dir"]).arg(cluster.data_dir()).output().unwrap();
    fails_with(&output, &["data", "in use"]);
    cluster.finish();
}

#[test]
fn without_root_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let copy = std::path::PathBuf::from(format!("/tmp/umiak-faults-{}", std::process::id()));
    fs::copy(common::binary(), &copy).unwrap();
    let output =
        Command::new(&copy).uid(65534).gid(65534).args(["server", "--data-dir"]).arg(dir.path()).output().unwrap();
    fs::remove_file(&copy).unwrap();
    fails_with(&output, &["root"]);
}

#[test]
fn a_damaged_database_is_named_and_kept() {
    let mut cluster = Cluster::start();
    // A clean stop leaves everything in the main file; after a crash SQLite would mend the first page from its log.
    cluster.stop_daemon(Signal::SIGTERM);
    let database = cluster.data_dir().join("server/umiak.db");
    let whole = fs::read(&database).unwrap();
    let mut damaged = whole.clone();
    damaged[..100].fill(0xAA);
    fs::write(&database, &damaged).unwrap();
    let output = server(&cluster.netns, &cluster.data_dir()).output().unwrap();
    fails_with(&output, &["umiak.db"]);
    assert_eq!(fs::read(&database).unwrap()[..100], damaged[..100]);
    fs::write(&database, &whole).unwrap();
    cluster.start_daemon();
    cluster.finish();
}

#[test]
fn a_damaged_image_archive_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = images::archive(dir.path(), "good.tar", &images::BUSYBOX);
    let bytes = fs::read(&good).unwrap();
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xFF;
    for (name, content) in [("cut.tar", &bytes[..bytes.len() / 3]), ("flipped.tar", &flipped), ("text.tar", b"hello")] {
        let bad = dir.path().join(name);
        fs::write(&bad, content).unwrap();
        let data = dir.path().join("data");
        let output = umiak().args(["image", "import", "--data-dir"]).arg(&data).arg(&bad).output().unwrap();
        fails_with(&output, &[name]);
        let listed = run(umiak().args(["image", "ls", "--data-dir"]).arg(&data));
        assert!(!listed.contains("busybox"), "{listed}");
        let layers = fs::read_dir(data.join("images/layers")).map_or(0, Iterator::count);
        assert_eq!(layers, 0, "{name} left layers");
    }
}

#[test]
fn a_read_only_data_directory_is_named() {
    let netns = Netns::new();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let line = format!(
        "mount -t tmpfs -o ro none {data} && exec nsenter --net=/run/netns/{} {} server --data-dir {data}",
        netns.0,
        common::binary().display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &line]).output().unwrap();
    fails_with(&output, &[data, "ead-only"]);
}

#[test]
fn a_full_data_directory_refuses_writes_and_loses_nothing() {
    let netns = Netns::new();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let line = format!(
        "mount -t tmpfs -o size=64k none {data} && exec nsenter --net=/run/netns/{} {} server --data-dir {data}",
        netns.0,
        common::binary().display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &line]).output().unwrap();
    fails_with(&output, &[data, "space"]);
}

#[test]
fn wrong_configuration_names_file_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("umiak.yaml");
    fs::write(&file, "https-prt: 1\n").unwrap();
    let output = umiak().args(["server", "--config"]).arg(&file).output().unwrap();
    fails_with(&output, &["umiak.yaml", "https-prt"]);
}
