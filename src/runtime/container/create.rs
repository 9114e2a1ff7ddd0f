//! A container made, then started: one helper from the first step to the last.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    mount::MsFlags,
    sched::{CloneFlags, setns},
};

use super::{
    super::{ContainerConfig, Error, Mount, Result, protocol, seccomp, sys},
    Pod, Profile, Report,
    capture::Capture,
    executor::{Command, Runner},
    mounts::{self, Ready},
    spec,
    user::{self, Identity},
};

/// Score of a container that shares the fate of an unprotected shim: above any other, below "kill me first".
const UNPROTECTED_OOM_SCORE: i32 = 900;

/// The ends of a new process's streams, or none on a terminal.
#[derive(Debug)]
pub(in crate::runtime) struct Stdio {
    pub(in crate::runtime) stdin: OwnedFd,
    pub(in crate::runtime) stdout: OwnedFd,
    pub(in crate::runtime) stderr: OwnedFd,
}

/// Gives the pipes to the container's user, who can then open /dev/stdout anew, as log files of many images are links to it.
pub(super) fn give_streams(stdio: &Stdio, identity: &Identity) {
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let fifo = nix::sys::stat::fstat(stream).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO);
        if fifo {
            // A container that cannot open them anew still has them.
            let _ = nix::unistd::fchown(stream, Some(identity.uid.into()), Some(identity.gid.into()));
        }
    }
}

/// The same for a terminal; its group stays the one devpts gives it.
pub(super) fn give_terminal(master: &OwnedFd, identity: &Identity) {
    use std::os::fd::FromRawFd;
    // SAFETY: takes a flags argument and returns a new descriptor or -1.
    let slave =
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if slave >= 0 {
        // SAFETY: the call has just returned this descriptor to us alone.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        // As above.
        let _ = nix::unistd::fchown(&slave, Some(identity.uid.into()), None);
    }
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a container, reports it on `control`, waits there for one packet and starts it. `status` is what
/// [`Runner::status`] says. The end of `control` instead of the packet ends the container.
pub(in crate::runtime) fn create(
    pod: &Pod,
    config: &ContainerConfig,
    stdio: Option<Stdio>,
    status: OwnedFd,
    control: &OwnedFd,
) -> Result<()> {
    let mut capture = Capture::start().map_err(|source| Error::File { op: "open", path: "pipe".into(), source })?;
    let mut volumes = Vec::from_iter(shared_memory(pod)?);
    let nodes = config.devices.iter().filter(|d| !spec::is_below_dev(d));
    let nodes = nodes.map(|d| Mount::bind(&d.host, &d.path));
    volumes.extend(mounts::open(&config.mounts.iter().cloned().chain(nodes).collect::<Vec<_>>())?);
    super::enter_private_mounts(pod)?;
    let root = mount_root(pod, config)?;
    let identity = user::resolve(&config.user, &root)?;
    let command = command(pod, config, &identity)?;
    if let Some(stdio) = &stdio {
        give_streams(stdio, &identity);
    }
    let spec = spec::build(pod, config, &identity, &command)?;
    let cgroup = pod.cgroup_of(&config.id());
    pod.cgroups.create(&cgroup)?;
    pod.cgroups.allow_devices(&cgroup, &spec::device_rules(config)?)?;
    set_oom_score(config.oom_score_adj)?;

    let (mut container, master) = build(pod, config, &spec, &command, stdio, &status)
        .map_err(|error| Error::Create { id: config.id(), reason: capture.first().unwrap_or(error) })?;
    drop(status);
    if let Some(master) = &master {
        give_terminal(master, &identity);
    }
    let Some(pid) = container.pid().map(|p| p.as_raw()) else {
        return Err(Error::Create { id: config.id(), reason: "no process".into() });
    };
    let finish = || -> Result<()> {
        // Not before: the making itself needs some memory, which must not count against a small limit.
        pod.cgroups.limit(&cgroup, &config.resources)?;
        pod.cgroups.kill_as_group(&cgroup)?;
        furnish(pid, volumes, config)
    };
    let result = finish().and_then(|()| report(pid, spec, command, identity, config, master, control));
    if result.is_err() {
        // SAFETY: sends a signal to the process just made, which is not reaped before its parent, the shim, sees it.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    result?;
    if !matches!(protocol::receive::<()>(control), Ok(Some(_))) {
        // SAFETY: as above; if the shim is gone, so is whoever could start this process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    } else {
        container
            .start()
            .map_err(|e| Error::Create { id: config.id(), reason: capture.first().unwrap_or(e.to_string()) })?;
    }
    Ok(())
}

/// The pod's shared memory as a mount, fetched from the namespace that keeps it.
fn shared_memory(pod: &Pod) -> Result<Option<Ready>> {
    let Some(keeper) = &pod.shm else {
        let host = sys::openat2(sys::CWD, "/dev/shm", libc::O_PATH, 0, 0).and_then(|d| sys::clone_tree(&d, c"", true));
        return Ok(host.ok().map(|tree| Ready::directory("/dev/shm", tree)));
    };
    let fail = |source: io::Error| Error::File { op: "open the shared memory of", path: pod.directory.clone(), source };
    let host = File::open("/proc/self/ns/mnt").map_err(fail)?;
    setns(keeper, CloneFlags::CLONE_NEWNS).map_err(|e| fail(e.into()))?;
    let tree = sys::clone_tree(sys::CWD, c"/", false);
    setns(&host, CloneFlags::CLONE_NEWNS).map_err(|e| fail(e.into()))?;
    Ok(Some(Ready::directory("/dev/shm", tree.map_err(fail)?)))
}

/// Stacks a writable layer on the image, in this helper's mount namespace.
fn mount_root(pod: &Pod, config: &ContainerConfig) -> Result<OwnedFd> {
    let directory = pod.directory_of(&config.id());
    let fail = |op: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { op, path, source }
    };
    let [upper, work, root] = ["upper", "work", "rootfs"].map(|name| directory.join(name));
    // The shim knows no such container: what is there was left by a creation that failed, when nobody was there to clean up.
    crate::files::remove_tree(&directory).map_err(fail("remove", &directory))?;
    super::make_directory(&directory)?;
    for part in [&upper, &work, &root] {
        super::make_directory(part)?;
    }
    let Some(top) = config.layers.first() else {
        return Err(Error::Invalid { field: "image".into(), reason: "has no layer".into() });
    };
    let like = fs::metadata(top).map_err(fail("stat layer", top))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(like.mode() & 0o7777))
        .map_err(fail("set mode of", &upper))?;
    std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid())).map_err(fail("change owner of", &upper))?;

    // By descriptor: paths may be too long for one page of options, or hold what separates these. A layer is named below
    // its parent's descriptor: the mount table then shows which layers are in use, and the image store keeps those.
    let open = |path: &Path| {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        sys::openat2(sys::CWD, path, flags, 0, 0).map_err(fail("open layer", path))
    };
    let parents = config.layers.iter().map(|l| open(l.parent().unwrap_or(l))).collect::<Result<Vec<_>>>()?;
    let name = |layer: &Path| layer.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lower: Vec<String> =
        parents.iter().zip(&config.layers).map(|(p, l)| format!("{}/{}", sys::fd_path(p), name(l))).collect();
    let lower = lower.join(":");
    let (upper, work) = (open(&upper)?, open(&work)?);
    // `volatile`: the layer does not survive a power cut anyway (a new attempt gets a new one), so spare the flash.
    let options =
        format!("lowerdir={lower},upperdir={},workdir={},volatile", sys::fd_path(&upper), sys::fd_path(&work));
    nix::mount::mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&*options))
        .map_err(|e| fail("mount an overlay at", &root)(e.into()))?;
    for part in ["dev", "proc", "sys"] {
        let path = root.join(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => continue,
            // A link here would have the runtime work on what it points to.
            Ok(_) => fs::remove_file(&path).map_err(fail("remove", &path))?,
            Err(_) => {}
        }
        super::make_directory(&path)?;
    }
    open(&root)
}

fn command(pod: &Pod, config: &ContainerConfig, identity: &Identity) -> Result<Command> {
    let capabilities = super::capabilities::of(&config.security)?;
    let filter = match config.security.privileged {
        true => Vec::new(),
        false => seccomp::compile(&config.security.seccomp, capabilities)?,
    };
    Ok(Command {
        args: config.args.clone(),
        env: environment(pod, config, identity),
        cwd: config.cwd.clone(),
        capabilities,
        no_new_privs: config.security.no_new_privs,
        filter,
    })
}

/// The environment, each name once, with what is expected to be there.
fn environment(pod: &Pod, config: &ContainerConfig, identity: &Identity) -> Vec<String> {
    let mut all = vec![PATH.to_owned(), format!("HOME={}", identity.home)];
    if !pod.config.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", pod.config.hostname));
    }
    if config.tty {
        all.push("TERM=xterm".into());
    }
    all.extend(config.env.iter().cloned());
    last_wins(all)
}

/// Keeps the last of the entries with the same name, at the place of the first.
pub(super) fn last_wins(entries: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(entries.len());
    let mut places = std::collections::HashMap::new();
    for entry in entries {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match places.get(&name) {
            Some(&place) => kept[place] = entry,
            None => {
                places.insert(name, kept.len());
                kept.push(entry);
            }
        }
    }
    kept
}

fn build(
    pod: &Pod,
    config: &ContainerConfig,
    spec: &serde_json::Value,
    command: &Command,
    stdio: Option<Stdio>,
    status: &OwnedFd,
) -> Result<(Container, Option<OwnedFd>), String> {
    let text = |e: &dyn std::error::Error| e.to_string();
    let bundle = pod.scratch().join("bundle");
    super::write_file(&bundle.join("config.json"), spec).map_err(|e| text(&e))?;
    let console = config.tty.then(|| Console::listen(pod)).transpose().map_err(|e| text(&e))?;
    let runner = Runner { command: command.clone(), status: status.as_raw_fd() };
    let mut builder = ContainerBuilder::new(config.id().to_string(), SyscallType::Linux)
        .with_executor(runner)
        .with_root_path(pod.scratch().join("state"))
        .map_err(|e| text(&e))?
        .with_console_socket(console.as_ref().map(|_| pod.scratch().join(Console::NAME)));
    if let Some(stdio) = stdio {
        builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr);
    }
    let init = builder.as_init(&bundle).with_systemd(false).with_detach(true).as_sibling(true);
    let container = init.build().map_err(|e| text(&e))?;
    let master = console.map(Console::master).transpose().map_err(|e| text(&e))?;
    Ok((container, master))
}

/// The socket on which libcontainer hands out the master of a new terminal.
pub(super) struct Console(UnixListener);

impl Console {
    /// Its name in the scratch space.
    pub(super) const NAME: &str = "console.sock";

    pub(super) fn listen(pod: &Pod) -> io::Result<Self> {
        // By descriptor: the path may be too long for a socket address.
        let scratch = File::open(pod.scratch())?;
        Ok(Self(UnixListener::bind(format!("{}/{}", sys::fd_path(&scratch), Self::NAME))?))
    }

    /// The master; sent before the process was reported ready.
    pub(super) fn master(self) -> io::Result<OwnedFd> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        self.0.set_nonblocking(true)?;
        let (stream, _) = self.0.accept()?;
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut buffer = [0; 64];
        let mut slices = [io::IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                use std::os::fd::FromRawFd;
                // SAFETY: the kernel has just installed this descriptor for us alone.
                return Ok(unsafe { OwnedFd::from_raw_fd(fds[0]) });
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no terminal was handed out"))
    }
}

/// Mounts the volumes in the container's namespace and makes its working directory.
fn furnish(pid: i32, volumes: Vec<Ready>, config: &ContainerConfig) -> Result<()> {
    let fail =
        |source: io::Error| Error::File { op: "enter the mounts of", path: format!("/proc/{pid}").into(), source };
    let own = File::open("/proc/self/ns/mnt").map_err(fail)?;
    let theirs = File::open(format!("/proc/{pid}/ns/mnt")).map_err(fail)?;
    setns(theirs, CloneFlags::CLONE_NEWNS).map_err(|e| fail(e.into()))?;
    let result = mounts::attach(volumes).and_then(|()| {
        let cwd = Path::new(&config.cwd);
        if let Err(reason) = mounts::make(cwd, true) {
            // The command finds out, and can say so better.
            tracing::debug!(%reason, "working directory not made");
        }
        if config.security.readonly_root { mounts::seal_root() } else { Ok(()) }
    });
    setns(own, CloneFlags::CLONE_NEWNS).map_err(|e| fail(e.into()))?;
    result
}

fn report(
    pid: i32,
    spec: serde_json::Value,
    command: Command,
    identity: Identity,
    config: &ContainerConfig,
    master: Option<OwnedFd>,
    control: &OwnedFd,
) -> Result<()> {
    let profile = Profile { spec, command, identity, oom_score_adj: config.oom_score_adj };
    let send = || {
        let profile = protocol::to_memory(&profile)?;
        let mut fds = vec![profile.as_raw_fd()];
        fds.extend(master.as_ref().map(|m| m.as_raw_fd()));
        protocol::send(control, &Report::Done { pid: pid as u32 }, &fds)
    };
    send().map_err(|e| Error::Create { id: config.id(), reason: format!("report to the shim: {e}") })
}

/// Sets the score of this process, to be inherited.
pub(super) fn set_oom_score(wanted: i32) -> Result<()> {
    let path = Path::new("/proc/self/oom_score_adj");
    let file = |op| move |source| Error::File { op, path: path.into(), source };
    let inherited = fs::read_to_string(path).map_err(file("read"))?.trim().parse().unwrap_or(0);
    fs::write(path, oom_score(wanted, inherited).to_string()).map_err(file("write"))
}

/// The score of a container whose shim has the score `inherited`. A shim without the right to a negative one
/// (CAP_SYS_RESOURCE) shares the pod's memory limit: then its containers must be the likelier victims, or the whole pod
/// ends with the container that took too much.
fn oom_score(wanted: i32, inherited: i32) -> i32 {
    let least = if inherited < 0 { -1000 } else { UNPROTECTED_OOM_SCORE };
    wanted.clamp(least, 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_killed_before_its_shim() {
        for (wanted, inherited, expected) in [(-997, -998, -997), (-997, 0, 900), (2, 0, 900), (999, 0, 999)] {
            assert_eq!(oom_score(wanted, inherited), expected);
        }
    }

    #[test]
    fn environments() {
        let entries = ["PATH=a", "X=1", "PATH=b", "Y=", "X=2=3"].map(String::from).to_vec();
        assert_eq!(last_wins(entries), ["PATH=b", "X=2=3", "Y="]);
    }
}
