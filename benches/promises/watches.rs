//! What 1,000 watches cost: HTTP/2, 200 streams a connection, as informers share one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::Request;

use crate::common::Cluster;
use crate::{idle, load, table};

const WATCHES: usize = 1000;
const STREAMS: usize = 200;

pub fn measure(cluster: &Cluster) {
    let pid = cluster.daemon_pid();
    std::thread::sleep(Duration::from_secs(15));
    let before = idle::pss(pid);
    let kubeconfig = cluster.data_dir().join("admin.kubeconfig");
    let during = load::in_namespace(&cluster.netns.0, move || hold(&kubeconfig, pid));
    let each = (during - before) * 1e3 / WATCHES as f64;
    let how = "growth of PSS over 1,000 watches of ConfigMaps on 5 HTTP/2 connections over TLS";
    table::at_most("memory of a watch", "KB", 10.0, each, how);
}

/// Opens the watches, lets the server rest, and gives its memory while they are open.
fn hold(kubeconfig: &Path, pid: i32) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connector = load::connector(&std::fs::read_to_string(kubeconfig).unwrap(), &[b"h2"]);
        let mut open = Vec::new();
        for _ in 0..WATCHES / STREAMS {
            let (mut client, connection) = h2::client::handshake(load::connect(&connector).await).await.unwrap();
            tokio::spawn(connection);
            for _ in 0..STREAMS {
                let address: SocketAddr = load::ADDRESS.parse().unwrap();
                let uri = format!("https://{address}/api/v1/configmaps?watch=1&allowWatchBookmarks=true");
                let request = Request::get(uri).body(()).unwrap();
                client = client.ready().await.unwrap();
                let (answer, _) = client.send_request(request, true).unwrap();
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                open.push(answer.into_body());
            }
        }
        tokio::time::sleep(Duration::from_secs(15)).await;
        idle::pss(pid)
    })
}
