//! A cluster whose nodes come by a broker of somebody else, with the files of `configs/`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::fleet::{Agent, Lan};
use common::{Cluster, images, run};

const HOST: &str = "192.168.77.1";

struct Mosquitto(Child);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Mosquitto {
    /// As configs/mosquitto.conf says, but for its place.
    fn start(cluster: &Cluster) -> Self {
        let here = cluster.dir.path().join("mosquitto");
        let issue = |out: &Path, host: &str| {
            let mut command = cluster.umiak();
            command.args(["broker", "certificate", "--host", host, "--out"]).arg(out);
            command.arg("--data-dir").arg(cluster.data_dir());
            command
        };
        run(&mut issue(&here.join("certs"), HOST));
        let refused = issue(&here, "umiak-server").output().unwrap();
        assert!(!refused.status.success(), "a broker got the name of the server");
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        for acl in ["mosquitto.acl", "mosquitto-join.acl"] {
            std::fs::copy(configs.join(acl), here.join(acl)).unwrap();
        }
        let conf = std::fs::read_to_string(configs.join("mosquitto.conf")).unwrap();
        // It cannot read the directory as another user.
        let conf = format!("user root\n{}", conf.replace("/etc/mosquitto", here.to_str().unwrap()));
        std::fs::write(here.join("mosquitto.conf"), conf).unwrap();
        let mut command = cluster.netns.command("/usr/sbin/mosquitto");
        command.arg("-c").arg(here.join("mosquitto.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe. It ends the broker with the test.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        Self(command.spawn().expect("no Mosquitto: `tests/setup.sh tests` installs it"))
    }
}

#[test]
fn boards_come_by_mosquitto() {
    let mut lan = Lan::new();
    let mut cluster = Cluster::stopped();
    lan.plug(&cluster.netns);
    cluster.server_args.extend(["--broker-url", "mqtts://192.168.77.1:8883"]);
    cluster.start_daemon();
    let broker = Mosquitto::start(&cluster);
    // What a board says before the server is there, nobody hears.
    cluster.until_logged("connected to the broker");
    let mut agent = Agent::new(&mut lan, "pi-1");
    agent.start(&["--token", &cluster.token(&[])]);
    cluster.until_node("pi-1", "True");
    agent.import(&images::archive(agent.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: pi-1, terminationGracePeriodSeconds: 0, \
         containers: [{name: c, image: busybox, command: [sh, -c, 'echo I am here; sleep 1000']}]}}",
    );
    cluster.wait_ready("a");
    assert_eq!(cluster.k("logs a"), "I am here\n");
    assert_eq!(cluster.k("exec a -- echo hello"), "hello\n");

    // The broker goes and comes back: so does the node.
    drop(broker);
    cluster.until_node("pi-1", "Unknown");
    let broker = Mosquitto::start(&cluster);
    cluster.until_node("pi-1", "True");
    assert_eq!(cluster.k("exec a -- echo hello"), "hello\n");

    // A node that is removed finds nobody, though the broker lets it in.
    cluster.k("delete node pi-1");
    agent.until_logged("the server has removed this node");
    assert_eq!(cluster.k("get nodes -o name"), "node/board\n");
    agent.finish();
    drop(broker);
    cluster.finish();
}

#[test]
fn a_certificate_for_a_broker_needs_a_server() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = Command::new(common::binary());
    command.args(["broker", "certificate", "--host", "h", "--out"]).arg(nowhere.path().join("out"));
    let output = command.arg("--data-dir").arg(nowhere.path()).output().unwrap();
    assert!(!output.status.success());
    assert!(common::text(&output.stderr).contains("is not the data directory of a server"));
    assert!(!nowhere.path().join("server").exists(), "no CA was made on the way");
}
