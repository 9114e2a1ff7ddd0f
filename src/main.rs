//! The `umiak` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("shim") => umiak::runtime::shim_main(args),
        _ => ExitCode::FAILURE,
    }
}
