//! `umiak server`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::Failure;
use super::log::Bounded;
use crate::cidr::Cidr;
use crate::config::ServerConfig;

/// How long helpers (unpacking, downloads) may go on when all else has stopped.
const LAST_WORK: std::time::Duration = std::time::Duration::from_millis(500);

/// Options of `umiak server`. Each wins over the field of the same name in the configuration file.
#[derive(Args, Debug, Default)]
pub struct ServerArgs {
    /// Configuration file (see configs/umiak.yaml)
    #[arg(long, value_name = "F")]
    pub config: Option<PathBuf>,
    /// Directory that holds everything the daemon keeps [default: /var/lib/umiak]
    #[arg(long, value_name = "D")]
    pub data_dir: Option<PathBuf>,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "N")]
    pub node_name: Option<String>,
    /// Port of the API [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub https_port: Option<u16>,
    /// Address the API listens on; pods reach it in any case [default: 0.0.0.0]
    #[arg(long, value_name = "A")]
    pub bind_address: Option<IpAddr>,
    /// Network of the pods [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<Cidr>,
    /// Network of the Services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<Cidr>,
    /// Port of the built-in MQTT broker, over which agents reach this server [default: 8883]
    #[arg(long, value_name = "PORT")]
    pub mqtt_port: Option<u16>,
    /// Address the built-in broker listens on [default: 0.0.0.0]
    #[arg(long, value_name = "A")]
    pub mqtt_bind: Option<IpAddr>,
    /// Another MQTT broker in its place, as mqtts://host:port
    #[arg(long, value_name = "URL")]
    pub broker_url: Option<String>,
    /// Where boards find this server, for tokens; may be given several times [default: this host's own address]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub join_address: Vec<String>,
    /// No node on this machine: API, controllers, scheduler and broker only
    #[arg(long)]
    pub no_node: bool,
    /// Another name or address for the API's certificate; may be given several times
    #[arg(long, value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// Name of the pods' bridge [default: umiak0]
    #[arg(long, value_name = "IF")]
    pub bridge: Option<String>,
    /// What is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl ServerArgs {
    fn config(self) -> Result<ServerConfig, crate::config::Error> {
        let mut config = self.config.as_deref().map_or_else(|| Ok(ServerConfig::default()), ServerConfig::read)?;
        fn set<T>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut config.data_dir, self.data_dir);
        set(&mut config.node_name, self.node_name.map(Some));
        set(&mut config.https_port, self.https_port);
        set(&mut config.bind_address, self.bind_address);
        set(&mut config.cluster_cidr, self.cluster_cidr);
        set(&mut config.service_cidr, self.service_cidr);
        set(&mut config.bridge, self.bridge);
        set(&mut config.log, self.log);
        set(&mut config.mqtt_port, self.mqtt_port);
        set(&mut config.mqtt_bind, self.mqtt_bind);
        set(&mut config.broker_url, self.broker_url.map(Some));
        config.no_node |= self.no_node;
        config.join_addresses.extend(self.join_address);
        config.tls_san.extend(self.tls_san);
        config.validate()
    }
}

/// Runs the server until SIGTERM or SIGINT.
pub fn run(args: ServerArgs) -> Result<ExitCode, Failure> {
    let config = args.config()?;
    let log = config.log.clone();
    daemon(&log, crate::server::run(config))
}

/// Runs a daemon's future to its end.
pub(super) fn daemon<E: std::error::Error + 'static>(
    log: &str,
    work: impl Future<Output = Result<(), E>>,
) -> Result<ExitCode, Failure> {
    crate::memory::limit_heaps();
    let filter: Targets = log.parse().map_err(|e| format!("log: {log:?}: {e}"))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .event_format(Bounded::new(tracing_subscriber::fmt::format().with_ansi(colours)))
        // Else a line that standard error does not take is lamented on standard error, which panics.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Hashing, unpacking and mounts: two at a time are all that a board's cores and flash can serve.
        .max_blocking_threads(4)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_stack_size(512 * 1024)
        .build()?;
    let result = runtime.block_on(work);
    // What still reads a slow registry or hangs on a dead disk does no harm when it is cut off, as by a power cut.
    runtime.shutdown_timeout(LAST_WORK);
    result?;
    Ok(ExitCode::SUCCESS)
}
