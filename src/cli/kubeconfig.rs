//! `umiak kubeconfig`: the administrator's kubeconfig.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use super::{DataDir, Failure};
use crate::server::ADMIN_KUBECONFIG;

/// Prints the file the server wrote.
pub fn run(args: &DataDir) -> Result<ExitCode, Failure> {
    let path = args.data_dir.join(ADMIN_KUBECONFIG);
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "{} is not there: start `umiak server --data-dir {}` first",
                path.display(),
                args.data_dir.display()
            )
        }
        _ => format!("read {}: {error}", path.display()),
    })?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
