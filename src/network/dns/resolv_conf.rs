//! The node's own name servers, from its `resolv.conf`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Config;
use super::forward::Forwarder;
use crate::inotify::Watcher;

/// Name servers that are used of a list, as resolvers do.
const MAX_SERVERS: usize = 3;
/// Symbolic links that are followed from a file.
const MAX_LINKS: usize = 8;
/// What writes a file is given time to finish.
const SETTLE: Duration = Duration::from_millis(100);
/// Where the kernel has no watch to give: until it is asked again.
const NO_WATCH: Duration = Duration::from_secs(60);

/// Where the list is.
#[derive(Debug)]
pub(super) struct ResolvConf {
    own: PathBuf,
    behind_stub: PathBuf,
    /// The name server's own address: asking it would go round in circles.
    excluded: Ipv4Addr,
}

impl ResolvConf {
    pub(super) fn new(config: &Config) -> Self {
        let (own, behind_stub) = (config.resolv_conf.clone(), config.behind_stub.clone());
        Self { own, behind_stub, excluded: config.address }
    }

    /// Lets the forwarder use these servers, and others when the files change. Never ends.
    pub(super) async fn follow(self, forwarder: &Forwarder) -> Infallible {
        let mut known = None;
        loop {
            // Watched before it is read, so that no change is missed.
            let watch = self.watch();
            let servers = self.servers();
            if known.as_ref() != Some(&servers) {
                tracing::info!(?servers, "name servers for names outside the cluster");
                forwarder.use_servers(&servers);
                known = Some(servers);
            }
            let changed = match watch {
                Ok((mut watcher, names)) => wait(&mut watcher, &names).await,
                Err(error) => Err(error),
            };
            if let Err(error) = changed {
                tracing::warn!(%error, file = %self.own.display(), "cannot watch the node's list of name servers");
                tokio::time::sleep(NO_WATCH).await;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let read = |path| {
            let mut servers = parse(&fs::read_to_string(path).unwrap_or_default());
            servers.retain(|server| server.ip() != IpAddr::V4(self.excluded));
            servers.truncate(MAX_SERVERS);
            servers
        };
        let own = read(&self.own);
        // A stub's servers are asked directly. A resolver on the loopback that is no stub has no such list.
        if own.iter().all(|server| server.ip().is_loopback()) {
            let behind = read(&self.behind_stub);
            if !behind.is_empty() {
                return behind;
            }
        }
        own
    }

    /// A watch on everything that can change the lists, and the names that such changes bear.
    fn watch(&self) -> std::io::Result<(Watcher, Vec<OsString>)> {
        let files: Vec<PathBuf> = [&self.own, &self.behind_stub].into_iter().flat_map(|path| links(path)).collect();
        let directories = files.iter().filter_map(|file| file.ancestors().skip(1).find(|dir| dir.is_dir()));
        let watcher = Watcher::any(directories.chain(files.iter().map(PathBuf::as_path)))?;
        let names = files.iter().flat_map(|file| file.iter().map(OsString::from)).collect();
        Ok((watcher, names))
    }
}

/// Waits until something of these names changes, or a watched file itself.
async fn wait(watcher: &mut Watcher, names: &[OsString]) -> std::io::Result<()> {
    loop {
        let changed = watcher.next().await?;
        if changed.is_empty() || changed.iter().any(|name| names.contains(name)) {
            return Ok(());
        }
    }
}

/// A path and what it leads to by symbolic links, there or not.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut paths = vec![path.to_owned()];
    while let Some(target) = paths.last().and_then(|last| fs::read_link(last).ok().map(|link| resolve(last, &link))) {
        if paths.len() > MAX_LINKS {
            break;
        }
        paths.push(target);
    }
    paths
}

fn resolve(path: &Path, link: &Path) -> PathBuf {
    path.parent().unwrap_or(path).join(link)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten().and_then(address)
    };
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in text.lines().filter_map(server) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// An address of a name server, with `%interface` for a link-local one.
fn address(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = interface.parse().ok().or_else(|| nix::net::if_::if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn servers(own: &str, behind: Option<&str>) -> Vec<String> {
        let room = tempfile::tempdir().unwrap();
        let conf = ResolvConf {
            own: room.path().join("resolv.conf"),
            behind_stub: room.path().join("behind"),
            excluded: Ipv4Addr::new(10, 43, 0, 10),
        };
        fs::write(&conf.own, own).unwrap();
        if let Some(behind) = behind {
            fs::write(&conf.behind_stub, behind).unwrap();
        }
        conf.servers().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_servers_to_ask() {
        let stub = "# generated\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        for (own, behind, expected) in [
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n",
                None,
                vec!["192.0.2.1:53", "[2001:db8::1]:53"],
            ),
            (
                "nameserver 192.0.2.1\nnameserver\t192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4",
                None,
                vec!["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"],
            ),
            (stub, Some("nameserver 192.0.2.9\n"), vec!["192.0.2.9:53"]),
            (stub, Some(""), vec!["127.0.0.53:53"]),
            (stub, None, vec!["127.0.0.53:53"]),
            // The stub's list leads back here.
            ("nameserver 127.0.0.1\n", Some("nameserver 10.43.0.10\n"), vec!["127.0.0.1:53"]),
            ("nameserver 10.43.0.10\nnameserver 192.0.2.1\n", None, vec!["192.0.2.1:53"]),
            ("nameserver 10.43.0.10\n", None, vec![]),
            ("nameserver fe80::1%lo\n", None, vec!["[fe80::1%1]:53"]),
            ("nameserver fe80::1%nothere\nnameserver x\nnameserver\n#nameserver 192.0.2.1\n", None, vec![]),
        ] {
            assert_eq!(servers(own, behind), expected, "{own:?} {behind:?}");
        }
    }
}
