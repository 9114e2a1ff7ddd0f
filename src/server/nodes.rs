//! The way nodes come to the server: its MQTT broker or another one, sessions of members, boards that join.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Error;
use crate::config::{ServerConfig, broker_address};
use crate::fleet::members::Members;
use crate::kinds::status::Status;
use crate::kinds::{Object, meta};
use crate::link::broker::{BrokerConfig, broker};
use crate::link::membership::{self, cluster_id};
use crate::link::mqtt::tls::{ClientTls, ServerTls, TlsError};
use crate::link::mqtt::{self, Accepted, Allowed, Incoming, JoinStream, RemoteConfig, Sessions};
use crate::network::host_address;
use crate::pki::node::Subject;
use crate::pki::{self, Ca};
use crate::registry::{Registry, WriteOptions};

/// Where `umiak token create` finds what a token has to say.
pub const JOIN_INFO: (&str, &str) = ("kube-public", "umiak-join");
/// Boards that join at a time; more wait.
const MAX_JOINS: usize = 32;
/// Where boards join at a broker that is not the server's own, as in configs/mosquitto.conf.
const JOIN_PORT: u16 = 8884;

/// The server's time: its own clock, but never before this release.
#[derive(Debug)]
struct ServerTime;

impl TimeProvider for ServerTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(pki::floor_time()))
    }
}

/// Opens the way for nodes; the future serves them for as long as it lives.
pub(super) async fn serve(
    config: &ServerConfig,
    members: Arc<Members>,
    ca: &Ca,
    certificate: Arc<pki::ServerTls>,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let link_failed = |error: TlsError| pki::Error::Tls(error.to_string());
    let cluster = cluster_id(&ca.fingerprint()?);
    let roots = pki::pem_certificates(ca.certificate())?;
    let root = roots.first().cloned().ok_or_else(|| pki::Error::Tls("the CA has no certificate".into()))?;
    let tls = ServerTls::new(root, certificate, Arc::new(ServerTime)).map_err(link_failed)?;
    let judge = members.clone();
    let allowed: Allowed = Arc::new(move |node, certificate| {
        let subject = Subject::of(certificate);
        subject.is_some_and(|s| s.node() == Some(node) && judge.admit(node, &s.key).is_ok())
    });
    let (bus, inbox, carrying) = match &config.broker_url {
        None => {
            let address = SocketAddr::new(config.mqtt_bind, config.mqtt_port);
            let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
            let config = BrokerConfig { cluster: cluster.clone(), tls: tls.clone(), allowed: allowed.clone() };
            let (bus, inbox, task) = broker(config, listener);
            (bus, inbox, boxed(task))
        }
        Some(url) => {
            let config =
                RemoteConfig { cluster: cluster.clone(), url: url.clone(), keepalive: mqtt::NodeConfig::KEEPALIVE };
            let (bus, inbox, task) = mqtt::remote(config, client_identity(ca)?)?;
            (bus, inbox, boxed(task))
        }
    };
    Ok(async move {
        let (incoming, sessions, accepting) = mqtt::accept(&cluster, tls, allowed, bus, inbox);
        tokio::select! {
            () = carrying => {}
            () = accepting => {}
            () = take(incoming, &sessions, &members) => {}
        }
    })
}

fn boxed<'a>(task: impl Future<Output = ()> + Send + 'a) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(task)
}

/// The certificate with which the server comes to a broker that is not its own.
fn client_identity(ca: &Ca) -> Result<mqtt::TlsProvider, Error> {
    let identity = ca.client(mqtt::tls::SERVER_USER, &[])?;
    let roots = pki::roots(ca.certificate())?;
    let tls = move || {
        use rustls::pki_types::PrivateKeyDer;
        use rustls::pki_types::pem::PemObject;
        let chain = pki::pem_certificates(&identity.certificate).map_err(TlsError::of)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(TlsError::of)?;
        ClientTls::new(roots.clone(), chain, key, Arc::new(ServerTime))
    };
    Ok(Arc::new(tls))
}

async fn take(mut incoming: tokio::sync::mpsc::Receiver<Incoming>, sessions: &Sessions, members: &Arc<Members>) {
    let (mut nodes, mut joins) = (JoinSet::new(), JoinSet::new());
    loop {
        tokio::select! {
            came = incoming.recv(), if joins.len() < MAX_JOINS => match came {
                Some(Incoming::Node(accepted)) => {
                    nodes.spawn(look_after(members.clone(), sessions.clone(), accepted));
                }
                Some(Incoming::Join { stream, from }) => {
                    // Whatever is decided, the log says about whom.
                    let span = tracing::warn_span!("join", from);
                    joins.spawn(join(members.clone(), stream).instrument(span));
                }
                None => return,
            },
            Some(_) = nodes.join_next() => {}
            Some(_) = joins.join_next() => {}
        }
    }
}

async fn join(members: Arc<Members>, mut stream: Box<JoinStream>) {
    let decide = async |request| members.decide(request).await;
    match membership::answer(&mut stream, decide).await {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::InvalidData => tracing::warn!(%error, "a join is refused"),
        Err(error) => tracing::info!(%error, "a board broke off joining"),
    }
}

async fn look_after(members: Arc<Members>, sessions: Sessions, accepted: Accepted) {
    let Accepted { node, certificate, end } = accepted;
    let key = Subject::of(&certificate).map(|subject| subject.key);
    drop(certificate);
    let admitted = || key.as_ref().and_then(|key| members.admit(&node, key).ok());
    if let Some(member) = admitted() {
        tracing::info!(node, "the node is connected");
        members.serve(&member, end).await;
        tracing::info!(node, "the node's session is over");
    }
    if admitted().is_none() {
        sessions.disconnect(&node).await;
    }
    members.lost(&node).await;
}

/// Says in the cluster where boards find the server.
pub(super) async fn publish_addresses(config: &ServerConfig, registry: &Registry) -> Result<(), Status> {
    let servers = join_addresses(config).join(",");
    let (namespace, name) = JOIN_INFO;
    let kind = registry.kinds().by_resource("configmaps").ok_or_else(Status::no_such_path)?;
    let options = WriteOptions::by("umiak");
    let set = |map: &mut Object| {
        meta::set(map, "/data/servers", servers.clone());
        Ok(())
    };
    match registry.modify(&kind, namespace, name, None, &options, set).await {
        Err(status) if status.code == 404 => {
            let mut map = Object::new();
            meta::set(&mut map, "/metadata/name", name);
            set(&mut map)?;
            registry.create(&kind, namespace, map, &options).await.map(drop)
        }
        result => result.map(drop),
    }
}

fn join_addresses(config: &ServerConfig) -> Vec<String> {
    if !config.join_addresses.is_empty() {
        return config.join_addresses.clone();
    }
    if let Some(Ok(address)) = config.broker_url.as_deref().map(broker_address) {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        return vec![format!("{host}:{JOIN_PORT}")];
    }
    let given = Some(config.mqtt_bind).filter(|address| !address.is_unspecified());
    let address = given.or_else(|| host_address(&config.bridge));
    address.map(|address| SocketAddr::new(address, config.mqtt_port).to_string()).into_iter().collect()
}
