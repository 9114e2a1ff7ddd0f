//! Notices that the machine stopped without the daemon having stopped first: a power cut.
//!
//! The file `session` holds the boot in which the store was opened. A clean stop of the daemon removes it. If it names
//! an earlier boot, that boot ended unclean, and what the store holds is suspect until it has been looked at. Killing
//! the daemon alone is harmless (the kernel keeps what was written), and the boot is still the same.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{At, Result};

const FILE: &str = "session";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Boot in which the store was last opened: this one.
    pub(super) boot: String,
    /// The boot that ended unclean.
    pub(super) suspect: Option<String>,
}

impl Session {
    /// Notes that the store is in use in this boot.
    pub(super) fn begin(directory: &Path) -> Result<Session> {
        let boot = fs::read_to_string(BOOT_ID).at("read", Path::new(BOOT_ID))?.trim().to_owned();
        Session::begin_in(directory, boot)
    }

    fn begin_in(directory: &Path, boot: String) -> Result<Session> {
        let path = directory.join(FILE);
        let last = match fs::read(&path) {
            // Written without waiting for the disk, so a cut can have left anything: then the cut is what it tells.
            Ok(bytes) => {
                Some(serde_json::from_slice(&bytes).unwrap_or(Session { boot: "unknown".to_owned(), suspect: None }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).at("read", &path),
        };
        let session = match last {
            Some(same) if same.boot == boot => return Ok(same),
            Some(earlier) => Session { boot, suspect: Some(earlier.boot) },
            None => Session { boot, suspect: None },
        };
        let bytes = serde_json::to_vec(&session).map_err(io::Error::from).at("encode", &path)?;
        fs::write(&path, bytes).at("write", &path)?;
        Ok(session)
    }

    /// Notes that all is well.
    pub(super) fn end(directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", &path),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_makes_suspicious() {
        let room = tempfile::tempdir().unwrap();
        let begin = |boot: &str| Session::begin_in(room.path(), boot.to_owned()).unwrap().suspect;
        assert_eq!(begin("one"), None);
        assert_eq!(begin("one"), None, "the daemon was killed");
        assert_eq!(begin("two").as_deref(), Some("one"), "power cut");
        assert_eq!(begin("two").as_deref(), Some("one"), "killed before everything was looked at");
        Session::end(room.path()).unwrap();
        assert_eq!(begin("three"), None, "clean stop");
        fs::write(room.path().join(FILE), "").unwrap();
        assert_eq!(begin("four").as_deref(), Some("unknown"), "the file itself suffered");
    }
}
