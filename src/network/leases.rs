//! Which pod holds which address, kept in one small file.
//!
//! The file outlives the daemon, so that a re-adopted pod keeps its address. It is replaced by rename, but not synced:
//! no pod outlives a power cut, so nothing is lost with the last changes, and flash is spared. What is unreadable then
//! counts as empty; pods that do live bring their address back (see `Network::attach`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Cidr;
use super::error::{Error, Result};

const FILE: &str = "leases.json";
/// The network's own address and the gateway come first.
const FIRST: u32 = 2;

#[derive(Debug)]
pub(super) struct Leases {
    cidr: Cidr,
    path: PathBuf,
    table: Table,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Table {
    /// Where the search for a free address goes on: a freed address rests until all others had their turn, so that
    /// nobody who still talks to it reaches another pod.
    next: u32,
    /// By pod UID.
    pods: BTreeMap<String, Ipv4Addr>,
}

impl Leases {
    /// Reads the file in `directory`; leases outside of `cidr` are forgotten.
    pub(super) fn load(directory: &Path, cidr: Cidr) -> Result<Leases> {
        fs::create_dir_all(directory).map_err(|e| Error::file("create", directory, e))?;
        let path = directory.join(FILE);
        let mut table = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Table>(&bytes).unwrap_or_else(|e| {
                tracing::warn!(path = %path.display(), error = %e, "pod addresses are unreadable after an unclean stop");
                Table::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Table::default(),
            Err(e) => return Err(Error::file("read", &path, e)),
        };
        table.pods.retain(|_, address| cidr.contains(*address));
        Ok(Leases { cidr, path, table })
    }

    pub(super) fn get(&self, pod: &str) -> Option<Ipv4Addr> {
        self.table.pods.get(pod).copied()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &String> {
        self.table.pods.keys()
    }

    /// The pod's address; one it already has (in the kernel) is taken over if it is free.
    pub(super) fn lease(&mut self, pod: &str, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
        if let Some(address) = self.get(pod) {
            return Ok(address);
        }
        let wanted = wanted.filter(|address| self.cidr.contains(*address) && self.is_free(*address));
        let address = wanted.or_else(|| self.search()).ok_or(Error::Exhausted(self.cidr))?;
        self.change(|table, cidr| {
            table.next = cidr.index(address).unwrap_or(FIRST) + 1;
            table.pods.insert(pod.to_owned(), address);
        })?;
        Ok(address)
    }

    pub(super) fn free(&mut self, pod: &str) -> Result<()> {
        if !self.table.pods.contains_key(pod) {
            return Ok(());
        }
        self.change(|table, _| {
            table.pods.remove(pod);
        })
    }

    /// Removes the file.
    pub(super) fn destroy(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &self.path, e)),
            _ => Ok(()),
        }
    }

    fn search(&self) -> Option<Ipv4Addr> {
        let last = self.cidr.size() - 1;
        let start = if (FIRST..last).contains(&self.table.next) { self.table.next } else { FIRST };
        (start..last).chain(FIRST..start).map(|n| self.cidr.host(n)).find(|address| self.is_free(*address))
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        let usable = self.cidr.index(address).is_some_and(|n| (FIRST..self.cidr.size() - 1).contains(&n));
        usable && !self.table.pods.values().any(|taken| *taken == address)
    }

    /// Changes the file first: an address that is in use is always written down.
    fn change(&mut self, change: impl FnOnce(&mut Table, &Cidr)) -> Result<()> {
        let mut table = self.table.clone();
        change(&mut table, &self.cidr);
        let new = self.path.with_extension("new");
        let bytes = serde_json::to_vec(&table).map_err(|e| Error::file("encode", &self.path, e.into()))?;
        fs::write(&new, bytes).map_err(|e| Error::file("write", &new, e))?;
        fs::rename(&new, &self.path).map_err(|e| Error::file("rename", &new, e))?;
        self.table = table;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn leases(directory: &Path) -> Leases {
        Leases::load(directory, "10.9.0.0/29".parse().unwrap()).unwrap()
    }

    fn last(address: Ipv4Addr) -> u8 {
        address.octets()[3]
    }

    #[test]
    fn rotates_and_remembers() {
        let room = tempfile::tempdir().unwrap();
        let mut all = leases(room.path());
        assert_eq!(last(all.lease("a", None).unwrap()), 2);
        assert_eq!(last(all.lease("b", None).unwrap()), 3);
        assert_eq!(last(all.lease("a", None).unwrap()), 2, "the same pod again");
        all.free("a").unwrap();
        all.free("a").unwrap();
        let mut all = leases(room.path());
        assert_eq!(all.get("b").map(last), Some(3));
        assert_eq!(last(all.lease("c", None).unwrap()), 4, "the freed address rests");
        assert_eq!([all.lease("d", None).unwrap(), all.lease("e", None).unwrap()].map(last), [5, 6]);
        assert_eq!(last(all.lease("f", None).unwrap()), 2, "once around");
        let error = all.lease("g", None).unwrap_err().to_string();
        assert_eq!(error, "no free pod address in 10.9.0.0/29");
    }

    #[test]
    fn takes_over_only_free_addresses_of_pods() {
        let room = tempfile::tempdir().unwrap();
        let mut all = leases(room.path());
        for (pod, wanted, expected) in [
            ("a", "10.9.0.5", 5),
            ("b", "10.9.0.5", 6),
            ("c", "10.9.0.1", 2),
            ("d", "10.9.0.7", 3),
            ("e", "1.2.3.4", 4),
        ] {
            assert_eq!(last(all.lease(pod, Some(wanted.parse().unwrap())).unwrap()), expected, "{wanted}");
        }
    }

    #[test]
    fn survives_a_torn_file_and_another_range() {
        let room = tempfile::tempdir().unwrap();
        leases(room.path()).lease("a", None).unwrap();
        let other = Leases::load(room.path(), "10.8.0.0/24".parse().unwrap()).unwrap();
        assert_eq!(other.get("a"), None);
        fs::write(room.path().join(FILE), "{\"next\":").unwrap();
        assert_eq!(leases(room.path()).get("a"), None);
    }
}
