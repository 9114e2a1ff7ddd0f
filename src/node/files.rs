//! The files a pod's containers get from the node: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::{At, Result};
use super::pod::{Desired, Facts};

/// Name servers a resolver looks at.
const MAX_SERVERS: usize = 3;
/// Search domains a pod may have.
const MAX_SEARCHES: usize = 32;
/// Where systemd-resolved keeps the servers behind its stub.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// How names are resolved in this cluster.
#[derive(Clone, Debug, Default)]
pub struct DnsConfig {
    /// The cluster's name servers; without any, pods use the node's.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain, for example `cluster.local`.
    pub domain: String,
}

/// What a `resolv.conf` says.
#[derive(Debug, Default, PartialEq)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// Writes the three files into `dir`.
pub(super) fn write(dir: &Path, pod: &Desired, facts: &Facts, dns: &DnsConfig) -> Result<()> {
    let host = if pod.host_network() { fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        // Written in place: containers have the file itself mounted.
        fs::write(&path, text).at("write", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).at("change the mode of", &path)
    };
    put("hosts", hosts(pod, facts, dns, &host))?;
    put("hostname", format!("{}\n", pod.hostname()))?;
    put("resolv.conf", resolver(pod, dns, &node_resolver()).text())
}

fn hosts(pod: &Desired, facts: &Facts, dns: &DnsConfig, host: &str) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let name = pod.hostname();
        let full = pod
            .spec()
            .subdomain
            .as_deref()
            .filter(|s| !s.is_empty())
            .map(|s| format!("{name}.{s}.{}.svc.{}\t", pod.namespace(), dns.domain))
            .unwrap_or_default();
        for address in &facts.pod_ips {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{address}\t{full}{name}");
        }
        text
    };
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => resolver.servers.extend(words.take(1)),
                Some("search" | "domain") => resolver.searches = words.filter(|w| w != ".").collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }

    fn only_loopback(&self) -> bool {
        !self.servers.is_empty() && self.servers.iter().all(|s| is_loopback(s))
    }
}

fn is_loopback(server: &str) -> bool {
    server.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// The node's resolver: the servers behind a local stub, which pods could not reach.
fn node_resolver() -> Resolver {
    let read = |path| fs::read_to_string(path).map(|text| Resolver::parse(&text));
    let own = read("/etc/resolv.conf").unwrap_or_default();
    if own.only_loopback() { read(BEHIND_STUB).unwrap_or(own) } else { own }
}

fn resolver(pod: &Desired, dns: &DnsConfig, node: &Resolver) -> Resolver {
    let spec = pod.spec();
    let cluster = match spec.dns_policy.as_deref() {
        Some("Default" | "None") => false,
        Some("ClusterFirstWithHostNet") => true,
        _ => !pod.host_network(),
    };
    let mut resolver = Resolver::default();
    if spec.dns_policy.as_deref() != Some("None") {
        resolver.searches.clone_from(&node.searches);
        resolver.options.clone_from(&node.options);
        let reachable = |s: &&String| pod.host_network() || !is_loopback(s);
        resolver.servers = node.servers.iter().filter(reachable).cloned().collect();
        if cluster && !dns.servers.is_empty() {
            let domain = &dns.domain;
            let own = [format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
            resolver.searches = own.into_iter().chain(resolver.searches).collect();
            resolver.servers = dns.servers.iter().map(ToString::to_string).collect();
            resolver.options = vec!["ndots:5".to_owned()];
        }
    }
    if let Some(config) = &spec.dns_config {
        resolver.servers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            resolver.options.retain(|o| o.split(':').next() != Some(&name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    let unique = |list: &mut Vec<String>, most: usize| {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|s| seen.insert(s.clone()));
        list.truncate(most);
    };
    unique(&mut resolver.servers, MAX_SERVERS);
    unique(&mut resolver.searches, MAX_SEARCHES);
    resolver
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::desired;
    use super::*;

    fn dns() -> DnsConfig {
        DnsConfig { servers: vec!["10.43.0.10".parse().unwrap()], domain: "cluster.local".into() }
    }

    #[test]
    fn hosts_file() {
        let pod =
            desired(json!({"subdomain": "sub", "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]}), &[]);
        let facts = Facts { pod_ips: vec!["10.42.0.9".parse().unwrap()], ..Facts::default() };
        let text = hosts(&pod, &facts, &dns(), "");
        assert!(text.contains("\n10.42.0.9\tpod.sub.ns.svc.cluster.local\tpod\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"), "{text}");
        let pod = desired(json!({"hostNetwork": true}), &[]);
        let text = hosts(&pod, &facts, &dns(), "127.0.0.1 host\n");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 host\n");
    }

    #[test]
    fn resolvers() {
        let node = Resolver::parse("# x\nnameserver 192.0.2.53\nnameserver 127.0.0.53\nsearch lan\noptions edns0\n");
        let cluster =
            "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n";
        let plain = "search lan\nnameserver 192.0.2.53\noptions edns0\n";
        for (spec, expected) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "Default"}), plain),
            (json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
            (json!({"hostNetwork": true}), "search lan\nnameserver 192.0.2.53\nnameserver 127.0.0.53\noptions edns0\n"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]
                }}),
                "search x\nnameserver 1.1.1.1\noptions ndots:2 rotate\n",
            ),
            (
                json!({"dnsConfig": {"nameservers": ["10.43.0.10"], "options": [{"name": "ndots", "value": "1"}]}}),
                "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:1\n",
            ),
        ] {
            assert_eq!(resolver(&desired(spec.clone(), &[]), &dns(), &node).text(), expected, "{spec}");
        }
        assert_eq!(resolver(&desired(json!({}), &[]), &DnsConfig::default(), &node).text(), plain);
    }
}
