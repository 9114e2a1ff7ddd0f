//! The `umiak` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    umiak::cli::main()
}
