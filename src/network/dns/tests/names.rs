//! What the names of the cluster say: Kubernetes DNS-Based Service Discovery 1.1.0.

use hickory_proto::op::ResponseCode::{self, NXDomain, NoError, ServFail};
use hickory_proto::rr::RecordType::{self, A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};

use super::*;
use crate::network::services::Services;

const PEERS: &str = "peers.default.svc.cluster.local.";

#[test]
fn records_of_the_cluster() {
    let server = server(services());
    let table: &[(&str, RecordType, ResponseCode, &[&str])] = &[
        ("dns-version.cluster.local.", TXT, NoError, &["dns-version.cluster.local. TXT 1.1.0"]),
        ("cluster.local.", NS, NoError, &["cluster.local. NS ns.dns.cluster.local."]),
        ("ns.dns.cluster.local.", A, NoError, &["ns.dns.cluster.local. A 10.43.0.10"]),
        // Services with an address.
        ("web.default.svc.cluster.local.", A, NoError, &["web.default.svc.cluster.local. A 10.43.1.1"]),
        ("web.default.svc.cluster.local.", AAAA, NoError, &[]),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            NoError,
            &["_http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local."],
        ),
        (
            "web.default.svc.cluster.local.",
            SRV,
            NoError,
            &[
                "web.default.svc.cluster.local. SRV 0 50 443 web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. SRV 0 50 80 web.default.svc.cluster.local.",
            ],
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, NXDomain, &[]),
        ("_ftp._tcp.web.default.svc.cluster.local.", SRV, NXDomain, &[]),
        ("__tcp._tcp.web.default.svc.cluster.local.", SRV, NXDomain, &[]),
        ("_._tcp.web.default.svc.cluster.local.", SRV, NXDomain, &[]),
        ("_http._tcp.web.default.svc.cluster.local.", A, NoError, &[]),
        ("10-42-0-5.web.default.svc.cluster.local.", A, NXDomain, &[]),
        // Headless ones.
        (
            PEERS,
            A,
            NoError,
            &["peers.default.svc.cluster.local. A 10.42.0.5", "peers.default.svc.cluster.local. A 10.42.0.6"],
        ),
        (PEERS, AAAA, NoError, &["peers.default.svc.cluster.local. AAAA fd00::9"]),
        ("pod-a.peers.default.svc.cluster.local.", A, NoError, &["pod-a.peers.default.svc.cluster.local. A 10.42.0.5"]),
        ("pod-a.peers.default.svc.cluster.local.", AAAA, NoError, &[]),
        (
            "10-42-0-6.peers.default.svc.cluster.local.",
            A,
            NoError,
            &["10-42-0-6.peers.default.svc.cluster.local. A 10.42.0.6"],
        ),
        ("10-42-0-5.peers.default.svc.cluster.local.", A, NXDomain, &[]),
        ("pod-c.peers.default.svc.cluster.local.", A, NXDomain, &[]),
        (
            "_peer._tcp.peers.default.svc.cluster.local.",
            SRV,
            NoError,
            &[
                "_peer._tcp.peers.default.svc.cluster.local. SRV 0 33 7001 10-42-0-6.peers.default.svc.cluster.local.",
                "_peer._tcp.peers.default.svc.cluster.local. SRV 0 33 7001 fd00--9.peers.default.svc.cluster.local.",
                "_peer._tcp.peers.default.svc.cluster.local. SRV 0 33 7001 pod-a.peers.default.svc.cluster.local.",
            ],
        ),
        ("early.shop.svc.cluster.local.", A, NoError, &["early.shop.svc.cluster.local. A 10.42.1.1"]),
        ("db-0.early.shop.svc.cluster.local.", A, NoError, &["db-0.early.shop.svc.cluster.local. A 10.42.1.1"]),
        ("early.shop.svc.cluster.local.", SRV, NoError, &[]),
        ("empty.shop.svc.cluster.local.", A, NXDomain, &[]),
        // Aliases.
        (
            "outside.shop.svc.cluster.local.",
            CNAME,
            NoError,
            &["outside.shop.svc.cluster.local. CNAME www.example.com."],
        ),
        ("outside.shop.svc.cluster.local.", TXT, NoError, &["outside.shop.svc.cluster.local. CNAME www.example.com."]),
        (
            "inside.shop.svc.cluster.local.",
            A,
            NoError,
            &[
                "inside.shop.svc.cluster.local. CNAME web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. A 10.43.1.1",
            ],
        ),
        ("x.outside.shop.svc.cluster.local.", A, NXDomain, &[]),
        ("number.shop.svc.cluster.local.", A, NXDomain, &[]),
        // Pods.
        ("10-42-0-9.shop.pod.cluster.local.", A, NoError, &["10-42-0-9.shop.pod.cluster.local. A 10.42.0.9"]),
        ("10-42-0-9.shop.pod.cluster.local.", AAAA, NoError, &[]),
        ("fd00--9.shop.pod.cluster.local.", AAAA, NoError, &["fd00--9.shop.pod.cluster.local. AAAA fd00::9"]),
        ("web.shop.pod.cluster.local.", A, NXDomain, &[]),
        ("a.10-42-0-9.shop.pod.cluster.local.", A, NXDomain, &[]),
        // What is only on the way to other names, and what is nowhere.
        ("svc.cluster.local.", A, NoError, &[]),
        ("pod.cluster.local.", A, NoError, &[]),
        ("dns.cluster.local.", A, NoError, &[]),
        ("shop.pod.cluster.local.", A, NoError, &[]),
        ("default.svc.cluster.local.", A, NoError, &[]),
        ("_tcp.web.default.svc.cluster.local.", SRV, NoError, &[]),
        ("_sctp.web.default.svc.cluster.local.", SRV, NXDomain, &[]),
        ("nowhere.svc.cluster.local.", A, NXDomain, &[]),
        ("web.shop.svc.cluster.local.", A, NXDomain, &[]),
        ("www.example.com.default.svc.cluster.local.", A, NXDomain, &[]),
        ("www.example.com.cluster.local.", A, NXDomain, &[]),
        ("a.b.web.default.svc.cluster.local.", A, NXDomain, &[]),
        ("x.cluster.local.", A, NXDomain, &[]),
        // Addresses.
        ("1.1.43.10.in-addr.arpa.", PTR, NoError, &["1.1.43.10.in-addr.arpa. PTR web.default.svc.cluster.local."]),
        (
            "5.0.42.10.in-addr.arpa.",
            PTR,
            NoError,
            &["5.0.42.10.in-addr.arpa. PTR pod-a.peers.default.svc.cluster.local."],
        ),
        (
            "6.0.42.10.in-addr.arpa.",
            PTR,
            NoError,
            &["6.0.42.10.in-addr.arpa. PTR 10-42-0-6.peers.default.svc.cluster.local."],
        ),
        ("7.0.42.10.in-addr.arpa.", PTR, NXDomain, &[]),
        ("1.1.43.10.in-addr.arpa.", A, NoError, &[]),
        ("9.9.43.10.in-addr.arpa.", PTR, NXDomain, &[]),
        (
            "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            NoError,
            &["9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR \
             fd00--9.peers.default.svc.cluster.local."],
        ),
    ];
    for (name, kind, code, answers) in table {
        let answer = ask(&server, &query(name, *kind)).unwrap_or_else(|| panic!("{name} {kind}: asked elsewhere"));
        assert_eq!(answer.metadata.response_code, *code, "{name} {kind}");
        assert_eq!(texts(&answer.answers), *answers, "{name} {kind}");
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available, "{name} {kind}");
        assert!(answer.answers.iter().all(|record| record.ttl == 5), "{name} {kind}");
        let authority: Vec<_> = answer.authorities.iter().map(|a| (a.record_type(), a.ttl)).collect();
        assert_eq!(authority, if answers.is_empty() { vec![(SOA, 5)] } else { vec![] }, "{name} {kind}");
    }
}

#[test]
fn the_authority_of_what_is_missing() {
    let server = server(services());
    for (name, zone) in [
        ("x.default.svc.cluster.local.", "cluster.local."),
        ("x.Cluster.LOCAL.", "cluster.local."),
        ("9.9.43.10.in-addr.arpa.", "43.10.in-addr.arpa."),
    ] {
        let answer = ask(&server, &query(name, A)).unwrap();
        assert_eq!(answer.authorities[0].name.to_ascii(), zone);
        let data = answer.authorities[0].data.to_string();
        assert_eq!(data, "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5", "{name}");
    }
}

#[test]
fn other_names_are_asked_elsewhere() {
    let server = server(services());
    for name in [
        ".",
        "local.",
        "notcluster.local.",
        "www.example.com.",
        "1.2.0.192.in-addr.arpa.",
        "1.43.10.in-addr.arpa.",
        "01.1.43.10.in-addr.arpa.",
        "256.1.43.10.in-addr.arpa.",
        "x.ip6.arpa.",
    ] {
        assert!(ask(&server, &query(name, A)).is_none(), "{name}");
    }
    let outside = query("outside.shop.svc.cluster.local.", A);
    assert!(ask(&server, &outside).is_none());
}

#[test]
fn targets_come_with_their_addresses() {
    let server = server(services());
    let additionals = |name, kind| texts(&ask(&server, &query(name, kind)).unwrap().additionals);
    assert_eq!(
        additionals("_http._tcp.web.default.svc.cluster.local.", SRV),
        ["web.default.svc.cluster.local. A 10.43.1.1"]
    );
    assert_eq!(
        additionals("_other._tcp.peers.default.svc.cluster.local.", SRV),
        [
            "10-42-0-6.peers.default.svc.cluster.local. A 10.42.0.6",
            "fd00--9.peers.default.svc.cluster.local. AAAA fd00::9",
            "pod-a.peers.default.svc.cluster.local. A 10.42.0.5",
        ]
    );
    assert_eq!(additionals("cluster.local.", NS), ["ns.dns.cluster.local. A 10.43.0.10"]);
    assert_eq!(additionals(PEERS, A), [""; 0]);
}

#[test]
fn case_is_kept() {
    let server = server(services());
    let answer = ask(&server, &query("Web.deFault.SVC.Cluster.Local.", A)).unwrap();
    assert_eq!(answer.queries[0].name().to_ascii(), "Web.deFault.SVC.Cluster.Local.");
    assert_eq!(texts(&answer.answers), ["Web.deFault.SVC.Cluster.Local. A 10.43.1.1"]);
}

#[test]
fn addresses_take_turns() {
    let server = server(services());
    let first = || ask(&server, &query(PEERS, A)).unwrap().answers[0].data.to_string();
    let seen: Vec<String> = (0..4).map(|_| first()).collect();
    assert_ne!(seen[0], seen[1]);
    assert_eq!(seen[..2], seen[2..]);
}

#[test]
fn aliases_in_circles_end() {
    let server = server(services());
    let answer = ask(&server, &query("ring.shop.svc.cluster.local.", A)).unwrap();
    assert_eq!(answer.metadata.response_code, ServFail);
}

#[test]
fn another_domain() {
    let server = Server::new(&Config { domain: "Prod.Example.".into(), ..config() });
    *server.index().write().unwrap() = Index::new(services().into_iter().map(Arc::new).collect());
    let answer = ask(&server, &query("inside.shop.svc.prod.example.", CNAME)).unwrap();
    assert_eq!(answer.answers.len(), 1);
    assert!(ask(&server, &query("web.default.svc.cluster.local.", A)).is_none());
}

#[tokio::test]
async fn names_follow_their_services() {
    let services = Services::default();
    let server = Arc::new(Server::new(&config()));
    let (view, following) = (services.clone(), server.clone());
    let follower = tokio::spawn(async move { index::follow(view, following.index()).await });
    let settle = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    let code = |name: &str, kind| ask(&server, &query(name, kind)).unwrap().metadata.response_code;
    let web = "web.default.svc.cluster.local.";
    settle().await;
    assert_eq!(code(web, A), NXDomain);

    services.put(service("default/web", Some("10.43.1.1"), &[]));
    settle().await;
    assert_eq!(code(web, A), NoError);
    assert_eq!(code("1.1.43.10.in-addr.arpa.", PTR), NoError);

    services.put(service("default/web", Some("10.43.1.2"), &[]));
    settle().await;
    assert_eq!(code("1.1.43.10.in-addr.arpa.", PTR), NXDomain);
    assert_eq!(code("2.1.43.10.in-addr.arpa.", PTR), NoError);

    // More at a time than the follower can be behind.
    for n in 0..5000u16 {
        services.put(service(&format!("many/s{n}"), Some(&format!("10.43.{}.{}", 100 + n / 250, n % 250)), &[]));
    }
    services.remove(&service("default/web", None, &[]).id());
    settle().await;
    assert_eq!(code("default.svc.cluster.local.", A), NXDomain);
    assert_eq!(code("2.1.43.10.in-addr.arpa.", PTR), NXDomain);
    assert_eq!(code("s0.many.svc.cluster.local.", A), NoError);
    assert_eq!(code("s4999.many.svc.cluster.local.", A), NoError);
    assert_eq!(code("249.119.43.10.in-addr.arpa.", PTR), NoError);
    follower.abort();
}
