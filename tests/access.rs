//! Who may talk to the API: holders of a certificate of the cluster's CA, and only in what they are allowed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{Cluster, text};
use umiak::pki::{Ca, Identity, kubeconfig};

const SERVER: &str = "https://127.0.0.1:6443";

/// kubectl's complaint when it logs in with this identity.
fn refused(cluster: &Cluster, name: &str, identity: &Identity) -> String {
    let ca = fs::read_to_string(cluster.data_dir().join("server/pki/ca.crt")).unwrap();
    let path: PathBuf = cluster.dir.path().join(name);
    fs::write(&path, kubeconfig("umiak", SERVER, &ca, name, identity)).unwrap();
    let output = cluster.kubectl().arg("get").arg("pods").env("KUBECONFIG", path).output().unwrap();
    assert!(!output.status.success(), "{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn strangers_are_unauthorized_and_users_without_rights_forbidden() {
    let cluster = Cluster::start();
    let other = Ca::open(&cluster.dir.path().join("other-ca")).unwrap();
    let stranger = other.client("umiak-admin", &["system:masters"]).unwrap();
    let told = refused(&cluster, "stranger", &stranger);
    assert!(told.contains("Unauthorized") || told.contains("must be logged in"), "{told}");

    let ours = Ca::open(&cluster.data_dir().join("server/pki")).unwrap();
    let told = refused(&cluster, "bob", &ours.client("bob", &["developers"]).unwrap());
    assert!(told.contains("pods is forbidden: User \"bob\" cannot list resource \"pods\""), "{told}");

    let anonymous = common::run(cluster.netns.command("curl").args(["-sk", &format!("{SERVER}/api/v1/pods")]));
    assert!(anonymous.contains("\"code\":401") || anonymous.contains("\"code\": 401"), "{anonymous}");
    cluster.finish();
}

#[test]
fn what_is_secret_is_readable_by_root_alone() {
    let cluster = Cluster::start();
    let data = cluster.data_dir();
    let mode = |path: &str| fs::metadata(data.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    for file in ["admin.kubeconfig", "server/pki/ca.key", "server/umiak.db"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    cluster.finish();
}
