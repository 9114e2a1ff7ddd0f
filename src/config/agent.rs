//! What `umiak agent` runs with.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{DEFAULT_DATA_DIR, Error, ProxyBalance, Vxlan, check_bridge, node_name, read, server_address};

/// What [`AgentConfig::keepalive`] may be. A broker that is asked for more takes its own.
const KEEPALIVE: RangeInclusive<u16> = 1..=1200;

/// What `umiak agent` runs with.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentConfig {
    /// Directory that holds everything the daemon keeps.
    pub data_dir: PathBuf,
    /// Name of this node, if it is to have this one and no other.
    pub node_name: Option<String>,
    /// `host:port` of the server, one or several; empty: those of the token it joined with.
    pub server: Vec<String>,
    /// What makes this board a node, once.
    pub token: Option<String>,
    /// Name of the pod bridge.
    pub bridge: String,
    /// The tunnel to nodes of other network segments; the same as the server's.
    pub vxlan: Vxlan,
    /// How the Service proxy of this node chooses among endpoints.
    pub proxy_balance: ProxyBalance,
    /// Seconds of silence after which the connection to the server is tried; the server takes a node for gone after one
    /// and a half times as long.
    pub keepalive: u16,
    /// What is logged, as in `RUST_LOG`.
    pub log: String,
    #[serde(skip)]
    host: String,
}

/// Without the token.
impl std::fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentConfig")
            .field("data_dir", &self.data_dir)
            .field("node_name", &self.node_name)
            .field("server", &self.server)
            .field("bridge", &self.bridge)
            .field("vxlan", &self.vxlan)
            .field("proxy_balance", &self.proxy_balance)
            .field("keepalive", &self.keepalive)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            data_dir: DEFAULT_DATA_DIR.into(),
            node_name: None,
            server: Vec::new(),
            token: None,
            bridge: "umiak0".into(),
            vxlan: Vxlan::default(),
            proxy_balance: ProxyBalance::default(),
            keepalive: 60,
            log: "info".into(),
            host: String::new(),
        }
    }
}

impl AgentConfig {
    /// Reads a file; fields it does not name keep their defaults.
    ///
    /// # Errors
    /// When the file cannot be read, has a field that does not exist, or a value of the wrong form.
    pub fn read(path: &Path) -> Result<Self, Error> {
        read(path)
    }

    /// Checks what no single field shows, and completes addresses.
    ///
    /// # Errors
    /// When a name is not a DNS name, or an address none.
    pub fn validate(mut self) -> Result<Self, Error> {
        check_bridge(&self.bridge)?;
        self.vxlan.check()?;
        if !KEEPALIVE.contains(&self.keepalive) {
            let reason = format!("{} is not from {} to {} seconds", self.keepalive, KEEPALIVE.start(), KEEPALIVE.end());
            return Err(Error::Field { field: "keepalive", reason });
        }
        self.host = node_name(self.node_name.clone())?;
        self.server = self.server.iter().map(|text| server_address("server", text)).collect::<Result<_, _>>()?;
        self.data_dir = super::absolute(&self.data_dir)?;
        Ok(self)
    }

    /// The name to join with: the one asked for, or the host's.
    pub fn name(&self) -> String {
        self.host.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<AgentConfig, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.yaml");
        std::fs::write(&path, text).unwrap();
        AgentConfig::read(&path).and_then(AgentConfig::validate)
    }

    #[test]
    fn the_shipped_file_holds_the_defaults() {
        let shipped = parsed(include_str!("../../configs/agent.yaml")).unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{:?}", AgentConfig::default().validate().unwrap()));
    }

    #[test]
    fn addresses_are_completed_and_wrong_values_named() {
        let config = parsed("server: [192.0.2.1, 'server.example:99', '2001:db8::1', '[2001:db8::1]:99']\n").unwrap();
        let expected = ["192.0.2.1:8883", "server.example:99", "[2001:db8::1]:8883", "[2001:db8::1]:99"];
        assert_eq!(config.server, expected);
        for (text, names) in [
            ("server: ['https://x']\n", "server"),
            ("server: ['x:port']\n", "server"),
            ("node-name: Über\n", "node-name"),
            ("https-port: 1\n", "https-port"),
            ("bridge: averyveryverylongname\n", "bridge"),
            ("keepalive: 0\n", "keepalive"),
            ("keepalive: 1201\n", "keepalive"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(names), "{text:?} gave {error:?}");
        }
        assert!(!format!("{:?}", parsed("token: abc\n").unwrap()).contains("abc"));
    }
}
