//! Making and starting a container, beside crun and docker with the same file system and program.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use umiak::runtime::{ContainerConfig, Mount, Runtime, RuntimeConfig, SandboxConfig};

use crate::common::{self, run};
use crate::docker::Docker;
use crate::table;

const STARTS: usize = 50;

/// On a thread of its own, in a mount namespace of its own: crun takes no hybrid of cgroup v1 and v2, which is what
/// some hosts have; there the v2 half, which has no controllers, is hidden from both runtimes.
pub fn measure() {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None).unwrap();
        if Path::new("/sys/fs/cgroup/unified").exists() {
            umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH).ok();
        }
        compare();
    })
    .join()
    .unwrap();
}

fn compare() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rootfs");
    for part in ["bin", "h", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    let host = dir.path().join("h");
    fs::create_dir(&host).unwrap();
    nix::unistd::mkfifo(&host.join("fifo"), Mode::S_IRWXU).unwrap();

    let how =
        "median of 50, from the call to the first line of its shell, runs alternate; ours with overlay and seccomp";
    let (mut ours, mut cruns) = (Vec::new(), Vec::new());
    let umiak = Umiak::new(dir.path(), &root, &host);
    let crun = crun_bundle(dir.path(), &root, &host);
    for attempt in 0..STARTS {
        ours.push(umiak.start(attempt as u32, &host));
        cruns.extend(crun.as_deref().and_then(|bundle| ran(&host, crun_run(bundle, attempt))));
    }
    umiak.end();
    let ours = table::median(ours);
    match cruns.len() {
        STARTS => {
            let crun = table::median(cruns);
            table::at_most("container create + start (promised: as crun)", "ms", crun, ours, how);
            table::plain("the same by crun run", "ms", crun, how);
        }
        _ => {
            table::plain("container create + start", "ms", ours, how);
            table::missing("the same by crun run", "", "crun is not installed, or fails here");
        }
    }
    // Apart: it tidies up when its client has long gone.
    let docker = Docker::start(dir.path(), &root);
    let dockers: Vec<f64> =
        docker.iter().flat_map(|d| (0..STARTS).filter_map(|_| ran(&host, d.run(&host, &SCRIPT)))).collect();
    match dockers.len() {
        STARTS => table::plain("the same by docker run", "ms", table::median(dockers), "docker.io, no network"),
        _ => table::missing("the same by docker run", "", "docker.io is not installed, or fails here"),
    }
}

/// Milliseconds from calling `start` until somebody wrote to the FIFO; `None` after 10 s.
fn until_written(host: &Path, start: impl FnOnce()) -> Option<f64> {
    // For both directions: such an open does not wait, and there is no end of file.
    let mut fifo = File::options().read(true).write(true).open(host.join("fifo")).unwrap();
    let written = std::thread::spawn(move || {
        let ready = poll(&mut [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)], 10_000_u16).unwrap();
        let now = Instant::now();
        (ready > 0).then(|| fifo.read(&mut [0; 16]).map(|_| now).unwrap())
    });
    // The thread is to wait already.
    std::thread::sleep(Duration::from_millis(5));
    let began = Instant::now();
    start();
    written.join().unwrap().map(|now| now.duration_since(began).as_secs_f64() * 1e3)
}

const SCRIPT: [&str; 3] = ["sh", "-c", "echo >/h/fifo"];

struct Umiak {
    tokio: tokio::runtime::Runtime,
    runtime: Runtime,
    sandbox: umiak::runtime::Sandbox,
    config: ContainerConfig,
}

impl Umiak {
    fn new(dir: &Path, root: &Path, host: &Path) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = RuntimeConfig {
            state_dir: dir.join("pods"),
            cgroup_root: format!("/umiak-bench-{}", std::process::id()),
            exe: common::binary(),
        };
        let (runtime, sandbox) = tokio.block_on(async {
            let runtime = Runtime::new(config).unwrap();
            let pod = SandboxConfig { uid: "bench".into(), hostname: "bench".into(), ..SandboxConfig::default() };
            let sandbox = runtime.create_sandbox(&pod).await.unwrap();
            (runtime, sandbox)
        });
        let config = ContainerConfig {
            name: "c".into(),
            layers: vec![root.to_owned()],
            args: SCRIPT.map(String::from).to_vec(),
            mounts: vec![Mount::bind(host, "/h")],
            ..ContainerConfig::default()
        };
        Self { tokio, runtime, sandbox, config }
    }

    fn start(&self, attempt: u32, host: &Path) -> f64 {
        let config = ContainerConfig { attempt, ..self.config.clone() };
        let id = config.id();
        let took = until_written(host, || {
            self.tokio.block_on(async {
                self.sandbox.create_container(&config).await.unwrap();
                self.sandbox.start(&id).await.unwrap();
            });
        });
        self.tokio.block_on(async {
            let mut state = self.sandbox.state();
            state.wait_for(|s| s.containers.get(&id).is_some_and(|c| c.exit().is_some())).await.unwrap();
            self.sandbox.remove_container(&id).await.unwrap();
        });
        took.expect("the container did not write")
    }

    fn end(self) {
        self.tokio.block_on(self.runtime.destroy()).unwrap();
    }
}

fn crun_bundle(dir: &Path, root: &Path, host: &Path) -> Option<PathBuf> {
    let bundle = dir.join("bundle");
    fs::create_dir(&bundle).unwrap();
    Command::new("crun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    run(Command::new("crun").arg("spec").current_dir(&bundle));
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["root"]["path"] = root.to_str().unwrap().into();
    spec["process"]["args"] = serde_json::json!(SCRIPT);
    spec["process"]["terminal"] = false.into();
    spec["process"]["rlimits"] = serde_json::json!([]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(serde_json::json!({"destination": "/h", "source": host, "type": "bind", "options": ["bind"]}));
    fs::write(&config, spec.to_string()).unwrap();
    Some(bundle)
}

fn crun_run(bundle: &Path, attempt: usize) -> Command {
    let mut command = Command::new("crun");
    command.args(["run", "-b"]).arg(bundle).arg(format!("umiak-bench-{}-{attempt}", std::process::id()));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Milliseconds from a command's start until its container wrote to the FIFO.
fn ran(host: &Path, mut command: Command) -> Option<f64> {
    let mut child = None;
    let took = until_written(host, || child = command.spawn().ok());
    child?.wait().ok()?.success().then_some(took)?
}
