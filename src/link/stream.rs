//! Byte streams between the API and a node: logs, exec, attach, port-forward of its pods, and what they use.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Frames one direction may have under way; with [`MAX_FRAME`] it bounds the memory of a stream.
pub const WINDOW: usize = 8;
/// Largest payload of one frame in bytes.
pub const MAX_FRAME: usize = 32 * 1024;

/// What a stream is for. `pod` is the UID, so that a recreated pod of the same name is never meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StreamRequest {
    /// A container's log (`PodLogOptions`).
    Logs {
        /// Pod UID.
        pod: String,
        /// Container name.
        container: String,
        /// Options as in the API.
        options: LogOptions,
    },
    /// A new process in a container.
    Exec {
        /// Pod UID.
        pod: String,
        /// Container name.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Which streams are wanted.
        streams: Streams,
    },
    /// The streams of a running container's own process.
    Attach {
        /// Pod UID.
        pod: String,
        /// Container name.
        container: String,
        /// Which streams are wanted.
        streams: Streams,
    },
    /// A TCP connection to a port inside the pod's network namespace.
    PortForward {
        /// Pod UID.
        pod: String,
        /// TCP port.
        port: u16,
    },
    /// What the node and its pods use: a [`Usage`](super::usage::Usage).
    Usage,
}

impl StreamRequest {
    /// UID of the pod it is for, if it is for one.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Logs { pod, .. }
            | Self::Exec { pod, .. }
            | Self::Attach { pod, .. }
            | Self::PortForward { pod, .. } => Some(pod),
            Self::Usage => None,
        }
    }
}

/// Which of the standard streams are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error (never together with `tty`).
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    /// Goes on with new lines until the container ends or the client leaves.
    pub follow: bool,
    /// The previous instance of the container.
    pub previous: bool,
    /// RFC 3339 time before each line.
    pub timestamps: bool,
    /// Only lines newer than this many seconds.
    pub since_seconds: Option<i64>,
    /// Only lines at or after this time (RFC 3339).
    pub since_time: Option<String>,
    /// Only the last lines.
    pub tail_lines: Option<i64>,
    /// At most this many bytes.
    pub limit_bytes: Option<i64>,
}

/// The part of a stream that a frame belongs to. Numbers are those of `v5.channel.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// To the process; port-forward: to the pod. An empty frame closes it (half-close).
    Stdin = 0,
    /// From the process; logs; port-forward: from the pod. An empty frame means end of file.
    Stdout = 1,
    /// From the process.
    Stderr = 2,
    /// The last frame of a stream: a `metav1.Status` as JSON (`Success`, or `NonZeroExitCode` with cause `ExitCode`).
    Error = 3,
    /// Terminal size: JSON `{"Width":80,"Height":24}`.
    Resize = 4,
}

/// One piece of a stream.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where it belongs.
    pub channel: Channel,
    /// At most [`MAX_FRAME`] bytes.
    pub data: Bytes,
}

/// One end of a stream. Dropping it ends the stream: the other end sees its receiver closed.
#[derive(Debug)]
pub struct Stream {
    /// To the other end; waiting for room is the back-pressure.
    pub tx: mpsc::Sender<Frame>,
    /// From the other end.
    pub rx: mpsc::Receiver<Frame>,
}

impl Stream {
    /// Two connected ends.
    pub fn pair() -> (Stream, Stream) {
        let (a_tx, b_rx) = mpsc::channel(WINDOW);
        let (b_tx, a_rx) = mpsc::channel(WINDOW);
        (Stream { tx: a_tx, rx: a_rx }, Stream { tx: b_tx, rx: b_rx })
    }
}
