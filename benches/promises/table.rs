//! The table: what is promised, what was measured, and how loaded the machine was meanwhile.

use std::fs;

/// Prints the head.
pub fn head() {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let cpus = std::thread::available_parallelism().unwrap();
    println!(
        "Linux {}, {cpus} cores; \"load\" is the load average of the last minute, the bench's own included\n",
        kernel.trim()
    );
    println!("| what | promised | measured | | load | how |");
    println!("|---|---|---|---|---|---|");
}

/// A figure that may be no more than promised.
pub fn at_most(what: &str, unit: &str, promised: f64, measured: f64, how: &str) {
    row(what, &format!("≤ {}", figure(promised, unit)), &figure(measured, unit), kept(measured <= promised), how);
}

/// A figure that may be no less than promised.
pub fn at_least(what: &str, unit: &str, promised: f64, measured: f64, how: &str) {
    row(what, &format!("≥ {}", figure(promised, unit)), &figure(measured, unit), kept(measured >= promised), how);
}

/// A figure without a promise, for comparison.
pub fn plain(what: &str, unit: &str, measured: f64, how: &str) {
    row(what, "", &figure(measured, unit), "", how);
}

/// A promise that this run says nothing about.
pub fn missing(what: &str, promised: &str, why: &str) {
    row(what, promised, "not measured", "", why);
}

fn kept(kept: bool) -> &'static str {
    if kept { "kept" } else { "**missed**" }
}

fn figure(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        v if v == v.trunc() || v >= 1000.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

fn row(what: &str, promised: &str, measured: &str, verdict: &str, how: &str) {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let load = load.split(' ').next().unwrap();
    println!("| {what} | {promised} | {measured} | {verdict} | {load} | {how} |");
}

/// The median.
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
