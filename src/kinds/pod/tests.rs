#![allow(clippy::unwrap_used)]
use super::*;

/// Manifests as people write them.
const MANIFESTS: [&str; 6] = [
    "
metadata: {name: decla-pod}
spec:
  containers:
  - name: memory-demo
    image: nginx
",
    "
metadata: {name: init-demo}
spec:
  nodeSelector: {disktype: ssd}
  containers:
  - name: nginx
    image: nginx
    ports:
    - containerPort: 80
    volumeMounts:
    - {name: workdir, mountPath: /usr/share/nginx/html}
  initContainers:
  - name: install
    image: busybox
    command: [wget, -O, /work-dir/index.html, 'http://page-source']
    volumeMounts:
    - {name: workdir, mountPath: /work-dir}
  - name: sidecar
    image: busybox
    restartPolicy: Always
    readinessProbe: {exec: {command: ['true']}}
  volumes:
  - {name: workdir, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
",
    "
metadata: {name: dapi-test-pod}
spec:
  containers:
  - name: test-container
    image: k8s.gcr.io/busybox
    command: [/bin/sh, -c, env]
    env:
    - {name: PLAIN, value: x}
    - {name: LEVEL, valueFrom: {configMapKeyRef: {name: special-config, key: special.how}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: mysecret, key: password, optional: true}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app.kubernetes.io/name']\"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    envFrom:
    - {configMapRef: {name: env-config}}
    - {prefix: S_, secretRef: {name: mysecret}}
    resources:
      limits: {cpu: 0.5, memory: 1024Mi}
      requests: {memory: 64Mi}
  restartPolicy: Never
",
    "
metadata: {name: mypod-secret}
spec:
  containers:
  - name: mypod
    image: redis
    volumeMounts:
    - {name: foo, mountPath: /etc/foo, readOnly: true}
    - {name: all, mountPath: /etc/all, subPath: a}
    - {name: host, mountPath: /host, mountPropagation: HostToContainer}
  volumes:
  - {name: foo, secret: {secretName: mysecret, items: [{key: a, path: b/c, mode: 0400}]}}
  - {name: host, hostPath: {path: /var/log, type: Directory}}
  - name: all
    projected:
      sources:
      - {configMap: {name: special-config}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
",
    "
metadata: {name: liveness, labels: {test: liveness}}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers:
  - name: liveness
    image: k8s.gcr.io/liveness:1
    ports: [{name: http, containerPort: 8080}]
    lifecycle: {preStop: {sleep: {seconds: 5}}}
    livenessProbe:
      httpGet: {port: 8080, httpHeaders: [{name: X-Custom-Header, value: Awesome}]}
      periodSeconds: 3
    readinessProbe: {tcpSocket: {port: http}}
",
    "
metadata: {name: secured}
spec:
  priorityClassName: system-node-critical
  hostname: a
  subdomain: b
  hostAliases: [{ip: 10.0.0.1, hostnames: [foo.local]}]
  dnsPolicy: None
  dnsConfig: {nameservers: [10.0.0.53], searches: [home.arpa], options: [{name: ndots, value: '1'}]}
  securityContext:
    runAsUser: 1000
    fsGroup: 2000
    supplementalGroups: [3000]
    sysctls: [{name: net.ipv4.ip_forward, value: '1'}]
    seccompProfile: {type: RuntimeDefault}
  tolerations: [{operator: Exists}, {key: a, value: b, effect: NoSchedule}]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: disktype, operator: In, values: [ssd]}]}]
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname}}
  containers:
  - name: a
    image: b@sha256:00
    securityContext: {capabilities: {add: [NET_ADMIN], drop: [ALL]}, allowPrivilegeEscalation: false}
",
];

fn parse(yaml: &str) -> Object {
    let value: Value = serde_yaml::from_str(yaml).unwrap();
    let mut pod = value.as_object().unwrap().clone();
    meta::set(&mut pod, "/metadata/namespace", "default");
    pod
}

/// A pod as it would be stored.
fn pod(yaml: &str) -> Object {
    let mut pod = parse(yaml);
    Pod.default(&mut pod);
    Pod.prepare_create(&mut pod);
    pod
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn usual_manifests_are_valid_and_defaulting_them_twice_changes_nothing() {
    for manifest in MANIFESTS {
        let pod = pod(manifest);
        assert_eq!(texts(&Pod.validate(&pod)), [""; 0], "{manifest}");
        let mut again = pod.clone();
        Pod.default(&mut again);
        assert_eq!(again, pod, "{manifest}");
        assert_eq!(texts(&Pod.validate_update(&again, &pod)), [""; 0], "{manifest}");
    }
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let toleration = |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    assert_eq!(
        pod(MANIFESTS[0])["spec"],
        json!({
            "containers": [{
                "name": "memory-demo", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0, "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
            "serviceAccount": "default", "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
            "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")],
        })
    );
    let env = pod(MANIFESTS[2]);
    let at = |path| meta::pointer(&env, path).cloned().unwrap();
    assert_eq!(
        at("/spec/containers/0/resources"),
        json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "64Mi"}})
    );
    assert_eq!(at("/spec/containers/0/env/3/valueFrom/fieldRef/apiVersion"), "v1");
    let volumes = pod(MANIFESTS[3]);
    assert_eq!(meta::int_at(&volumes, "/spec/volumes/0/secret/defaultMode"), Some(420));
    assert_eq!(meta::int_at(&volumes, "/spec/volumes/2/projected/defaultMode"), Some(420));
    let probes = pod(MANIFESTS[4]);
    assert_eq!(
        meta::pointer(&probes, "/spec/containers/0/livenessProbe").unwrap(),
        &json!({
            "httpGet": {"path": "/", "port": 8080, "scheme": "HTTP",
                "httpHeaders": [{"name": "X-Custom-Header", "value": "Awesome"}]},
            "periodSeconds": 3, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        })
    );
    assert_eq!(meta::int_at(&probes, "/spec/containers/0/ports/0/hostPort"), Some(8080));
    let secured = pod(MANIFESTS[5]);
    assert_eq!(meta::int_at(&secured, "/spec/priority"), Some(2_000_001_000));
    assert_eq!(meta::list_at(&secured, "/spec/tolerations").len(), 2);
}

#[test]
fn a_volume_without_source_is_an_empty_directory() {
    let pod = pod("{metadata: {name: a}, spec: {containers: [{name: a, image: b}], volumes: [{name: v}]}}");
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
}

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
            json!([{"hostPort": 1}]),
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
            &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\""],
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
                "spec.containers[0].resources.requests[memory]: Invalid value: \"1GB\": unable to parse quantity's suffix",
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

#[test]
fn quality_of_service() {
    let class = |resources: Value| {
        let mut pod = parse(MANIFESTS[0]);
        meta::pointer_mut(&mut pod, "/spec/containers/0").unwrap()["resources"] = resources;
        Pod.default(&mut pod);
        qos::qos_class(&pod)
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"limits": {"cpu": 1, "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(class(json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"memory": "1Gi"}})), "Burstable");
    assert_eq!(class(json!({"requests": {"cpu": 0}})), "BestEffort");
}

#[test]
fn grace_periods() {
    let grace = |node: &str, phase: &str, own: i64, requested| {
        let mut pod = pod(MANIFESTS[0]);
        meta::set(&mut pod, "/spec/nodeName", node);
        meta::set(&mut pod, "/status/phase", phase);
        meta::set(&mut pod, "/spec/terminationGracePeriodSeconds", own);
        Pod.grace(&pod, requested)
    };
    assert_eq!(grace("", "Pending", 30, None), None);
    assert_eq!(grace("pi3", "Succeeded", 30, Some(10)), None);
    assert_eq!(grace("pi3", "Running", 30, None), Some(30));
    assert_eq!(grace("pi3", "Running", 0, None), None);
    assert_eq!(grace("pi3", "Running", 30, Some(5)), Some(5));
    assert_eq!(grace("pi3", "Running", 30, Some(0)), None);
    assert_eq!(grace("pi3", "Running", -7, None), Some(1));
}

/// The cells Ready, Status, Restarts of a pod with one container, an init container and a sidecar.
fn row(metadata: Value, status: Value) -> (String, String, String) {
    let mut pod = pod(MANIFESTS[1]);
    pod["metadata"] = metadata;
    pod["status"] = status;
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let cells = Pod.cells(&pod, now);
    assert_eq!(cells.len(), Pod.columns().len());
    let text = |i: usize| cells[i].as_str().unwrap().to_owned();
    (text(0), text(1), text(2))
}

#[test]
fn table() {
    let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}, "restartCount": 0});
    let done = json!({"name": "install", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "restartCount": 1,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}}});
    let sidecar =
        json!({"name": "sidecar", "state": {"running": {}}, "started": true, "ready": true, "restartCount": 0});
    let running = json!({"name": "nginx", "state": {"running": {}}, "ready": true, "restartCount": 2,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
    let initialized = json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]);
    let inits = json!([done, sidecar]);
    let cases = [
        (json!({"phase": "Pending"}), ("0/2", "Pending", "0")),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("PodInitializing")], "containerStatuses": [waiting("PodInitializing")]}),
            ("0/2", "Init:0/2", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("ImagePullBackOff")]}),
            ("0/2", "Init:ImagePullBackOff", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "install", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}, "restartCount": 1}]}),
            ("0/2", "Init:Error", "1"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "install", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            ("0/2", "Init:Signal:9", "0"),
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": inits, "containerStatuses": [waiting("ContainerCreating")]}),
            ("1/2", "ContainerCreating", "0"),
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [running], "conditions": initialized}),
            ("2/2", "Running", "2 (5m ago)"),
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [{"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ("1/2", "CrashLoopBackOff", "4"),
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            ("0/2", "Error", "0"),
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            ("0/2", "ExitCode:3", "0"),
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            ("0/2", "Completed", "0"),
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), ("0/2", "Evicted", "0")),
    ];
    for (status, (ready, reason, restarts)) in cases {
        let row = row(json!({"name": "a"}), status.clone());
        assert_eq!((row.0.as_str(), row.1.as_str(), row.2.as_str()), (ready, reason, restarts), "{status}");
    }
    let deleting = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(row(deleting.clone(), json!({"phase": "Running"})).1, "Terminating");
    assert_eq!(row(deleting.clone(), json!({"phase": "Running", "reason": "NodeLost"})).1, "Unknown");
    assert_eq!(row(deleting, json!({"phase": "Succeeded"})).1, "Succeeded");
}

#[test]
fn wide_table_and_index() {
    let mut pod = pod(MANIFESTS[0]);
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    assert_eq!(Value::from(Pod.cells(&pod, now)[4..].to_vec()), json!(["<none>", "<none>", "<none>", "<none>"]));
    assert!(Pod.index(&pod).is_empty());
    meta::set(&mut pod, "/spec/nodeName", "pi3");
    meta::set(&mut pod, "/status/podIP", "10.42.0.7");
    assert_eq!(Value::from(Pod.cells(&pod, now)[4..6].to_vec()), json!(["10.42.0.7", "pi3"]));
    assert_eq!(Pod.index(&pod), ["node:pi3"]);
    assert_eq!(Pod.selectable(&pod, "spec.nodeName").as_deref(), Some("pi3"));
    assert_eq!(Pod.selectable(&pod, "spec.hostNetwork").as_deref(), Some("false"));
}
