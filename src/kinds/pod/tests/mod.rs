//! Pods as people write them, and what becomes of them.

#![allow(clippy::unwrap_used)]

mod lifecycle;
mod rules;
mod table;

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
fn what_is_empty_is_absent() {
    let empty = pod("
metadata: {name: a}
spec:
  restartPolicy: ''
  dnsPolicy: null
  serviceAccountName: ''
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: b, imagePullPolicy: '', livenessProbe: {tcpSocket: {port: 1}, periodSeconds: 0}}
");
    assert_eq!(texts(&Pod.validate(&empty)), [""; 0]);
    assert_eq!(meta::int_at(&empty, "/spec/terminationGracePeriodSeconds"), Some(0));
    assert_eq!(meta::int_at(&empty, "/spec/containers/0/livenessProbe/periodSeconds"), Some(10));
    assert_eq!(meta::str_at(&empty, "/spec/restartPolicy"), "Always");
}

#[test]
fn a_volume_without_source_is_an_empty_directory() {
    let pod = pod("{metadata: {name: a}, spec: {containers: [{name: a, image: b}], volumes: [{name: v}]}}");
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
}
