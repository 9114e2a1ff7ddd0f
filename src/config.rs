//! The configuration file, the command line's flags over it, and what both mean.

mod agent;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cidr::Cidr;
use crate::pools::Pool;

pub use agent::AgentConfig;

/// Where the daemon keeps its data when nothing else is said.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/umiak";

/// Network of the Services when nothing else is said.
pub const DEFAULT_SERVICE_CIDR: Cidr = Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16);
/// Where nodes find their server when nothing else is said.
pub const MQTT_PORT: u16 = 8883;

/// A configuration that cannot be used. Every variant names the file or the field.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration {path}: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What the parser said, with the line.
        reason: String,
    },
    /// A value is out of its range.
    #[error("{field}: {reason}")]
    Field {
        /// The field as it is written in the file.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What `umiak server` runs with.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerConfig {
    /// Directory that holds everything the daemon keeps.
    pub data_dir: PathBuf,
    /// Name of this node; the host's name where it is absent.
    pub node_name: Option<String>,
    /// Port of the API.
    pub https_port: u16,
    /// Address the API listens on. If that is loopback, also the pods' gateway.
    pub bind_address: IpAddr,
    /// Port of the built-in MQTT broker.
    pub mqtt_port: u16,
    /// Address the built-in broker listens on.
    pub mqtt_bind: IpAddr,
    /// `host:port` where nodes find this server (or that broker), as tokens say; empty: this host's own address.
    pub join_addresses: Vec<String>,
    /// No node on this machine: only what serves the others.
    pub no_node: bool,
    /// `mqtts://host:port` of another broker; the built-in one is not started then.
    pub broker_url: Option<String>,
    /// Network of the pods.
    pub cluster_cidr: Cidr,
    /// Network of the Services.
    pub service_cidr: Cidr,
    /// More names and addresses for the API's certificate.
    pub tls_san: Vec<String>,
    /// Name of the pod bridge.
    pub bridge: String,
    /// The tunnel to nodes of other network segments.
    pub vxlan: Vxlan,
    /// How the Service proxy of this node chooses among endpoints.
    pub proxy_balance: ProxyBalance,
    /// Addresses for Services of type LoadBalancer.
    pub load_balancer_pools: Vec<Pool>,
    /// What is logged, as in `RUST_LOG`.
    pub log: String,
}

/// How the tunnel between nodes of different network segments is told from others. The same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vxlan {
    /// VXLAN network identifier, 1 to 16777215.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self { vni: 7861, port: 8472 }
    }
}

impl Vxlan {
    fn check(self) -> Result<(), Error> {
        if !(1..1 << 24).contains(&self.vni) {
            return Err(Error::Field { field: "vxlan", reason: format!("vni {} is not 1 to 16777215", self.vni) });
        }
        if self.port == 0 {
            return Err(Error::Field { field: "vxlan", reason: "port 0 is no port".to_owned() });
        }
        Ok(())
    }
}

/// How the Service proxy chooses among the endpoints that may take a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyBalance {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The one with the fewest open connections.
    LeastConnections,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data_dir: DEFAULT_DATA_DIR.into(),
            node_name: None,
            https_port: 6443,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mqtt_port: MQTT_PORT,
            mqtt_bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            join_addresses: Vec::new(),
            no_node: false,
            broker_url: None,
            cluster_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: DEFAULT_SERVICE_CIDR,
            tls_san: Vec::new(),
            bridge: "umiak0".into(),
            vxlan: Vxlan::default(),
            proxy_balance: ProxyBalance::default(),
            load_balancer_pools: Vec::new(),
            log: "info".into(),
        }
    }
}

impl ServerConfig {
    /// Reads a file; fields it does not name keep their defaults.
    ///
    /// # Errors
    /// When the file cannot be read, has a field that does not exist, or a value of the wrong form.
    pub fn read(path: &Path) -> Result<Self, Error> {
        read(path)
    }

    /// Checks what no single field shows, and fills in the host's name.
    ///
    /// # Errors
    /// When networks overlap or are too small, or a name is not a DNS name.
    pub fn validate(mut self) -> Result<Self, Error> {
        let field = |field, reason| Err(Error::Field { field, reason });
        if self.cluster_cidr.prefix() > 24 {
            return field("cluster-cidr", format!("{} is too small: each node takes a /24 of it", self.cluster_cidr));
        }
        if self.service_cidr.prefix() > 28 {
            return field("service-cidr", format!("{} is smaller than a /28", self.service_cidr));
        }
        let (pods, services) = (self.cluster_cidr, self.service_cidr);
        if pods.contains(services.network()) || services.contains(pods.network()) {
            return field("service-cidr", format!("{services} overlaps cluster-cidr {pods}"));
        }
        for (index, pool) in self.load_balancer_pools.iter().enumerate() {
            let others = self.load_balancer_pools[..index].iter();
            if let Err(error) = pool.check(others, &[pods.into(), services.into()]) {
                return field("load-balancer-pools", error.to_string());
            }
        }
        check_bridge(&self.bridge)?;
        self.vxlan.check()?;
        let addresses = self.join_addresses.iter().map(|text| server_address("join-addresses", text));
        self.join_addresses = addresses.collect::<Result<_, _>>()?;
        if let Some(url) = &self.broker_url {
            broker_address(url)?;
        }
        self.node_name = Some(node_name(self.node_name)?);
        self.data_dir = absolute(&self.data_dir)?;
        Ok(self)
    }
}

/// Reads a file; a file of comments only is the default.
fn read<T: Default + DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(T::default());
    }
    serde_yaml::from_str(&text).map_err(|e| {
        let reason = e.to_string();
        Error::Parse { path: path.to_owned(), reason: reason.lines().next().unwrap_or_default().to_owned() }
    })
}

fn check_bridge(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
        let reason = format!("{name:?} is not an interface name of 1 to 15 characters");
        return Err(Error::Field { field: "bridge", reason });
    }
    Ok(())
}

/// A node's name: the given one, or the host's.
fn node_name(given: Option<String>) -> Result<String, Error> {
    let wrong = |reason| Error::Field { field: "node-name", reason };
    let name = match given {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().to_lowercase())
            .map_err(|e| wrong(format!("the host has no name: {e}")))?,
    };
    if !is_dns_subdomain(&name) {
        return Err(wrong(format!("{name:?} is not a DNS name of lower-case letters, digits, '-' and '.'")));
    }
    Ok(name)
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let wrong = |e| Error::Field { field: "data-dir", reason: format!("{}: {e}", path.display()) };
    std::path::absolute(path).map_err(wrong)
}

/// An address where nodes find their server, as `host:port`; without a port it is 8883.
///
/// # Errors
/// When it names no host.
pub fn server_address(field: &'static str, text: &str) -> Result<String, Error> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, MQTT_PORT).to_string());
    }
    broker_address(&format!("mqtts://{text}")).map_err(|_| Error::Field {
        field,
        reason: format!("{text:?} is not a host, or a host and a port as in host:8883"),
    })
}

/// Host and port of a broker's URL, as `host:port`.
///
/// # Errors
/// When it is not of the form `mqtts://host` or `mqtts://host:port`.
pub fn broker_address(url: &str) -> Result<String, Error> {
    let wrong = |reason: &str| Error::Field { field: "broker-url", reason: format!("{url:?} {reason}") };
    let rest = url.strip_prefix("mqtts://").ok_or_else(|| wrong("does not begin with mqtts://"))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong("has no valid port"))?),
        _ => (rest, MQTT_PORT),
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let fits = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok() || is_dns_subdomain(&host.to_lowercase()),
    };
    if fits { Ok(format!("{host}:{port}")) } else { Err(wrong("names no host")) }
}

fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(inner)
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ServerConfig, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("umiak.yaml");
        fs::write(&path, text).unwrap();
        ServerConfig::read(&path).and_then(ServerConfig::validate)
    }

    #[test]
    fn the_shipped_file_holds_the_defaults() {
        let shipped = read(include_str!("../configs/umiak.yaml")).unwrap();
        let default = ServerConfig::default().validate().unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{default:?}"));
    }

    #[test]
    fn brokers_have_addresses() {
        for (url, address) in [
            ("mqtts://broker.lan", "broker.lan:8883"),
            ("mqtts://192.0.2.1:1/", "192.0.2.1:1"),
            ("mqtts://[2001:db8::1]", "[2001:db8::1]:8883"),
            ("mqtts://[2001:db8::1]:884", "[2001:db8::1]:884"),
        ] {
            assert_eq!(broker_address(url).unwrap(), address);
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, names) in [
            ("https-prt: 1\n", "https-prt"),
            ("https-port: 70000\n", "line 1"),
            ("cluster-cidr: 10.42.0.1/16\n", "beyond the prefix"),
            ("cluster-cidr: 10.42.0.0/28\n", "cluster-cidr"),
            ("service-cidr: 10.42.9.0/24\n", "overlaps"),
            ("node-name: Über\n", "node-name"),
            ("bridge: averyveryverylongname\n", "bridge"),
            ("vxlan: {vni: 0}\n", "vni 0"),
            ("vxlan: {port: 0}\n", "port 0"),
            ("proxy-balance: random\n", "line 1"),
            ("load-balancer-pools:\n- {name: a, addresses: [10.0.0.9-10.0.0.1]}\n", "the last comes before the first"),
            ("load-balancer-pools:\n- {name: a, addresses: [10.42.0.9]}\n", "load-balancer-pools: pool \"a\""),
            ("broker-url: http://a\n", "broker-url"),
            ("broker-url: mqtts://a:b\n", "valid port"),
            ("broker-url: mqtts://\n", "no host"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(names), "{text:?} gave {error:?}");
        }
    }
}
