//! `umiak broker`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{DataDir, Failure};
use crate::link::mqtt::tls::SERVER_NAME;
use crate::{daemon, pki, server};

/// Options of `umiak broker`.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    #[command(subcommand)]
    command: BrokerCommand,
}

#[derive(Subcommand, Debug)]
enum BrokerCommand {
    /// Make a certificate for a broker of your own, such as Mosquitto: ca.crt, tls.crt and tls.key
    Certificate(CertificateArgs),
}

#[derive(Args, Debug)]
struct CertificateArgs {
    /// Name or address of the broker's host; may be given several times
    #[arg(long, value_name = "HOST", required = true)]
    host: Vec<String>,
    /// Directory the files are written to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    data: DataDir,
}

/// Signs a certificate with the CA of a server that has run in the data directory.
pub fn run(args: &BrokerArgs) -> Result<ExitCode, Failure> {
    let BrokerCommand::Certificate(CertificateArgs { host, out, data }) = &args.command;
    let directory = server::pki_directory(&data.data_dir);
    if !directory.exists() {
        return Err(format!("{} is not the data directory of a server", data.data_dir.display()).into());
    }
    if host.iter().any(|host| host.eq_ignore_ascii_case(SERVER_NAME)) {
        return Err(
            format!("--host: {SERVER_NAME} is what nodes know the server by, no broker may call itself so").into()
        );
    }
    let ca = pki::Ca::open(&directory)?;
    let identity = ca.broker(host)?;
    fs::create_dir_all(out).map_err(|error| format!("make {}: {error}", out.display()))?;
    let write = |name: &str, text: &str| daemon::keep(out.join(name), text);
    write("ca.crt", ca.certificate())?;
    write("tls.crt", &identity.certificate)?;
    write("tls.key", &identity.key)?;
    println!("{}", said(out));
    Ok(ExitCode::SUCCESS)
}

fn said(out: &Path) -> String {
    format!(
        "ca.crt, tls.crt and tls.key are in {}: only their owner may read them, so give them to the broker's",
        out.display()
    )
}
