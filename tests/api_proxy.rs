//! Pods and Services behind the API, and the API behind a Service, on a server that keeps the API to its own machine.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Child;

use common::{Cluster, images, run, text};

const MANIFEST: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    ports: [{containerPort: 8080, name: http}]
    command:
    - sh
    - -c
    - |
      mkdir -p /www/cgi-bin
      echo hello > /www/page
      echo start > /www/index.html
      printf '#!/bin/sh\necho; echo $REQUEST_METHOD $QUERY_STRING $HTTP_X_FORWARDED_PROTO; cat\n' > /www/cgi-bin/echo
      printf '#!/bin/sh\necho Status: 302; echo Location: /page; echo\n' > /www/cgi-bin/elsewhere
      chmod +x /www/cgi-bin/*
      exec httpd -f -p 8080 -h /www
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http, nodePort: 30055}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside}
subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80}]}]
";

/// A program of the host at the Service's node port.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn through_the_api_and_to_it() {
    let mut cluster = Cluster::stopped();
    cluster.server_args = vec!["--bind-address", "127.0.0.1"];
    let host = Host(cluster.netns.command("busybox").args(["httpd", "-f", "-p", "30055"]).spawn().unwrap());
    cluster.start_daemon();
    cluster.import(&images::archive(cluster.dir.path(), "busybox.tar", &images::BUSYBOX));
    cluster.apply(MANIFEST);

    // The node port is the host's: said once.
    cluster.until("describe svc web", |t| {
        t.contains("FailedToListen") && t.contains("node \"board\" cannot serve tcp 0.0.0.0:30055: another program")
    });
    cluster.wait_ready("web");
    proxied(&cluster);
    api_from_pods(&cluster);
    let count = cluster.k("get events --field-selector reason=FailedToListen -o jsonpath={.items[*].count}");
    assert_eq!(count, "1");
    drop(host);
    cluster.until("describe svc web", |t| t.contains("node \"board\" serves tcp 0.0.0.0:30055 now"));
    cluster.k("delete pod/web --wait=true");
    cluster.finish();
}

fn proxied(cluster: &Cluster) {
    let at = "/api/v1/namespaces/default";
    let get = |path: &str| cluster.k(&format!("get --raw {at}/{path}"));
    cluster.until("get endpoints web", |t| t.contains(":8080"));
    for path in [
        "services/web:http/proxy/page",
        "services/http:web:http/proxy/page",
        "services/http:web:80/proxy/page",
        "services/web:80/proxy/cgi-bin/elsewhere",
        "pods/web/proxy/page",
        "pods/web:8080/proxy/page",
        "pods/http:web:8080/proxy/page",
    ] {
        assert_eq!(get(path), "hello\n", "{path}");
    }
    assert_eq!(get("services/web:http/proxy"), "start\n", "by way of its own directory");
    assert_eq!(get("pods/web/proxy/cgi-bin/echo?a=b+c&watch=1"), "GET a=b+c&watch=1 https\n");
    let file = cluster.dir.path().join("body");
    std::fs::write(&file, "posted").unwrap();
    let posted = run(cluster
        .kubectl()
        .args(["create", "--raw", &format!("{at}/services/web:http/proxy/cgi-bin/echo"), "-f"])
        .arg(&file));
    assert!(posted.starts_with("POST") && posted.contains("posted"), "{posted}");
    for (path, says) in [
        ("services/empty/proxy/", "(ServiceUnavailable): no endpoints available for service \"empty\""),
        ("services/outside/proxy/", "no endpoints available for service \"outside\""),
        ("services/web/proxy/", "no endpoints available for service \"web\""),
        ("services/web:81/proxy/", "no service port 81 found for service \"web\""),
        ("services/none:80/proxy/", "services \"none\" not found"),
        ("services/ftp:web:80/proxy/", "invalid service request \"ftp:web:80\""),
        ("pods/none/proxy/", "pods \"none\" not found"),
        ("pods/web:9/proxy/", "error trying to reach service: "),
        ("pods/https:web:8080/proxy/", "error trying to reach service: "),
        ("pods/web/proxy/nothing", "the server could not find the requested resource"),
    ] {
        let error = cluster.k_fails(&format!("get --raw {at}/{path}"));
        assert!(error.contains(says), "{path}: {error}");
    }
    let served = cluster.k("get --raw /api/v1");
    for what in ["\"services/proxy\"", "\"pods/proxy\"", "ServiceProxyOptions", "PodProxyOptions"] {
        assert!(served.contains(what), "{what}");
    }
    // As a browser has it, by way of kubectl proxy.
    let mut proxy =
        Host(cluster.kubectl().args(["proxy", "--port", "8123"]).stdout(std::process::Stdio::null()).spawn().unwrap());
    let mut page = String::new();
    for _ in 0..100 {
        let url = format!("http://127.0.0.1:8123{at}/services/web:http/proxy/page");
        let got = cluster.netns.command("busybox").args(["wget", "-q", "-O-", &url]).output().unwrap();
        page = text(&got.stdout);
        if got.status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    proxy.0.kill().unwrap();
    assert_eq!(page, "hello\n");
}

/// The API is on loopback; pods come to it all the same.
fn api_from_pods(cluster: &Cluster) {
    assert_eq!(cluster.value("endpoints/kubernetes", ".subsets[*].addresses[*].ip"), "10.42.0.1");
    let version = run(cluster.kubectl().args(["--server", "https://10.43.0.1", "get", "--raw", "/version"]));
    assert!(version.contains("gitVersion"), "{version}");
    // What is no TLS gets an alert: somebody is there and speaks it.
    let command = "echo GET / | nc -w 3 kubernetes.default 443 | wc -c";
    let bytes = run(cluster.kubectl().args(["exec", "web", "--", "sh", "-c", command]));
    assert!(bytes.trim().parse::<usize>().unwrap() > 0, "{bytes}");
}
