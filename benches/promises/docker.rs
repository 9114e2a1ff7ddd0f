//! `docker run`, where Debian's docker.io is installed: a daemon of its own, without a network.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::run;

const IMAGE: &str = "bench";
/// How long its daemon may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon; ends with this.
pub struct Docker {
    socket: PathBuf,
    daemon: Child,
}

impl Docker {
    /// Starts the daemon and makes an image of `root`; `None` where there is no docker, or it does not run here.
    pub fn start(dir: &Path, root: &Path) -> Option<Self> {
        let dir = dir.join("docker");
        let socket = dir.join("socket");
        let mut command = Command::new("dockerd");
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--data-root"]).arg(dir.join("data"));
        command.arg("--exec-root").arg(dir.join("exec")).arg("--pidfile").arg(dir.join("pid"));
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        let daemon = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let docker = Self { socket, daemon };
        let began = Instant::now();
        while !docker.client(&["info"]).status().ok()?.success() {
            if began.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let archive = dir.join("root.tar");
        run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."));
        let imported = docker.client(&["import", archive.to_str()?, IMAGE]).status().ok()?;
        imported.success().then_some(docker)
    }

    /// A command that runs a program in a new container, with `host` at /h.
    pub fn run(&self, host: &Path, program: &[&str]) -> Command {
        let volume = format!("{}:/h", host.display());
        let mut command = self.client(&["run", "--rm", "--network=none", "--volume", &volume, IMAGE]);
        command.args(program);
        command
    }

    fn client(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).args(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It takes its containerd along when it is asked to end.
        kill(Pid::from_raw(self.daemon.id().cast_signed()), Signal::SIGTERM).ok();
        self.daemon.wait().ok();
    }
}
