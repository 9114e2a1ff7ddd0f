//! The command line: one file a command, parsing and printing only.

pub mod agent;
pub mod broker;
pub mod check;
pub mod client;
pub mod demo;
pub mod demo_web;
pub mod image;
pub mod kubeconfig;
pub mod node;
pub mod reset;
mod log;
pub mod server;
pub mod status;
pub mod token;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::DEFAULT_DATA_DIR;

/// Kubernetes for a fleet of small boards, in one small daemon.
#[derive(Parser)]
#[command(name = "umiak", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  umiak demo --once                       see it work, on a throw-away server
  umiak check                             what this board lacks, and the line that mends it
  umiak server                            run the server and a node on this machine
  umiak token create                      print the command that makes another board a node
  umiak kubeconfig > ~/.kube/config       log kubectl in
  umiak image import nginx.tar            bring an image to a site without a registry";

#[derive(Subcommand)]
enum Command {
    /// Run the server: API, controllers, scheduler, and a node on this machine
    Server(server::ServerArgs),
    /// Run a node of a server elsewhere
    Agent(agent::AgentArgs),
    /// Make and list the tokens with which boards join
    Token(token::TokenArgs),
    /// Make a certificate for a broker of your own
    Broker(broker::BrokerArgs),
    /// Revoke a node
    Node(node::NodeArgs),
    /// Say how this board is: its link to the server, its pods and what they wait for
    Status(status::StatusArgs),
    /// Print the administrator's kubeconfig
    Kubeconfig(DataDir),
    /// Import, list and remove images
    Image(image::ImageArgs),
    /// Say what this board lacks, and the line that mends it
    Check(DataDir),
    /// Start a throw-away server, run an example on it, and show what to type
    Demo(demo::DemoArgs),
    /// Remove every container, mount, cgroup, interface and file that the daemon made
    Reset(reset::ResetArgs),
    /// The program of the demonstration image
    #[command(hide = true)]
    DemoWeb(DemoWebArgs),
}

/// The option every command has that works on the daemon's data.
#[derive(Args, Clone, Debug)]
pub struct DataDir {
    /// Directory that holds everything the daemon keeps
    #[arg(long, value_name = "D", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

#[derive(Args)]
struct DemoWebArgs {
    /// Where to listen
    #[arg(long, default_value_t = demo::PORT)]
    port: u16,
}

/// What a command failed with; printed as one line on standard error.
pub type Failure = Box<dyn std::error::Error>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The shim of every pod stays in memory for as long as its pod: it takes nothing with it that it does not need.
    if args.get(1).is_some_and(|arg| arg == "shim") {
        return crate::runtime::shim_main(args[2..].iter().map(|arg| arg.to_string_lossy().into_owned()));
    }
    let done = match Cli::parse_from(args).command {
        Command::Server(args) => server::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Token(args) => token::run(&args),
        Command::Broker(args) => broker::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Image(args) => image::run(&args).map_err(Failure::from),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Reset(args) => reset::run(&args),
        Command::DemoWeb(args) => Ok(demo_web::demo_web(args.port)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("umiak: {error}");
        ExitCode::FAILURE
    })
}
