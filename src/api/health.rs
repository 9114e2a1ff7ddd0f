//! `/livez`, `/readyz`, `/healthz` and `/version`: open to everyone who reaches the server, as in Kubernetes.

use http::Response;
use serde_json::json;

use crate::store::Store;

use super::query::Query;
use super::reply::{Body, typed};

/// The Kubernetes version whose behaviour is served.
const MINOR: &str = "35";

/// The answer for one of the open paths.
pub(super) fn answer(store: &Store, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    match (parts.next()?, parts.next()) {
        ("version", None) => Some(version()),
        (endpoint @ ("livez" | "readyz" | "healthz"), check) => Some(health(endpoint, check, &checks(store), query)),
        _ => None,
    }
}

type Check = (&'static str, Result<(), String>);

fn checks(store: &Store) -> Vec<Check> {
    let key = crate::store::Key { resource: "namespaces".into(), namespace: "".into(), name: "default".into() };
    vec![("ping", Ok(())), ("store", store.get(&key).map(drop).map_err(|e| e.to_string()))]
}

fn health(endpoint: &str, only: Option<&str>, checks: &[Check], query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut healthy = true;
    let mut known = only.is_none();
    for (name, result) in checks.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        known = true;
        match result {
            _ if excluded.contains(name) => text += &format!("[+]{name} excluded: ok\n"),
            Ok(()) => text += &format!("[+]{name} ok\n"),
            Err(error) => {
                tracing::warn!(check = name, %error, "health check");
                text += &format!("[-]{name} failed: reason withheld\n");
                healthy = false;
            }
        }
    }
    if !known {
        return typed(404, "text/plain; charset=utf-8", "404 page not found\n".into());
    }
    match (healthy, query.has("verbose")) {
        (true, false) => typed(200, "text/plain; charset=utf-8", "ok".into()),
        (true, true) => typed(200, "text/plain; charset=utf-8", format!("{text}{endpoint} check passed\n").into()),
        (false, _) => typed(500, "text/plain; charset=utf-8", format!("{text}{endpoint} check failed\n").into()),
    }
}

fn version() -> Response<Body> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let own = env!("CARGO_PKG_VERSION");
    let version = json!({
        "major": "1", "minor": MINOR, "emulationMajor": "1", "emulationMinor": MINOR,
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
        "gitVersion": format!("v1.{MINOR}.0+umiak{own}"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{arch}"),
    });
    typed(200, "application/json", serde_json::to_vec_pretty(&version).unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_its_checks() {
        let good: Vec<Check> = vec![("ping", Ok(())), ("store", Ok(()))];
        let bad: Vec<Check> = vec![("ping", Ok(())), ("store", Err("closed".into()))];
        for (checks, only, query, code) in [
            (&good, None, "", 200),
            (&bad, None, "", 500),
            (&bad, None, "exclude=store", 200),
            (&bad, Some("ping"), "", 200),
            (&bad, Some("store"), "", 500),
            (&good, Some("nothing"), "", 404),
        ] {
            assert_eq!(health("readyz", only, checks, &Query::parse(query)).status(), code, "{only:?} {query}");
        }
    }
}
