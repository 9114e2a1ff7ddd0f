//! The query parameters of the streaming subresources (`PodExecOptions`, `PodAttachOptions`, `PodLogOptions`,
//! `PodPortForwardOptions`).

use crate::{
    kinds::status::Status,
    link::stream::{LogOptions, Streams},
};

/// Parameters of exec and attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandOptions {
    /// `None`: the pod's default container.
    pub container: Option<String>,
    /// Program and arguments; empty for attach.
    pub command: Vec<String>,
    /// Which streams are wanted.
    pub streams: Streams,
}

/// Reads the query of exec and attach. A terminal has no separate standard error.
///
/// # Errors
/// 400 naming the parameter; also if no stream is wanted.
pub fn command_options(query: &str) -> Result<CommandOptions, Status> {
    let mut options = CommandOptions::default();
    let streams = &mut options.streams;
    for (name, value) in pairs(query) {
        match name.as_str() {
            "container" => options.container = Some(value).filter(|v| !v.is_empty()),
            "command" => options.command.push(value),
            "stdin" => streams.stdin = boolean(&name, &value)?,
            "stdout" => streams.stdout = boolean(&name, &value)?,
            "stderr" => streams.stderr = boolean(&name, &value)?,
            "tty" => streams.tty = boolean(&name, &value)?,
            _ => {}
        }
    }
    streams.stderr &= !streams.tty;
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(options)
}

/// Reads the query of port-forward: the ports of `ports`, which may be repeated and hold lists.
///
/// # Errors
/// 400 for what is not a port.
pub fn forward_ports(query: &str) -> Result<Vec<u16>, Status> {
    let lists: Vec<String> = pairs(query).filter(|(name, _)| name == "ports").map(|(_, value)| value).collect();
    let ports = lists.iter().flat_map(|list| list.split(',')).filter(|port| !port.is_empty());
    ports
        .map(|port| match port.parse() {
            Ok(0) | Err(_) => Err(invalid("ports", port)),
            Ok(port) => Ok(port),
        })
        .collect()
}

/// Reads the query of log: the container (`None`: the pod's default one) and the options.
///
/// # Errors
/// 400 naming the parameter.
pub fn log_options(query: &str) -> Result<(Option<String>, LogOptions), Status> {
    let (mut container, mut options) = (None, LogOptions::default());
    for (name, value) in pairs(query) {
        match name.as_str() {
            "container" => container = Some(value).filter(|v| !v.is_empty()),
            "follow" => options.follow = boolean(&name, &value)?,
            "previous" => options.previous = boolean(&name, &value)?,
            "timestamps" => options.timestamps = boolean(&name, &value)?,
            "sinceSeconds" => options.since_seconds = Some(number(&name, &value, 1)?),
            "sinceTime" => match value.parse::<jiff::Timestamp>() {
                Ok(_) => options.since_time = Some(value),
                Err(_) => return Err(invalid(&name, &value)),
            },
            "tailLines" => options.tail_lines = Some(number(&name, &value, 0)?),
            "limitBytes" => options.limit_bytes = Some(number(&name, &value, 1)?),
            "stream" if value != "All" => return Err(invalid(&name, &value)),
            _ => {}
        }
    }
    if options.since_seconds.is_some() && options.since_time.is_some() {
        return Err(Status::bad_request("at most one of sinceTime or sinceSeconds may be specified"));
    }
    Ok((container, options))
}

/// As the API reads booleans in queries: present is true, except for `false` and `0`.
fn boolean(name: &str, value: &str) -> Result<bool, Status> {
    match value.to_ascii_lowercase().as_str() {
        "" | "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(invalid(name, value)),
    }
}

fn number(name: &str, value: &str, least: i64) -> Result<i64, Status> {
    value.parse().ok().filter(|n| *n >= least).ok_or_else(|| invalid(name, value))
}

fn invalid(name: &str, value: &str) -> Status {
    Status::bad_request(format!("invalid value {value:?} of the query parameter {name}"))
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Undoes `application/x-www-form-urlencoded`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escaped = match (first, tail) {
            (b'%', [a, b, after @ ..]) => hex(*a).zip(hex(*b)).map(|(a, b)| (a << 4 | b, after)),
            _ => None,
        };
        match escaped {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None => bytes.push(if *first == b'+' { b' ' } else { *first }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let query = "?&command=sh&command=-c&command=echo+a%26b%20%C3%A4%zz&container=main&stdin=true&stdout=1&stderr=true&tty=true";
        let options = command_options(query.trim_start_matches('?')).unwrap();
        assert_eq!(options.command, ["sh", "-c", "echo a&b ä%zz"]);
        assert_eq!(options.container.as_deref(), Some("main"));
        assert_eq!(options.streams, Streams { stdin: true, stdout: true, stderr: false, tty: true });
        for (query, text) in [("stdin=maybe", "stdin"), ("command=ls", "at least 1 of"), ("stderr=1&tty=1", "at least")]
        {
            assert!(command_options(query).unwrap_err().message.contains(text), "{query}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(forward_ports("ports=80,8080&ports=1&x=2").unwrap(), [80, 8080, 1]);
        assert_eq!(forward_ports("").unwrap(), [0; 0]);
        for query in ["ports=0", "ports=65536", "ports=80,http"] {
            assert_eq!(forward_ports(query).unwrap_err().code, 400, "{query}");
        }
    }

    #[test]
    fn logs() {
        let query =
            "container=c&follow=true&tailLines=0&sinceTime=2026-01-02T03:04:05Z&limitBytes=7&timestamps&previous=0";
        let (container, options) = log_options(query).unwrap();
        let since_time = Some("2026-01-02T03:04:05Z".to_owned());
        let (tail_lines, limit_bytes) = (Some(0), Some(7));
        let expected =
            LogOptions { follow: true, timestamps: true, since_time, tail_lines, limit_bytes, ..LogOptions::default() };
        assert_eq!((container.as_deref(), options), (Some("c"), expected));
        for query in [
            "tailLines=-1",
            "sinceSeconds=0",
            "sinceTime=yesterday",
            "limitBytes=x",
            "stream=Stderr",
            "sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z",
        ] {
            assert_eq!(log_options(query).unwrap_err().code, 400, "{query}");
        }
    }
}
