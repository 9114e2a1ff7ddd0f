//! From a container's specification to what the runtime needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, SeccompProfile, SecurityContext};

use super::env;
use super::error::{Error, Result};
use super::pod::{Desired, Facts};
use super::resources;
use super::volumes::Prepared;
use crate::image::Image;
use crate::runtime::{
    ContainerConfig, LogConfig, Mount, MountSource, Propagation, SandboxConfig, Seccomp, Security, User,
};

/// What a container's configuration depends on beside its specification.
pub(super) struct Surroundings<'a> {
    /// The pod.
    pub(super) pod: &'a Desired,
    /// What the pod can learn of its node.
    pub(super) facts: &'a Facts,
    /// Variables that tell of Services.
    pub(super) services: &'a BTreeMap<String, String>,
    /// The pod's volumes.
    pub(super) volumes: &'a BTreeMap<String, Prepared>,
    /// Directory of the managed files (`hosts`, `hostname`, `resolv.conf`).
    pub(super) files: &'a Path,
    /// The file behind `terminationMessagePath`.
    pub(super) termination: &'a Path,
    /// The log file.
    pub(super) log: &'a Path,
    /// Directory of seccomp profiles.
    pub(super) seccomp: &'a Path,
    /// Memory of the node in bytes.
    pub(super) capacity: i64,
}

/// The default of `terminationMessagePath`.
pub(super) const TERMINATION_PATH: &str = "/dev/termination-log";

/// The sandbox of a pod; a field this node cannot carry out is an error that names it.
pub(super) fn sandbox(pod: &Desired) -> Result<SandboxConfig> {
    let spec = pod.spec();
    let refuse = |field: &str| Err(Error::config(format!("{field} is not supported")));
    if spec.host_users == Some(false) {
        return refuse("spec.hostUsers: false");
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return refuse("spec.resourceClaims");
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("spec.os.name other than linux");
    }
    if spec.runtime_class_name.as_deref().is_some_and(|c| !c.is_empty()) {
        return refuse("spec.runtimeClassName");
    }
    for container in &pod.containers {
        check(&container.spec, spec.host_network.unwrap_or(false))?;
    }
    let context = spec.security_context.as_ref();
    let sysctls = context.and_then(|c| c.sysctls.as_ref()).into_iter().flatten();
    let hostname = match (spec.set_hostname_as_fqdn, spec.subdomain.as_deref()) {
        (Some(true), Some(subdomain)) if !subdomain.is_empty() => {
            format!("{}.{subdomain}.{}.svc.cluster.local", pod.hostname(), pod.namespace())
        }
        _ => pod.hostname().to_owned(),
    };
    Ok(SandboxConfig {
        uid: pod.uid().to_owned(),
        hostname,
        host_network: pod.host_network(),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        resources: resources::of_pod(pod),
        shm_size: None,
    })
}

fn check(container: &Container, host_network: bool) -> Result<()> {
    let refuse = |field: &str| Err(Error::config(format!("container {:?}: {field} is not supported", container.name)));
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return refuse("volumeDevices");
    }
    if container.resources.as_ref().and_then(|r| r.claims.as_ref()).is_some_and(|c| !c.is_empty()) {
        return refuse("resources.claims");
    }
    if container.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty()) {
        return refuse("restartPolicyRules");
    }
    // In the node's own network a host port is the container's port.
    if !host_network && container.ports.iter().flatten().any(|p| p.host_port.is_some_and(|port| port != 0)) {
        return refuse("ports.hostPort without spec.hostNetwork");
    }
    for probe in [&container.liveness_probe, &container.readiness_probe, &container.startup_probe] {
        if probe.as_ref().is_some_and(|p| p.grpc.is_some()) {
            return refuse("a grpc probe");
        }
    }
    let profiles = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    if profiles.is_some_and(|p| p.type_ == "Localhost") {
        return refuse("securityContext.appArmorProfile of type Localhost");
    }
    Ok(())
}

/// The configuration of one run of a container.
pub(super) fn config(
    around: &Surroundings<'_>,
    container: &Container,
    attempt: u32,
    image: &Image,
) -> Result<ContainerConfig> {
    let pod = around.pod;
    let none = (PodSecurityContext::default(), SecurityContext::default());
    let of_pod = pod.spec().security_context.as_ref().unwrap_or(&none.0);
    let own = container.security_context.as_ref().unwrap_or(&none.1);
    let user = user(of_pod, own, image);
    refuse_root(pod, container, of_pod, own, &user)?;
    let environment = env::build(pod, around.facts, around.services, container)?;
    let mut env_lines = image.config.env.clone();
    env_lines.extend(environment.lines());
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        // The image room counts from the bottom, overlayfs from the top.
        layers: image.layers.iter().rev().cloned().collect(),
        args: env::command(container, &image.config, &environment)?,
        env: env_lines,
        cwd: container.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or(image.config.working_dir.clone()),
        user,
        mounts: mounts(around, container, own, &environment)?,
        devices: Vec::new(),
        security: security(around, of_pod, own)?,
        resources: resources::of_container(container),
        oom_score_adj: resources::oom_score(pod, container, around.capacity),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        log: Some(LogConfig::new(around.log.to_owned())),
    })
}

fn id(number: Option<i64>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok())
}

fn user(of_pod: &PodSecurityContext, own: &SecurityContext, image: &Image) -> User {
    let groups = of_pod.supplemental_groups.iter().flatten().copied().chain(of_pod.fs_group);
    User {
        image: image.config.user.clone(),
        uid: id(own.run_as_user.or(of_pod.run_as_user)),
        gid: id(own.run_as_group.or(of_pod.run_as_group)),
        groups: groups.filter_map(|g| id(Some(g))).collect(),
        strict_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
    }
}

fn refuse_root(
    pod: &Desired,
    container: &Container,
    of_pod: &PodSecurityContext,
    own: &SecurityContext,
    user: &User,
) -> Result<()> {
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}_{}({})\", container: {})", pod.name(), pod.namespace(), pod.uid(), container.name);
    let from_image = user.image.split(':').next().unwrap_or_default();
    match user.uid {
        Some(0) => Err(Error::config(format!("container's runAsUser breaks non-root policy {place}"))),
        Some(_) => Ok(()),
        None if from_image.is_empty() || from_image.parse() == Ok(0u32) => {
            Err(Error::config(format!("container has runAsNonRoot and image will run as root {place}")))
        }
        None if from_image.parse::<u32>().is_err() => Err(Error::config(format!(
            "container has runAsNonRoot and image has non-numeric user ({from_image}), cannot verify user is non-root {place}"
        ))),
        None => Ok(()),
    }
}

fn security(around: &Surroundings<'_>, of_pod: &PodSecurityContext, own: &SecurityContext) -> Result<Security> {
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter().flatten().map(|c| c.strip_prefix("CAP_").unwrap_or(c).to_uppercase()).collect()
    };
    let profile = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    Ok(Security {
        privileged,
        add: capabilities(own.capabilities.as_ref().and_then(|c| c.add.as_ref())),
        drop: capabilities(own.capabilities.as_ref().and_then(|c| c.drop.as_ref())),
        readonly_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp(around.seccomp, profile)? },
        masked_proc: own.proc_mount.as_deref() != Some("Unmasked"),
    })
}

fn seccomp(profiles: &Path, profile: Option<&SeccompProfile>) -> Result<Seccomp> {
    let Some(profile) = profile else { return Ok(Seccomp::RuntimeDefault) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let name = PathBuf::from(profile.localhost_profile.as_deref().unwrap_or_default());
            if name.is_absolute() || name.components().any(|c| c == std::path::Component::ParentDir) {
                return Err(Error::config("seccompProfile.localhostProfile must be a relative path without '..'"));
            }
            Ok(Seccomp::Localhost(profiles.join(name)))
        }
        other => Err(Error::config(format!("seccompProfile.type {other:?} is not supported"))),
    }
}

fn mounts(
    around: &Surroundings<'_>,
    container: &Container,
    own: &SecurityContext,
    environment: &env::Environment,
) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = around.volumes.get(&wanted.name).ok_or_else(|| {
            Error::config(format!("volume {:?} of container {:?} not found", wanted.name, container.name))
        })?;
        let sub_path = match (&wanted.sub_path, &wanted.sub_path_expr) {
            (_, Some(expression)) if !expression.is_empty() => Some(environment.expand(expression)),
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            _ => None,
        };
        let outside = |p: &String| {
            Path::new(p).is_absolute() || Path::new(p).components().any(|c| c == std::path::Component::ParentDir)
        };
        if sub_path.as_ref().is_some_and(outside) {
            return Err(Error::config(format!(
                "failed to prepare subPath for volumeMount {:?} of container {:?}: it must be relative and must not contain '..'",
                wanted.name, container.name
            )));
        }
        let propagation = match wanted.mount_propagation.as_deref() {
            None | Some("None" | "") => Propagation::Private,
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") if own.privileged == Some(true) => Propagation::Bidirectional,
            Some("Bidirectional") => {
                return Err(Error::config("mountPropagation: Bidirectional needs a privileged container"));
            }
            Some(other) => return Err(Error::config(format!("mountPropagation {other:?} is not supported"))),
        };
        let readonly = volume.readonly || wanted.read_only.unwrap_or(false);
        mounts.push(Mount {
            path: absolute(&wanted.mount_path),
            source: MountSource::Bind { source: volume.path.clone(), sub_path },
            readonly,
            recursive_readonly: readonly
                && matches!(wanted.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            propagation,
        });
    }
    let mut managed = vec![("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];
    managed.retain(|(_, path)| mounts.iter().all(|m| m.path != *path));
    mounts.extend(managed.into_iter().map(|(name, path)| Mount::bind(around.files.join(name), path)));
    let message = container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(TERMINATION_PATH);
    mounts.push(Mount::bind(around.termination, absolute(message)));
    Ok(mounts)
}

/// The number of an image's stop signal (`SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`); 0 if there is none, or no such signal.
pub(super) fn stop_signal(text: Option<&str>) -> i32 {
    let Some(text) = text else { return 0 };
    let name = text.trim().to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = match name.strip_prefix("RTMIN+") {
        Some(offset) => offset.parse().ok().map(|n: i32| libc::SIGRTMIN() + n),
        None => name.parse().ok(),
    };
    let named = || format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32);
    number.or_else(named).filter(|n| (1..=libc::SIGRTMAX()).contains(n)).unwrap_or(0)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Kernel parameters a pod may set for itself: isolated by its namespaces and without harm to other pods or the node.
/// The list is Kubernetes' "safe set".
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The first kernel parameter of a pod that is not in the safe set.
pub(super) fn unsafe_sysctl(pod: &Desired) -> Option<&str> {
    let sysctls = pod.spec().security_context.as_ref()?.sysctls.as_ref()?;
    let safe = |name: &str| SAFE_SYSCTLS.contains(&name.replace('/', ".").as_str());
    sysctls.iter().map(|s| s.name.as_str()).find(|name| !safe(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pod::tests::desired;
    use super::*;
    use crate::image::ImageConfig;

    fn image(user: &str) -> Image {
        Image {
            id: "sha256:1".into(),
            config: ImageConfig {
                cmd: vec!["run".into()],
                env: vec!["PATH=/bin".into()],
                user: user.into(),
                ..ImageConfig::default()
            },
            layers: vec!["/low".into(), "/high".into()],
            size: 0,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            pinned: false,
        }
    }

    fn make(spec: Value, user: &str) -> Result<ContainerConfig> {
        let pod = desired(spec, &[]);
        let path = Path::new("/p");
        let volumes = [("v".to_owned(), Prepared { path: "/vol/v".into(), readonly: false })].into();
        let around = Surroundings {
            pod: &pod,
            facts: &Facts::default(),
            services: &BTreeMap::new(),
            volumes: &volumes,
            files: path,
            termination: path,
            log: path,
            seccomp: Path::new("/seccomp"),
            capacity: 1 << 30,
        };
        config(&around, &pod.containers[0].spec, 2, &image(user))
    }

    #[test]
    fn a_whole_configuration() {
        let made = make(
            json!({
                "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000]},
                "containers": [{
                    "name": "c", "tty": true, "env": [{"name": "A", "value": "b"}],
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/data", "subPathExpr": "$(A)/x", "readOnly": true},
                        {"name": "v", "mountPath": "/etc/hosts", "subPath": "hosts"},
                    ],
                    "securityContext": {
                        "runAsUser": 1001, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["all"]},
                        "seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"},
                    },
                }],
            }),
            "app",
        )
        .unwrap();
        assert_eq!(made.layers, [PathBuf::from("/high"), PathBuf::from("/low")]);
        assert_eq!(made.env, ["PATH=/bin", "A=b"]);
        assert_eq!((made.user.uid, made.user.groups.as_slice()), (Some(1001), [3000, 2000].as_slice()));
        let paths: Vec<_> = made.mounts.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(paths, ["/data", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"]);
        let MountSource::Bind { sub_path, .. } = &made.mounts[0].source else { panic!("not a bind mount") };
        assert_eq!((sub_path.as_deref(), made.mounts[0].readonly), (Some("b/x"), true));
        let security = &made.security;
        assert!(security.no_new_privs && security.readonly_root && security.masked_proc && !security.privileged);
        assert_eq!(
            (security.add.as_slice(), security.drop.as_slice()),
            (["NET_ADMIN".to_owned()].as_slice(), ["ALL".to_owned()].as_slice())
        );
        assert_eq!(security.seccomp, Seccomp::Localhost("/seccomp/a.json".into()));
    }

    #[test]
    fn stop_signals() {
        for (text, number) in [
            (None, 0),
            (Some("SIGQUIT"), 3),
            (Some("quit"), 3),
            (Some("9"), 9),
            (Some("SIGRTMIN+3"), libc::SIGRTMIN() + 3),
            (Some("SIGNONSENSE"), 0),
            (Some("-1"), 0),
        ] {
            assert_eq!(stop_signal(text), number, "{text:?}");
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let container = |extra: Value| {
            let mut container = extra;
            container["name"] = json!("c");
            json!({"containers": [container], "volumes": []})
        };
        let non_root = json!({"securityContext": {"runAsNonRoot": true}});
        for (spec, user, text) in [
            (container(non_root.clone()), "", "image will run as root"),
            (container(non_root.clone()), "0:0", "image will run as root"),
            (container(non_root.clone()), "00", "image will run as root"),
            (container(non_root.clone()), "app", "non-numeric user (app)"),
            (
                container(json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 0}})),
                "5",
                "breaks non-root policy",
            ),
            (container(json!({"volumeMounts": [{"name": "no", "mountPath": "/x"}]})), "", "volume \"no\" of container"),
            (container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "../y"}]})), "", "subPath"),
            (
                container(
                    json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}]}),
                ),
                "",
                "Bidirectional needs a privileged",
            ),
        ] {
            let error = make(spec, user).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(make(container(non_root), "7").is_ok());
    }

    #[test]
    fn unsupported_fields_are_named() {
        for (spec, text) in [
            (json!({"hostUsers": false}), "spec.hostUsers"),
            (json!({"resourceClaims": [{"name": "x"}]}), "spec.resourceClaims"),
            (json!({"runtimeClassName": "gvisor"}), "spec.runtimeClassName"),
            (
                json!({"containers": [{"name": "c", "volumeDevices": [{"name": "x", "devicePath": "/d"}]}]}),
                "volumeDevices",
            ),
            (json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}]}), "ports.hostPort"),
            (json!({"containers": [{"name": "c", "livenessProbe": {"grpc": {"port": 1}}}]}), "grpc probe"),
        ] {
            let error = sandbox(&desired(spec, &[])).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
