//! `umiak status`: how this board is.

use std::io;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::{DataDir, Failure};
use crate::daemon::status::{Link, Status, ask};

/// Options of `umiak status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    data: DataDir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the daemon and prints; fails if none runs.
pub fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let directory = &args.data.data_dir;
    let status = ask(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no umiak runs on {}", directory.display())
        }
        _ => format!("ask the umiak of {}: {error}", directory.display()),
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status, now()));
    }
    Ok(ExitCode::SUCCESS)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn text(status: &Status, now: u64) -> String {
    let mut lines = vec![
        row("role", &format!("{}, umiak {}", status.role, status.version)),
        row("node", if status.node.is_empty() { "none on this machine" } else { &status.node }),
        row("cluster", &status.cluster),
    ];
    match &status.link {
        Some(link) => lines.extend(link_lines(link, now)),
        None => lines.push(row("connected nodes", &names(&status.connected))),
    }
    lines.push(row("pods", &status.pods.len().to_string()));
    for pod in &status.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let waits = if pod.waits_for.is_empty() { String::new() } else { format!("  waits for: {}", pod.waits_for) };
        let ready = format!("{}/{}", pod.ready, pod.containers);
        lines.push(format!("  {name:<40} {ready:<5} {:<10} {:>3} restarts{waits}", pod.phase, pod.restarts));
    }
    lines.into_iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn row(what: &str, value: &str) -> String {
    format!("{what:<16} {value}")
}

fn names(list: &[String]) -> String {
    if list.is_empty() { "none".to_owned() } else { format!("{}: {}", list.len(), list.join(", ")) }
}

fn link_lines(link: &Link, now: u64) -> Vec<String> {
    let address = link.address.clone().unwrap_or_else(|| link.servers.join(", "));
    let state = match link.connected {
        Some(since) => format!("connected to {address} for {}", span(now.saturating_sub(since))),
        None if link.removed => "the server has removed this node; its pods go on".to_owned(),
        None => format!("no connection to {address}"),
    };
    let contact = link
        .last_contact
        .map_or("never since the start".to_owned(), |at| format!("{} ago", span(now.saturating_sub(at))));
    let left = i128::from(link.certificate_expires) - i128::from(link.now);
    let certificate = match u64::try_from(left) {
        Ok(left) => format!("good for {}", span(left)),
        Err(_) => "expired: it is renewed at the next contact".to_owned(),
    };
    let mut lines = vec![row("server", &link.servers.join(", ")), row("link", &state), row("last contact", &contact)];
    if let Some(error) = link.error.as_ref().filter(|_| link.connected.is_none()) {
        lines.push(row("trouble", error));
    }
    lines.push(row("certificate", &certificate));
    lines
}

/// Seconds in the two largest units.
fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(3);
    let (size, unit) = units[first];
    let mut text = format!("{}{unit}", seconds / size);
    if let Some((smaller, unit)) = units.get(first + 1)
        && (seconds % size) / smaller > 0
    {
        text.push_str(&format!("{}{unit}", (seconds % size) / smaller));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::PodView;

    #[test]
    fn spans_are_short() {
        for (seconds, expected) in [(0, "0s"), (59, "59s"), (60, "1m"), (3661, "1h1m"), (31_536_000, "365d")] {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn a_board_without_server_says_so() {
        let pod = PodView {
            namespace: "default".into(),
            name: "web".into(),
            phase: "Pending".into(),
            containers: 1,
            waits_for: "container c: ErrImagePull: no such image".into(),
            ..PodView::default()
        };
        let link = Link {
            servers: vec!["192.0.2.1:8883".into()],
            last_contact: Some(1000),
            error: Some("connection refused".into()),
            certificate_expires: 5000,
            now: 1400,
            ..Link::default()
        };
        let mut status = Status { role: "agent".into(), node: "pi".into(), link: Some(link), ..Status::default() };
        status.pods = vec![pod];
        let text = text(&status, 1130);
        for part in [
            "no connection to 192.0.2.1:8883",
            "2m10s ago",
            "connection refused",
            "good for 1h",
            "waits for: container c",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
