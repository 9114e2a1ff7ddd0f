//! The server over real TLS connections, spoken to in HTTP/1.1 by hand.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::kinds::table::KindTable;
use crate::store::{self, Store};

struct NoStreams;

impl PodStreams for NoStreams {
    fn open<'a>(&'a self, node: &'a str, _: StreamRequest) -> BoxFuture<'a, Result<Stream, Status>> {
        Box::pin(async move { Err(Status::unavailable(format!("node {node} is not connected"))) })
    }
}

struct Server {
    port: u16,
    ca: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
    _directory: TempDir,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn identity(
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    groups: &[&str],
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

impl Server {
    async fn start() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let ca = Issuer::new(params, key);
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let (chain, key) = identity(&ca, "server", &[]);
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(store::Options::new(directory.path().join("state.db"))).unwrap();
        let registry = Registry::new(store, KindTable::builtin());
        registry.bootstrap().await.unwrap();
        let api = Api::new(
            registry,
            Options::new(Arc::new(tls), Arc::new(|_: &[CertificateDer<'_>]| true), Arc::new(NoStreams)),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(api.serve(listener, async {
            let _ = stopped.await;
        }));
        Self { port, ca, root, stop: Some(stop), served, _directory: directory }
    }

    async fn connect(&self, user: Option<(&str, &[&str])>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match user {
            Some((name, groups)) => {
                let (chain, key) = identity(&self.ca, name, groups);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// One request on a connection of its own.
    async fn ask(&self, user: Option<(&str, &[&str])>, request: &str, headers: &str, body: &str) -> Answer {
        let mut stream = self.connect(user).await;
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // The server may close without TLS' goodbye.
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { code, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn admin(&self, request: &str, headers: &str, body: &str) -> Answer {
        self.ask(Some(("admin", &["system:masters"])), request, headers, body).await
    }
}

const REVIEW: &str = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn only_the_right_people_get_in() {
    let server = Server::start().await;
    let get = format!("GET {CONFIGS}");
    let nobody = server.ask(None, &get, "", "").await;
    assert_eq!((nobody.code, nobody.json()["reason"].clone()), (401, json!("Unauthorized")));
    let jane = server.ask(Some(("jane", &["devs"])), &get, "", "").await;
    assert_eq!((jane.code, jane.json()["reason"].clone()), (403, json!("Forbidden")));
    assert_eq!(server.admin(&get, "", "").await.code, 200);
    for path in ["/readyz", "/livez?verbose", "/version"] {
        assert_eq!(server.ask(None, &format!("GET {path}"), "", "").await.code, 200, "{path}");
    }
    let who = server.admin("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", "", "{}").await;
    assert_eq!(who.json()["status"]["userInfo"]["username"], "admin");
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "a"}, "data": {"k": "v"}}).to_string();
    let created = server.admin(&format!("POST {CONFIGS}"), "", &body).await;
    assert_eq!(created.code, 201, "{created:?}");
    assert_eq!(server.admin(&format!("POST {CONFIGS}"), "", &body).await.code, 409);
    let got = server.admin(&format!("GET {CONFIGS}/a"), "", "").await.json();
    assert_eq!((got["kind"].as_str(), got["apiVersion"].as_str()), (Some("ConfigMap"), Some("v1")));
    assert_eq!(got, created.json());
    let list = server.admin(&format!("GET {CONFIGS}"), "", "").await.json();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("ConfigMapList"), 1));
    let yaml = "content-type: application/yaml\r\n";
    let put = server.admin(&format!("PUT {CONFIGS}/a"), yaml, "metadata:\n  name: a\ndata:\n  k: w\n").await;
    assert_eq!((put.code, put.json()["data"]["k"].clone()), (200, json!("w")));
    let merge = "content-type: application/merge-patch+json\r\n";
    let patched = server.admin(&format!("PATCH {CONFIGS}/a"), merge, r#"{"data":{"n":"1"}}"#).await;
    assert_eq!((patched.code, patched.json()["data"].clone()), (200, json!({"k": "w", "n": "1"})));
    let strict = json!({"metadata": {"name": "a"}, "spec": 1}).to_string();
    let refused = server.admin(&format!("PUT {CONFIGS}/a?fieldValidation=Strict"), "", &strict).await;
    assert_eq!(refused.code, 400);
    let warned = server.admin(&format!("PUT {CONFIGS}/a"), "", &strict).await;
    assert!(warned.head.contains(r#"warning: 299 - "unknown field \"spec\"""#), "{}", warned.head);
    let stale = json!({"preconditions": {"uid": "other"}}).to_string();
    assert_eq!(server.admin(&format!("DELETE {CONFIGS}/a"), "", &stale).await.code, 409);
    let deleted = server.admin(&format!("DELETE {CONFIGS}/a"), "", "").await;
    assert_eq!((deleted.code, deleted.json()["status"].clone()), (200, json!("Success")));
    assert_eq!(server.admin(&format!("GET {CONFIGS}/a"), "", "").await.code, 404);
}

#[tokio::test]
async fn answers_come_in_the_form_asked_for() {
    let server = Server::start().await;
    let namespaces = "GET /api/v1/namespaces";
    let table = "accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n";
    let answer = server.admin(&format!("{namespaces}?includeObject=None"), table, "").await.json();
    assert_eq!((answer["kind"].as_str(), answer["rows"].as_array().unwrap().len()), (Some("Table"), 4));
    assert_eq!(
        answer["rows"][0]["cells"].as_array().unwrap().len(),
        answer["columnDefinitions"].as_array().unwrap().len()
    );
    let metadata = "accept: application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io\r\n";
    let answer = server.admin(&format!("{namespaces}/default"), metadata, "").await.json();
    assert_eq!((answer["kind"].as_str(), answer.get("spec")), (Some("PartialObjectMetadata"), None));
    let yaml = server.admin(&format!("{namespaces}/default"), "accept: application/yaml\r\n", "").await;
    assert!(yaml.head.contains("content-type: application/yaml") && yaml.body.contains("\n  name: default\n"));
    let page = server.admin(&format!("{namespaces}?limit=1"), "", "").await.json();
    assert_eq!(page["metadata"]["remainingItemCount"], 3);
    let next = page["metadata"]["continue"].as_str().unwrap();
    let rest = server.admin(&format!("{namespaces}?limit=9&continue={next}"), "", "").await.json();
    assert_eq!(rest["items"].as_array().unwrap().len(), 3);
    assert_eq!(rest["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_told_so() {
    let server = Server::start().await;
    for (request, headers, body, code) in [
        ("GET /nothing", "", "", 404),
        ("GET /api/v1/namespaces/default/gadgets", "", "", 404),
        ("PUT /api/v1/namespaces", "", "{}", 405),
        ("GET /api/v1/namespaces", "accept: application/vnd.kubernetes.protobuf\r\n", "", 406),
        (REVIEW, "accept: application/json;as=Table;v=v1;g=meta.k8s.io\r\n", "{}", 406),
        ("POST /api/v1/namespaces", "content-type: text/plain\r\n", "x", 415),
        ("POST /api/v1/namespaces", "", "{", 400),
        ("POST /api/v1/namespaces?dryRun=Some", "", r#"{"metadata":{"name":"x"}}"#, 422),
        ("PATCH /api/v1/namespaces/default", "content-type: application/apply-patch+yaml\r\n", "{}", 422),
        ("GET /api/v1/namespaces?labelSelector=a%3D(", "", "", 400),
        ("GET /api/v1/namespaces?limit=x", "", "", 400),
        ("DELETE /api/v1/namespaces/default", "", "", 403),
        ("GET /api/v1/namespaces/default/pods/x/log", "", "", 404),
    ] {
        let answer = server.admin(request, headers, body).await;
        assert_eq!(answer.code, code, "{request} {answer:?}");
        assert_eq!(answer.json()["kind"], "Status", "{request}");
    }
    let large = "x".repeat(body::MAX_BODY + 1);
    assert_eq!(server.admin("POST /api/v1/namespaces", "", &large).await.code, 413);
}

#[tokio::test]
async fn a_watch_tells_what_happens_until_the_server_stops() {
    let mut server = Server::start().await;
    let stream = server.connect(Some(("admin", &["system:masters"]))).await;
    let (read, mut write) = tokio::io::split(stream);
    let mut lines = BufReader::new(read).lines();
    let query = "watch=1&labelSelector=app%3Dweb";
    write.write_all(format!("GET {CONFIGS}?{query} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    let object = |labels: Value| json!({"metadata": {"name": "a", "labels": labels}}).to_string();
    server.admin(&format!("POST {CONFIGS}"), "", &object(json!({}))).await;
    server.admin(&format!("PUT {CONFIGS}/a"), "", &object(json!({"app": "web"}))).await;
    server.admin(&format!("PUT {CONFIGS}/a"), "", &object(json!({"app": "web", "x": "y"}))).await;
    server.admin(&format!("PUT {CONFIGS}/a"), "", &object(json!({"app": "db"}))).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let line = lines.next_line().await.unwrap().unwrap();
        if line.starts_with('{') {
            let event: Value = serde_json::from_str(&line).unwrap();
            seen.push(event["type"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(seen, ["ADDED", "MODIFIED", "DELETED"]);
    server.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(4), &mut server.served).await.unwrap().unwrap();
}
