//! What a board that went over to somebody else can read: its own pods' data, and nothing of any other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Cluster, text};
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use umiak::clock::Clock;
use umiak::link::membership::{Granted, Reply, Request, Token, ask, cluster_id};
use umiak::link::message::{Sequence, ToServer};
use umiak::link::mqtt::tls::{ClientTls, TlsError};
use umiak::link::mqtt::{self, NodeConfig};
use umiak::pki::node::NodeKey;
use umiak::pki::{pem_certificates, roots};

const SERVER: &str = "127.0.0.1:8883";

/// Data of two namespaces; what is `MINE` a pod of the board uses, what is `THEIRS` it does not.
const DATA: &str = "
apiVersion: v1
kind: Secret
metadata: {name: used}
stringData: {word: MINE-secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: used}
data: {word: MINE-config}
---
apiVersion: v1
kind: Secret
metadata: {name: unused}
stringData: {word: THEIRS-secret-beside}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: unused, annotations: {note: THEIRS-note}}
data: {word: THEIRS-config-beside}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Secret
metadata: {name: used, namespace: other}
stringData: {word: THEIRS-secret-same-name}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, annotations: {note: THEIRS-pod}}
spec:
  nodeName: board
  containers: [{name: c, image: none.invalid/THEIRS-image, imagePullPolicy: Never, env: [{name: A, value: THEIRS-variable}],
                envFrom: [{secretRef: {name: unused}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: here, annotations: {note: MINE-pod}}
spec:
  nodeName: pi-1
  containers: [{name: c, image: busybox, env: [{name: A, valueFrom: {secretKeyRef: {name: used, key: word}}}]}]
  volumes: [{name: v, configMap: {name: used}}]
";

/// All bytes that the server sends to a board that joins and asks for everything, as text; and its certificate.
fn everything(
    token: Token,
    netns: String,
    directory: PathBuf,
    changes: impl FnOnce() + Send + 'static,
) -> (String, Granted) {
    setns(File::open(format!("/run/netns/{netns}")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (key, clock) = (NodeKey::open(&directory.join("key")).unwrap(), Clock::open(&directory.join("clock")));
        let cluster = cluster_id(&token.ca);
        let request = Request {
            name: "pi-1".into(),
            name_is_wanted: true,
            csr: STANDARD.encode(key.request().unwrap()),
            token: Some((token.id.clone(), token.secret.clone())),
            pod_cidr: None,
        };
        let mut stream = mqtt::join(&[SERVER.into()], *token.ca.bytes(), &cluster, clock.clone()).await.unwrap();
        let Reply::Granted(granted) = ask(&mut stream, &request).await.unwrap() else { panic!("refused") };
        let (chain, ca) = (pem_certificates(&granted.certificate).unwrap(), roots(&granted.ca).unwrap());
        let pem = key.pem();
        let tls = move || {
            let key = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).map_err(TlsError::of)?;
            ClientTls::new(ca.clone(), chain.clone(), key, clock.clone())
        };
        let (_to, addresses) = watch::channel(vec![SERVER.to_owned()]);
        let (node, keepalive) = (granted.name.clone(), NodeConfig::KEEPALIVE);
        let config = NodeConfig { cluster, node, addresses, network: watch::channel(0).1, keepalive };
        let (mut end, _state, link) = mqtt::node(config, Arc::new(tls));
        tokio::spawn(link);
        let mut heard = String::new();
        let mut changes = Some(changes);
        end.tx.send(Sequence::start().wrap(ToServer::Hello)).await.unwrap();
        while let Ok(Some(envelope)) = tokio::time::timeout(Duration::from_secs(3), end.rx.recv()).await {
            heard += &serde_json::to_string(&envelope.body).unwrap();
            if heard.contains("complete")
                && let Some(changes) = changes.take()
            {
                tokio::task::spawn_blocking(changes).await.unwrap();
            }
        }
        (heard, *granted)
    })
}

#[test]
fn a_compromised_node_reads_its_own_pods_data_and_no_other() {
    let cluster = Arc::new(Cluster::start());
    let token: Token = cluster.token(&["--server", SERVER, "--node-name", "pi-1"]).parse().unwrap();
    let spare = cluster.token(&["--server", SERVER]);
    let directory = cluster.dir.path().join("board");
    std::fs::create_dir(&directory).unwrap();
    let (netns, at, told) = (cluster.netns.0.clone(), directory.clone(), cluster.clone());
    let listening = std::thread::spawn(move || {
        everything(token, netns, at, move || {
            told.apply(DATA);
            // Changes of what it does not use, and of what it does.
            told.k("annotate secret unused note=THEIRS-change");
            told.k("annotate pod elsewhere more=THEIRS-change");
            told.k("patch configmap unused -p {\"data\":{\"word\":\"THEIRS-again\"}}");
            told.k("patch configmap used -p {\"data\":{\"word\":\"MINE-again\"}}");
        })
    });
    let (heard, granted) = listening.join().unwrap();
    for mine in ["MINE-pod", "MINE-config", "MINE-again", &STANDARD.encode("MINE-secret")] {
        assert!(heard.contains(mine), "it does not hear {mine}:\n{heard}");
    }
    let spare: Token = spare.parse().unwrap();
    let secrets = ["THEIRS-secret-beside", "THEIRS-secret-same-name"].map(|secret| STANDARD.encode(secret));
    for theirs in ["THEIRS", "PRIVATE KEY", &spare.secret, &secrets[0], &secrets[1]] {
        assert!(!heard.contains(theirs), "it hears {theirs}:\n{heard}");
    }

    // With the same certificate at the API.
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    std::fs::write(&certificate, &granted.certificate).unwrap();
    std::fs::write(&key, std::fs::read_to_string(directory.join("key")).unwrap()).unwrap();
    let as_node = |words: &str| {
        let mut command = cluster.kubectl();
        command.arg("--client-certificate").arg(&certificate).arg("--client-key").arg(&key);
        command.args(["--kubeconfig", "/dev/null", "--insecure-skip-tls-verify", "--server", "https://127.0.0.1:6443"]);
        command.args(words.split_whitespace()).output().unwrap()
    };
    for words in [
        "get secrets -A -o yaml",
        "get secret unused -o yaml",
        "get secret used -n other -o yaml",
        "get configmaps -A -o yaml",
        "get configmap unused -o yaml",
        "get pods -A -o yaml",
        "get pod elsewhere -o yaml",
        "get nodes -o yaml",
        "get --raw /api/v1/secrets?watch=true",
        "exec elsewhere -- true",
        "logs elsewhere",
        "label node board stolen=yes",
        "delete pod elsewhere",
    ] {
        let output = as_node(words);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains("THEIRS") && secrets.iter().all(|s| !said.contains(s)), "{words}:\n{said}");
        assert!(!output.status.success(), "a node may {words}:\n{said}");
        assert!(
            said.contains("forbidden") || said.contains("Forbidden") || said.contains("Unauthorized"),
            "{words}: {said}"
        );
    }
    let Ok(cluster) = Arc::try_unwrap(cluster) else { panic!("still in use") };
    cluster.finish();
}
