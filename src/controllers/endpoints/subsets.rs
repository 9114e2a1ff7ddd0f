//! The Endpoints object of a Service (`pkg/controller/endpoint`, `pkg/api/v1/endpoints/util.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::kinds::Object;

use super::model::{Endpoint, Pod, Port, Service, ports};

/// Most addresses of an Endpoints object.
const MAX: usize = 1000;

/// An address's place in its subset: by number, then by pod.
type Place = (Option<Ipv4Addr>, String);

/// `subsets` of a Service with these pods and the endpoints they are, and whether addresses were left out.
pub fn subsets(service: &Service, pods: &[(Pod, Endpoint)]) -> (Vec<Value>, bool) {
    let mut addresses: BTreeMap<Place, (Value, bool)> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<Port>, BTreeSet<Place>> = BTreeMap::new();
    for (pod, endpoint) in pods {
        let publish = service.spec.publish_not_ready_addresses;
        if pod.metadata.deleting() && !publish {
            continue;
        }
        let place = (pod.status.pod_ip.parse().ok(), pod.metadata.uid.clone());
        addresses.insert(place.clone(), (address(endpoint), publish || pod.ready()));
        match service.spec.ports.is_empty() {
            // Names of a headless Service need no port.
            true if service.headless() => drop(by_port.entry(None).or_default().insert(place)),
            true => {}
            false => ports(service, pod).into_iter().for_each(|port| {
                by_port.entry(Some(port)).or_default().insert(place.clone());
            }),
        }
    }
    // Ports that the same pods serve are one subset.
    let mut subsets: BTreeMap<BTreeSet<Place>, Vec<Port>> = BTreeMap::new();
    for (port, places) in by_port {
        subsets.entry(places).or_default().extend(port);
    }
    let truncated = cut(&mut addresses, subsets.keys());
    let subsets = subsets.into_iter().filter_map(|(places, ports)| {
        let of = |wanted: bool| -> Vec<Value> {
            let known = places.iter().filter_map(|place| addresses.get(place));
            known.filter(|(_, ready)| *ready == wanted).map(|(address, _)| address.clone()).collect()
        };
        subset(of(true), of(false), &ports)
    });
    (subsets.collect(), truncated)
}

/// Leaves out addresses beyond the limit, those that are not ready first. Each counts as often as it is in a subset.
fn cut<'a>(
    addresses: &mut BTreeMap<Place, (Value, bool)>,
    subsets: impl Iterator<Item = &'a BTreeSet<Place>> + Clone,
) -> bool {
    let (mut room, mut cut) = (MAX, BTreeSet::new());
    for wanted in [true, false] {
        for place in subsets.clone().flatten().filter(|p| addresses.get(*p).is_some_and(|(_, ready)| *ready == wanted))
        {
            match room.checked_sub(1) {
                Some(less) => room = less,
                None => drop(cut.insert(place.clone())),
            }
        }
    }
    addresses.retain(|place, _| !cut.contains(place));
    !cut.is_empty()
}

fn address(endpoint: &Endpoint) -> Value {
    let mut address = Object::new();
    address.insert("ip".to_owned(), endpoint.addresses.first().cloned().into());
    for (key, text) in [("hostname", &endpoint.hostname), ("nodeName", &endpoint.node_name)] {
        address.extend(text.as_ref().map(|text| (key.to_owned(), text.as_str().into())));
    }
    address.extend(endpoint.target_ref.clone().map(|target| ("targetRef".to_owned(), target)));
    Value::Object(address)
}

fn subset(ready: Vec<Value>, not_ready: Vec<Value>, ports: &[Port]) -> Option<Value> {
    let port = |port: &Port| {
        let mut value = json!({"port": port.port, "protocol": port.protocol});
        for (key, text) in [("name", Some(&port.name)), ("appProtocol", port.app_protocol.as_ref())] {
            if let Some(text) = text.filter(|t| !t.is_empty()) {
                value[key] = text.as_str().into();
            }
        }
        value
    };
    let mut subset = Object::new();
    let lists = [("addresses", ready), ("notReadyAddresses", not_ready), ("ports", ports.iter().map(port).collect())];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        subset.insert(key.to_owned(), list.into());
    }
    (subset.contains_key("addresses") || subset.contains_key("notReadyAddresses")).then_some(Value::Object(subset))
}

#[cfg(test)]
mod tests {
    use super::super::model::endpoint;
    use super::super::model::tests::{pod, service};
    use super::*;

    fn made(spec: Value, pods: Vec<Pod>) -> (Vec<Value>, bool) {
        let service = service(spec);
        let pods: Vec<_> = pods.into_iter().map(|p| (p.clone(), endpoint(&service, &p, None))).collect();
        subsets(&service, &pods)
    }

    fn port(target: Value) -> Value {
        json!({"ports": [{"name": "x", "protocol": "TCP", "targetPort": target}]})
    }

    fn at(n: usize) -> Value {
        let target = json!({"kind": "Pod", "namespace": "shop", "name": format!("p{n}"), "uid": format!("u{n}")});
        json!({"ip": format!("10.42.{}.{}", n / 250, n % 250 + 2), "nodeName": "pi", "targetRef": target})
    }

    #[test]
    fn ready_and_not() {
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let pods =
            vec![pod(9, true, json!({})), pod(1, true, json!({})), pod(2, false, json!({})), pod(3, true, leaving)];
        let ports = json!([{"name": "x", "port": 80, "protocol": "TCP"}]);
        let expected = json!([{"addresses": [at(1), at(9)], "notReadyAddresses": [at(2)], "ports": ports}]);
        assert_eq!(made(port(json!(80)), pods.clone()), (expected.as_array().cloned().unwrap_or_default(), false));
        let mut publish = port(json!(80));
        publish["publishNotReadyAddresses"] = true.into();
        let expected = json!([{"addresses": [at(1), at(2), at(3), at(9)], "ports": ports}]);
        assert_eq!(Value::from(made(publish, pods).0), expected);
    }

    #[test]
    fn ports_that_differ_make_subsets() {
        let other =
            json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 81, "protocol": "TCP"}]}]}});
        let pods = vec![pod(1, true, json!({})), pod(2, true, other)];
        let (subsets, _) = made(port(json!("http")), pods);
        let told: Vec<_> =
            subsets.iter().map(|s| (s["addresses"][0]["ip"].clone(), s["ports"][0]["port"].clone())).collect();
        assert_eq!(told, [(json!("10.42.0.3"), json!(8080)), (json!("10.42.0.4"), json!(81))]);
        let two = json!({"ports": [
            {"name": "a", "protocol": "TCP", "targetPort": 1}, {"name": "b", "protocol": "TCP", "targetPort": 2},
        ]});
        let (subsets, _) = made(two, vec![pod(1, true, json!({}))]);
        assert_eq!((subsets.len(), subsets[0]["ports"].as_array().map(Vec::len)), (1, Some(2)));
        assert_eq!(made(port(json!("nothing")), vec![pod(1, true, json!({}))]).0, [] as [Value; 0]);
        let (subsets, _) = made(json!({"clusterIP": "None"}), vec![pod(1, true, json!({}))]);
        assert_eq!(Value::from(subsets), json!([{"addresses": [at(1)]}]));
    }

    #[test]
    fn too_many_are_cut_the_ready_ones_last() {
        let pods = |count: usize| (0..count).map(|n| pod(n, n >= 10, json!({}))).collect::<Vec<_>>();
        for (count, truncated, ready, not_ready) in
            [(1000, false, 990, 10), (1005, true, 995, 5), (1020, true, 1000, 0)]
        {
            let (subsets, cut) = made(port(json!(80)), pods(count));
            let count = |key: &str| subsets[0].get(key).and_then(Value::as_array).map_or(0, Vec::len);
            assert_eq!((cut, count("addresses"), count("notReadyAddresses")), (truncated, ready, not_ready));
        }
    }
}
