//! The shim's loop: what it waits for, and what follows when a process ends.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    super::{
        ContainerId, ContainerState, Exit,
        container::{Failure, Pod, Report},
        protocol::{self, Fault, FromShim, Request},
        sys,
    },
    EXIT_RECORD,
    log::Log,
    process::{self, End},
    streams::Output,
};

/// A helper that takes longer is stuck (a mount that hangs, say) and killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(110);

/// All a shim knows.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pod: Pod,
    listener: OwnedFd,
    signals: OwnedFd,
    /// The daemon, while it is there. A new one replaces the old.
    client: Option<OwnedFd>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) execs: HashMap<u64, Exec>,
    pub(super) jobs: Vec<Job>,
    /// Children that ended before the helper that made them could report them.
    early: Vec<(u32, End)>,
    /// The request to end everything, once it came.
    pub(super) ending: Option<u64>,
}

/// A container's processes, files and state.
#[derive(Debug, Default)]
pub(super) struct Container {
    /// `None` while it is being created.
    pub(super) state: Option<ContainerState>,
    pub(super) outputs: Vec<Output>,
    pub(super) log: Option<Log>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdin_once: bool,
    pub(super) master: Option<OwnedFd>,
    pub(super) profile: Option<OwnedFd>,
    /// Says how the execution of the command went: [`Failure`], or its end.
    pub(super) status: Option<OwnedFd>,
    /// The helper that waits to start it.
    pub(super) starter: Option<OwnedFd>,
    /// The request to start it, until that is done.
    pub(super) starting: Option<u64>,
    pub(super) start_error: Option<String>,
    pub(super) started_at: i64,
    /// The request to remove it, once it came.
    pub(super) removing: Option<u64>,
    /// Kept for the next daemon.
    pub(super) note: String,
}

impl Container {
    /// The first process, while it lives.
    pub(super) fn pid(&self) -> Option<u32> {
        match self.state {
            Some(ContainerState::Created { pid } | ContainerState::Running { pid, .. }) => Some(pid),
            _ => None,
        }
    }
}

/// A running exec.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) pid: u32,
    pub(super) bound: bool,
}

/// A helper at work.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) helper: u32,
    pub(super) control: OwnedFd,
    pub(super) request: u64,
    pub(super) container: ContainerId,
    pub(super) deadline: Instant,
    /// Who asked for it does not want it any more, or is gone.
    pub(super) orphan: bool,
    pub(super) kind: JobKind,
}

#[derive(Debug)]
pub(super) enum JobKind {
    Create,
    Exec {
        bound: bool,
        /// The daemon's ends of its pipes.
        streams: Vec<OwnedFd>,
    },
}

/// Who a polled descriptor belongs to.
enum Source {
    Listener,
    Signals,
    Client,
    Job(u32),
    Status(ContainerId),
    Starter(ContainerId),
    Output(ContainerId, usize),
}

impl Server {
    pub(super) fn new(pod: Pod, listener: OwnedFd, signals: OwnedFd) -> Self {
        Self {
            pod,
            listener,
            signals,
            client: None,
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            jobs: Vec::new(),
            early: Vec::new(),
            ending: None,
        }
    }

    /// Serves until told to end.
    pub(super) fn run(&mut self) -> ExitCode {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => continue,
                // Without poll there is nothing to go on with; the daemon finds the pod dead and cleans up.
                Err(_) => return ExitCode::FAILURE,
            };
            let only_output = ready.iter().all(|source| matches!(source, Source::Output(..)));
            for source in ready {
                self.handle(source);
            }
            self.expire();
            if self.ended() {
                return ExitCode::SUCCESS;
            }
            if !only_output {
                process::release_memory();
            }
        }
    }

    fn wait(&self) -> nix::Result<Vec<Source>> {
        let input = PollFlags::POLLIN;
        let mut sources: Vec<(BorrowedFd<'_>, PollFlags, Source)> =
            vec![(self.signals.as_fd(), input, Source::Signals)];
        if self.containers.values().all(|c| c.starting.is_none()) {
            // A daemon that comes while a command is being started waits to hear how that went: it would take the
            // container for one that never ran, and run it again.
            sources.push((self.listener.as_fd(), input, Source::Listener));
        }
        sources.extend(self.client.iter().map(|c| (c.as_fd(), input, Source::Client)));
        sources.extend(self.jobs.iter().map(|j| (j.control.as_fd(), input, Source::Job(j.helper))));
        for (id, container) in &self.containers {
            if container.starting.is_some() {
                sources.extend(container.status.iter().map(|s| (s.as_fd(), input, Source::Status(id.clone()))));
                sources.extend(container.starter.iter().map(|s| (s.as_fd(), input, Source::Starter(id.clone()))));
            }
            for (number, output) in container.outputs.iter().enumerate() {
                sources.extend(output.interests().map(|(fd, flags)| (fd, flags, Source::Output(id.clone(), number))));
            }
        }
        let mut fds: Vec<_> = sources.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
        poll(&mut fds, self.timeout())?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() != Some(false)).collect();
        Ok(sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|((_, _, source), _)| source).collect())
    }

    /// Until the next deadline; for ever if there is none.
    fn timeout(&self) -> PollTimeout {
        let outputs = self.containers.values().flat_map(|c| &c.outputs).filter_map(Output::deadline);
        let next = self.jobs.iter().map(|j| j.deadline).chain(outputs).min();
        next.map_or(PollTimeout::NONE, |next| {
            let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            left.try_into().unwrap_or(PollTimeout::MAX)
        })
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.children_ended(),
            Source::Client => self.client_spoke(),
            Source::Job(helper) => self.job_reported(helper),
            Source::Status(id) => self.read_status(&id),
            Source::Starter(id) => self.starter_reported(&id),
            Source::Output(id, number) => {
                if let Some(container) = self.containers.get_mut(&id)
                    && let Some(output) = container.outputs.get_mut(number)
                {
                    output.pump(&mut container.log, false);
                }
            }
        }
    }

    /// Acts on what took too long.
    fn expire(&mut self) {
        let now = Instant::now();
        for job in self.jobs.iter().filter(|j| j.deadline <= now) {
            process::kill(job.helper, libc::SIGKILL);
        }
        for container in self.containers.values_mut() {
            for output in container.outputs.iter_mut().filter(|o| o.deadline().is_some_and(|d| d <= now)) {
                output.pump(&mut container.log, false);
            }
        }
    }

    fn accept(&mut self) {
        use nix::sys::socket::{SockFlag, accept4};
        let Ok(fd) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) else {
            return;
        };
        // SAFETY: the call returned this descriptor to us alone.
        let client = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        self.tell(&FromShim::Replaced, &[]);
        self.client_gone();
        self.client = Some(client);
        let states = self.containers.iter().filter_map(|(id, c)| Some((id.clone(), c.state.clone()?)));
        let notes = self.containers.iter().filter(|(_, c)| !c.note.is_empty());
        let hello = FromShim::Hello {
            version: protocol::VERSION,
            pid: std::process::id(),
            containers: states.collect(),
            notes: notes.map(|(id, c)| (id.clone(), c.note.clone())).collect(),
        };
        self.tell(&hello, &[]);
    }

    fn client_spoke(&mut self) {
        let Some(client) = &self.client else { return };
        match protocol::receive::<Request>(client) {
            Ok(Some((request, fds))) => self.request(request, fds),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.client_gone(),
        }
    }

    /// Nobody watches the time of its bound execs any more.
    fn client_gone(&mut self) {
        if self.client.take().is_some() {
            self.execs.values().filter(|e| e.bound).for_each(|e| process::kill_group(e.pid, libc::SIGKILL));
            // Their ends are of no interest to the next daemon, whose numbers are its own.
            self.execs.clear();
            self.jobs.iter_mut().for_each(|job| job.orphan = true);
        }
    }

    /// Sends to the daemon. One that does not keep up is dropped: it comes back and asks for everything.
    pub(super) fn tell(&mut self, message: &FromShim, fds: &[RawFd]) {
        if let Some(client) = &self.client
            && protocol::send(client, message, fds).is_err()
        {
            self.client_gone();
        }
    }

    pub(super) fn reply(&mut self, id: u64, result: Result<(), Fault>) {
        self.tell(&FromShim::Reply { id, result, tty: false }, &[]);
    }

    /// Changes the state of a container and says so.
    pub(super) fn set_state(&mut self, id: &ContainerId, state: ContainerState) {
        if let Some(container) = self.containers.get_mut(id) {
            container.state = Some(state.clone());
            self.tell(&FromShim::State { container: id.clone(), state }, &[]);
        }
    }

    fn children_ended(&mut self) {
        // Which signals came does not matter: all children are asked.
        let mut buffer = [0; 512];
        while matches!(nix::unistd::read(&self.signals, &mut buffer), Ok(length) if length > 0) {}
        while let Some((pid, end)) = process::reap() {
            self.child_ended(pid, end);
        }
        if self.jobs.is_empty() {
            self.early.clear();
        }
    }

    fn child_ended(&mut self, pid: u32, end: End) {
        if self.jobs.iter().any(|j| j.helper == pid) {
            // Its report may be waiting still.
            self.job_reported(pid);
            if self.jobs.iter().any(|j| j.helper == pid) {
                self.job_failed(pid, Fault::Create("the helper ended without a report".into()));
            }
        } else if let Some((id, _)) = self.containers.iter().find(|(_, c)| c.pid() == Some(pid)) {
            let id = id.clone();
            self.container_ended(&id, end);
        } else if let Some((&exec, _)) = self.execs.iter().find(|(_, e)| e.pid == pid) {
            self.execs.remove(&exec);
            self.tell(&FromShim::ExecExit { exec, code: end.code }, &[]);
        } else if !self.jobs.is_empty() {
            self.early.push((pid, end));
        }
    }

    /// Passes on an end that was seen before its process was known.
    pub(super) fn replay(&mut self, pid: u32) {
        if let Some(place) = self.early.iter().position(|(early, _)| *early == pid) {
            let (pid, end) = self.early.swap_remove(place);
            self.child_ended(pid, end);
        }
    }

    fn container_ended(&mut self, id: &ContainerId, end: End) {
        // The status first: it says whether the command ran at all.
        self.read_status(id);
        let cgroup = self.pod.cgroup_of(id);
        if self.pod.config.host_pid || self.pod.pause.is_some() {
            // Elsewhere the kernel ends all of a PID namespace with its first process.
            self.pod.cgroups.kill(&cgroup);
        }
        let oom_killed = end.code != 0 && self.pod.cgroups.oom_kills(&cgroup) > 0;
        let Some(container) = self.containers.get_mut(id) else { return };
        for output in &mut container.outputs {
            output.pump(&mut container.log, true);
        }
        let exit = Exit {
            code: if container.start_error.is_some() { 128 } else { end.code },
            signal: end.signal,
            oom_killed,
            started_at: container.started_at,
            finished_at: sys::now(),
            start_error: container.start_error.clone(),
        };
        container.log = None;
        (container.stdin, container.master, container.profile) = (None, None, None);
        (container.status, container.starter) = (None, None);
        let (starting, removing) = (container.starting.take(), container.removing.take());
        self.record(id, &exit);
        if let Some(request) = starting {
            let reason = exit.start_error.clone().unwrap_or_else(|| "ended before its command ran".into());
            self.reply(request, Err(Fault::Start { code: 128, reason }));
        }
        self.set_state(id, ContainerState::Exited(exit));
        if let Some(request) = removing {
            self.containers.remove(id);
            self.reply(request, Ok(()));
        }
    }

    /// Writes the exit record. If the disk is full a daemon that was away does not learn of this exit, no more.
    fn record(&self, id: &ContainerId, exit: &Exit) {
        let directory = self.pod.directory_of(id);
        let (path, temporary) = (directory.join(EXIT_RECORD), directory.join(".exit"));
        let written = serde_json::to_vec(exit).map_err(io::Error::from).and_then(|bytes| fs::write(&temporary, bytes));
        if written.and_then(|()| fs::rename(&temporary, path)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }

    /// Learns how the execution of a container's command went.
    fn read_status(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Some(request), Some(status)) = (container.starting, &container.status) else { return };
        let mut buffer = [0; 4096];
        match nix::unistd::read(status, &mut buffer) {
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Ok(length) if length > 0 => {
                let failure = serde_json::from_slice(&buffer[..length]);
                let failure: Failure = failure.unwrap_or_else(|e| Failure { code: 128, reason: e.to_string() });
                container.start_error = Some(failure.reason.clone());
                (container.starting, container.status) = (None, None);
                self.reply(request, Err(Fault::Start { code: failure.code, reason: failure.reason }));
            }
            _ => {
                let pid = container.pid().unwrap_or_default();
                container.started_at = sys::now();
                (container.starting, container.status) = (None, None);
                let started_at = container.started_at;
                self.set_state(id, ContainerState::Running { pid, started_at });
                self.reply(request, Ok(()));
            }
        }
    }

    /// The helper that starts a container speaks only if it could not.
    fn starter_reported(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(starter) = container.starter.take() else { return };
        let Ok(Some((Report::Failed(fault), _))) = protocol::receive::<Report>(&starter) else { return };
        container.start_error = Some(format!("{fault:?}"));
        let (request, pid) = (container.starting.take(), container.pid());
        if let Some(pid) = pid {
            process::kill(pid, libc::SIGKILL);
        }
        if let Some(request) = request {
            self.reply(request, Err(fault));
        }
    }

    /// True when an asked-for end is reached; answers the request.
    fn ended(&mut self) -> bool {
        let Some(request) = self.ending else { return false };
        let running = self.containers.values().any(|c| !matches!(c.state, Some(ContainerState::Exited(_))));
        if running || !self.jobs.is_empty() {
            return false;
        }
        self.reply(request, Ok(()));
        true
    }
}
