//! `umiak reset`: removes everything the daemon made.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::{DataDir, Failure};

/// Options of `umiak reset`.
#[derive(Args, Debug)]
pub struct ResetArgs {
    #[command(flatten)]
    data: DataDir,
    /// Yes, remove every pod and all data
    #[arg(long)]
    yes: bool,
}

/// Asks for `--yes`, then resets.
pub fn run(args: &ResetArgs) -> Result<ExitCode, Failure> {
    let directory = &args.data.data_dir;
    if !args.yes {
        let what = format!("every pod and all data below {} would be removed; say --yes to do it", directory.display());
        return Err(what.into());
    }
    reset(directory)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes the containers, mounts, cgroups, interfaces and files of a data directory whose daemon does not run.
pub fn reset(data_dir: &Path) -> Result<(), Failure> {
    let data_dir = std::path::absolute(data_dir)?;
    if !data_dir.join(crate::daemon::LOCK).exists() {
        return Err(format!("{} is not a data directory of umiak", data_dir.display()).into());
    }
    let _lock = crate::daemon::lock(&data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crate::daemon::board::reset(&data_dir))?;
    crate::files::remove_tree(&data_dir).map_err(|error| format!("remove {}: {error}", data_dir.display()).into())
}
