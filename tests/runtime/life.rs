//! From creation to removal: start, exit, logs, exec, attach, a new daemon.

use std::{fs, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use umiak::runtime::*;

use crate::fixture::{Fixture, captured, exit_of, output, sandbox_dir};

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
    let at_once = Capture { timeout: Duration::from_micros(100), limit: 100 };
    for _ in 0..5 {
        let out = sandbox.exec_captured(&id, &args("sleep 501"), at_once).await.unwrap();
        assert_eq!(out.code, None);
    }
    let long = Capture { timeout: Duration::from_secs(20), limit: 100 };
    let out = sandbox.exec_captured(&id, &args("yes | head -c 300000; exit 2"), long).await.unwrap();
    assert_eq!((out.code, out.output.len()), (Some(2), 100));
    // A process left behind that holds the pipes does not hold the probe.
    let out = sandbox.exec_captured(&id, &args("sleep 900 & echo fine"), long).await.unwrap();
    assert_eq!((out.code, &*out.output), (Some(0), &b"fine\n"[..]));
    // Those that were still being made are killed once they are there.
    let gone = async {
        while captured(&sandbox, &id, "ps | grep -E '[s]leep 50[01]'").await.code != Some(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("killed with its group");
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
}

#[tokio::test]
async fn commands_that_cannot_start_say_why() {
    let fixture = Fixture::new("start-errors");
    let sandbox = fixture.sandbox("uid-1").await;
    let mut deep = fixture.container("cwd", &["true"]);
    deep.cwd = "/etc/passwd/x".into();
    let mut leak = fixture.container("leak", &["true"]);
    leak.cwd = "/proc/self/fd/7".into();
    // What a killed daemon's failed creation may leave is no obstacle.
    fs::create_dir_all(sandbox_dir(&fixture, "uid-1").join("containers/nope-0/upper/x")).unwrap();
    for (config, code, reason) in [
        (fixture.container("nope", &["nope"]), 127, "exec: \"nope\": executable file not found in $PATH"),
        (fixture.container("perm", &["noexec"]), 126, "exec: \"noexec\": permission denied"),
        (deep, 128, "change to the working directory \"/etc/passwd/x\": not a directory"),
        (fixture.container("empty", &[]), 128, "no command specified"),
        (leak, 128, "change to the working directory \"/proc/self/fd/7\": no such file or directory"),
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
    assert_eq!(fs::read_dir(sandbox_dir(&fixture, "uid-1").join("containers")).unwrap().count(), 5);
    sandbox.destroy().await.unwrap();
    fixture.is_clean();
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

    // Two connections do not fight over a shim: the last one has it.
    let again = fixture.runtime.adopt().await.unwrap().live.remove(0);
    let mut old = sandbox.state();
    tokio::time::timeout(Duration::from_secs(10), old.wait_for(|s| !s.alive)).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(again.state().borrow().alive);
    let sandbox = again;

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
