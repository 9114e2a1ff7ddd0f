//! A pod's volumes on this node. Everything here is blocking file work.
//!
//! Each volume the node makes is a directory below the pod's `volumes/`; what comes from objects lies on tmpfs, so that
//! Secrets never touch the flash by way of a volume and updates wear nothing out.

mod group;
mod payload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolume, Volume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::error::{At, Error, Result};
use super::pod::{Desired, Facts};
use super::resources::value;
use crate::files;
use group::own;
use payload::Payload;

/// Where a volume lies and how it may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Directory or file on the host.
    pub(super) path: PathBuf,
    /// Containers may only read it.
    pub(super) readonly: bool,
}

/// What a volume is made from, as far as this node can.
enum Source<'a> {
    Empty(&'a EmptyDirVolumeSource),
    HostPath(HostPathVolumeSource),
    Claim { path: HostPathVolumeSource, readonly: bool },
    Files(Payload),
}

/// Makes every volume of the pod ready below `dir`, or brings files made from objects up to date. Idempotent.
pub(super) fn prepare(dir: &Path, pod: &Desired, facts: &Facts) -> Result<BTreeMap<String, Prepared>> {
    fs::create_dir_all(dir).at("create", dir)?;
    let mut prepared = BTreeMap::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let ready = prepare_one(dir, pod, facts, volume)
            .map_err(|e| Error::Volume { name: volume.name.clone(), reason: e.to_string() })?;
        prepared.insert(volume.name.clone(), ready);
    }
    Ok(prepared)
}

fn prepare_one(dir: &Path, pod: &Desired, facts: &Facts, volume: &Volume) -> Result<Prepared> {
    let path = dir.join(&volume.name);
    let group = fs_group(pod);
    match source(pod, facts, volume)? {
        Source::Empty(source) => {
            empty_dir(&path, source)?;
            own(&path, group)?;
            Ok(Prepared { path, readonly: false })
        }
        Source::HostPath(source) => Ok(Prepared { path: host_path(&source)?, readonly: false }),
        Source::Claim { path: source, readonly } => {
            let path = host_path(&source)?;
            if !readonly {
                own(&path, group)?;
            }
            Ok(Prepared { path, readonly })
        }
        Source::Files(files) => {
            tmpfs(&path, "mode=0755")?;
            payload::publish(&path, &files, group)?;
            Ok(Prepared { path, readonly: true })
        }
    }
}

fn fs_group(pod: &Desired) -> Option<u32> {
    let group = pod.spec().security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn source<'a>(pod: &Desired, facts: &Facts, volume: &'a Volume) -> Result<Source<'a>> {
    if let Some(source) = &volume.empty_dir {
        return Ok(Source::Empty(source));
    }
    if let Some(source) = &volume.host_path {
        return Ok(Source::HostPath(source.clone()));
    }
    if let Some(source) = &volume.config_map {
        return payload::config_map(pod, facts, source).map(Source::Files);
    }
    if let Some(source) = &volume.secret {
        return payload::secret(pod, facts, source).map(Source::Files);
    }
    if let Some(source) = &volume.downward_api {
        return payload::downward_api(pod, facts, source.items.as_deref(), source.default_mode).map(Source::Files);
    }
    if let Some(source) = &volume.projected {
        return payload::projected(pod, facts, source).map(Source::Files);
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return claim(pod, &source.claim_name, source.read_only.unwrap_or(false));
    }
    Err(Error::config(format!("{} volumes are not supported", kind(volume).unwrap_or_else(|| "such".to_owned()))))
}

/// The name of the field that says what the volume is.
fn kind(volume: &Volume) -> Option<String> {
    let value = serde_json::to_value(volume).ok()?;
    value.as_object()?.keys().find(|k| *k != "name").cloned()
}

fn claim(pod: &Desired, name: &str, readonly: bool) -> Result<Source<'static>> {
    let missing = || Error::config(format!("persistentvolumeclaim {name:?} not found"));
    let claim = pod.object("persistentvolumeclaims", name).ok_or_else(missing)?;
    let bound = claim.get("spec").and_then(|s| s.get("volumeName")).and_then(|v| v.as_str()).unwrap_or_default();
    let unbound = || Error::config(format!("persistentvolumeclaim {name:?} is not bound to a volume yet"));
    let object = pod.object_in("persistentvolumes", "", bound).ok_or_else(unbound)?;
    let volume: PersistentVolume = serde_json::from_value(serde_json::Value::Object(object.clone()))
        .map_err(|e| Error::config(format!("persistentvolume {bound:?}: {e}")))?;
    let spec = volume.spec.unwrap_or_default();
    let only_read = |modes: &Option<Vec<String>>| {
        modes.as_ref().is_some_and(|m| !m.is_empty() && m.iter().all(|mode| mode == "ReadOnlyMany"))
    };
    let readonly = readonly || only_read(&spec.access_modes);
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Error::config(format!("persistentvolume {bound:?}: volumeMode Block is not supported")));
    }
    let path = match (spec.host_path, spec.local) {
        (Some(path), _) => path,
        (None, Some(local)) => HostPathVolumeSource { path: local.path, type_: Some("Directory".to_owned()) },
        (None, None) => {
            return Err(Error::config(format!("persistentvolume {bound:?}: only hostPath and local are supported")));
        }
    };
    Ok(Source::Claim { path, readonly })
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource) -> Result<()> {
    match source.medium.as_deref().unwrap_or_default() {
        "" => directory(path, 0o777),
        "Memory" => {
            let size = source.size_limit.as_ref().map(value).filter(|s| *s > 0);
            tmpfs(path, &size.map_or("mode=0777".to_owned(), |s| format!("mode=0777,size={s}")))
        }
        other => Err(Error::config(format!("emptyDir.medium {other:?} is not supported"))),
    }
}

fn directory(path: &Path, mode: u32) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("change the mode of", path),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e).at("create", path),
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let parent = path.parent().unwrap_or(path);
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).at("read", p);
    Ok(device(path)? != device(parent)?)
}

fn tmpfs(path: &Path, options: &str) -> Result<()> {
    directory(path, 0o755)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).at("mount tmpfs on", path)
}

/// Checks and makes a `hostPath` as its `type` says.
fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::config(format!("hostPath {path:?} must be absolute and must not contain '..'")));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).at("read", &path),
    };
    let wrong =
        |what: &str| Err(Error::config(format!("hostPath type check failed: {} is not {what}", path.display())));
    match (kind, found) {
        ("" | "DirectoryOrCreate", None) => {
            fs::create_dir_all(&path).at("create", &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("change the mode of", &path)?;
        }
        ("FileOrCreate", None) => {
            fs::File::create(&path).at("create", &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).at("change the mode of", &path)?;
        }
        ("", Some(_)) => {}
        ("Directory" | "DirectoryOrCreate", found) if !found.is_some_and(|f| f.is_dir()) => {
            return wrong("a directory");
        }
        ("File" | "FileOrCreate", found) if !found.is_some_and(|f| f.is_file()) => return wrong("a file"),
        ("Socket", found) if !found.is_some_and(|f| f.is_socket()) => return wrong("a socket file"),
        ("CharDevice", found) if !found.is_some_and(|f| f.is_char_device()) => return wrong("a character device"),
        ("BlockDevice", found) if !found.is_some_and(|f| f.is_block_device()) => return wrong("a block device"),
        ("Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice" | "BlockDevice", _) => {}
        (other, _) => return Err(Error::config(format!("hostPath.type {other:?} is not supported"))),
    }
    Ok(path)
}

/// Unmounts and removes everything [`prepare`] made below `dir`. What lies on the host otherwise stays. Idempotent.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).at("read", dir),
    };
    for entry in entries {
        let path = entry.at("read", dir)?.path();
        if is_mounted(&path)? {
            umount2(&path, MntFlags::MNT_DETACH).at("unmount", &path)?;
        }
        // A mount that is still there now would be emptied by the removal.
        if is_mounted(&path)? {
            return Err(Error::Volume { name: path.display().to_string(), reason: "it is still mounted".into() });
        }
        files::remove_tree(&path).at("remove", &path)?;
    }
    fs::remove_dir(dir).at("remove", dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pod::tests::desired;
    use super::*;

    #[test]
    fn secrets_lie_on_tmpfs_and_leave_nothing() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("volumes");
        let spec = json!({
            "securityContext": {"fsGroup": 4711},
            "volumes": [
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
                {"name": "e", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            ],
        });
        let pod = desired(spec.clone(), &[("secrets/s", json!({"data": {"k": "eA=="}}))]);
        let ready = prepare(&dir, &pod, &Facts::default()).unwrap();
        assert_eq!(fs::read_to_string(dir.join("s/k")).unwrap(), "x");
        assert!(is_mounted(&dir.join("s")).unwrap() && is_mounted(&dir.join("m")).unwrap());
        assert!(!is_mounted(&dir.join("e")).unwrap());
        assert!(ready["s"].readonly && !ready["e"].readonly);
        let key = fs::metadata(dir.join("s/k")).unwrap();
        assert_eq!((key.mode() & 0o777, key.gid()), (0o440, 4711));
        let empty = fs::metadata(dir.join("e")).unwrap();
        assert_eq!((empty.mode() & 0o7777, empty.gid()), (0o2777, 4711));
        fs::write(dir.join("m/big"), vec![0; 2 << 20]).expect_err("larger than its limit");

        fs::write(dir.join("e/kept"), "1").unwrap();
        let pod = desired(spec, &[("secrets/s", json!({"data": {"k": "eXk="}}))]);
        prepare(&dir, &pod, &Facts::default()).unwrap();
        assert_eq!(fs::read_to_string(dir.join("s/k")).unwrap(), "yy");
        assert!(dir.join("e/kept").exists());

        remove(&dir).unwrap();
        assert!(!dir.exists());
        remove(&dir).unwrap();
    }

    #[test]
    fn host_paths() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name).display().to_string();
        fs::write(path("file"), "x").unwrap();
        for (name, kind, ok) in [
            ("new", "", true),
            ("new2/deep", "DirectoryOrCreate", true),
            ("absent", "Directory", false),
            ("file", "Directory", false),
            ("file", "DirectoryOrCreate", false),
            ("file", "File", true),
            ("new", "File", false),
            ("newfile", "FileOrCreate", true),
            ("file", "Socket", false),
            ("file", "Nonsense", false),
            ("../x", "", false),
        ] {
            let source = HostPathVolumeSource { path: path(name), type_: Some(kind.into()) };
            assert_eq!(host_path(&source).is_ok(), ok, "{name} {kind}");
        }
        assert!(base.path().join("new2/deep").is_dir() && base.path().join("newfile").is_file());
    }

    fn failure(volume: Value, objects: &[(&str, Value)]) -> String {
        let base = tempfile::tempdir().unwrap();
        let pod = desired(json!({"volumes": [volume]}), objects);
        prepare(&base.path().join("v"), &pod, &Facts::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let text = failure(json!({"name": "v", "nfs": {"server": "s", "path": "/"}}), &[]);
        assert_eq!(text, "volume \"v\": nfs volumes are not supported");
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "p"}});
        assert!(failure(claim.clone(), &[]).contains("persistentvolumeclaim \"p\" not found"));
        let unbound = [("persistentvolumeclaims/p", json!({"spec": {}}))];
        assert!(failure(claim, &unbound).contains("not bound"));
    }

    #[test]
    fn claims_lead_to_their_volume() {
        let base = tempfile::tempdir().unwrap();
        let disk = base.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let pod = desired(
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]}),
            &[
                ("persistentvolumeclaims/p", json!({"spec": {"volumeName": "pv"}})),
                ("persistentvolumes/pv", json!({"spec": {"local": {"path": disk}}})),
            ],
        );
        let ready = prepare(&base.path().join("v"), &pod, &Facts::default()).unwrap();
        assert_eq!(ready["v"], Prepared { path: disk.clone(), readonly: false });
        remove(&base.path().join("v")).unwrap();
        assert!(disk.exists());
    }
}
