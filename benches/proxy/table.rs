//! The table: what each of the three reached, and whether Umiak reached its goal.

use std::fs;

/// Direct, HAProxy, Umiak; NaN where it says nothing.
pub type Round = [f64; 3];

/// What is to be reached, compared with HAProxy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// At least 1.1 times as much.
    TenthMore,
    /// HAProxy has at least 1.1 times as much.
    TenthLess,
    /// At most as much.
    NoMore,
    /// Nothing to compare with but the direct way.
    None,
}

/// Rows are printed as they are measured.
pub struct Table {
    missed: Vec<String>,
}

impl Table {
    /// Prints the head.
    pub fn new() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let cpus = std::thread::available_parallelism().unwrap();
        println!(
            "Linux {}, {cpus} cores; \"load\" is the load average of the last minute, the bench's own included\n",
            kernel.trim()
        );
        println!("| what | direct | HAProxy | Umiak | Umiak : direct | Umiak : HAProxy (spread) | goal | | load |");
        println!("|---|---|---|---|---|---|---|---|---|");
        Self { missed: Vec::new() }
    }

    /// Judges and prints a figure.
    pub fn row(&mut self, what: &str, rounds: &[Round], goal: Goal) {
        let [direct, haproxy, umiak] = [0, 1, 2].map(|subject| median(rounds.iter().map(|round| round[subject])));
        let mut ratios: Vec<f64> =
            rounds.iter().map(|round| round[2] / round[1]).filter(|ratio| !ratio.is_nan()).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = median(ratios.iter().copied());
        let (wished, kept) = match goal {
            Goal::TenthMore => ("≥ 1.1", ratio >= 1.1),
            Goal::TenthLess => ("≤ 0.91", ratio <= 1.0 / 1.1),
            Goal::NoMore => ("≤ 1", ratio <= 1.0),
            Goal::None => ("", true),
        };
        let verdict = match goal {
            Goal::None => "",
            _ if kept => "kept",
            _ => "**missed**",
        };
        let spread = match (ratios.first(), ratios.last()) {
            (Some(least), Some(most)) => format!("{ratio:.2} ({least:.2} to {most:.2})"),
            _ => String::new(),
        };
        let load = fs::read_to_string("/proc/loadavg").unwrap();
        let load = load.split(' ').next().unwrap();
        let share = figure(umiak / direct);
        let [direct, haproxy, umiak] = [direct, haproxy, umiak].map(figure);
        println!("| {what} | {direct} | {haproxy} | {umiak} | {share} | {spread} | {wished} | {verdict} | {load} |");
        if !kept {
            self.missed.push(format!("{what}: {ratio:.2}, wished {wished}"));
        }
    }

    /// Says what was missed.
    pub fn verdict(self) {
        match self.missed.as_slice() {
            [] => println!("\nEvery goal is kept."),
            missed => println!("\nMissed: {}.", missed.join("; ")),
        }
    }
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.filter(|sample| !sample.is_nan()).collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn figure(value: f64) -> String {
    match value {
        v if !v.is_finite() => String::new(),
        v if v.abs() >= 100.0 => format!("{v:.0}"),
        v if v.abs() >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
