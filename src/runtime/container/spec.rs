//! The OCI runtime specification of a container: what libcontainer does. Volumes, limits, the filter and the working
//! directory are not in it, those are done here by hand.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    super::{ContainerConfig, Device, Error, Result, cgroup::DeviceRule},
    Pod, capabilities, executor,
    user::Identity,
};

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Open files a process may have at first, and at most if it asks: what systemd gives services.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The whole specification.
pub(super) fn build(
    pod: &Pod,
    config: &ContainerConfig,
    identity: &Identity,
    command: &executor::Command,
) -> Result<Value> {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if let Some(pause) = pod.pause {
        namespaces.push(json!({ "type": "pid", "path": format!("/proc/{pause}/ns/pid") }));
    } else if !pod.config.host_pid {
        namespaces.push(json!({ "type": "pid" }));
    }
    let unified = pod.cgroups.unified();
    if unified {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let masked = config.security.masked_proc && !config.security.privileged;
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(command, identity, config.tty),
        "root": { "path": pod.directory_of(&config.id()).join("rootfs"), "readonly": false },
        "mounts": mounts(config.security.privileged, unified),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": pod.cgroup_of(&config.id()),
            "maskedPaths": if masked { &MASKED[..] } else { &[] },
            "readonlyPaths": if masked { &READONLY[..] } else { &[] },
            "devices": nodes(config)?,
        },
    }))
}

/// The process part; the same for a container and for what is executed in it.
pub(super) fn process(command: &executor::Command, identity: &Identity, terminal: bool) -> Value {
    let granted =
        capabilities::names((command.capabilities | executor::extra_capabilities()) & capabilities::permitted());
    json!({
        "terminal": terminal,
        "user": { "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups },
        "args": command.args,
        // libcontainer looks HOME up in the image's user database, by code of the host, where it is missing here.
        "env": [format!("HOME={}", identity.home)],
        "cwd": "/",
        "capabilities": {
            "bounding": granted, "effective": granted, "permitted": granted, "inheritable": [], "ambient": [],
        },
        "noNewPrivileges": command.no_new_privs,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": open_files().0, "hard": open_files().1 }],
    })
}

fn open_files() -> (u64, u64) {
    use nix::sys::resource::{Resource, getrlimit};
    // The numbers are 32 bits wide on 32-bit boards.
    #[allow(clippy::unnecessary_cast)]
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES.1, |(_, hard)| hard as u64);
    (OPEN_FILES.0.min(hard), OPEN_FILES.1.min(hard))
}

fn mounts(privileged: bool, unified: bool) -> Vec<Value> {
    let mount = |path: &str, kind: &str, options: &[&str]| json!({ "destination": path, "type": kind, "source": kind, "options": options });
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    // Version 1 hierarchies cannot be shown read-only: left out there.
    if unified {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]));
    }
    mounts
}

/// The device nodes beyond the standard ones.
fn nodes(config: &ContainerConfig) -> Result<Vec<Value>> {
    let mut nodes = config.devices.iter().filter(|d| is_below_dev(d)).map(node).collect::<Result<Vec<_>>>()?;
    if config.security.privileged {
        for path in host_devices() {
            let text = path.to_string_lossy().into_owned();
            if !config.devices.iter().any(|d| d.path == text) {
                // A device may go away while we look: then it is not given.
                nodes.extend(node(&Device { host: path, path: text, access: "rwm".into() }));
            }
        }
    }
    Ok(nodes)
}

/// libcontainer makes nodes below /dev only; elsewhere the host's node is mounted.
pub(super) fn is_below_dev(device: &Device) -> bool {
    device.path.starts_with("/dev/")
}

fn node(device: &Device) -> Result<Value> {
    let (kind, metadata) = stat(device)?;
    let number = metadata.rdev();
    Ok(json!({
        "path": device.path,
        "type": kind,
        "major": libc::major(number),
        "minor": libc::minor(number),
        "fileMode": metadata.mode() & 0o777,
        "uid": metadata.uid(),
        "gid": metadata.gid(),
    }))
}

fn stat(device: &Device) -> Result<(char, fs::Metadata)> {
    let metadata = fs::metadata(&device.host);
    let metadata = metadata.map_err(|source| Error::File { op: "stat device", path: device.host.clone(), source })?;
    let kind = match metadata.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => {
            let reason = format!("{} is not a device node", device.host.display());
            return Err(Error::Invalid { field: "devices".into(), reason });
        }
    };
    Ok((kind, metadata))
}

/// Which devices the container may use.
pub(super) fn device_rules(config: &ContainerConfig) -> Result<Vec<DeviceRule>> {
    if config.security.privileged {
        return Ok(vec![DeviceRule::all()]);
    }
    let mut rules = DeviceRule::defaults();
    for device in &config.devices {
        let (kind, metadata) = stat(device)?;
        let number = metadata.rdev();
        let (major, minor) = (Some(libc::major(number)), Some(libc::minor(number)));
        rules.push(DeviceRule { kind, major, minor, access: device.access.clone() });
    }
    Ok(rules)
}

/// The host's device nodes, for privileged containers.
fn host_devices() -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), &mut found);
    found
}

fn walk(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if matches!(name.to_str(), Some("pts" | "shm" | "fd" | "mqueue" | "console" | "ptmx" | ".lxc" | ".udev")) {
            continue;
        }
        match entry.file_type() {
            Ok(t) if t.is_dir() => walk(&entry.path(), found),
            Ok(t) if t.is_char_device() || t.is_block_device() => found.push(entry.path()),
            _ => {}
        }
    }
}
