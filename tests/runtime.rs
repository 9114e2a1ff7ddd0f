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

#[tokio::test]
async fn exec_has_streams_terminal_and_exit_code() {
    let fixture = Fixture::new("exec");
    let sandbox = fixture.sandbox("uid-1").await;
    let mut config = fixture.container("main", &["sleep", "1000"]);
    config.env = vec!["WHO=me".into()];
    config.cwd = "/data/new".into();
    config.user = User { image: "app".into(), ..User::default() };
    sandbox.create_container(&config).await.unwrap();
    let id = config.id();
    let early = sandbox.exec(&id, &ExecConfig { args: vec!["true".into()], ..ExecConfig::default() }).await;
    assert!(matches!(early, Err(Error::WrongState { .. })), "{early:?}");
    sandbox.start(&id).await.unwrap();

    let out = captured(&sandbox, &id, "id; pwd; echo $WHO $HOME >&2; grep CapEff /proc/self/status; cat /proc/1/cgroup | md5sum; cat /proc/self/cgroup | md5sum; exit 7").await;
    let text = String::from_utf8(out.output).unwrap();
    assert_eq!(out.code, Some(7), "{text}");
    for expected in [
        "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)",
        "/data/new\n",
        "me /home/app\n",
        "0000000000000000",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }

    let exec = ExecConfig {
        args: vec!["sh".into(), "-c".into(), "cat; echo done >&2; exit 4".into()],
        stdin: true,
        ..ExecConfig::default()
    };
    let mut cat = sandbox.exec(&id, &exec).await.unwrap();
    let mut stdin = tokio::net::unix::pipe::Sender::from_owned_fd(cat.streams.stdin.take().unwrap()).unwrap();
    let mut stdout = tokio::net::unix::pipe::Receiver::from_owned_fd(cat.streams.stdout.take().unwrap()).unwrap();
    let mut stderr = tokio::net::unix::pipe::Receiver::from_owned_fd(cat.streams.stderr.take().unwrap()).unwrap();
    let big = vec![b'x'; 1 << 20];
    let write = async {
        stdin.write_all(&big).await.unwrap();
        drop(stdin);
    };
    let mut echoed = Vec::new();
    let (_, read) = tokio::join!(write, stdout.read_to_end(&mut echoed));
    read.unwrap();
    assert_eq!(echoed.len(), big.len());
    let mut errors = String::new();
    stderr.read_to_string(&mut errors).await.unwrap();
    assert_eq!(errors, "done\n");
    assert_eq!(cat.wait().await.unwrap(), 4);

    let exec = ExecConfig {
        args: vec!["sh".into(), "-c".into(), "tty; stty size; echo $TERM; read x; stty size".into()],
        tty: true,
        stdin: true,
        ..ExecConfig::default()
    };
    let mut shell = sandbox.exec(&id, &exec).await.unwrap();
    let master = shell.streams.tty.take().unwrap();
    resize(&master, 33, 101).unwrap();
    let master = fs::File::from(master);
    let text = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let (mut text, mut buffer) = (String::new(), [0; 1024]);
        (&master).write_all(b"\n").unwrap();
        loop {
            match (&master).read(&mut buffer) {
                Ok(0) => return text,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
                Err(_) => return text,
            }
        }
    });
    let text = text.await.unwrap();
    assert!(text.contains("/dev/pts/0") && text.contains("33 101") && text.contains("xterm"), "{text:?}");
    assert_eq!(shell.wait().await.unwrap(), 0);

    for (args, code, reason) in [
        (["nope", ""], 127, "exec: \"nope\": executable file not found in $PATH"),
        (["/bin/nope", ""], 127, "exec: \"/bin/nope\": stat /bin/nope: no such file or directory"),
        (["noexec", ""], 126, "exec: \"noexec\": permission denied"),
    ] {
        let exec = ExecConfig { args: args.map(String::from).to_vec(), ..ExecConfig::default() };
        let Err(Error::Start { exit_code, reason: said, .. }) = sandbox.exec(&id, &exec).await else {
            panic!("{args:?}")
        };
        assert_eq!((exit_code, &*said), (code, reason));
    }
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn captured_execs_are_bounded() {
    let fixture = Fixture::new("probe");
    let sandbox = fixture.sandbox("uid-1").await;
    let config = fixture.container("main", &["sleep", "1000"]);
    let id = config.id();
    sandbox.create_container(&config).await.unwrap();
    sandbox.start(&id).await.unwrap();
    let args = |script: &str| ["sh", "-c", script].map(String::from);
    let short = Capture { timeout: Duration::from_millis(300), limit: 100 };
    let out = sandbox.exec_captured(&id, &args("echo begin; sleep 500"), short).await.unwrap();
    assert_eq!((out.code, &*out.output), (None, &b"begin\n"[..]));
    let long = Capture { timeout: Duration::from_secs(20), limit: 100 };
    let out = sandbox.exec_captured(&id, &args("yes | head -c 300000; exit 2"), long).await.unwrap();
    assert_eq!((out.code, out.output.len()), (Some(2), 100));
    // A process left behind that holds the pipes does not hold the probe.
    let out = sandbox.exec_captured(&id, &args("sleep 900 & echo fine"), long).await.unwrap();
    assert_eq!((out.code, &*out.output), (Some(0), &b"fine\n"[..]));
    let out = captured(&sandbox, &id, "ps").await;
    assert!(!String::from_utf8_lossy(&out.output).contains("sleep 500"), "killed with its group");
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn commands_that_cannot_start_say_why() {
    let fixture = Fixture::new("start-errors");
    let sandbox = fixture.sandbox("uid-1").await;
    let mut deep = fixture.container("cwd", &["true"]);
    deep.cwd = "/etc/passwd/x".into();
    for (config, code, reason) in [
        (fixture.container("nope", &["nope"]), 127, "exec: \"nope\": executable file not found in $PATH"),
        (fixture.container("perm", &["noexec"]), 126, "exec: \"noexec\": permission denied"),
        (deep, 128, "change to the working directory \"/etc/passwd/x\": not a directory"),
        (fixture.container("empty", &[]), 128, "no command specified"),
    ] {
        sandbox.create_container(&config).await.unwrap();
        let Err(Error::Start { exit_code, reason: said, .. }) = sandbox.start(&config.id()).await else {
            panic!("{reason}")
        };
        assert_eq!((exit_code, &*said), (code, reason));
        let exit = exit_of(&sandbox, &config.id()).await;
        assert_eq!((exit.code, exit.start_error.as_deref(), exit.started_at), (128, Some(reason), 0));
    }
    let mut config = fixture.container("user", &["true"]);
    config.user.image = "nobody".into();
    let error = sandbox.create_container(&config).await.unwrap_err().to_string();
    assert_eq!(error, "user: no user \"nobody\" in the image's /etc/passwd");
    let mut config = fixture.container("mount", &["true"]);
    config.mounts = vec![Mount::bind("/does/not/exist", "/data")];
    let error = sandbox.create_container(&config).await.unwrap_err().to_string();
    assert!(error.contains("open /does/not/exist"), "{error}");
    let config = ContainerConfig { layers: vec!["/does/not/exist".into()], ..fixture.container("layer", &["true"]) };
    let error = sandbox.create_container(&config).await.unwrap_err().to_string();
    assert!(error.contains("stat layer /does/not/exist"), "{error}");
    // Nothing is left of them, and they can be made again.
    assert_eq!(fs::read_dir(sandbox_dir(&fixture, "uid-1").join("containers")).unwrap().count(), 4);
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

fn sandbox_dir(fixture: &Fixture, uid: &str) -> PathBuf {
    let long = fs::read_dir(fixture.dir.path())
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("a-rather"));
    long.unwrap().path().join("pods").join(uid)
}

#[tokio::test]
async fn a_new_daemon_finds_what_runs_and_what_ended() {
    let fixture = Fixture::new("adopt");
    let sandbox = fixture.sandbox("uid-1").await;
    let stay = fixture.shell("stay", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    let go = fixture.shell("go", "sleep 0.3; exit 9");
    for config in [&stay, &go] {
        sandbox.create_container(config).await.unwrap();
        sandbox.start(&config.id()).await.unwrap();
    }
    let before = sandbox.state().borrow().containers[&stay.id()].clone();
    let pid = sandbox.pid();
    drop(sandbox);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let adopted = fixture.runtime.adopt().await.unwrap();
    assert!(adopted.dead.is_empty());
    let sandbox = adopted.live.into_iter().next().unwrap();
    assert_eq!((sandbox.uid(), sandbox.pid()), ("uid-1", pid));
    let state = sandbox.state().borrow().clone();
    assert!(state.alive);
    assert_eq!(state.containers[&stay.id()], before);
    assert_eq!(state.containers[&go.id()].exit().unwrap().code, 9);
    assert_eq!(captured(&sandbox, &stay.id(), "exit 5").await.code, Some(5));
    let lines: Vec<u32> = output(&fixture.log("stay")).lines().map(|l| l.parse().unwrap()).collect();
    assert!(lines.len() > 10 && lines.iter().zip(1..).all(|(a, b)| *a == b), "no line was lost");

    // A shim that is killed leaves its containers to be cleaned up.
    let mut watch = sandbox.state();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL).unwrap();
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|s| !s.alive)).await.unwrap().unwrap();
    assert!(matches!(sandbox.signal(&stay.id(), 15).await, Err(Error::ShimGone { .. })));
    let adopted = fixture.runtime.adopt().await.unwrap();
    assert!(adopted.live.is_empty());
    assert_eq!(adopted.dead[0].uid, "uid-1");
    assert_eq!(adopted.dead[0].exits.len(), 1);
    assert_eq!((&adopted.dead[0].exits[0].0, adopted.dead[0].exits[0].1.code), (&go.id(), 9));
    let config = SandboxConfig { uid: "uid-1".into(), ..SandboxConfig::default() };
    assert!(matches!(fixture.runtime.create_sandbox(&config).await, Err(Error::SandboxExists(_))));
    fixture.runtime.cleanup("uid-1").await.unwrap();
    fixture.runtime.cleanup("uid-1").await.unwrap();
    fixture.is_clean();
    fixture.runtime.create_sandbox(&config).await.unwrap().destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn volumes_and_roots() {
    let fixture = Fixture::new("volumes");
    let sandbox = fixture.sandbox("uid-1").await;
    let volume = fixture.dir.path().join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    fs::write(volume.join("file"), "hosts\n").unwrap();
    fs::write(volume.join("sub/inner"), "inner\n").unwrap();
    symlink("/etc", volume.join("escape")).unwrap();
    let sub = |path: &str| MountSource::Bind { source: volume.clone(), sub_path: Some(path.into()) };
    let mut config = fixture.shell("main", "exec 2>&1; cat /etc/resolv.conf /ro/file /sub/inner; touch /ro/x; touch /root.x; touch /new/y && echo new; mount | grep -c ' /scratch type tmpfs.*size=1024k'; touch /rw/made; ls -l /scratch -d; touch /dev/shm/shared; ls /run/nothing");
    config.security.readonly_root = true;
    config.mounts = vec![
        Mount::bind(volume.join("file"), "/etc/resolv.conf"),
        Mount { readonly: true, ..Mount::bind(&volume, "/ro") },
        Mount { source: sub("sub"), ..Mount::bind("", "/sub") },
        Mount { source: sub("a/b"), ..Mount::bind("", "/new") },
        Mount::bind(&volume, "/rw"),
        Mount { source: MountSource::Tmpfs { size: Some(1 << 20), mode: 0o1777 }, ..Mount::bind("", "/scratch") },
    ];
    let (exit, text) = fixture.run(&sandbox, &config).await;
    for expected in [
        "hosts\nhosts\ninner\n",
        "/ro/x: Read-only file system",
        "/root.x: Read-only file system",
        "new\n1\ndrwxrwxrwt",
        "resolv.conf\n",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text:?} ({exit:?})");
    }
    assert!(volume.join("a/b/y").exists() && volume.join("made").exists());
    assert!(!fixture.layer().join("run").exists(), "the image is untouched");
    // Shared memory is the pod's; a second container sees it.
    let (_, text) = fixture
        .run(&sandbox, &fixture.shell("second", "ls /dev/shm; touch /fine && echo fine; mount | grep ' / '"))
        .await;
    assert!(text.starts_with("shared\nfine\n"), "{text}");
    let mut config = fixture.shell("escape", "true");
    config.mounts = vec![Mount { source: sub("escape/passwd"), ..Mount::bind("", "/x") }];
    let error = sandbox.create_container(&config).await.unwrap_err().to_string();
    assert!(error.contains("open subPath"), "{error}");
    config.mounts = vec![Mount::bind(&volume, "/proc/x")];
    let error = sandbox.create_container(&config).await.unwrap_err().to_string();
    assert!(error.contains("/proc"), "{error}");
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn privileges() {
    let fixture = Fixture::new("privileges");
    let sandbox = fixture.sandbox("uid-1").await;
    let script = "grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; echo x > /proc/sys/kernel/panic; ls /proc/scsi; cat /dev/zero | head -c 1 | wc -c; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem; mkdir /tmp/m; mount -t tmpfs x /tmp/m; chmod 600 /dev/stdout; echo reopened > /dev/stdout";
    let (_, text) = fixture.run(&sandbox, &fixture.shell("plain", script)).await;
    for expected in [
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "Read-only file system",
        "/tmp/mem: Operation not permitted",
        "Operation not permitted",
        "reopened",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    let mut config = fixture.shell("user", &format!("{script}; head -c 1 /dev/shm/x; echo tty; id"));
    config.user = User { uid: Some(1000), groups: vec![7], ..User::default() };
    config.security = Security {
        drop: vec!["ALL".into()],
        add: vec!["NET_BIND_SERVICE".into()],
        no_new_privs: true,
        ..Security::default()
    };
    let (_, text) = fixture.run(&sandbox, &config).await;
    for expected in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "reopened",
        "groups=7,1001(app),2000(extra)",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    let mut config = fixture.shell("privileged", "grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /tmp/m; mount -t tmpfs x /tmp/m && echo mounted; ls /dev/mem /dev/kmsg; head -c 1 /dev/kmsg >/dev/null && echo opened");
    config.security.privileged = true;
    let (_, text) = fixture.run(&sandbox, &config).await;
    for expected in ["Seccomp:\t0", "mounted\n", "/dev/kmsg"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    let mut config = fixture.shell("device", "ls -l /dev/other; : < /dev/other && echo opened; : > /dev/other");
    config.devices = vec![Device { host: "/dev/loop-control".into(), path: "/dev/other".into(), access: "r".into() }];
    let (_, text) = fixture.run(&sandbox, &config).await;
    assert!(text.contains("10, 237") && text.contains("opened\n") && text.contains("not permitted"), "{text:?}");
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn limits() {
    let fixture = Fixture::new("limits");
    let resources = Resources {
        cpu_shares: Some(512),
        memory_limit: Some(256 << 20),
        pids_limit: Some(100),
        ..Resources::default()
    };
    let config = SandboxConfig { uid: "uid-1".into(), resources, ..SandboxConfig::default() };
    let sandbox = fixture.runtime.create_sandbox(&config).await.unwrap();
    let mut config = fixture.shell("oom", "sleep 0.1; x=$(head -c 100m /dev/zero | tr '\\0' x); echo survived");
    config.resources = Resources { memory_limit: Some(20 << 20), ..Resources::default() };
    let (exit, text) = fixture.run(&sandbox, &config).await;
    assert!(exit.oom_killed && exit.code != 0 && !text.contains("survived"), "{exit:?} {text}");

    let mut config = fixture.container("busy", &["sh", "-c", "while :; do :; done"]);
    config.resources = Resources { cpu_quota: Some(10_000), pids_limit: Some(5), ..Resources::default() };
    sandbox.create_container(&config).await.unwrap();
    let id = config.id();
    sandbox.start(&id).await.unwrap();
    let out = captured(&sandbox, &id, "for i in 1 2 3 4 5 6; do sleep 5 & done; echo all").await;
    assert!(!String::from_utf8_lossy(&out.output).contains("all"), "{out:?}");
    let stats = sandbox.stats(&id).unwrap();
    assert!(stats.cpu_ns > 0 && stats.memory_working_set > 0 && stats.pids >= 1, "{stats:?}");
    assert!(sandbox.pod_stats().unwrap().memory_usage >= stats.memory_working_set);
    sandbox.update_resources(&id, &Resources { memory_limit: Some(64 << 20), ..Resources::default() }).unwrap();
    sandbox.signal(&id, 15).await.unwrap();
    sandbox.signal(&id, 9).await.unwrap();
    let exit = exit_of(&sandbox, &id).await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    sandbox.signal(&id, 9).await.unwrap();
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn attach_joins_input_and_output() {
    let fixture = Fixture::new("attach");
    let sandbox = fixture.sandbox("uid-1").await;
    let mut config = fixture.shell("main", "while read line; do echo got $line; done; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    sandbox.create_container(&config).await.unwrap();
    let id = config.id();
    sandbox.start(&id).await.unwrap();
    let mut streams = sandbox.attach(&id, true).await.unwrap();
    let mut stdin = tokio::net::unix::pipe::Sender::from_owned_fd(streams.stdin.take().unwrap()).unwrap();
    let mut stdout = tokio::net::unix::pipe::Receiver::from_owned_fd(streams.stdout.take().unwrap()).unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "got one\ngot two\nend\n");
    assert_eq!(exit_of(&sandbox, &id).await.code, 0);
    assert_eq!(output(&fixture.log("main")), text);
    assert!(matches!(sandbox.attach(&id, false).await, Err(Error::WrongState { .. })));

    let mut config = fixture.shell("tty", "tty; read x; echo read $x; stty size");
    (config.stdin, config.tty) = (true, true);
    config.user = User { uid: Some(1000), ..User::default() };
    sandbox.create_container(&config).await.unwrap();
    sandbox.start(&config.id()).await.unwrap();
    let streams = sandbox.attach(&config.id(), true).await.unwrap();
    resize(streams.tty.as_ref().unwrap(), 12, 34).unwrap();
    nix::unistd::write(streams.stdin.as_ref().unwrap(), b"hello\n").unwrap();
    assert_eq!(exit_of(&sandbox, &config.id()).await.code, 0);
    let text = output(&fixture.log("tty"));
    for expected in ["/dev/pts/0", "read hello", "12 34"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn namespaces_as_asked() {
    let fixture = Fixture::new("namespaces");
    let mut config = SandboxConfig {
        uid: "host".into(),
        host_network: true,
        host_pid: true,
        host_ipc: true,
        ..SandboxConfig::default()
    };
    let host = fixture.runtime.create_sandbox(&config).await.unwrap();
    let script = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; sleep 1000 & exit 0";
    let (exit, text) = fixture.run(&host, &fixture.shell("host", script)).await;
    let own: String = ["net", "ipc", "uts", "pid"]
        .map(|n| format!("{}\n", fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display()))
        .concat();
    assert_eq!((exit.code, text), (0, own));
    config = SandboxConfig {
        uid: "shared".into(),
        share_process_namespace: true,
        hostname: "h".into(),
        ..SandboxConfig::default()
    };
    config.sysctls.insert("net.core.somaxconn".into(), "77".into());
    config.sysctls.insert("kernel.msgmax".into(), "9999".into());
    let shared = fixture.runtime.create_sandbox(&config).await.unwrap();
    let first = fixture.container("first", &["sleep", "1234"]);
    shared.create_container(&first).await.unwrap();
    shared.start(&first.id()).await.unwrap();
    let (_, text) = fixture
        .run(&shared, &fixture.shell("second", "ps; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax; ip a"))
        .await;
    for expected in ["sleep 1234", "77\n9999\n", "127.0.0.1"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    assert_eq!(captured(&shared, &first.id(), "kill -9 1; ps | grep -q 'sleep 1234'").await.code, Some(0));
    config.uid = "refused".into();
    config.sysctls.insert("kernel.panic".into(), "1".into());
    let error = fixture.runtime.create_sandbox(&config).await.unwrap_err().to_string();
    assert_eq!(error, "start the shim of pod refused: sysctl kernel.panic is not a namespaced sysctl");
    host.destroy().await.unwrap();
    shared.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn mounts_propagate_as_asked() {
    let fixture = Fixture::new("propagation");
    let sandbox = fixture.sandbox("uid-1").await;
    let shared = fixture.dir.path().join("shared");
    fs::create_dir_all(shared.join("in")).unwrap();
    fs::create_dir_all(shared.join("out")).unwrap();
    let none = None::<&str>;
    use nix::mount::{MsFlags, mount, umount};
    mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
    let mut config = fixture.container("main", &["sleep", "1000"]);
    config.security.privileged = true;
    let at = |path: &str, propagation| Mount { propagation, ..Mount::bind(&shared, path) };
    config.mounts = vec![
        at("/both", Propagation::Bidirectional),
        at("/one", Propagation::HostToContainer),
        at("/none", Propagation::Private),
    ];
    sandbox.create_container(&config).await.unwrap();
    sandbox.start(&config.id()).await.unwrap();
    mount(Some("x"), &shared.join("in"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(shared.join("in/seen"), "").unwrap();
    let out = captured(
        &sandbox,
        &config.id(),
        "ls /both/in /one/in /none/in; mount -t tmpfs y /both/out && touch /both/out/made",
    )
    .await;
    let made = shared.join("out/made").exists();
    for part in ["in", "out"] {
        umount(&shared.join(part)).unwrap();
    }
    umount(&shared).unwrap();
    assert_eq!(String::from_utf8_lossy(&out.output), "/both/in:\nseen\n\n/none/in:\n\n/one/in:\nseen\n");
    assert!(made);
    mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &shared, none, MsFlags::MS_PRIVATE, none).unwrap();
    let mut config = fixture.container("refused", &["true"]);
    config.mounts = vec![at("/both", Propagation::Bidirectional)];
    let refused = sandbox.create_container(&config).await;
    umount(&shared).unwrap();
    let error = refused.unwrap_err().to_string();
    assert!(error.starts_with("mountPropagation: Bidirectional, but "), "{error}");
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn removing_and_making_again() {
    let fixture = Fixture::new("remove");
    let sandbox = fixture.sandbox("uid-1").await;
    for attempt in 0..3 {
        let config = ContainerConfig { attempt, ..fixture.container("main", &["sleep", "1000"]) };
        sandbox.create_container(&config).await.unwrap();
        assert!(matches!(sandbox.create_container(&config).await, Err(Error::WrongState { .. })));
        if attempt != 1 {
            sandbox.start(&config.id()).await.unwrap();
        }
        sandbox.remove_container(&config.id()).await.unwrap();
    }
    let dir = sandbox_dir(&fixture, "uid-1").join("containers");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    let many: Vec<_> = (0..5).map(|n| fixture.shell(&format!("c{n}"), "exit 1")).collect();
    let all = many.iter().map(|config| async {
        sandbox.create_container(config).await.unwrap();
        sandbox.start(&config.id()).await.unwrap()
    });
    futures_util::future::join_all(all).await;
    for config in &many {
        assert_eq!(exit_of(&sandbox, &config.id()).await.code, 1);
    }
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}
