//! `umiak agent`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Failure;
use super::server::daemon;
use crate::config::{AgentConfig, Error};

/// Options of `umiak agent`. Each wins over the field of the same name in the configuration file.
#[derive(Args, Debug, Default)]
pub struct AgentArgs {
    /// Configuration file (see configs/agent.yaml)
    #[arg(long, value_name = "F")]
    pub config: Option<PathBuf>,
    /// What makes this board a node, as `umiak token create` prints it; needed once
    #[arg(long, value_name = "T")]
    pub token: Option<String>,
    /// Where the server is, if not where the token says; may be given several times
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Vec<String>,
    /// Directory that holds everything the daemon keeps [default: /var/lib/umiak]
    #[arg(long, value_name = "D")]
    pub data_dir: Option<PathBuf>,
    /// Name of this node [default: the one the token is for, or the host's name]
    #[arg(long, value_name = "N")]
    pub node_name: Option<String>,
    /// Name of the pods' bridge [default: umiak0]
    #[arg(long, value_name = "IF")]
    pub bridge: Option<String>,
    /// What is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl AgentArgs {
    fn config(self) -> Result<AgentConfig, Error> {
        let mut config = self.config.as_deref().map_or_else(|| Ok(AgentConfig::default()), AgentConfig::read)?;
        fn set<T>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut config.data_dir, self.data_dir);
        set(&mut config.token, self.token.map(Some));
        set(&mut config.node_name, self.node_name.map(Some));
        set(&mut config.bridge, self.bridge);
        set(&mut config.log, self.log);
        if !self.server.is_empty() {
            config.server = self.server;
        }
        config.validate()
    }
}

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(args: AgentArgs) -> Result<ExitCode, Failure> {
    let config = args.config()?;
    let log = config.log.clone();
    daemon(&log, crate::agent::run(config))
}
