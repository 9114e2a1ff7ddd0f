//! What the daemon asks a shim to do.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

use nix::{fcntl::OFlag, unistd::pipe2};

use super::{
    super::{
        ContainerConfig, ContainerId, ContainerState, Error, ExecConfig,
        container::{self, Profile, Report, Stdio},
        protocol::{self, Fault, FromShim, Op, Request},
    },
    log::{Log, Stream},
    process::{self, spawn_helper},
    server::{Container, Exec, Job, JobKind, PATIENCE, Server},
    streams::Output,
};

impl Server {
    /// Answers a request, now or when it is done.
    pub(super) fn request(&mut self, Request { id: request, op }: Request, fds: Vec<OwnedFd>) {
        let payload = fds.into_iter().next();
        let result = match op {
            Op::Create { container } => self.create(request, container, payload),
            Op::Start { container } => self.start(request, &container),
            Op::Signal { container, signal } => self.signal(&container, signal).map(|()| self.reply(request, Ok(()))),
            Op::Exec { container, bound } => self.exec(request, container, bound, payload),
            Op::KillExec { exec } => {
                // One that has ended needs no killing.
                if let Some(running) = self.execs.get(&exec) {
                    process::kill_group(running.pid, libc::SIGKILL);
                }
                self.jobs.iter_mut().filter(|job| job.request == exec).for_each(|job| job.orphan = true);
                self.reply(request, Ok(()));
                Ok(())
            }
            Op::Attach { container, stdin } => self.attach(request, &container, stdin),
            Op::Remove { container } => self.remove(request, &container),
            Op::Note { container, text } => self.note(&container, text).map(|()| self.reply(request, Ok(()))),
            Op::Shutdown => {
                self.shutdown(request);
                Ok(())
            }
        };
        if let Err(fault) = result {
            self.reply(request, Err(fault));
        }
    }

    fn create(&mut self, request: u64, id: ContainerId, payload: Option<OwnedFd>) -> Result<(), Fault> {
        if let Some(existing) = self.containers.get(&id) {
            return Err(Fault::WrongState(name_of(existing).into()));
        }
        if self.ending.is_some() {
            return Err(Fault::WrongState("ending".into()));
        }
        let config: ContainerConfig = payload_of(payload)?;
        let (container, stdio, status) = prepare(&config).map_err(|e| Fault::Create(e.to_string()))?;
        let mut keep = vec![status.as_raw_fd()];
        keep.extend(self.pod.shm.as_ref().map(|s| s.as_raw_fd()));
        keep.extend(stdio.iter().flat_map(|s| [s.stdin.as_raw_fd(), s.stdout.as_raw_fd(), s.stderr.as_raw_fd()]));
        let pod = &self.pod;
        let spawned = spawn_helper(&keep, |control| container::create(pod, &config, stdio, status, control));
        let (helper, control) = spawned.map_err(|e| Fault::Create(format!("fork: {e}")))?;
        self.containers.insert(id.clone(), container);
        let deadline = Instant::now() + PATIENCE;
        self.jobs.push(Job { helper, control, request, container: id, deadline, orphan: false, kind: JobKind::Create });
        Ok(())
    }

    fn start(&mut self, request: u64, id: &ContainerId) -> Result<(), Fault> {
        let container = self.containers.get_mut(id).ok_or(Fault::NoContainer)?;
        let (Some(ContainerState::Created { .. }), Some(starter), None) =
            (&container.state, &container.starter, container.starting)
        else {
            return Err(Fault::WrongState(name_of(container).into()));
        };
        protocol::send(starter, &(), &[]).map_err(|e| Fault::Create(format!("the helper is gone: {e}")))?;
        container.starting = Some(request);
        Ok(())
    }

    fn signal(&mut self, id: &ContainerId, signal: i32) -> Result<(), Fault> {
        let container = self.containers.get(id).ok_or(Fault::NoContainer)?;
        if let Some(pid) = container.pid() {
            if signal == libc::SIGKILL {
                self.pod.cgroups.kill(&self.pod.cgroup_of(id));
            }
            process::kill(pid, signal);
        }
        Ok(())
    }

    fn exec(&mut self, request: u64, id: ContainerId, bound: bool, payload: Option<OwnedFd>) -> Result<(), Fault> {
        let container = self.containers.get(&id).ok_or(Fault::NoContainer)?;
        let (Some(ContainerState::Running { pid, .. }), Some(profile)) = (&container.state, &container.profile) else {
            return Err(Fault::WrongState(name_of(container).into()));
        };
        let config: ExecConfig = payload_of(payload)?;
        let io = |e: io::Error| Fault::Start { code: 128, reason: format!("make pipes: {e}") };
        let (stdio, streams) = if config.tty { (None, Vec::new()) } else { exec_pipes(config.stdin).map_err(io)? };
        let mut keep = vec![profile.as_raw_fd()];
        keep.extend(stdio.iter().flat_map(|s| [s.stdin.as_raw_fd(), s.stdout.as_raw_fd(), s.stderr.as_raw_fd()]));
        let (pod, name) = (&self.pod, id.clone());
        let spawned = spawn_helper(&keep, |control| {
            let profile: Profile = protocol::from_memory(profile).map_err(|source| Error::File {
                op: "read",
                path: "container profile".into(),
                source,
            })?;
            container::exec(pod, &name, *pid, profile, &config, stdio, control)
        });
        let (helper, control) = spawned.map_err(|e| Fault::Start { code: 128, reason: format!("fork: {e}") })?;
        let kind = JobKind::Exec { bound, streams };
        let deadline = Instant::now() + PATIENCE;
        self.jobs.push(Job { helper, control, request, container: id, deadline, orphan: false, kind });
        Ok(())
    }

    /// Takes a helper's report.
    pub(super) fn job_reported(&mut self, helper: u32) {
        let Some(place) = self.jobs.iter().position(|j| j.helper == helper) else { return };
        let received = match protocol::receive::<Report>(&self.jobs[place].control) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) => return self.job_failed(helper, Fault::Create("the helper ended without a report".into())),
            other => other,
        };
        match received {
            Ok(Some((Report::Done { pid }, fds))) => {
                let job = self.jobs.swap_remove(place);
                match job.kind {
                    JobKind::Create => self.created(job.request, &job.container, pid, fds, job.control),
                    JobKind::Exec { bound: true, .. } if job.orphan => process::kill_group(pid, libc::SIGKILL),
                    JobKind::Exec { bound, streams } => self.executed(job.request, pid, bound, streams, fds),
                }
                self.replay(pid);
            }
            Ok(Some((Report::Failed(fault), _))) => self.job_failed(helper, fault),
            Ok(None) => {}
            Err(error) => self.job_failed(helper, Fault::Create(format!("report of the helper: {error}"))),
        }
    }

    /// Takes back what a failed helper was to make.
    pub(super) fn job_failed(&mut self, helper: u32, fault: Fault) {
        let Some(place) = self.jobs.iter().position(|j| j.helper == helper) else { return };
        let job = self.jobs.swap_remove(place);
        process::kill(helper, libc::SIGKILL);
        if matches!(job.kind, JobKind::Create) {
            let removed = self.containers.remove(&job.container);
            self.pod.cgroups.kill(&self.pod.cgroup_of(&job.container));
            if let Some(request) = removed.and_then(|container| container.removing) {
                self.reply(request, Ok(()));
            }
        }
        self.reply(job.request, Err(fault));
    }

    fn created(&mut self, request: u64, id: &ContainerId, pid: u32, fds: Vec<OwnedFd>, control: OwnedFd) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut fds = fds.into_iter();
        container.profile = fds.next();
        container.starter = Some(control);
        if let Some(master) = fds.next() {
            // A terminal that cannot be copied or made non-blocking is one without output.
            if let (Ok(()), Ok(copy)) = (set_nonblocking(&master), master.try_clone()) {
                container.outputs = vec![Output::new(Stream::Stdout, copy)];
            }
            container.master = Some(master);
        }
        let unwanted = self.ending.is_some() || container.removing.is_some();
        self.set_state(id, ContainerState::Created { pid });
        self.reply(request, Ok(()));
        if unwanted {
            process::kill(pid, libc::SIGKILL);
        }
    }

    fn executed(&mut self, request: u64, pid: u32, bound: bool, streams: Vec<OwnedFd>, fds: Vec<OwnedFd>) {
        let tty = !fds.is_empty();
        fds.iter().for_each(|master| {
            // A blocking terminal works too, only less well.
            let _ = set_nonblocking(master);
        });
        let all: Vec<_> = streams.iter().chain(&fds).map(|fd| fd.as_raw_fd()).collect();
        self.execs.insert(request, Exec { pid, bound });
        self.tell(&FromShim::Reply { id: request, result: Ok(()), tty }, &all);
    }

    fn attach(&mut self, request: u64, id: &ContainerId, stdin: bool) -> Result<(), Fault> {
        let container = self.containers.get_mut(id).ok_or(Fault::NoContainer)?;
        if container.pid().is_none() {
            return Err(Fault::WrongState(name_of(container).into()));
        }
        let io = |e: io::Error| Fault::Create(format!("attach: {e}"));
        let mut given = Vec::new();
        for output in &mut container.outputs {
            let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|e| io(e.into()))?;
            output.attach(write);
            given.push(read);
        }
        let tty = container.master.is_some();
        if let Some(master) = &container.master {
            given.push(master.try_clone().map_err(io)?);
        } else if stdin && let Some(pipe) = &container.stdin {
            given.push(pipe.try_clone().map_err(io)?);
            if container.stdin_once {
                // The client's end is now the last one: when it goes, the container sees the end of its input.
                container.stdin = None;
            }
        }
        let fds: Vec<_> = given.iter().map(|fd| fd.as_raw_fd()).collect();
        self.tell(&FromShim::Reply { id: request, result: Ok(()), tty }, &fds);
        Ok(())
    }

    fn note(&mut self, id: &ContainerId, text: String) -> Result<(), Fault> {
        self.containers.get_mut(id).ok_or(Fault::NoContainer)?.note = text;
        Ok(())
    }

    fn remove(&mut self, request: u64, id: &ContainerId) -> Result<(), Fault> {
        let container = self.containers.get_mut(id).ok_or(Fault::NoContainer)?;
        if matches!(container.state, Some(ContainerState::Exited(_))) {
            self.containers.remove(id);
            self.reply(request, Ok(()));
            return Ok(());
        }
        container.removing = Some(request);
        // One that is being created is killed when it is there.
        self.signal(id, libc::SIGKILL)
    }

    fn shutdown(&mut self, request: u64) {
        self.ending = Some(request);
        let running: Vec<_> =
            self.containers.iter().filter(|(_, c)| c.pid().is_some()).map(|(id, _)| id.clone()).collect();
        for id in running {
            // They were just found, so this cannot fail.
            let _ = self.signal(&id, libc::SIGKILL);
        }
    }
}

/// A container that is about to be made: its log and the pipes of its streams.
fn prepare(config: &ContainerConfig) -> io::Result<(Container, Option<Stdio>, OwnedFd)> {
    let log = config.log.clone().map(Log::open).transpose()?;
    let (status, status_write) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&status)?;
    let mut container = Container { log, stdin_once: config.stdin_once, status: Some(status), ..Container::default() };
    if config.tty {
        return Ok((container, None, status_write));
    }
    let (stdin, ours) = input(config.stdin)?;
    container.stdin = ours;
    let (stdout_read, stdout) = output()?;
    let (stderr_read, stderr) = output()?;
    container.outputs = vec![Output::new(Stream::Stdout, stdout_read), Output::new(Stream::Stderr, stderr_read)];
    Ok((container, Some(Stdio { stdin, stdout, stderr }), status_write))
}

/// The pipes of an exec, and the daemon's ends of them.
fn exec_pipes(with_stdin: bool) -> io::Result<(Option<Stdio>, Vec<OwnedFd>)> {
    let (stdin, ours) = input(with_stdin)?;
    let (stdout_read, stdout) = output()?;
    let (stderr_read, stderr) = output()?;
    let streams = [stdout_read, stderr_read].into_iter().chain(ours).collect();
    Ok((Some(Stdio { stdin, stdout, stderr }), streams))
}

/// The end a process reads from, and ours where it is a pipe.
fn input(wanted: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    if !wanted {
        return Ok((File::open("/dev/null")?.into(), None));
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&write)?;
    Ok((read, Some(write)))
}

/// Our end, and the one a process writes to.
fn output() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn payload_of<T: serde::de::DeserializeOwned>(payload: Option<OwnedFd>) -> Result<T, Fault> {
    let payload = payload.ok_or_else(|| Fault::Create("the request came without its configuration".into()))?;
    protocol::from_memory(payload).map_err(|e| Fault::Create(format!("read the configuration: {e}")))
}

fn name_of(container: &Container) -> &'static str {
    match container.state {
        None => "being created",
        Some(ContainerState::Created { .. }) => "created",
        Some(ContainerState::Running { .. }) => "running",
        Some(ContainerState::Exited(_)) => "exited",
    }
}
