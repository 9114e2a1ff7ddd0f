//! What the node keeps on its disk, so that it goes on without a server: one directory a pod.
//!
//! ```text
//! pods/UID/pod.json     the pod and the objects it uses, as the server sent them (0600: there are Secrets in it)
//! pods/UID/state.json   what happened to its containers
//! pods/UID/volumes/     volumes the node makes
//! pods/UID/files/       hosts, hostname, resolv.conf
//! pods/UID/containers/NAME/ATTEMPT.message   behind terminationMessagePath
//! pods/UID/logs/NAME/ATTEMPT.log             logs in CRI format
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{At, Error, Result};
use crate::files;
use crate::link::message::DesiredPod;

/// The node's pods on disk.
#[derive(Clone, Debug)]
pub(super) struct Pods {
    root: PathBuf,
}

impl Pods {
    /// Opens, or makes, the directory (0700).
    pub(super) fn open(node_dir: &Path) -> Result<Self> {
        let root = node_dir.join("pods");
        fs::create_dir_all(&root).at("create", &root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).at("change the mode of", &root)?;
        Ok(Self { root })
    }

    /// A pod's directory, whether it exists or not.
    pub(super) fn pod(&self, uid: &str) -> Result<PodDir> {
        let plain = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !plain {
            return Err(Error::config(format!("pod UID {uid:?} is no file name")));
        }
        Ok(PodDir { path: self.root.join(uid) })
    }

    /// Every pod's directory.
    pub(super) fn list(&self) -> Result<Vec<PodDir>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).at("read", &self.root)? {
            found.push(PodDir { path: entry.at("read", &self.root)?.path() });
        }
        Ok(found)
    }
}

/// One pod's directory.
#[derive(Clone, Debug)]
pub(super) struct PodDir {
    path: PathBuf,
}

impl PodDir {
    /// The UID it is named by.
    pub(super) fn uid(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// `volumes/`
    pub(super) fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// `files/`
    pub(super) fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// The file behind a run's `terminationMessagePath`.
    pub(super) fn message(&self, container: &str, attempt: u32) -> PathBuf {
        self.path.join("containers").join(container).join(format!("{attempt}.message"))
    }

    /// A run's log file.
    pub(super) fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.path.join("logs").join(container).join(format!("{attempt}.log"))
    }

    /// Reads the pod.
    pub(super) fn load(&self) -> Result<DesiredPod> {
        read_json(&self.path.join("pod.json"))
    }

    /// Keeps the pod; on disk when it returns.
    pub(super) fn store(&self, pod: &DesiredPod) -> Result<()> {
        make_directory(&self.path)?;
        write_json(&self.path.join("pod.json"), pod)
    }

    /// What happened to the pod's containers so far; nothing if that is not known.
    pub(super) fn history(&self) -> History {
        // An unreadable history costs restart counts, a pod that does not start costs more.
        read_json(&self.path.join("state.json")).unwrap_or_default()
    }

    /// Keeps the history; on disk when it returns.
    pub(super) fn store_history(&self, history: &History) -> Result<()> {
        write_json(&self.path.join("state.json"), history)
    }

    /// Makes the files and directories a run of a container needs, and removes those of runs before the previous one.
    pub(super) fn prepare_run(&self, container: &str, attempt: u32) -> Result<()> {
        let message = self.message(container, attempt);
        let log = self.log(container, attempt);
        for file in [&message, &log] {
            if let Some(parent) = file.parent() {
                make_directory(parent)?;
            }
        }
        fs::File::create(&message).at("create", &message)?;
        // Whoever the container runs as must be able to write it.
        fs::set_permissions(&message, fs::Permissions::from_mode(0o666)).at("change the mode of", &message)?;
        if let Some(previous) = attempt.checked_sub(1) {
            remove_before(message.parent(), previous)?;
            remove_before(log.parent(), previous)?;
        }
        Ok(())
    }

    /// Removes what makes the directory a pod: what is left is only to be cleaned up. Idempotent.
    pub(super) fn disown(&self) -> Result<()> {
        files::remove_tree(&self.path.join("pod.json")).at("remove", &self.path)
    }

    /// Whether [`PodDir::disown`] was called, or [`PodDir::store`] never came to its end.
    pub(super) fn is_disowned(&self) -> bool {
        fs::exists(self.path.join("pod.json")).is_ok_and(|exists| !exists)
    }

    /// Removes everything of the pod. Its volumes must have been removed before. Idempotent.
    pub(super) fn remove(&self) -> Result<()> {
        // An interrupted removal must not be taken for a pod.
        self.disown()?;
        files::remove_tree(&self.path).at("remove", &self.path)
    }
}

/// Removes files `N.…` with N below `oldest`.
fn remove_before(dir: Option<&Path>, oldest: u32) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    for entry in fs::read_dir(dir).at("read", dir)? {
        let path = entry.at("read", dir)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.split('.').next().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < oldest) {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// What happened to a pod's containers: what must be known after a restart of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct History {
    /// Seconds since 1970 when the node took the pod.
    pub(super) started: i64,
    /// Counts the pod's sandboxes.
    pub(super) sandbox: u32,
    /// By container name.
    pub(super) containers: BTreeMap<String, ContainerHistory>,
    /// Set once the pod has ended for good.
    pub(super) outcome: Option<Outcome>,
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// `Succeeded` or `Failed`.
    pub(super) phase: String,
    /// `status.reason`, for example `DeadlineExceeded`; empty for the usual end.
    pub(super) reason: String,
    /// `status.message`.
    pub(super) message: String,
}

/// The runs of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerHistory {
    /// The number of the current run, counted from 0.
    pub(super) attempt: u32,
    /// The sandbox it belongs to.
    pub(super) sandbox: u32,
    /// The image as the pod names it.
    pub(super) image: String,
    /// What it was found to be.
    pub(super) image_id: String,
    /// The image's stop signal; 0 is SIGTERM.
    pub(super) stop_signal: i32,
    /// How the current run ended.
    pub(super) ended: Option<Ended>,
    /// How the run before ended.
    pub(super) previous: Option<Ended>,
}

/// How a run ended: `state.terminated`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Ended {
    /// The run's number.
    pub(super) attempt: u32,
    /// Exit code.
    pub(super) code: i32,
    /// Signal, if one ended it.
    pub(super) signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, …
    pub(super) reason: String,
    /// Termination message.
    pub(super) message: String,
    /// Seconds since 1970; 0 if it never ran.
    pub(super) started: i64,
    /// Seconds since 1970.
    pub(super) finished: i64,
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).at("create", path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).at("read", path)?;
    serde_json::from_slice(&text).map_err(|e| Error::State { path: path.to_owned(), reason: e.to_string() })
}

/// Replaces a file as a whole, durably, readable by root alone.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::State { path: path.to_owned(), reason: e.to_string() })?;
    files::replace(path, &text).at("write", path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::desired_message;
    use super::*;

    #[test]
    fn pods_survive_and_are_private() {
        let base = tempfile::tempdir().unwrap();
        let pods = Pods::open(base.path()).unwrap();
        let pod = desired_message(json!({}), &[("secrets/s", json!({"data": {}}))]);
        let dir = pods.pod("u-1").unwrap();
        dir.store(&pod).unwrap();
        assert_eq!(dir.load().unwrap(), pod);
        let mode = fs::metadata(base.path().join("pods/u-1/pod.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut history = History::default();
        history.containers.insert("c".into(), ContainerHistory { attempt: 3, ..ContainerHistory::default() });
        dir.store_history(&history).unwrap();
        assert_eq!(dir.history(), history);
        fs::write(base.path().join("pods/u-1/state.json"), "{").unwrap();
        assert_eq!(dir.history(), History::default());
        assert_eq!(pods.list().unwrap().len(), 1);
        assert!(!dir.is_disowned());
        dir.disown().unwrap();
        assert!(dir.is_disowned() && dir.load().is_err());
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(pods.list().unwrap().is_empty());
        for uid in ["", "..", "a/b", "."] {
            assert!(pods.pod(uid).is_err(), "{uid}");
        }
    }

    #[test]
    fn one_previous_run_is_kept() {
        let base = tempfile::tempdir().unwrap();
        let dir = Pods::open(base.path()).unwrap().pod("u").unwrap();
        for attempt in 0..4 {
            dir.prepare_run("c", attempt).unwrap();
            fs::write(dir.log("c", attempt), "x").unwrap();
            fs::write(dir.log("c", attempt).with_extension("log.1"), "x").unwrap();
        }
        let kept: Vec<u32> = (0..4).filter(|n| dir.log("c", *n).exists()).collect();
        assert_eq!(kept, [2, 3]);
        assert!(!dir.log("c", 1).with_extension("log.1").exists());
        assert!(!dir.message("c", 1).exists() && dir.message("c", 2).exists());
    }
}
