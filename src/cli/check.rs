//! `umiak check`: what this board lacks, and the line that mends it.

use std::process::ExitCode;

use super::{DataDir, Failure};

/// Prints one line a finding; fails if a pod could not run here.
pub fn run(args: &DataDir) -> Result<ExitCode, Failure> {
    let findings = crate::runtime::host::check(&args.data_dir);
    let mut able = true;
    for finding in &findings {
        println!("{} {:<22} {}", if finding.ok { "ok  " } else { "MISS" }, finding.name, finding.detail);
        if !finding.ok {
            able &= !finding.required;
            println!("     {:<22} mend it: {}", "", finding.remedy);
        }
    }
    Ok(if able { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
