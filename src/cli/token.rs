//! `umiak token`: the tokens with which boards join.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::client::Client;
use super::{DataDir, Failure};
use crate::config::server_address;
use crate::fleet::tokens::{NAMESPACE, NewToken, PREFIX, StoredToken, TYPE};
use crate::kinds::format;
use crate::link::membership::Token;
use crate::pki;
use crate::server::JOIN_INFO;

/// Options of `umiak token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand, Debug)]
enum TokenCommand {
    /// Make a token, good for one board, and print the command to type there
    Create(CreateArgs),
    /// List the tokens that are not used yet
    #[command(visible_alias = "list")]
    Ls(DataDir),
    /// Remove a token
    Rm(RemoveArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// How long it is good, as 30m, 24h or 7d; 0: for ever
    #[arg(long, value_name = "T", default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// The one node name it is good for; replaces the board that has this name, if it is not connected
    #[arg(long, value_name = "N")]
    node_name: Option<String>,
    /// A label for the node, as key=value; may be given several times
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Where the board finds this server; may be given several times [default: as the server says]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Vec<String>,
    /// Print the token alone
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    data: DataDir,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// Its id, as `umiak token ls` shows it
    id: String,
    #[command(flatten)]
    data: DataDir,
}

/// Runs the subcommand.
pub fn run(args: &TokenArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::Ls(data) => list(data),
        TokenCommand::Rm(args) => remove(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn secrets() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    if let Some(why) = args.node_name.as_deref().and_then(|name| format::dns_subdomain(name).into_iter().next()) {
        return Err(format!("--node-name: {why}").into());
    }
    let client = Client::of_server(&args.data.data_dir)?;
    let servers = match args.server.is_empty() {
        true => published(&client)?,
        false => args.server.iter().map(|text| server_address("server", text)).collect::<Result<_, _>>()?,
    };
    let new = NewToken { ttl: args.ttl, node: args.node_name.clone(), labels: args.labels.clone() };
    let (id, secret, object) = new.make(Timestamp::now()).map_err(|_| "the kernel gives no random numbers")?;
    client.create(&secrets(), &object.to_string())?;
    let token = Token { servers, ca: pki::fingerprint(client.ca())?, id, secret };
    if args.quiet {
        println!("{token}");
    } else {
        println!("umiak agent --token {token}");
    }
    Ok(())
}

/// Where the server says that it is found.
fn published(client: &Client) -> Result<Vec<String>, Failure> {
    let (namespace, name) = JOIN_INFO;
    let map = client.get(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}"))?;
    let servers = map["data"]["servers"].as_str().unwrap_or_default();
    let servers: Vec<String> = servers.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    if servers.is_empty() {
        return Err("the server does not know its own address: say --server".into());
    }
    Ok(servers)
}

fn list(data: &DataDir) -> Result<(), Failure> {
    let client = Client::of_server(&data.data_dir)?;
    let list = client.get(&format!("{}?fieldSelector=type%3D{}", secrets(), TYPE.replace('/', "%2F")))?;
    println!("{:<8} {:<21} {:<20} LABELS", "ID", "EXPIRES", "NODE");
    for token in list["items"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        let Some(token) = StoredToken::of(token) else { continue };
        let expires = match token.expires {
            None => "never".to_owned(),
            Some(_) if token.expired(Timestamp::now()) => "expired".to_owned(),
            Some(time) => time.to_string(),
        };
        let labels: Vec<String> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let node = token.node.as_deref().unwrap_or("any");
        println!("{:<8} {expires:<21} {node:<20} {}", token.id, labels.join(","));
    }
    Ok(())
}

fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let client = Client::of_server(&args.data.data_dir)?;
    client.delete(&format!("{}/{PREFIX}{}", secrets(), args.id))?;
    println!("token {} is removed", args.id);
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || format!("{text:?} is no duration as 30m, 24h or 7d");
    // Hours are exact; days are not in every calendar, but here they are.
    let hours = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()).map(|days| u64::from(days) * 24);
    if let Some(hours) = hours {
        return Ok(Duration::from_secs(hours * 3600));
    }
    let parsed: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(parsed).ok().filter(|d| !d.is_zero()).ok_or_else(wrong)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    let problems = [format::qualified_name(key), format::label_value(value)].concat();
    match problems.into_iter().next() {
        Some(why) => Err(why),
        None => Ok((key.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let hours = |n: u64| Ok(Duration::from_secs(n * 3600));
        for (text, expected) in [("24h", hours(24)), ("7d", hours(168)), ("90m", Ok(Duration::from_secs(5400)))] {
            assert_eq!(duration(text), expected, "{text}");
        }
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for text in ["", "soon", "-1h", "d", "5", "0s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_read() {
        assert_eq!(label("site=roof"), Ok(("site".into(), "roof".into())));
        assert_eq!(label("example.com/empty="), Ok(("example.com/empty".into(), String::new())));
        for text in ["site", "=x", "a=b c", "-=x"] {
            assert!(label(text).is_err(), "{text}");
        }
    }
}
