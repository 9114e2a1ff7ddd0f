//! `umiak check`: what this board lacks, and the line that mends it.

use std::process::ExitCode;

use super::{DataDir, Failure};
use crate::runtime::host::{Verdict, probe};

/// Prints one line a fact, and one more for what to do about it; fails if no pod could run here.
pub fn run(args: &DataDir) -> Result<ExitCode, Failure> {
    let facts = probe(&args.data_dir);
    for fact in &facts {
        let verdict = match fact.verdict {
            Verdict::Good => "ok",
            Verdict::Limited => "limited",
            Verdict::Bad => "MISSING",
        };
        println!("{verdict:<8} {:<18} {}", fact.name, fact.detail);
        if !fact.remedy.is_empty() {
            println!("{:<27} mend it: {}", "", fact.remedy);
        }
    }
    Ok(if facts.iter().any(|fact| fact.verdict == Verdict::Bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
