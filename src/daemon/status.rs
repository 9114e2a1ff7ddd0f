//! What the daemon tells people of itself: a unix socket in the data directory that answers every connection with one
//! JSON document.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::node::PodView;

/// The socket, below the data directory. Only root may connect.
pub const SOCKET: &str = "umiak.sock";
/// Who does not read is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of a daemon. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `server` or `agent`.
    pub role: String,
    /// Version of the program.
    pub version: String,
    /// Name of the node; empty: a server without one.
    pub node: String,
    /// Identifier of the cluster.
    pub cluster: String,
    /// The link to the server; `None` in the server itself.
    pub link: Option<Link>,
    /// Nodes that are connected; only the server knows.
    pub connected: Vec<String>,
    /// Pods.
    pub pods: Vec<PodView>,
}

/// The link of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    /// Where the server is looked for.
    pub servers: Vec<String>,
    /// The address in use, or tried last.
    pub address: Option<String>,
    /// Since when there is a session.
    pub connected: Option<u64>,
    /// When the server was last heard.
    pub last_contact: Option<u64>,
    /// What stands in the way.
    pub error: Option<String>,
    /// The server has removed this node.
    pub removed: bool,
    /// End of the node's certificate.
    pub certificate_expires: u64,
    /// The time as this board knows it.
    pub now: u64,
}

/// Gives the state at any moment.
pub type Source = Arc<dyn Fn() -> Status + Send + Sync>;

/// Serves the socket; never ends. A board goes on without it, if it cannot be made.
pub async fn serve(data_dir: &Path, source: Source) {
    let path = data_dir.join(SOCKET);
    let listener = match listen(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "`umiak status` will not work");
            return std::future::pending().await;
        }
    };
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept on the status socket");
                tokio::time::sleep(PATIENCE).await;
                continue;
            }
        };
        let text = serde_json::to_vec(&source()).unwrap_or_default();
        match tokio::time::timeout(PATIENCE, stream.write_all(&text)).await {
            Ok(Err(error)) => tracing::debug!(%error, "tell the status"),
            Err(_) => tracing::debug!("nobody reads the status"),
            Ok(Ok(())) => {}
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks the daemon of a data directory. Blocks.
///
/// # Errors
/// When no daemon runs there, or it does not answer.
pub fn ask(data_dir: &Path) -> io::Result<Status> {
    let mut stream = std::os::unix::net::UnixStream::connect(data_dir.join(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_asks_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SOCKET), "left by a killed daemon").unwrap();
        let status = Status { role: "agent".into(), node: "pi".into(), ..Status::default() };
        let (source, path) = (status.clone(), dir.path().to_owned());
        let serving = tokio::spawn(async move { serve(&path, Arc::new(move || source.clone())).await });
        let path = dir.path().to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            loop {
                match ask(&path) {
                    Ok(status) => return status,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        assert_eq!(asked.await.unwrap(), status);
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        serving.abort();
    }
}
