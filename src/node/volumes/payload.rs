//! Files made from ConfigMaps, Secrets and the downward API, replaced all at once.
//!
//! The layout is the one Kubernetes documents by use: files live in a directory of their own, `..data` points to it,
//! and every visible name is a link through `..data`. An update swings `..data` by rename.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, SecretVolumeSource,
};

use super::super::downward;
use super::super::env::{entry, keys, not_found};
use super::super::error::{At, Error, Result};
use super::super::pod::{Desired, Facts};
use crate::files;

const DEFAULT_MODE: i32 = 0o644;
const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// A file's content and permission bits.
pub(super) type Payload = BTreeMap<PathBuf, (Vec<u8>, u32)>;

struct Builder<'a> {
    pod: &'a Desired,
    facts: &'a Facts,
    files: Payload,
}

impl Builder<'_> {
    fn put(&mut self, path: &str, content: Vec<u8>, mode: i32) -> Result<()> {
        let path = Path::new(path);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_))) && path.components().count() > 0;
        if !plain || path.to_string_lossy().starts_with("..") {
            return Err(Error::config(format!("path {path:?} must be relative and must not contain '..'")));
        }
        self.files.insert(path.to_owned(), (content, mode.unsigned_abs() & 0o777));
        Ok(())
    }

    fn keyed(
        &mut self,
        resource: &str,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<()> {
        let optional = optional == Some(true);
        let pod = self.pod;
        let Some(object) = pod.object(resource, name) else {
            return if optional { Ok(()) } else { Err(not_found(resource, name)) };
        };
        match items.filter(|i| !i.is_empty()) {
            None => {
                for key in keys(object) {
                    if let Some(content) = entry(resource, object, key) {
                        self.put(key, content, mode)?;
                    }
                }
            }
            Some(items) => {
                for item in items {
                    match entry(resource, object, &item.key) {
                        Some(content) => self.put(&item.path, content, item.mode.unwrap_or(mode))?,
                        None if optional => {}
                        None => {
                            return Err(Error::config(format!(
                                "references non-existent {} key: {}",
                                singular(resource),
                                item.key
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<()> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward::field(self.pod, self.facts, &field.field_path)?,
                (None, Some(selector)) => downward::resource(self.pod, self.facts, None, selector)?,
                (None, None) => String::new(),
            };
            self.put(&item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }
}

fn singular(resource: &str) -> &str {
    if resource == "secrets" { "secret" } else { "config" }
}

/// The files of a `configMap` volume.
pub(super) fn config_map(pod: &Desired, facts: &Facts, source: &ConfigMapVolumeSource) -> Result<Payload> {
    let mut builder = Builder { pod, facts, files: Payload::new() };
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    builder.keyed("configmaps", &source.name, source.items.as_deref(), source.optional, mode)?;
    Ok(builder.files)
}

/// The files of a `secret` volume.
pub(super) fn secret(pod: &Desired, facts: &Facts, source: &SecretVolumeSource) -> Result<Payload> {
    let mut builder = Builder { pod, facts, files: Payload::new() };
    let name = source.secret_name.as_deref().unwrap_or_default();
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    builder.keyed("secrets", name, source.items.as_deref(), source.optional, mode)?;
    Ok(builder.files)
}

/// The files of a `downwardAPI` volume.
pub(super) fn downward_api(
    pod: &Desired,
    facts: &Facts,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<Payload> {
    let mut builder = Builder { pod, facts, files: Payload::new() };
    builder.downward(items, mode.unwrap_or(DEFAULT_MODE))?;
    Ok(builder.files)
}

/// The files of a `projected` volume.
pub(super) fn projected(pod: &Desired, facts: &Facts, source: &ProjectedVolumeSource) -> Result<Payload> {
    let mut builder = Builder { pod, facts, files: Payload::new() };
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    for source in source.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            builder.keyed("configmaps", &map.name, map.items.as_deref(), map.optional, mode)?;
        } else if let Some(secret) = &source.secret {
            builder.keyed("secrets", &secret.name, secret.items.as_deref(), secret.optional, mode)?;
        } else if let Some(downward) = &source.downward_api {
            builder.downward(downward.items.as_deref(), mode)?;
        } else if source.service_account_token.is_some() {
            return Err(Error::config(
                "projected serviceAccountToken is not supported: this cluster issues no service account tokens; \
                 set automountServiceAccountToken: false",
            ));
        } else {
            return Err(Error::config("projected: only configMap, secret and downwardAPI sources are supported"));
        }
    }
    Ok(builder.files)
}

/// Makes `dir` show exactly `files`; does nothing if it does already. `group` owns them if given.
pub(super) fn publish(dir: &Path, files: &Payload, group: Option<u32>) -> Result<()> {
    let data = dir.join(DATA);
    if shows(&data, files) {
        return Ok(());
    }
    let published = replace(dir, files, group);
    sweep(dir)?;
    published
}

fn replace(dir: &Path, files: &Payload, group: Option<u32>) -> Result<()> {
    let fresh = fresh_directory(dir)?;
    for (name, (content, mode)) in files {
        let path = fresh.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).at("create", parent)?;
            // As `fresh` itself: the container may run as anybody, whatever umask the daemon has.
            for made in parent.ancestors().take_while(|path| *path != fresh) {
                fs::set_permissions(made, fs::Permissions::from_mode(0o755)).at("change the mode of", made)?;
            }
        }
        // Containers see it before it has its own mode.
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(content)).at("write", &path)?;
        // Kubernetes gives the group read access to what a pod with fsGroup mounts.
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at("change the mode of", &path)?;
        chown(&path, None, group).at("change the group of", &path)?;
    }
    let target = PathBuf::from(fresh.file_name().unwrap_or_default());
    let swing = dir.join(DATA_TMP);
    remove_file(&swing)?;
    symlink(&target, &swing).at("create", &swing)?;
    fs::rename(&swing, dir.join(DATA)).at("rename", &swing)?;
    link_names(dir, files)
}

/// Removes the files that are shown no more, and what an update that failed or was cut off left.
fn sweep(dir: &Path) -> Result<()> {
    let shown = fs::read_link(dir.join(DATA)).unwrap_or_default();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..") && name != DATA && name != *shown.as_os_str() {
            files::remove_tree(&entry.path()).at("remove", &entry.path())?;
        }
    }
    Ok(())
}

fn shows(data: &Path, files: &Payload) -> bool {
    let same = |(name, (content, _)): (&PathBuf, &(Vec<u8>, u32))| {
        fs::read(data.join(name)).is_ok_and(|stored| stored == *content)
    };
    files.iter().all(same) && count(data).is_ok_and(|n| n == files.len())
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

fn fresh_directory(dir: &Path) -> Result<PathBuf> {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S");
    for attempt in 0u32.. {
        let path = dir.join(format!("..{now}.{attempt}"));
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("change the mode of", &path)?;
                return Ok(path);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).at("create", &path),
        }
    }
    Err(Error::Interrupted("naming a directory"))
}

fn link_names(dir: &Path, files: &Payload) -> Result<()> {
    let first = |path: &PathBuf| path.components().next().map(|c| PathBuf::from(c.as_os_str()));
    let wanted: std::collections::BTreeSet<PathBuf> = files.keys().filter_map(first).collect();
    for name in &wanted {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_err() {
            symlink(Path::new(DATA).join(name), &path).at("create", &path)?;
        }
    }
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let name = PathBuf::from(entry.file_name());
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::super::pod::tests::desired;
    use super::*;

    fn objects() -> Vec<(&'static str, serde_json::Value)> {
        vec![("configmaps/c", json!({"data": {"a": "1", "b": "2"}})), ("secrets/s", json!({"data": {"user": "bWU="}}))]
    }

    fn names(files: &Payload) -> Vec<String> {
        files.iter().map(|(n, (c, m))| format!("{} {m:o} {}", n.display(), String::from_utf8_lossy(c))).collect()
    }

    #[test]
    fn sources() {
        let pod = desired(json!({"nodeName": "n"}), &objects());
        let facts = Facts::default();
        let projected = |value: serde_json::Value| {
            super::projected(&pod, &facts, &serde_json::from_value(value).unwrap()).map(|f| names(&f))
        };
        let all = projected(json!({"defaultMode": 0o400, "sources": [
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "sub/a", "mode": 0o600}]}},
            {"secret": {"name": "s"}},
            {"secret": {"name": "none", "optional": true}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ]}));
        assert_eq!(all.unwrap(), ["name 400 pod", "sub/a 600 1", "user 400 me"]);
        for (source, text) in [
            (json!({"configMap": {"name": "no"}}), "configmap \"no\" not found"),
            (
                json!({"secret": {"name": "s", "items": [{"key": "x", "path": "x"}]}}),
                "references non-existent secret key: x",
            ),
            (json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "../x"}]}}), "must not contain '..'"),
            (json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "/x"}]}}), "must be relative"),
            (json!({"serviceAccountToken": {"path": "token"}}), "serviceAccountToken is not supported"),
        ] {
            let error = projected(json!({"sources": [source]})).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn an_update_swings_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = |list: &[(&str, &str)]| -> Payload {
            list.iter().map(|(n, c)| (PathBuf::from(n), (c.as_bytes().to_vec(), 0o640))).collect()
        };
        publish(dir.path(), &files(&[("a", "1"), ("d/e", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("d/e")).unwrap(), "2");
        let before = fs::read_link(dir.path().join("..data")).unwrap();
        publish(dir.path(), &files(&[("a", "1"), ("d/e", "2")]), None).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), before, "unchanged content is not rewritten");

        publish(dir.path(), &files(&[("a", "new"), ("f", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "new");
        assert!(!dir.path().join("d").exists());
        assert!(!dir.path().join(before).exists(), "the old directory is gone");
        let mode = fs::metadata(dir.path().join("f")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        publish(dir.path(), &files(&[("a", "1"), ("a/b", "2")]), None).unwrap_err();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "a failed update leaves nothing");
    }
}
