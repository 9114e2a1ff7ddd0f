//! What a container sees, may do and may use.

use std::{fs, os::unix::fs::symlink};

use umiak::runtime::*;

use crate::fixture::{Fixture, captured, exit_of, output};

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
    let profile = fixture.dir.path().join("profile.json");
    let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122 }] }"#;
    fs::write(&profile, text).unwrap();
    let mut config = fixture.shell("localhost", "mkdir /x; grep Seccomp: /proc/self/status; exec sleep 1000");
    config.security.seccomp = Seccomp::Localhost(profile);
    sandbox.create_container(&config).await.unwrap();
    sandbox.start(&config.id()).await.unwrap();
    let out = captured(&sandbox, &config.id(), "mkdir /y; grep -E 'Seccomp:|CapEff' /proc/self/status").await;
    let text = String::from_utf8(out.output).unwrap();
    for expected in ["quota exceeded", "Seccomp:\t2", "CapEff:\t00000000a80425fb"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    assert!(output(&fixture.log("localhost")).contains("quota exceeded"));
    let mut config = fixture.shell("privileged", "grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /tmp/m; mount -t tmpfs x /tmp/m && echo mounted; ls /dev/mem /dev/kmsg; head -c 1 /dev/kmsg >/dev/null && echo opened");
    config.security.privileged = true;
    let (_, text) = fixture.run(&sandbox, &config).await;
    for expected in ["Seccomp:\t0", "mounted\n", "/dev/kmsg"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    let mut config = fixture
        .shell("device", "for d in /dev /data; do ls -l $d/other; : < $d/other && echo opened; (: > $d/other); done");
    let device = |path: &str| Device { host: "/dev/loop-control".into(), path: path.into(), access: "r".into() };
    config.devices = vec![device("/dev/other"), device("/data/other")];
    let (_, text) = fixture.run(&sandbox, &config).await;
    for (expected, times) in [("10, 237", 2), ("opened\n", 2), ("not permitted", 2)] {
        assert_eq!(text.matches(expected).count(), times, "{expected:?} in {text:?}");
    }
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
