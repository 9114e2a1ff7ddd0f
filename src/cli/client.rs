//! A blocking client of the API for the commands that need one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::Failure;
use crate::server::ADMIN_KUBECONFIG;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Talks to one API server as the user of a kubeconfig.
pub struct Client {
    agent: Agent,
    server: String,
    ca: String,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

impl Client {
    /// The administrator of the server whose data directory this is.
    pub fn of_server(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join(ADMIN_KUBECONFIG);
        if !path.exists() {
            let directory = data_dir.display();
            return Err(format!("no server has run in {directory}: say --data-dir, or run this on the server").into());
        }
        Self::from_kubeconfig(&path)
    }

    /// Reads a kubeconfig as [`crate::pki::kubeconfig`] writes it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let config: Kubeconfig = serde_yaml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let (Some(cluster), Some(user)) = (config.clusters.first(), config.users.first()) else {
            return Err(format!("{} names no cluster or no user", path.display()).into());
        };
        let (cluster, user) = (&cluster.cluster, &user.user);
        let certificate = |data: &str| -> Result<Certificate<'static>, Failure> {
            Ok(Certificate::from_pem(&STANDARD.decode(data)?)?.to_owned())
        };
        let key = PrivateKey::from_pem(&STANDARD.decode(&user.client_key_data)?)?.to_owned();
        let identity = ClientCert::new_with_certs(&[certificate(&user.client_certificate_data)?], key);
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(vec![certificate(&cluster.certificate_authority_data)?]))
            .client_cert(Some(identity))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let ca = String::from_utf8(STANDARD.decode(&cluster.certificate_authority_data)?)?;
        Ok(Self { agent, server: cluster.server.clone(), ca })
    }

    /// The cluster's CA certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// DELETE of one object.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        parse(self.agent.delete(format!("{}{path}", self.server)).call()?)
    }

    /// GET of one document.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let response = self.agent.get(format!("{}{path}", self.server)).call()?;
        parse(response)
    }

    /// POST of a YAML or JSON manifest.
    pub fn create(&self, path: &str, manifest: &str) -> Result<Value, Failure> {
        let request = self.agent.post(format!("{}{path}", self.server)).content_type("application/yaml");
        parse(request.send(manifest)?)
    }

    /// Watches until `done` says so of an event's object, for at most `timeout`.
    pub fn watch_until(
        &self,
        path: &str,
        timeout: Duration,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<(), Failure> {
        let url = format!("{}{path}?watch=true&timeoutSeconds={}", self.server, timeout.as_secs());
        let response = self.agent.get(url).call()?;
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let event: Value = serde_json::from_str(&line?)?;
            if done(&event["object"]) {
                return Ok(());
            }
        }
        Err(format!("{path}: not as awaited within {} s", timeout.as_secs()).into())
    }
}

fn parse(mut response: http::Response<ureq::Body>) -> Result<Value, Failure> {
    let failed = response.status().as_u16() >= 400;
    let value: Value = serde_json::from_str(&response.body_mut().read_to_string()?)?;
    if failed {
        return Err(value["message"].as_str().unwrap_or("the server refused, without a reason").into());
    }
    Ok(value)
}
