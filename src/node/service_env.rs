//! The environment variables that tell containers of Services.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::network::services::{Protocol, Service};

/// The Service that every pod hears of: the API server's.
const API: (&str, &str) = ("default", "kubernetes");

/// The variables for containers of a namespace (kubelet's `getServiceEnvVarMap`): of its own Services if the pod wants
/// them (`enableServiceLinks`), and of the API server in any case.
pub(super) fn variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let own = |s: &&Arc<Service>| links && s.namespace == namespace;
    let api = services.iter().filter(|s| (&*s.namespace, &*s.name) == API);
    // A Service of the same name in the pod's own namespace takes the API server's place, with all its variables.
    let replaced = services.iter().any(|s| own(&s) && s.name == API.1 && !s.cluster_ips.is_empty());
    for service in api.filter(|_| !replaced).chain(services.iter().filter(own)) {
        if let Some(address) = service.cluster_ips.first() {
            add(&mut variables, service, *address);
        }
    }
    variables
}

fn add(variables: &mut BTreeMap<String, String>, service: &Service, address: Ipv4Addr) {
    let name = variable_name(&service.name);
    let mut set = |variable: String, value: String| drop(variables.insert(format!("{name}_{variable}"), value));
    set("SERVICE_HOST".into(), address.to_string());
    for (n, port) in service.ports.iter().enumerate() {
        let number = port.port;
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let url = format!("{protocol}://{address}:{number}");
        if n == 0 {
            set("SERVICE_PORT".into(), number.to_string());
            set("PORT".into(), url.clone());
        }
        if !port.name.is_empty() {
            set(format!("SERVICE_PORT_{}", variable_name(&port.name)), number.to_string());
        }
        // As Docker's links did.
        let prefix = format!("PORT_{number}_{}", protocol.to_uppercase());
        set(format!("{prefix}_PROTO"), protocol.to_owned());
        set(format!("{prefix}_PORT"), number.to_string());
        set(format!("{prefix}_ADDR"), address.to_string());
        set(prefix, url);
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::services::ServicePort;

    fn service(namespace: &str, name: &str, address: Option<&str>, ports: &[(&str, Protocol, u16)]) -> Arc<Service> {
        let port = |(name, protocol, port): &(&str, Protocol, u16)| ServicePort {
            name: (*name).into(),
            protocol: *protocol,
            port: *port,
            node_port: None,
        };
        Arc::new(Service {
            namespace: namespace.into(),
            name: name.into(),
            cluster_ips: address.iter().map(|a| a.parse().unwrap()).collect(),
            ports: ports.iter().map(port).collect(),
            ..Service::default()
        })
    }

    fn lines(services: &[Arc<Service>], namespace: &str, links: bool) -> Vec<String> {
        variables(services, namespace, links).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn as_kubelet_writes_them() {
        let api = service("default", "kubernetes", Some("10.43.0.1"), &[("https", Protocol::Tcp, 443)]);
        let own =
            service("shop", "web-1", Some("10.43.0.7"), &[("http-alt", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
        let headless = service("shop", "headless", None, &[("", Protocol::Tcp, 80)]);
        let other = service("other", "web", Some("10.43.0.9"), &[("", Protocol::Tcp, 80)]);
        let all = [api, own, headless, other];
        let of_api = [
            "KUBERNETES_PORT=tcp://10.43.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.43.0.1:443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.43.0.1",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_SERVICE_HOST=10.43.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
        ];
        assert_eq!(lines(&all, "default", true), of_api);
        assert_eq!(lines(&all, "shop", false), of_api);
        let of_own = [
            "WEB_1_PORT=tcp://10.43.0.7:80",
            "WEB_1_PORT_53_UDP=udp://10.43.0.7:53",
            "WEB_1_PORT_53_UDP_ADDR=10.43.0.7",
            "WEB_1_PORT_53_UDP_PORT=53",
            "WEB_1_PORT_53_UDP_PROTO=udp",
            "WEB_1_PORT_80_TCP=tcp://10.43.0.7:80",
            "WEB_1_PORT_80_TCP_ADDR=10.43.0.7",
            "WEB_1_PORT_80_TCP_PORT=80",
            "WEB_1_PORT_80_TCP_PROTO=tcp",
            "WEB_1_SERVICE_HOST=10.43.0.7",
            "WEB_1_SERVICE_PORT=80",
            "WEB_1_SERVICE_PORT_DNS=53",
            "WEB_1_SERVICE_PORT_HTTP_ALT=80",
        ];
        assert_eq!(lines(&all, "shop", true), [&of_api[..], &of_own].concat());
    }

    #[test]
    fn a_namesake_of_the_api_server_takes_its_place() {
        let api = service("default", "kubernetes", Some("10.43.0.1"), &[("https", Protocol::Tcp, 443)]);
        let own = service("shop", "kubernetes", Some("10.43.0.7"), &[("", Protocol::Tcp, 80)]);
        let lines = lines(&[api, own], "shop", true);
        assert!(lines.contains(&"KUBERNETES_SERVICE_HOST=10.43.0.7".to_owned()), "{lines:?}");
        assert!(lines.iter().all(|l| !l.contains("443")), "{lines:?}");
    }
}
