//! `umiak node`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::Client;
use super::{DataDir, Failure};

/// Options of `umiak node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand, Debug)]
enum NodeCommand {
    /// End a node's membership at once: its certificate and its session are dead, it gets nothing any more
    Revoke(RevokeArgs),
}

#[derive(Args, Debug)]
struct RevokeArgs {
    /// Name of the node
    node: String,
    #[command(flatten)]
    data: DataDir,
}

/// Revokes: the membership lives as long as the Node object.
pub fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let NodeCommand::Revoke(args) = &args.command;
    Client::of_server(&args.data.data_dir)?.delete(&format!("/api/v1/nodes/{}", args.node))?;
    println!("node {} is revoked", args.node);
    Ok(ExitCode::SUCCESS)
}
