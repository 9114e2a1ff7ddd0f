//! What is refused.

use super::*;

/// A path, the value put there, and the errors that follow.
type Case = (&'static str, Value, &'static [&'static str]);

/// Changes the second pod of [`MANIFESTS`], whose second init container is a sidecar, before defaults.
fn check(cases: Vec<Case>) {
    for (path, value, expected) in cases {
        let mut pod = parse(MANIFESTS[1]);
        match meta::pointer_mut(&mut pod, path) {
            Some(place) => *place = value,
            // What is not there may be in an element of a list.
            None => {
                let (parent, key) = path.rsplit_once('/').unwrap();
                let parent = meta::pointer_mut(&mut pod, parent).unwrap().as_object_mut().unwrap();
                parent.insert(key.to_owned(), value);
            }
        }
        Pod.default(&mut pod);
        assert_eq!(texts(&Pod.validate(&pod)), expected, "{path}");
    }
}

#[test]
fn container_rules() {
    check(vec![
        ("/spec/containers", json!([]), &["spec.containers: Required value"]),
        ("/spec/containers/0/image", json!(""), &["spec.containers[0].image: Required value"]),
        (
            "/spec/containers/0/image",
            json!(" nginx"),
            &["spec.containers[0].image: Invalid value: \" nginx\": must not have leading or trailing whitespace"],
        ),
        ("/spec/containers/0/name", json!("install"), &["spec.containers[0].name: Duplicate value: \"install\""]),
        (
            "/spec/containers/0/ports",
            json!([{"name": "a"}]),
            &["spec.containers[0].ports[0].containerPort: Required value"],
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            &[
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]),
            &[
                "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"",
                "spec.containers[0].ports[0].hostPort: Forbidden: not supported by umiak",
                "spec.containers[0].ports[1].hostPort: Forbidden: not supported by umiak",
            ],
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 1, "protocol": "ICMP"}]),
            &[
                "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        ),
        (
            "/spec/containers/0/imagePullPolicy",
            json!("Sometimes"),
            &[
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        ),
        (
            "/spec/containers/0/resources",
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": 2}}),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            "/spec/containers/0/resources",
            json!({"requests": {"memory": "1GB"}}),
            &[
                "spec.containers[0].resources.requests[memory]: Invalid value: \"1GB\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ],
        ),
        (
            "/spec/containers/0/resources",
            json!({"requests": {"disk": "1"}}),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"disk\": must be a standard resource for containers",
            ],
        ),
        (
            "/spec/initContainers/0/livenessProbe",
            json!({"exec": {"command": ["true"]}}),
            &[
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ],
        ),
        (
            "/spec/initContainers/1/restartPolicy",
            json!("Never"),
            &[
                "spec.initContainers[1].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                "spec.initContainers[1].restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ],
        ),
    ]);
}

#[test]
fn probe_and_environment_rules() {
    check(vec![
        (
            "/spec/containers/0/livenessProbe",
            json!({}),
            &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
        ),
        (
            "/spec/containers/0/livenessProbe",
            json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}, "successThreshold": 2}),
            &[
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ],
        ),
        (
            "/spec/containers/0/readinessProbe",
            json!({"httpGet": {"port": 0}, "periodSeconds": -1}),
            &[
                "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ],
        ),
        (
            "/spec/containers/0/lifecycle",
            json!({"preStop": {"sleep": {"seconds": 31}}}),
            &[
                "spec.containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
            ],
        ),
        ("/spec/containers/0/env", json!([{"value": "x"}]), &["spec.containers[0].env[0].name: Required value"]),
        (
            "/spec/containers/0/env",
            json!([{"name": "a=b"}]),
            &[
                "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ],
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
            &[
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.color"}}}]),
            &[
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.color\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            ],
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Ki"}}}]),
            &[
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"1Ki\": only divisor's values 1m and 1 are supported with the cpu resource",
            ],
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "a", "valueFrom": {"configMapKeyRef": {"name": "b"}}}]),
            &["spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value"],
        ),
        (
            "/spec/containers/0/envFrom",
            json!([{}]),
            &["spec.containers[0].envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"],
        ),
    ]);
}

#[test]
fn volume_rules() {
    check(vec![
        (
            "/spec/volumes",
            json!([]),
            &[
                "spec.initContainers[0].volumeMounts[0].name: Not found: \"workdir\"",
                "spec.containers[0].volumeMounts[0].name: Not found: \"workdir\"",
            ],
        ),
        (
            "/spec/volumes/0/hostPath",
            json!({"path": "/a"}),
            &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            "/spec/volumes",
            json!([{"name": "workdir", "emptyDir": {}}, {"name": "workdir", "hostPath": {"path": "/a/../b", "type": "Disk"}}]),
            &[
                "spec.volumes[1].name: Duplicate value: \"workdir\"",
                "spec.volumes[1].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.volumes[1].hostPath.type: Unsupported value: \"Disk\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ],
        ),
        (
            "/spec/volumes/0",
            json!({"name": "workdir", "secret": {"defaultMode": 512, "items": [{"key": "a", "path": "/a"}]}}),
            &[
                "spec.volumes[0].secret.secretName: Required value",
                "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                "spec.volumes[0].secret.items[0].path: Invalid value: \"/a\": must be a relative path",
            ],
        ),
        (
            "/spec/containers/0/volumeMounts",
            json!([{"name": "workdir", "mountPath": "/a"}, {"name": "workdir", "mountPath": "/a", "subPath": "../b"}]),
            &[
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                "spec.containers[0].volumeMounts[1].subPath: Invalid value: \"../b\": must not contain '..'",
            ],
        ),
    ]);
}

#[test]
fn pod_rules() {
    check(vec![
        (
            "/spec/restartPolicy",
            json!("Maybe"),
            &[
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ],
        ),
        (
            "/spec/dnsPolicy",
            json!("None"),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            "/spec/activeDeadlineSeconds",
            json!(0),
            &["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
        ),
        (
            "/spec/priorityClassName",
            json!("high"),
            &["spec.priorityClassName: Forbidden: no PriorityClass with name high was found"],
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a", "operator": "Exists", "value": "b"}]),
            &[
                "spec.tolerations[0].operator: Invalid value: {\"key\":\"a\",\"operator\":\"Exists\",\"value\":\"b\"}: value must be empty when `operator` is 'Exists'",
            ],
        ),
        (
            "/spec/tolerations",
            json!([{"effect": "NoSchedule"}]),
            &[
                "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ],
        ),
        (
            "/spec/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
            &[
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            ],
        ),
        (
            "/spec/topologySpreadConstraints",
            json!([{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
            &[
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                "spec.topologySpreadConstraints[1].whenUnsatisfiable: Forbidden: not supported by umiak",
            ],
        ),
        (
            "/spec/securityContext",
            json!({"runAsUser": -1, "sysctls": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}),
            &[
                "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.sysctls[1].name: Duplicate value: \"a\"",
            ],
        ),
        (
            "/spec/containers/0/securityContext",
            json!({"privileged": true, "allowPrivilegeEscalation": false}),
            &[
                "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ],
        ),
    ]);
    let mut host = pod(MANIFESTS[4]);
    meta::pointer_mut(&mut host, "/spec/containers/0/ports/0").unwrap()["hostPort"] = json!(80);
    assert_eq!(
        texts(&Pod.validate(&host)),
        [
            "spec.containers[0].ports[0].hostPort: Invalid value: 80: must match `containerPort` when `hostNetwork` is true"
        ]
    );
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    check(vec![
        (
            "/spec/volumes/0",
            json!({"name": "workdir", "persistentVolumeClaim": {"claimName": "a"}}),
            &["spec.volumes[0].persistentVolumeClaim: Forbidden: not supported by umiak"],
        ),
        (
            "/spec/volumes/0",
            json!({"name": "workdir", "nfs": {"server": "a", "path": "/"}}),
            &["spec.volumes[0].nfs: Forbidden: not supported by umiak"],
        ),
        ("/spec/hostUsers", json!(false), &["spec.hostUsers: Forbidden: not supported by umiak"]),
        ("/spec/hostUsers", json!(true), &[]),
        (
            "/spec/shareProcessNamespace",
            json!(true),
            &["spec.shareProcessNamespace: Forbidden: not supported by umiak"],
        ),
        ("/spec/runtimeClassName", json!("gvisor"), &["spec.runtimeClassName: Forbidden: not supported by umiak"]),
        (
            "/spec/containers/0/livenessProbe",
            json!({"grpc": {"port": 1}}),
            &["spec.containers[0].livenessProbe.grpc: Forbidden: not supported by umiak"],
        ),
        (
            "/spec/containers/0/securityContext",
            json!({"procMount": "Unmasked"}),
            &["spec.containers[0].securityContext.procMount: Forbidden: not supported by umiak"],
        ),
        (
            "/spec/containers/0/volumeDevices",
            json!([{"name": "a", "devicePath": "/dev/a"}]),
            &["spec.containers[0].volumeDevices: Forbidden: not supported by umiak"],
        ),
        (
            "/spec/affinity",
            json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}}),
            &[
                "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution: Forbidden: not supported by umiak",
            ],
        ),
    ]);
}

#[test]
fn scheduling_gates_can_only_be_removed() {
    let gated = |gates: Value, node: &str| {
        let mut pod = parse(MANIFESTS[1]);
        meta::set(&mut pod, "/spec/schedulingGates", gates);
        meta::set(&mut pod, "/spec/nodeName", node);
        Pod.default(&mut pod);
        Pod.prepare_create(&mut pod);
        pod
    };
    let old = gated(json!([{"name": "a"}, {"name": "b"}]), "");
    assert_eq!(meta::str_at(&old, "/status/conditions/0/reason"), "SchedulingGated");
    assert_eq!(texts(&Pod.validate(&old)), [""; 0]);
    assert_eq!(
        texts(&Pod.validate(&gated(json!([{"name": "a"}]), "pi3"))),
        ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]
    );
    let mut new = gated(json!([{"name": "b"}]), "");
    meta::set(&mut new, "/spec/nodeSelector/zone", "a");
    assert_eq!(texts(&Pod.validate_update(&new, &old)), [""; 0]);
    assert_eq!(
        texts(&Pod.validate_update(&old, &new))[0],
        "spec.schedulingGates[0]: Forbidden: only deletion is allowed, but found new scheduling gate 'a'"
    );
    meta::set(&mut new, "/spec/nodeSelector", json!({}));
    assert!(texts(&Pod.validate_update(&new, &old))[0].ends_with("changed: spec.nodeSelector"));
}

#[test]
fn a_pod_of_an_earlier_version_can_be_changed() {
    let new = pod(MANIFESTS[1]);
    let mut old = new.clone();
    meta::remove(&mut old, "/spec/preemptionPolicy");
    assert_eq!(texts(&Pod.validate_update(&new, &old)), [""; 0]);
}

#[test]
fn updates() {
    let old = pod(MANIFESTS[1]);
    let changed = |path: &str, value: Value| {
        let mut new = old.clone();
        match meta::pointer_mut(&mut new, path) {
            Some(place) => *place = value,
            None => meta::set(&mut new, path, value),
        }
        texts(&Pod.validate_update(&new, &old))
    };
    assert_eq!(changed("/spec/containers/0/image", json!("nginx:2")), [""; 0]);
    assert_eq!(changed("/spec/initContainers/0/image", json!("busybox:2")), [""; 0]);
    assert_eq!(changed("/spec/activeDeadlineSeconds", json!(5)), [""; 0]);
    assert_eq!(changed("/metadata/labels", json!({"a": "b"})), [""; 0]);
    let mut tolerations = meta::list_at(&old, "/spec/tolerations").to_vec();
    tolerations.push(json!({"key": "a", "operator": "Exists"}));
    assert_eq!(changed("/spec/tolerations", json!(tolerations)), [""; 0]);
    let errors = changed("/spec/tolerations", json!(tolerations[1..]));
    assert_eq!(
        errors,
        ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
    );
    let errors = changed("/spec/nodeName", json!("pi3"));
    assert!(
        errors[0]
            .starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`")
    );
    assert!(errors[0].ends_with("changed: spec.nodeName"), "{errors:?}");
    assert!(changed("/spec/containers/0/name", json!("b"))[0].ends_with("changed: spec.containers"));

    let mut new = old.clone();
    meta::set(&mut new, "/status", json!({"phase": "Failed"}));
    meta::pointer_mut(&mut new, "/spec/containers/0").unwrap()["image"] = json!("nginx:2");
    Pod.prepare_update(&mut new, &old);
    assert_eq!(new["status"], old["status"]);
    assert_eq!((meta::generation(&old), meta::generation(&new)), (1, 2));
}
