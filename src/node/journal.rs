//! Events that no server has heard of yet, on disk: what a board that is cut off has to tell outlives its power.
//!
//! One line of JSON each, the oldest first. With a server in reach nothing is ever written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::engine::blocking;
use super::error::{At, Result};
use super::outbox::MAX_EVENTS;
use crate::files;
use crate::link::message::ToServer;

/// The file of a node's unsent events.
pub(super) struct Journal {
    path: PathBuf,
    /// Lines in it.
    lines: usize,
}

impl Journal {
    /// Opens the journal of a node's directory; gives the events in it. A line that cannot be read, as the last one after
    /// a power cut, is passed over.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub(super) fn open(data_dir: &Path) -> Result<(Self, Vec<ToServer>)> {
        let path = data_dir.join("events");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).at("read", &path),
        };
        let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let events: Vec<ToServer> = lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let first = events.len().saturating_sub(MAX_EVENTS);
        Ok((Self { lines: lines.len(), path }, events.into_iter().skip(first).collect()))
    }

    /// Keeps events, of which the last `new` are not in the journal yet.
    ///
    /// # Errors
    /// When the disk does not take them.
    pub(super) async fn keep(&mut self, events: Vec<ToServer>, new: usize) -> Result<()> {
        if new == 0 {
            return Ok(());
        }
        let anew = self.lines + new > 2 * MAX_EVENTS;
        let first = if anew { 0 } else { events.len().saturating_sub(new) };
        let lines: Vec<String> = events.iter().skip(first).filter_map(|e| serde_json::to_string(e).ok()).collect();
        self.lines = if anew { lines.len() } else { self.lines + lines.len() };
        let (path, text) = (self.path.clone(), lines.join("\n") + "\n");
        blocking("keeping events", move || {
            if anew {
                return files::replace(&path, text.as_bytes()).at("write", &path);
            }
            append(&path, text.as_bytes()).at("write", &path)
        })
        .await
    }

    /// The server has heard of them all.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(super) fn clear(&mut self) -> Result<()> {
        if std::mem::take(&mut self.lines) > 0 {
            fs::remove_file(&self.path).at("remove", &self.path)?;
        }
        Ok(())
    }
}

fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    // After a line that a power cut left unfinished.
    file.write_all(b"\n")?;
    file.write_all(text)?;
    file.sync_data()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::link::message::{EventReport, PodName};

    fn event(number: usize) -> ToServer {
        let pod = PodName { uid: "u".into(), namespace: "n".into(), name: "p".into() };
        let reason = format!("Number{number}");
        ToServer::Event(EventReport { pod, field_path: String::new(), warning: false, reason, message: "m".into() })
    }

    #[tokio::test]
    async fn events_outlive_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let reopen = || Journal::open(dir.path()).unwrap();
        let (mut journal, events) = reopen();
        assert_eq!(events, []);
        journal.keep(vec![event(0), event(1)], 2).await.unwrap();
        journal.keep(vec![event(0), event(1)], 0).await.unwrap();
        journal.keep(vec![event(0), event(1), event(2)], 1).await.unwrap();
        assert_eq!(reopen().1, [event(0), event(1), event(2)]);
        append(&dir.path().join("events"), b"{\"event\":{\"half").unwrap();
        let (mut journal, events) = reopen();
        assert_eq!(events.len(), 3);
        journal.keep(vec![event(3)], 1).await.unwrap();
        assert_eq!(reopen().1.last(), Some(&event(3)));
        journal.clear().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        journal.clear().unwrap();
    }

    #[tokio::test]
    async fn it_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        for number in 0..3 * MAX_EVENTS {
            let first = (number + 1).saturating_sub(MAX_EVENTS);
            journal.keep((first..=number).map(event).collect(), 1).await.unwrap();
        }
        let (journal, events) = Journal::open(dir.path()).unwrap();
        assert!(journal.lines <= 2 * MAX_EVENTS);
        assert_eq!(events, (2 * MAX_EVENTS..3 * MAX_EVENTS).map(event).collect::<Vec<_>>());
    }
}
