//! What the commands say, to whom, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, images, run, text};

/// A command of a data directory: its exit code, standard output and standard error.
fn umiak(cluster: &Cluster, words: &str) -> (i32, String, String) {
    let mut command = cluster.umiak();
    command.args(words.split(' ')).arg("--data-dir").arg(cluster.data_dir());
    let output = command.output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn images_are_listed_kept_verified_and_removed() {
    let cluster = Cluster::start();
    let done = |words: &str| {
        let (code, out, err) = umiak(&cluster, words);
        assert_eq!((code, err.as_str()), (0, ""), "{words}: {out}");
        out
    };
    let refused = |words: &str, why: &str| {
        let (code, out, err) = umiak(&cluster, words);
        assert!(code == 1 && err.contains(why), "{words}: {code} {out} {err}");
    };
    // No container of this machine, of whatever data directory, is of this image.
    let recipe = images::Recipe { names: &["mine:latest"], files: &[("etc/mine", "commands")], ..images::BUSYBOX };
    cluster.import(&images::archive(cluster.dir.path(), "mine.tar", &recipe));
    assert!(done("image ls").contains("docker.io/library/mine"), "{}", done("image ls"));
    done("image verify mine");
    done("image pin mine");
    refused("image rm mine", "pinned");
    done("image unpin mine");
    done("image rm mine");
    assert!(!done("image ls").contains("library/mine"));
    refused("image rm mine", "mine");
    refused("image verify mine", "mine");
    refused("image import /nowhere.tar", "/nowhere.tar");
    cluster.finish();
}

#[test]
fn a_server_is_told_of_by_its_commands() {
    let cluster = Cluster::start();
    let (code, kubeconfig, _) = umiak(&cluster, "kubeconfig");
    assert_eq!(code, 0);
    assert_eq!(kubeconfig, std::fs::read_to_string(cluster.data_dir().join("admin.kubeconfig")).unwrap());
    let (code, status, _) = umiak(&cluster, "status");
    assert!(code == 0 && status.contains("board"), "{status}");
    cluster.token(&["--ttl", "1h", "--server", "192.0.2.1"]);
    let (_, listed, _) = umiak(&cluster, "token ls");
    let id = listed.lines().nth(1).and_then(|l| l.split_whitespace().next()).expect(&listed).to_owned();
    assert_eq!(umiak(&cluster, &format!("token rm {id}")).0, 0);
    let (code, _, err) = umiak(&cluster, &format!("token rm {id}"));
    assert!(code == 1 && err.contains(&id), "{err}");
    let (code, _, err) = umiak(&cluster, "node revoke nobody");
    assert!(code == 1 && err.contains("nobody"), "{err}");
    let (code, _, err) = umiak(&cluster, "reset");
    assert!(code != 0 && err.contains("--yes"), "{err}");
    cluster.finish();

    let nowhere = Cluster::stopped();
    for words in ["kubeconfig", "status", "token ls", "node revoke pi"] {
        let (code, out, err) = umiak(&nowhere, words);
        assert!(code == 1 && out.is_empty() && err.lines().count() == 1, "{words}: {code} {out:?} {err:?}");
    }
    nowhere.finish();
}

#[test]
fn a_board_is_checked() {
    let cluster = Cluster::stopped();
    let output = cluster.umiak().args(["check", "--data-dir"]).arg(cluster.dir.path()).output().unwrap();
    let said = text(&output.stdout);
    for fact in ["privileges", "kernel", "cgroups", "memory cgroup", "overlay file system", "seccomp", "clock"] {
        assert!(said.lines().any(|l| l.contains(fact)), "{fact} is not in\n{said}");
    }
    // It fails if and only if no pod could run.
    assert_eq!(output.status.success(), !said.contains("MISSING"), "{said}");
    let help = run(cluster.umiak().arg("--help"));
    for command in ["server", "agent", "token", "image", "check", "demo", "reset", "status", "kubeconfig"] {
        assert!(help.contains(command), "{command} is not in\n{help}");
    }
    cluster.finish();
}
