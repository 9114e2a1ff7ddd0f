//! Pods on the real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use umiak::runtime::*;

/// A runtime of its own with an image made of busybox; everything is gone when it is dropped.
struct Fixture {
    dir: tempfile::TempDir,
    runtime: Runtime,
    cgroup: String,
}

impl Fixture {
    fn new(name: &str) -> Self {
        // The path is deeper than a socket address may be long.
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        for part in ["bin", "etc", "tmp", "data"] {
            fs::create_dir_all(layer.join(part)).unwrap();
        }
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "echo", "sleep", "id", "ls", "hostname", "stty", "tty", "kill", "mount", "touch", "yes", "head", "dd", "env", "readlink", "grep", "mknod", "ip", "true", "wc", "pwd", "rm", "unshare", "uname", "chmod", "mkdir"] {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n").unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:2000:app\n").unwrap();
        fs::write(layer.join("bin/noexec"), "x").unwrap();
        symlink("/run/nothing/resolv.conf", layer.join("etc/resolv.conf")).unwrap();
        let cgroup = format!("/umiak-test-{}-{name}", std::process::id());
        let state_dir = dir.path().join("a-rather-long-directory-name-".repeat(4)).join("pods");
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_umiak"));
        let runtime = Runtime::new(RuntimeConfig { state_dir, cgroup_root: cgroup.clone(), exe }).unwrap();
        Self { dir, runtime, cgroup }
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    async fn sandbox(&self, uid: &str) -> Sandbox {
        let config = SandboxConfig { uid: uid.into(), hostname: "pod-name".into(), ..SandboxConfig::default() };
        self.runtime.create_sandbox(&config).await.unwrap()
    }

    fn container(&self, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            layers: vec![self.layer()],
            args: args.iter().map(|a| a.to_string()).collect(),
            log: Some(LogConfig::new(self.log(name))),
            ..ContainerConfig::default()
        }
    }

    fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        self.container(name, &["sh", "-c", script])
    }

    /// Runs a container to its end; gives its exit and its output.
    async fn run(&self, sandbox: &Sandbox, config: &ContainerConfig) -> (Exit, String) {
        sandbox.create_container(config).await.unwrap();
        sandbox.start(&config.id()).await.unwrap();
        let exit = exit_of(sandbox, &config.id()).await;
        (exit, output(&self.log(&config.name)))
    }

    fn is_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(here), "mounts left: {mounts}");
        for hierarchy in ["cpu", "memory", "pids", "devices", "systemd", "unified", ""] {
            let left = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.cgroup[1..]);
            let pods = fs::read_dir(left).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
            assert_eq!(pods.map(|e| e.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let cgroups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            assert!(!cgroups.contains(&self.cgroup), "{:?}: {cgroups}", process.path());
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // What a failed test left; the processes first.
        let mut roots = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup[1..])];
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            roots.push(hierarchy.path().join(&self.cgroup[1..]));
        }
        let mut left = Vec::new();
        roots.iter().for_each(|r| walk(r, &mut left));
        for round in 0..100 {
            for cgroup in &left {
                for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), nix::sys::signal::SIGKILL).ok();
                }
            }
            if left.iter().rev().filter(|c| fs::remove_dir(c).is_err() && c.exists()).count() == 0 || round == 99 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    if directory.is_dir() {
        found.push(directory.to_owned());
        fs::read_dir(directory).into_iter().flatten().flatten().filter(|e| e.path().is_dir()).for_each(|e| walk(&e.path(), found));
    }
}

async fn exit_of(sandbox: &Sandbox, id: &ContainerId) -> Exit {
    let mut state = sandbox.state();
    let exited = state.wait_for(|s| s.containers.get(id).is_some_and(|c| c.exit().is_some()));
    let state = tokio::time::timeout(Duration::from_secs(20), exited).await.expect("exit").unwrap();
    state.containers[id].exit().unwrap().clone()
}

/// The text of a CRI log.
fn output(log: &Path) -> String {
    let mut text = String::new();
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let mut fields = line.splitn(4, ' ');
        let (time, stream, tag, rest) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        assert!(time.len() == 30 && time.ends_with('Z'), "{line}");
        assert!(matches!(stream, "stdout" | "stderr"), "{line}");
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

async fn captured(sandbox: &Sandbox, id: &ContainerId, script: &str) -> ExecOutput {
    let args = ["sh", "-c", script].map(String::from);
    sandbox.exec_captured(id, &args, Capture { timeout: Duration::from_secs(20), limit: 1 << 16 }).await.unwrap()
}

#[tokio::test]
async fn a_container_runs_logs_and_ends() {
    let fixture = Fixture::new("basic");
    let sandbox = fixture.sandbox("uid-1").await;
    let script = "echo pid $$; hostname; id -u; pwd; echo oops >&2; printf part; readlink /proc/self/ns/net; exit 3";
    let (exit, output) = fixture.run(&sandbox, &fixture.shell("main", script)).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false), "{exit:?} {output}");
    assert!(exit.started_at > 0 && exit.finished_at >= exit.started_at);
    let netns = fs::read_link(sandbox.netns()).unwrap();
    assert_ne!(netns, fs::read_link("/proc/self/ns/net").unwrap());
    for expected in ["pid 1\n", "pod-name\n", "\n0\n", "\n/\n", "oops\n", "part", netns.to_str().unwrap()] {
        assert!(output.contains(expected), "{expected:?} in {output:?}");
    }
    let id = ContainerId { name: "main".into(), attempt: 0 };
    assert!(matches!(sandbox.start(&id).await, Err(Error::WrongState { .. })));
    sandbox.remove_container(&id).await.unwrap();
    sandbox.remove_container(&id).await.unwrap();
    assert!(sandbox.state().borrow().containers.is_empty());
    sandbox.destroy().await.unwrap();
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}
