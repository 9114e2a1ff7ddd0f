//! A pod's sandbox as the daemon sees it: the connection to its shim.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    net::unix::pipe,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep_until, timeout, timeout_at},
};

use super::{
    Capture, ContainerConfig, ContainerId, Error, ExecConfig, ExecOutput, Resources, Result, SandboxState, Stats,
    Streams,
    cgroup::Cgroups,
    client::{check_name, cleanup},
    protocol::{self, Fault, FromShim, Op, Request},
    shim::SOCKET,
    sys,
};

/// How long a shim has for what needs no helper.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it has for what needs one; longer than it gives the helper itself.
const WORK: Duration = Duration::from_secs(120);

/// A pod's sandbox. Cheap to clone; dropping it changes nothing about the pod.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    uid: String,
    directory: PathBuf,
    cgroup: String,
    cgroups: Arc<Cgroups>,
    pid: u32,
    state: watch::Sender<SandboxState>,
    link: Mutex<Arc<AsyncFd<OwnedFd>>>,
    next: AtomicU64,
    calls: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

type Answer = Result<Given, Fault>;

/// Descriptors that came with an answer, and if they are a terminal's.
#[derive(Debug)]
struct Given {
    fds: Vec<OwnedFd>,
    tty: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reader) = lock(&self.reader).take() {
            reader.abort();
        }
    }
}

/// No invariant spans the locks here, so that of a panicked holder is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// Connects to the shim of a pod.
    pub(super) async fn connect(uid: &str, directory: &Path, cgroup: &str, cgroups: Arc<Cgroups>) -> Result<Self> {
        let (link, pid, state) = dial(uid, directory).await?;
        let inner = Arc::new(Inner {
            uid: uid.to_owned(),
            directory: directory.to_owned(),
            cgroup: cgroup.to_owned(),
            cgroups,
            pid,
            state: watch::Sender::new(state),
            link: Mutex::new(link.clone()),
            // Not from 1: the answer to an earlier daemon's request must not pass for one of ours.
            next: AtomicU64::new(sys::now() as u64),
            calls: Mutex::default(),
            execs: Mutex::default(),
            reader: Mutex::default(),
        });
        let reader = tokio::spawn(listen(Arc::downgrade(&inner), link));
        *lock(&inner.reader) = Some(reader);
        Ok(Self(inner))
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    /// The shim's process id: the holder of the pod's namespaces.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// The pod's network namespace, `/proc/PID/ns/net`.
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.pid).into()
    }

    /// The state of all containers; changes are announced.
    pub fn state(&self) -> watch::Receiver<SandboxState> {
        self.0.state.subscribe()
    }

    /// Prepares a container: root, mounts, cgroup, a first process that waits for [`Sandbox::start`]. Leaves nothing on
    /// failure.
    pub async fn create_container(&self, config: &ContainerConfig) -> Result<()> {
        check_name("name", &config.name)?;
        let id = config.id();
        let payload = self.payload(config)?;
        let result = self.call(WORK, &id, "create", Op::Create { container: id.clone() }, Some(payload)).await;
        match result {
            Ok(_) => Ok(()),
            // It was there before: not ours to take away.
            Err(error @ Error::WrongState { .. }) => Err(error),
            Err(error) => {
                if let Err(reason) = self.clear(&id).await {
                    tracing::warn!(%reason, container = %id, "cleanup after a failed creation");
                }
                Err(error)
            }
        }
    }

    /// Runs the command of a created container; returns when it has been executed. Fails with [`Error::Start`] if that is
    /// impossible; the container is then `Exited` with code 128 and the same reason.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        self.call(WORK, id, "start", Op::Start { container: id.clone() }, None).await.map(drop)
    }

    /// Sends a signal to the first process of a container; SIGKILL goes to all of its processes. No error if it has ended.
    pub async fn signal(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.call(ANSWER, id, "signal", Op::Signal { container: id.clone(), signal }, None).await.map(drop)
    }

    /// Has the shim keep a few words about a container for the next daemon, which finds them in [`SandboxState::notes`].
    /// They live in memory, as long as the container's processes do.
    pub async fn note(&self, id: &ContainerId, text: &str) -> Result<()> {
        let op = Op::Note { container: id.clone(), text: text.to_owned() };
        self.call(ANSWER, id, "note", op, None).await.map(drop)
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &ContainerId, config: &ExecConfig) -> Result<Exec> {
        self.exec_as(self.number(), id, config, false).await
    }

    async fn exec_as(&self, number: u64, id: &ContainerId, config: &ExecConfig, bound: bool) -> Result<Exec> {
        let payload = self.payload(config)?;
        let (sender, exit) = oneshot::channel();
        // Before it starts, since it may end before we look again.
        lock(&self.0.execs).insert(number, sender);
        let op = Op::Exec { container: id.clone(), bound };
        let streams =
            async { self.streams(self.call_as(number, WORK, id, "exec", op, Some(payload)).await?, true) }.await;
        let exec = Exec {
            streams: streams.inspect_err(|_| drop(lock(&self.0.execs).remove(&number)))?,
            number,
            exit,
            sandbox: self.clone(),
        };
        Ok(exec)
    }

    /// Runs a command without input, for a probe or a hook, within bounds. It ends when the command does, whatever this
    /// left running.
    pub async fn exec_captured(&self, id: &ContainerId, args: &[String], capture: Capture) -> Result<ExecOutput> {
        let deadline = tokio::time::Instant::now() + capture.timeout;
        let config = ExecConfig { args: args.to_vec(), ..ExecConfig::default() };
        let number = self.number();
        let Ok(made) = timeout_at(deadline, self.exec_as(number, id, &config, true)).await else {
            lock(&self.0.calls).remove(&number);
            lock(&self.0.execs).remove(&number);
            self.kill_exec(number).await?;
            return Ok(ExecOutput { code: None, output: Vec::new() });
        };
        let mut exec = made?;
        let mut pipes = [exec.streams.stdout.take(), exec.streams.stderr.take()].map(|fd| fd.and_then(receiver));
        let mut output = Vec::new();
        let code = {
            let [stdout, stderr] = &mut pipes;
            let mut buffers = [[0; 2048]; 2];
            let [first, second] = &mut buffers;
            loop {
                tokio::select! {
                    biased;
                    code = exec.wait() => break Some(code?),
                    length = read(stdout, first) => keep(&mut output, &first[..length], capture.limit),
                    length = read(stderr, second) => keep(&mut output, &second[..length], capture.limit),
                    () = sleep_until(deadline) => break None,
                }
            }
        };
        if code.is_none() {
            exec.kill().await?;
        }
        let mut buffer = [0; 2048];
        for pipe in pipes.iter().flatten() {
            // What is in the pipes now; other processes may hold them open for ever.
            while let Ok(length) = nix::unistd::read(pipe, &mut buffer)
                && length > 0
                && output.len() < capture.limit
            {
                keep(&mut output, &buffer[..length], capture.limit);
            }
        }
        Ok(ExecOutput { code, output })
    }

    /// Joins the streams of a running container. Output from now on is copied; a client that reads nothing for 10 s is
    /// detached.
    pub async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<Streams> {
        let op = Op::Attach { container: id.clone(), stdin };
        self.streams(self.call(ANSWER, id, "attach", op, None).await?, stdin)
    }

    /// Kills what is left of a container and removes its cgroup, writable layer and exit record. Idempotent.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        match self.call(WORK, id, "remove", Op::Remove { container: id.clone() }, None).await {
            Ok(_) | Err(Error::NoContainer(_)) => {}
            Err(other) => return Err(other),
        }
        self.clear(id).await?;
        self.0.state.send_if_modified(|state| state.containers.remove(id).is_some());
        Ok(())
    }

    /// Removes what the shim leaves of a container it does not know any more.
    async fn clear(&self, id: &ContainerId) -> Result<()> {
        let directory = self.0.directory.join("containers").join(id.to_string());
        cleanup(&self.0.cgroups, &self.cgroup_of(id), &directory).await
    }

    /// What a container uses.
    pub fn stats(&self, id: &ContainerId) -> Result<Stats> {
        if !self.0.state.borrow().containers.contains_key(id) {
            return Err(Error::NoContainer(id.clone()));
        }
        Ok(self.0.cgroups.stats(&self.cgroup_of(id)))
    }

    /// What the whole pod uses, its shim included.
    pub fn pod_stats(&self) -> Result<Stats> {
        Ok(self.0.cgroups.stats(&self.0.cgroup))
    }

    /// Changes the limits of a container while it runs.
    pub fn update_resources(&self, id: &ContainerId, resources: &Resources) -> Result<()> {
        if !self.0.state.borrow().containers.contains_key(id) {
            return Err(Error::NoContainer(id.clone()));
        }
        self.0.cgroups.limit(&self.cgroup_of(id), resources)
    }

    /// Changes the limits of the whole pod.
    pub fn update_pod_resources(&self, resources: &Resources) -> Result<()> {
        self.0.cgroups.limit(&self.0.cgroup, resources)
    }

    /// Kills all containers and the shim, removes cgroups and the pod's directory. Idempotent.
    pub async fn destroy(&self) -> Result<()> {
        if self.0.state.borrow().alive {
            let nobody = ContainerId { name: String::new(), attempt: 0 };
            if let Err(error) = self.call(ANSWER, &nobody, "shutdown", Op::Shutdown, None).await {
                tracing::debug!(%error, uid = self.0.uid, "shim did not end by itself");
            }
        }
        cleanup(&self.0.cgroups, &self.0.cgroup, &self.0.directory).await
    }

    /// Kills an exec, also one that is being made.
    async fn kill_exec(&self, number: u64) -> Result<()> {
        let nobody = ContainerId { name: "exec".into(), attempt: 0 };
        self.call(ANSWER, &nobody, "kill", Op::KillExec { exec: number }, None).await.map(drop)
    }

    fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    fn cgroup_of(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.0.cgroup)
    }

    fn payload(&self, value: &impl serde::Serialize) -> Result<OwnedFd> {
        protocol::to_memory(value).map_err(|e| self.0.protocol(e))
    }

    /// Sorts the descriptors of an answer (see [`FromShim::Reply`]).
    fn streams(&self, given: Given, stdin: bool) -> Result<Streams> {
        let mut streams = Streams { stdin: None, stdout: None, stderr: None, tty: None };
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| self.0.protocol(e));
        let mut fds = given.fds.into_iter();
        if !given.tty {
            (streams.stdout, streams.stderr, streams.stdin) = (fds.next(), fds.next(), fds.next());
            return Ok(streams);
        }
        let (first, second) = (fds.next(), fds.next());
        let master = second.as_ref().or(first.as_ref()).map(copy).transpose()?;
        streams.stdin = master.as_ref().filter(|_| stdin).map(copy).transpose()?;
        (streams.stdout, streams.tty) = (first, master);
        Ok(streams)
    }

    async fn call(
        &self,
        limit: Duration,
        id: &ContainerId,
        name: &'static str,
        op: Op,
        payload: Option<OwnedFd>,
    ) -> Result<Given> {
        self.call_as(self.number(), limit, id, name, op, payload).await
    }

    async fn call_as(
        &self,
        number: u64,
        limit: Duration,
        id: &ContainerId,
        name: &'static str,
        op: Op,
        payload: Option<OwnedFd>,
    ) -> Result<Given> {
        let inner = &self.0;
        let gone = || Error::ShimGone { uid: inner.uid.clone() };
        if !inner.state.borrow().alive {
            return Err(gone());
        }
        let (sender, answer) = oneshot::channel();
        lock(&inner.calls).insert(number, sender);
        let link = lock(&inner.link).clone();
        let exchange = async {
            let request = Request { id: number, op };
            let fds: Vec<_> = payload.iter().map(|fd| fd.as_raw_fd()).collect();
            let sent =
                link.async_io(tokio::io::Interest::WRITABLE, |socket| protocol::send(socket, &request, &fds)).await;
            sent.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())
        };
        let result = timeout(limit, exchange).await;
        lock(&inner.calls).remove(&number);
        match result {
            Ok(answer) => answer?.map_err(|fault| fault.into_error(id)),
            Err(_) => Err(Error::Timeout { uid: inner.uid.clone(), op: name, seconds: limit.as_secs() }),
        }
    }
}

impl Inner {
    fn protocol(&self, reason: impl std::fmt::Display) -> Error {
        Error::Protocol { uid: self.uid.clone(), reason: reason.to_string() }
    }

    fn heard(&self, message: FromShim, fds: Vec<OwnedFd>) {
        match message {
            // A caller that stopped waiting is no error: its descriptors are closed here.
            FromShim::Reply { id, result, tty } => {
                if let Some(call) = lock(&self.calls).remove(&id) {
                    let _ = call.send(result.map(|()| Given { fds, tty }));
                }
            }
            FromShim::State { container, state } => {
                self.state.send_modify(|all| drop(all.containers.insert(container, state)));
            }
            FromShim::ExecExit { exec, code } => {
                if let Some(exec) = lock(&self.execs).remove(&exec) {
                    let _ = exec.send(code);
                }
            }
            FromShim::Hello { .. } | FromShim::Replaced => {}
        }
    }

    /// Whoever waits for something from this connection waits in vain.
    fn disconnected(&self) {
        lock(&self.calls).clear();
        lock(&self.execs).clear();
    }
}

/// Takes what the shim sends until it is gone. A connection that breaks while the shim lives is made anew once.
async fn listen(inner: Weak<Inner>, mut link: Arc<AsyncFd<OwnedFd>>) {
    loop {
        let received =
            link.async_io(tokio::io::Interest::READABLE, |socket| protocol::receive::<FromShim>(socket)).await;
        let Some(inner) = inner.upgrade() else { return };
        let replaced = match received {
            Ok(Some((FromShim::Replaced, _))) => true,
            Ok(Some((message, fds))) => {
                inner.heard(message, fds);
                continue;
            }
            Ok(None) | Err(_) => false,
        };
        inner.disconnected();
        if replaced {
            // Coming back would throw out the other one, and so on without end.
            tracing::warn!(uid = inner.uid, "another daemon has taken over the shim");
            inner.state.send_modify(|state| state.alive = false);
            return;
        }
        match dial(&inner.uid, &inner.directory).await {
            Ok((again, _, state)) => {
                *lock(&inner.link) = again.clone();
                inner.state.send_replace(state);
                link = again;
            }
            Err(reason) => {
                tracing::debug!(%reason, uid = inner.uid, "shim gone");
                inner.state.send_modify(|state| state.alive = false);
                return;
            }
        }
    }
}

/// Connects and hears the shim's first words: its process id and the state of its containers.
async fn dial(uid: &str, directory: &Path) -> Result<(Arc<AsyncFd<OwnedFd>>, u32, SandboxState)> {
    let gone = |_| Error::ShimGone { uid: uid.to_owned() };
    let open = || -> io::Result<AsyncFd<OwnedFd>> {
        // Through a descriptor: the path may be too long for a socket address.
        let directory = sys::openat2(sys::CWD, directory, libc::O_PATH | libc::O_DIRECTORY, 0, 0)?;
        let address = UnixAddr::new(&*format!("{}/{SOCKET}", sys::fd_path(&directory)))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_fd().as_raw_fd(), &address)?;
        // SAFETY: an owned descriptor stays open and the same until it is dropped, by which time it is deregistered.
        Ok(unsafe { AsyncFd::register(socket) }?)
    };
    let link = Arc::new(open().map_err(gone)?);
    let hello = link.async_io(tokio::io::Interest::READABLE, |socket| protocol::receive::<FromShim>(socket));
    let hello = timeout(ANSWER, hello).await;
    let hello = hello.map_err(|_| Error::Timeout { uid: uid.to_owned(), op: "connect", seconds: ANSWER.as_secs() })?;
    match hello.map_err(gone)? {
        Some((FromShim::Hello { version, pid, containers, notes }, _)) if version >= protocol::VERSION => {
            let (containers, notes) = (containers.into_iter().collect(), notes.into_iter().collect());
            Ok((link, pid, SandboxState { alive: true, containers, notes }))
        }
        Some((other, _)) => Err(Error::Protocol { uid: uid.to_owned(), reason: format!("unexpected {other:?}") }),
        None => Err(Error::ShimGone { uid: uid.to_owned() }),
    }
}

/// A running exec. Dropping it does not end the process; closing its streams usually does.
#[derive(Debug)]
pub struct Exec {
    /// Its streams.
    pub streams: Streams,
    number: u64,
    exit: oneshot::Receiver<i32>,
    sandbox: Sandbox,
}

impl Exec {
    /// The exit code, or 128 + signal. [`Error::ShimGone`] if it cannot be known any more. May be cancelled and called
    /// again, but not after it returned.
    pub async fn wait(&mut self) -> Result<i32> {
        (&mut self.exit).await.map_err(|_| Error::ShimGone { uid: self.sandbox.0.uid.clone() })
    }

    /// Kills the process and its process group.
    pub async fn kill(&self) -> Result<()> {
        self.sandbox.kill_exec(self.number).await
    }
}

fn receiver(fd: OwnedFd) -> Option<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd).ok()
}

/// Reads something; never returns at the end of the pipe.
async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    if let Some(open) = pipe {
        match open.read(buffer).await {
            Ok(length) if length > 0 => return length,
            _ => *pipe = None,
        }
    }
    std::future::pending().await
}

fn keep(output: &mut Vec<u8>, more: &[u8], limit: usize) {
    let room = limit.saturating_sub(output.len());
    output.extend_from_slice(&more[..more.len().min(room)]);
}
