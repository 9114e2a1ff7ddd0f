//! The course's first lessons with the oldest and the newest kubectl at hand: pods, Deployments, volumes, environment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Cluster, images, run, run_with_input, text};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: decla-pod
spec:
  containers:
  - name: memory-demo
    image: nginx
";

const SELECTIVE: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: choosy
  labels: {env: test}
spec:
  containers:
  - {name: nginx, image: nginx, imagePullPolicy: IfNotPresent}
  nodeSelector: {disktype: ssd}
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
  annotations: {kubernetes.io/change-cause: 'nginx:1.7.9'}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: nginx, image: 'nginx:1.7.9', ports: [{containerPort: 80}]}
";

const SHARED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shared-volumes}
spec:
  containers:
  - {name: one, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: s, mountPath: /data/shared}]}
  - {name: two, image: nginx, volumeMounts: [{name: s, mountPath: /data/shared}]}
  volumes: [{name: s, emptyDir: {}}]
";

const CONFIGURED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: special-config}
data: {special.how: very}
---
apiVersion: v1
kind: Pod
metadata: {name: dapi-test-pod}
spec:
  restartPolicy: Never
  containers:
  - name: test-container
    image: busybox
    command: [/bin/sh, -c, env]
    env: [{name: SPECIAL_LEVEL_KEY, valueFrom: {configMapKeyRef: {name: special-config, key: special.how}}}]
";

const SECRETIVE: &str = "
apiVersion: v1
kind: Secret
metadata: {name: mysecret}
type: Opaque
data: {username: YWRtaW4=, password: MWYyZDFlMmU2N2Rm}
---
apiVersion: v1
kind: Pod
metadata: {name: mypod-secret}
spec:
  containers:
  - {name: mypod, image: nginx, volumeMounts: [{name: foo, mountPath: /etc/foo, readOnly: true}]}
  volumes: [{name: foo, secret: {secretName: mysecret}}]
";

/// Somebody without rights reads and writes everything that a pod is given.
const UNPRIVILEGED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: nested}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: unprivileged}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 65534, runAsGroup: 65534}
  containers:
  - name: c
    image: busybox
    command: [sh, -ec, 'cat /etc/hosts /etc/hostname /etc/resolv.conf /config/a/b/key; touch /empty/file; echo all well']
    volumeMounts: [{name: config, mountPath: /config}, {name: empty, mountPath: /empty}]
  volumes:
  - {name: config, configMap: {name: nested, items: [{key: key, path: a/b/key}]}}
  - {name: empty, emptyDir: {}}
";

/// A cluster with the images of the lessons, and one kubectl.
struct Lesson<'a> {
    cluster: &'a Cluster,
    kubectl: &'a Path,
}

impl Lesson<'_> {
    fn command(&self) -> Command {
        self.cluster.kubectl_of(self.kubectl)
    }

    fn k(&self, words: &str) -> String {
        run(self.command().args(words.split_whitespace()))
    }

    fn apply(&self, manifest: &str) -> String {
        run_with_input(self.command().args(["apply", "-f", "-"]), manifest)
    }

    fn pods(&self) {
        assert_eq!(self.apply(POD), "pod/decla-pod created\n");
        self.cluster.wait_ready("decla-pod");
        let wide = self.k("get pods -o wide");
        assert!(wide.contains("decla-pod") && wide.contains("1/1") && wide.contains("Running"), "{wide}");
        assert!(wide.contains("board"), "{wide}");
        assert_eq!(self.apply(POD), "pod/decla-pod unchanged\n");
        let page = self.k("exec decla-pod -- wget -qO- http://127.0.0.1/");
        assert_eq!(page, "<h1>Welcome</h1>\n");
        let described = self.k("describe pod decla-pod");
        for word in ["Successfully assigned default/decla-pod to board", "Started container memory-demo", "Burstable"] {
            let absent = word == "Burstable";
            assert_eq!(described.contains(word), !absent, "{word} in {described}");
        }
        let yaml = self.k("get pod decla-pod -o yaml");
        assert!(yaml.contains("restartPolicy: Always") && yaml.contains("phase: Running"), "{yaml}");
        self.k("label pod decla-pod tier=front");
        assert!(self.k("get pods -l tier=front -o name").contains("decla-pod"));
        self.terminal();
        self.k("delete pod decla-pod --grace-period=1");
    }

    /// `exec -it`: a terminal on the far side, an exit code on this one.
    fn terminal(&self) {
        let mut shell = self
            .command()
            .args(["exec", "-i", "decla-pod", "--", "/bin/sh", "-c", "read word; echo got $word; exit 7"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let output = shell.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), "got hello\n");
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let line =
            format!("{} exec -it decla-pod -- sh -c 'test -t 0 && echo a terminal'", self.kubectl.to_string_lossy());
        let mut script = self.cluster.netns.command("script");
        script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", self.cluster.data_dir().join("admin.kubeconfig"));
        assert!(run(&mut script).contains("a terminal"));
    }

    fn scheduling(&self) {
        self.apply(SELECTIVE);
        let told = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector";
        self.cluster.until("describe pod choosy", |out| out.contains(told));
        assert!(self.k("get pod choosy").contains("Pending"));
        self.k("label nodes board disktype=ssd");
        self.cluster.wait_ready("choosy");
        assert!(self.k("get nodes --show-labels").contains("disktype=ssd"));
        self.k("delete pod choosy --grace-period=1");
        self.k("label nodes board disktype-");
    }

    fn deployment(&self) {
        assert_eq!(self.apply(DEPLOYMENT), "deployment.apps/web created\n");
        assert!(self.k("rollout status deployment web --timeout=90s").contains("successfully rolled out"));
        self.k("scale deployment web --replicas=2");
        self.cluster.until("get deployment web", |out| out.contains("2/2"));
        assert_eq!(self.k("get rs -o name").lines().count(), 1, "scaling makes no ReplicaSet");
        self.k("set image deployment/web nginx=nginx:1.9.1");
        self.k("annotate deployment web kubernetes.io/change-cause=nginx:1.9.1 --overwrite");
        self.k("rollout status deployment web --timeout=90s");
        assert_eq!(self.k("get rs -o name").lines().count(), 2);
        let history = self.k("rollout history deployment web");
        assert!(history.contains("nginx:1.7.9") && history.contains("nginx:1.9.1"), "{history}");
        let wide = self.k("get deployments -o wide");
        assert!(wide.contains("nginx:1.9.1") && wide.contains("app=web"), "{wide}");
        self.k("rollout undo deployment web");
        self.k("rollout status deployment web --timeout=90s");
        let image = self.k("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}");
        assert_eq!(image, "nginx:1.7.9");
        assert!(self.k("describe deployment web").contains("ScalingReplicaSet"));
        self.k("delete deployment web");
        self.cluster.until("get pods,rs -l app=web -o name", str::is_empty);
    }

    fn volumes(&self) {
        self.apply(SHARED);
        self.cluster.wait_ready("shared-volumes");
        self.k("exec shared-volumes -c one -- sh -c echo>/data/shared/file");
        self.k("exec shared-volumes -c one -- touch /data/shared/from-one");
        assert!(self.k("exec shared-volumes -c two -- ls /data/shared").contains("from-one"));
        self.apply(CONFIGURED);
        self.cluster.until("get pod dapi-test-pod", |out| out.contains("Completed"));
        assert!(self.k("logs dapi-test-pod").contains("SPECIAL_LEVEL_KEY=very"));
        self.apply(SECRETIVE);
        self.cluster.wait_ready("mypod-secret");
        assert_eq!(self.k("exec mypod-secret -- cat /etc/foo/username"), "admin");
        assert!(self.k("exec mypod-secret -- df /etc/foo").contains("tmpfs"));
        self.apply(UNPRIVILEGED);
        self.cluster.until("logs unprivileged", |out| out.contains("all well"));
        self.k("delete pod shared-volumes dapi-test-pod mypod-secret unprivileged --grace-period=1");
        self.k("delete configmap special-config nested");
        self.k("delete secret mysecret");
    }

    fn logs_follow(&self) {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec: {restartPolicy: Never, containers: \
                   [{name: c, image: busybox, command: [sh, -c, 'for i in $(seq 5); do echo line $i; sleep 0.2; done']}]}";
        self.apply(pod);
        self.cluster.until("get pod talker -o jsonpath={.status.phase}", |p| p == "Running" || p == "Succeeded");
        let mut follow = self.command().args(["logs", "-f", "talker"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Vec<String> = BufReader::new(follow.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        follow.wait().unwrap();
        assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5"]);
        assert_eq!(self.k("logs talker --tail=1"), "line 5\n");
        self.k("delete pod talker");
    }

    /// `get -w` prints what changes.
    fn watching(&self) {
        let mut watch =
            self.command().args(["get", "configmaps", "-w", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "configmap/kube-root-ca.crt");
        self.k("create configmap watched --from-literal=a=b");
        assert_eq!(lines.next().unwrap().unwrap(), "configmap/watched");
        watch.kill().unwrap();
        watch.wait().unwrap();
        self.k("delete configmap watched");
    }

    fn all(&self) {
        self.pods();
        self.scheduling();
        self.deployment();
        self.volumes();
        self.logs_follow();
        self.watching();
    }
}

#[test]
fn the_lessons_work_with_every_kubectl() {
    let cluster = Cluster::start();
    for (file, recipe) in [("a.tar", images::BUSYBOX), ("b.tar", images::WEB), ("c.tar", images::WEB_NEW)] {
        cluster.import(&images::archive(cluster.dir.path(), file, &recipe));
    }
    let all = common::kubectls();
    let mut chosen = vec![all.first().expect("kubectl").clone(), all.last().expect("kubectl").clone()];
    chosen.dedup();
    for kubectl in &chosen {
        eprintln!("with {}", kubectl.display());
        Lesson { cluster: &cluster, kubectl }.all();
    }
    cluster.finish();
}

#[test]
fn refusals_name_the_field() {
    let cluster = Cluster::start();
    for (manifest, names) in [
        ("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}", "spec.containers: Required value"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {contaners: []}}", "unknown field \"spec.contaners\""),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: Big_}}", "metadata.name: Invalid value: \"Big_\""),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: x}], \
             volumes: [{name: v, nfs: {server: a, path: /}}]}}",
            "spec.volumes[0].nfs",
        ),
    ] {
        let mut kubectl = cluster.kubectl();
        let mut child = kubectl
            .args(["create", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{manifest}");
        assert!(text(&output.stderr).contains(names), "{manifest}: {}", text(&output.stderr));
    }
    assert!(cluster.k_fails("get pod nobody").contains("pods \"nobody\" not found"));
    cluster.finish();
}
