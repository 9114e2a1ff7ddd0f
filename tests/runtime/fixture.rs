//! A runtime of its own for each test.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use umiak::runtime::*;

/// A runtime of its own with an image made of busybox; everything is gone when it is dropped.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    cgroup: String,
}

impl Fixture {
    pub(crate) fn new(name: &str) -> Self {
        // The path is deeper than a socket address may be long.
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        for part in ["bin", "etc", "tmp", "data"] {
            fs::create_dir_all(layer.join(part)).unwrap();
        }
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "sleep", "id", "ls", "hostname", "stty", "tty", "kill", "mount", "touch", "yes",
            "head", "dd", "env", "readlink", "grep", "mknod", "ip", "true", "wc", "pwd", "rm", "unshare", "uname",
            "tr", "md5sum", "ps", "chmod", "mkdir",
        ] {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
            .unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:2000:app\n").unwrap();
        fs::write(layer.join("bin/noexec"), "x").unwrap();
        symlink("/run/nothing/resolv.conf", layer.join("etc/resolv.conf")).unwrap();
        let cgroup = format!("/umiak-test-{}-{name}", std::process::id());
        let state_dir = dir.path().join("a-rather-long-directory-name-".repeat(4)).join("pods");
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_umiak"));
        let runtime = Runtime::new(RuntimeConfig { state_dir, cgroup_root: cgroup.clone(), exe }).unwrap();
        Self { dir, runtime, cgroup }
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub(crate) async fn sandbox(&self, uid: &str) -> Sandbox {
        let config = SandboxConfig { uid: uid.into(), hostname: "pod-name".into(), ..SandboxConfig::default() };
        self.runtime.create_sandbox(&config).await.unwrap()
    }

    pub(crate) fn container(&self, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            layers: vec![self.layer()],
            args: args.iter().map(|a| a.to_string()).collect(),
            log: Some(LogConfig::new(self.log(name))),
            ..ContainerConfig::default()
        }
    }

    pub(crate) fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        self.container(name, &["sh", "-c", script])
    }

    /// Runs a container to its end; gives its exit and its output.
    pub(crate) async fn run(&self, sandbox: &Sandbox, config: &ContainerConfig) -> (Exit, String) {
        sandbox.create_container(config).await.unwrap();
        sandbox.start(&config.id()).await.unwrap();
        let exit = exit_of(sandbox, &config.id()).await;
        (exit, output(&self.log(&config.name)))
    }

    pub(crate) fn is_clean(&self) {
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
            assert!(
                !cgroups.lines().any(|l| l.contains(&self.cgroup) && !l.ends_with(" (deleted)")),
                "{:?}: {cgroups}",
                process.path()
            );
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
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), nix::sys::signal::SIGKILL)
                        .ok();
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
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().is_dir())
            .for_each(|e| walk(&e.path(), found));
    }
}

pub(crate) async fn exit_of(sandbox: &Sandbox, id: &ContainerId) -> Exit {
    let mut state = sandbox.state();
    let exited = state.wait_for(|s| s.containers.get(id).is_some_and(|c| c.exit().is_some()));
    let state = tokio::time::timeout(Duration::from_secs(20), exited).await.expect("exit").unwrap();
    state.containers[id].exit().unwrap().clone()
}

/// The text of a CRI log.
pub(crate) fn output(log: &Path) -> String {
    let mut text = String::new();
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let mut fields = line.splitn(4, ' ');
        let (time, stream, tag, rest) =
            (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        assert!(time.len() == 30 && time.ends_with('Z'), "{line}");
        assert!(matches!(stream, "stdout" | "stderr"), "{line}");
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

pub(crate) async fn captured(sandbox: &Sandbox, id: &ContainerId, script: &str) -> ExecOutput {
    let args = ["sh", "-c", script].map(String::from);
    sandbox.exec_captured(id, &args, Capture { timeout: Duration::from_secs(20), limit: 1 << 16 }).await.unwrap()
}

pub(crate) fn sandbox_dir(fixture: &Fixture, uid: &str) -> PathBuf {
    let long = fs::read_dir(fixture.dir.path())
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("a-rather"));
    long.unwrap().path().join("pods").join(uid)
}
