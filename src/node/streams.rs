//! Streams into pods: logs, exec, attach, port-forward; and what they use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::disk::PodDir;
use super::fd::Fd;
use super::logs;
use super::usage::Meter;
use crate::kinds::status::Status;
use crate::link::Open;
use crate::link::stream::{Channel, Frame, MAX_FRAME, Stream, StreamRequest, Streams as Wanted};
use crate::runtime::{ContainerId, ContainerState, ExecConfig, Sandbox, Streams, resize};

/// After a command has ended its output is read until its end or until nothing came for this long: what it started may
/// hold the pipes open.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a connection to a pod's port may take.
const CONNECT: Duration = Duration::from_secs(10);
/// End of input on a terminal.
const END_OF_INPUT: &[u8] = &[4];

/// Where a stream leads to.
pub(super) struct Place {
    /// The pod's name, for messages.
    pub(super) pod: String,
    /// Its directory.
    pub(super) dir: PodDir,
    /// Its sandbox, if it has one.
    pub(super) sandbox: Option<Sandbox>,
}

/// Serves one stream to its end.
pub(super) async fn serve(place: Option<Place>, meter: Arc<Meter>, open: Open) {
    let Open { request, stream: Stream { tx, rx } } = open;
    let result = match (place, request) {
        (_, StreamRequest::Usage) => meter.serve(&tx).await.map(|()| 0),
        (None, _) => Err(Status::new(404, "NotFound", "the pod is not on this node")),
        (Some(place), request) => place.serve(request, &tx, rx).await,
    };
    let document = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => exit_status(code),
        Err(status) => status.to_value(),
    };
    let data = Bytes::from(document.to_string());
    // Nobody to tell: the client left.
    let _ = tx.send(Frame { channel: Channel::Error, data }).await;
}

/// How a command that failed is reported, as kubelet does.
fn exit_status(code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

impl Place {
    /// Answers the exit code where there is one, else 0.
    async fn serve(
        self,
        request: StreamRequest,
        tx: &mpsc::Sender<Frame>,
        rx: mpsc::Receiver<Frame>,
    ) -> Result<i32, Status> {
        match request {
            StreamRequest::Logs { container, options, .. } => {
                let state = self.sandbox.map(|s| s.state());
                let source = logs::Source { dir: self.dir, pod: self.pod, container, state };
                logs::serve(source, &options, tx).await.map(|()| 0)
            }
            StreamRequest::Exec { container, command, streams, .. } => {
                let (sandbox, id) = self.running(&container)?;
                let config =
                    ExecConfig { args: command, tty: streams.tty, stdin: streams.stdin, ..ExecConfig::default() };
                let mut exec = sandbox.exec(&id, &config).await.map_err(|e| exec_failure(&e))?;
                let ends = std::mem::replace(
                    &mut exec.streams,
                    Streams { stdin: None, stdout: None, stderr: None, tty: None },
                );
                let exit = async { exec.wait().await.map_err(Status::internal) };
                connect(ends, streams, tx, rx, exit).await
            }
            StreamRequest::Attach { container, streams, .. } => {
                let (sandbox, id) = self.running(&container)?;
                let ends = sandbox.attach(&id, streams.stdin).await.map_err(Status::internal)?;
                let mut state = sandbox.state();
                let exit = async move {
                    let over = |s: &crate::runtime::SandboxState| {
                        !s.alive || matches!(s.containers.get(&id), None | Some(ContainerState::Exited(_)))
                    };
                    // An error means that the shim is gone, and the container with it.
                    let _ = state.wait_for(over).await;
                    Ok(0)
                };
                connect(ends, streams, tx, rx, exit).await
            }
            StreamRequest::PortForward { port, .. } => {
                let sandbox = self.sandbox.ok_or_else(|| Status::bad_request("the pod is not running"))?;
                forward(sandbox.netns(), port, tx, rx).await.map(|()| 0)
            }
            StreamRequest::Usage => Err(Status::bad_request("the usage of a pod is part of its node's")),
        }
    }

    /// The running container of that name.
    fn running(&self, name: &str) -> Result<(Sandbox, ContainerId), Status> {
        let absent = || Status::new(404, "NotFound", format!("container not found ({name:?})"));
        let sandbox = self.sandbox.clone().ok_or_else(absent)?;
        let state = sandbox.state().borrow().clone();
        let runs = |(id, state): &(&ContainerId, &ContainerState)| {
            id.name == name && matches!(state, ContainerState::Running { .. })
        };
        let id = state.containers.iter().find(runs).map(|(id, _)| id.clone()).ok_or_else(absent)?;
        Ok((sandbox, id))
    }
}

fn exec_failure(error: &crate::runtime::Error) -> Status {
    match error {
        crate::runtime::Error::Start { .. } => {
            Status::internal(format!("error executing command in container: {error}"))
        }
        other => Status::internal(other),
    }
}

/// Connects a process with a client until the process has ended and its output is read, or the client is gone.
async fn connect(
    ends: Streams,
    wanted: Wanted,
    tx: &mpsc::Sender<Frame>,
    rx: mpsc::Receiver<Frame>,
    exit: impl Future<Output = Result<i32, Status>>,
) -> Result<i32, Status> {
    let reader =
        |fd: Option<OwnedFd>, wanted: bool| fd.filter(|_| wanted).map(Fd::reader).transpose().map_err(Status::internal);
    let stdout = reader(ends.stdout, wanted.stdout || ends.tty.is_some())?;
    let stderr = reader(ends.stderr, wanted.stderr)?;
    let output = async {
        tokio::join!(read_out(stdout, Channel::Stdout, tx), read_out(stderr, Channel::Stderr, tx),);
    };
    tokio::pin!(output, exit);
    let input = write_in(ends.stdin, ends.tty, rx);
    tokio::pin!(input);
    let mut read_all = false;
    let mut input_over = false;
    let code = loop {
        tokio::select! {
            code = &mut exit => break code?,
            () = &mut output, if !read_all => read_all = true,
            () = &mut input, if !input_over => input_over = true,
            () = tx.closed() => return Ok(0),
        }
    };
    if !read_all {
        // Quiet for the whole of the time only if the other end reads: a slow client is waited for.
        let quiet = async {
            tokio::time::sleep(DRAIN).await;
            while tx.capacity() < tx.max_capacity() {
                tokio::time::sleep(DRAIN).await;
            }
        };
        tokio::select! {
            () = &mut output => {}
            () = quiet => {}
            () = tx.closed() => {}
        }
    }
    Ok(code)
}

async fn read_out(fd: Option<Fd>, channel: Channel, tx: &mpsc::Sender<Frame>) {
    let Some(fd) = fd else { return };
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        // A pipe that fails has no more to say.
        let length = fd.read(&mut buffer).await.unwrap_or(0);
        let frame = Frame { channel, data: Bytes::copy_from_slice(&buffer[..length]) };
        if tx.send(frame).await.is_err() || length == 0 {
            return;
        }
    }
}

async fn write_in(stdin: Option<OwnedFd>, tty: Option<OwnedFd>, mut rx: mpsc::Receiver<Frame>) {
    let mut stdin = stdin.and_then(|fd| Fd::writer(fd).ok());
    while let Some(frame) = rx.recv().await {
        match frame.channel {
            Channel::Stdin if frame.data.is_empty() => {
                if let (Some(fd), true) = (&stdin, tty.is_some()) {
                    // Fails if the process is gone, which ends the stream elsewhere.
                    let _ = fd.write_all(END_OF_INPUT).await;
                }
                stdin = None;
            }
            Channel::Stdin => {
                if let Some(fd) = &stdin
                    && fd.write_all(&frame.data).await.is_err()
                {
                    stdin = None;
                }
            }
            Channel::Resize => {
                if let Some(tty) = &tty {
                    set_size(tty, &frame.data);
                }
            }
            Channel::Stdout | Channel::Stderr | Channel::Error => {}
        }
    }
    // The client is gone; what it left open ends here.
}

fn set_size(tty: &OwnedFd, message: &[u8]) {
    let size: Value = serde_json::from_slice(message).unwrap_or_default();
    let of = |name: &str| size[name].as_u64().and_then(|n| u16::try_from(n).ok());
    if let (Some(rows), Some(columns)) = (of("Height"), of("Width"))
        && let Err(error) = resize(tty, rows, columns)
    {
        tracing::debug!(%error, "cannot set the size of a terminal");
    }
}

async fn forward(
    netns: PathBuf,
    port: u16,
    tx: &mpsc::Sender<Frame>,
    mut rx: mpsc::Receiver<Frame>,
) -> Result<(), Status> {
    let stream = match dial(&netns, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => stream,
        Err(first) => dial(&netns, Ipv6Addr::LOCALHOST.into(), port)
            .await
            .map_err(|_| Status::internal(format!("failed to connect to localhost:{port} inside the pod: {first}")))?,
    };
    let (mut from_pod, mut to_pod) = stream.into_split();
    let input = async {
        while let Some(frame) = rx.recv().await {
            if frame.channel != Channel::Stdin {
                continue;
            }
            if frame.data.is_empty() || to_pod.write_all(&frame.data).await.is_err() {
                break;
            }
        }
        // Fails only on a connection that is over already.
        let _ = to_pod.shutdown().await;
    };
    let output = async {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let length = from_pod.read(&mut buffer).await.unwrap_or(0);
            let data = Bytes::copy_from_slice(&buffer[..length]);
            if tx.send(Frame { channel: Channel::Stdout, data }).await.is_err() || length == 0 {
                return;
            }
        }
    };
    tokio::select! {
        // What the client still sends after the pod has said its last word has nobody to go to.
        () = output => {}
        ((), ()) = async { tokio::join!(input, tx.closed()) } => {}
    }
    Ok(())
}

async fn dial(netns: &std::path::Path, address: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket_in(netns.to_owned(), family).await?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    let connecting = socket.connect(SocketAddr::new(address, port));
    tokio::time::timeout(CONNECT, connecting).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// A TCP socket of a network namespace. A thread of its own enters it and is gone afterwards, so that no thread of the
/// daemon can be left in the wrong namespace.
async fn socket_in(netns: PathBuf, family: AddressFamily) -> std::io::Result<OwnedFd> {
    let (tell, told) = oneshot::channel();
    let enter = move || -> std::io::Result<OwnedFd> {
        setns(std::fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        Ok(socket(family, SockType::Stream, flags, None)?)
    };
    let thread = std::thread::Builder::new().name("port-forward".into()).stack_size(64 << 10);
    // Nobody listens if the client left meanwhile.
    thread.spawn(move || drop(tell.send(enter())))?;
    told.await.map_err(std::io::Error::other)?
}
