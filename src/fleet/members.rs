//! Who is a member: which boards join, which keys are known, and until when.
//!
//! The server keeps the fingerprint of each node's key in a record beside the Node object, bound to its UID. A key
//! counts for as long as both are there: deleting the Node ends the membership at that moment, whatever certificate the
//! board still has, and a Node made anew under the same name does not revive it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::tokens::{self, StoredToken, unavailable};
use super::{Fleet, MANAGER, Member, addresses, presence};
use crate::cidr::Cidr;
use crate::kinds::status::Status;
use crate::kinds::{Object, format, meta};
use crate::link::ServerEnd;
use crate::link::membership::{Granted, Reason, Refused, Reply, Request};
use crate::pki::node::{ProvenKey, Subject};
use crate::pki::{Ca, Fingerprint, floor_time};
use crate::registry::{ListOptions, WriteOptions};
use crate::store::{self, Durability, Expect, Key, Write};

/// The records' resource in the store. It is served by no API.
const RECORDS: &str = "nodekeys.umiak";

/// What all nodes share.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The addresses of all pods.
    pub cluster_cidr: Cidr,
    /// The addresses of Services.
    pub service_cidr: Cidr,
    /// The server's own node, whose name nobody else gets.
    pub own_node: Option<String>,
    /// `host:port` of the broker, if it is not the server's own.
    pub broker: Option<String>,
}

/// The members of a fleet. Share it by `Arc`.
pub struct Members {
    fleet: Arc<Fleet>,
    ca: Arc<Ca>,
    cluster: Cluster,
    /// One board joins at a time: names and ranges are given out once.
    turn: tokio::sync::Mutex<()>,
}

/// A node's key and the Node object it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    key: Fingerprint,
    uid: String,
}

/// The range of a Node's pods, without the rest of it.
#[derive(Deserialize)]
struct Ranged {
    #[serde(default)]
    spec: RangedSpec,
}

#[derive(Default, Deserialize)]
struct RangedSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: String,
}

impl Members {
    /// The members of a fleet whose certificates a CA signs.
    pub fn new(fleet: Arc<Fleet>, ca: Arc<Ca>, cluster: Cluster) -> Arc<Self> {
        Arc::new(Self { fleet, ca, cluster, turn: tokio::sync::Mutex::default() })
    }

    /// Whether a certificate of this CA still counts: that of a node does for as long as the node is a member. Any
    /// other is not for this list to judge.
    pub fn counts(&self, certificate: &Subject) -> bool {
        match certificate.node() {
            Some(node) => self.admit(node, &certificate.key).is_ok(),
            None => true,
        }
    }

    /// The member with this name and key.
    ///
    /// # Errors
    /// [`Reason::Unknown`] for anybody else; [`Reason::Unavailable`] when the store fails.
    pub fn admit(&self, node: &str, key: &Fingerprint) -> Result<Member, Refused> {
        let known = self.node_of(key).map_err(|status| unavailable(&status))?;
        let found = known.filter(|object| meta::name(object) == node);
        found.map(|object| member(&object)).ok_or_else(|| {
            let message = format!("node {node:?} with this key is no member of this cluster (any more)");
            Refused::new(Reason::Unknown, message)
        })
    }

    /// Looks after a member's node until its carrier or its membership ends. [`Members::lost`] is to follow.
    pub async fn serve(&self, member: &Member, link: ServerEnd) {
        self.fleet.serve(member, link).await;
    }

    /// See [`Fleet::lost`].
    pub async fn lost(&self, node: &str) {
        self.fleet.lost(node).await;
    }

    /// Whether a node's carrier lives.
    pub fn is_connected(&self, node: &str) -> bool {
        self.fleet.is_connected(node)
    }

    /// Watches over all nodes; never ends.
    pub async fn watch_over(&self) {
        if let Err(status) = self.tidy().await {
            tracing::error!(%status, "cannot tidy up after removed nodes");
        }
        self.fleet.watch_over().await;
    }

    /// Decides on a board's request for a certificate.
    pub async fn decide(&self, request: Request) -> Reply {
        let (name, token) = (request.name.clone(), request.token.as_ref().map(|(id, _)| id.clone()));
        match self.grant(request).await {
            Ok(granted) => {
                tracing::info!(node = granted.name, token, "a certificate is given out");
                Reply::Granted(Box::new(granted))
            }
            Err(refused) => {
                tracing::warn!(node = name, token, reason = %refused, "a certificate is refused");
                Reply::Refused(refused)
            }
        }
    }

    async fn grant(&self, request: Request) -> Result<Granted, Refused> {
        let malformed = |message: &str| Refused::new(Reason::Malformed, message);
        let csr = STANDARD.decode(&request.csr).map_err(|_| malformed("the request is not base64"))?;
        let key = ProvenKey::of(&csr).ok_or_else(|| malformed("the request is not signed by its key"))?;
        let _turn = self.turn.lock().await;
        let node = match self.node_of(&key.fingerprint()).map_err(|status| unavailable(&status))? {
            // An answer was lost, or the certificate ends: the key is proof enough.
            Some(node) => node,
            None => self.join(&request, key.fingerprint()).await?,
        };
        if request.name_is_wanted && request.name != meta::name(&node) {
            let message = format!("this board is node {:?} already: `umiak reset` it to rename it", meta::name(&node));
            return Err(Refused::new(Reason::Name, message));
        }
        let failed = |error: &dyn std::fmt::Display| Refused::new(Reason::Unavailable, error.to_string());
        let pod_cidr = meta::str_at(&node, "/spec/podCIDR").parse().map_err(|e| failed(&e))?;
        Ok(Granted {
            name: meta::name(&node).to_owned(),
            certificate: self.ca.node(meta::name(&node), &key).map_err(|e| failed(&e))?,
            ca: self.ca.certificate().to_owned(),
            time: floor_time().as_secs(),
            pod_cidr,
            cluster_cidr: self.cluster.cluster_cidr,
            service_cidr: self.cluster.service_cidr,
            broker: self.cluster.broker.clone(),
        })
    }

    /// Makes a node of a board that has a token.
    async fn join(&self, request: &Request, key: Fingerprint) -> Result<Object, Refused> {
        let failed = |status: Status| unavailable(&status);
        let Some((id, secret)) = &request.token else {
            let message = "the server knows no node with this key: it has been removed from the cluster";
            return Err(Refused::new(Reason::Unknown, message));
        };
        let registry = &self.fleet.registry;
        let secrets = self.fleet.kinds.used("secrets").ok_or_else(|| failed(Status::no_such_path()))?;
        let token = tokens::check(registry, secrets, id, secret)?;
        let name = self.name(request, &token)?;
        let existing = self.node(&name).map_err(failed)?;
        if let Some(node) = &existing {
            self.may_take(node, &token)?;
        }
        let pod_cidr = self.range(existing.as_ref(), request.pod_cidr).map_err(failed)?;
        tokens::consume(registry, secrets, &token).await?;
        let options = WriteOptions::by(MANAGER);
        let nodes = &self.fleet.kinds.nodes;
        let node = match existing {
            Some(_) => {
                let change = |node: &mut Object| {
                    dress(node, &token.labels, pod_cidr);
                    Ok(())
                };
                registry.modify(nodes, "", &name, None, &options, change).await
            }
            None => registry.create(nodes, "", new_node(&name, &token.labels, pod_cidr), &options).await,
        };
        let node = node.map_err(failed)?;
        self.keep(&name, &Record { key, uid: meta::uid(&node).to_owned() }).await.map_err(failed)?;
        tracing::info!(node = name, token = token.id, %pod_cidr, "a node has joined");
        Ok(node)
    }

    /// The name a board gets.
    fn name(&self, request: &Request, token: &StoredToken) -> Result<String, Refused> {
        let refused = |message: String| Err(Refused::new(Reason::Name, message));
        let name = match &token.node {
            Some(name) if request.name_is_wanted && *name != request.name => {
                return refused(format!("the token is for node {name:?}, not for {:?}", request.name));
            }
            Some(name) => name.clone(),
            None => request.name.clone(),
        };
        if let Some(why) = format::dns_subdomain(&name).first() {
            return refused(format!("{name:?} is no node name: {why}"));
        }
        if self.cluster.own_node.as_ref() == Some(&name) {
            return refused(format!("{name:?} is the server itself: say --node-name"));
        }
        Ok(name)
    }

    /// Whether a board may become a node that there is already: one that no key belongs to, or, with a token made for
    /// it, one that is not there.
    fn may_take(&self, node: &Object, token: &StoredToken) -> Result<(), Refused> {
        let name = meta::name(node);
        let refused = |message: String| Err(Refused::new(Reason::Name, message));
        let record = self.record(name).map_err(|status| unavailable(&status))?;
        if record.is_none_or(|(_, record)| record.uid != meta::uid(node)) {
            return Ok(());
        }
        if self.fleet.is_connected(name) {
            return refused(format!("the name {name:?} is taken by a node that is connected: say --node-name"));
        }
        if token.node.is_none() {
            return refused(format!(
                "there is a node {name:?} with another key: say --node-name for another name, or replace it: delete the \
                 node, or make the token with --node-name {name}"
            ));
        }
        Ok(())
    }

    /// The range of a node's pods: the one it has, or a free one.
    fn range(&self, node: Option<&Object>, wanted: Option<Cidr>) -> Result<Cidr, Status> {
        if let Some(Ok(range)) = node.map(|node| meta::str_at(node, "/spec/podCIDR").parse()) {
            return Ok(range);
        }
        let nodes = self.fleet.registry.list(&self.fleet.kinds.nodes, &ListOptions::default())?;
        let ranges = nodes.items.iter().map(|node| node.parse::<Ranged>().map(|node| node.spec.pod_cidr.parse().ok()));
        let taken: Vec<Cidr> = ranges.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let full = || Status::unavailable(format!("cluster-cidr {} has no /24 left", self.cluster.cluster_cidr));
        addresses::next(self.cluster.cluster_cidr, &taken, wanted).ok_or_else(full)
    }

    fn node(&self, name: &str) -> Result<Option<Object>, Status> {
        match self.fleet.registry.get(&self.fleet.kinds.nodes, "", name) {
            Ok(node) => Ok(Some(node)),
            Err(status) if status.code == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// The Node object a key belongs to.
    fn node_of(&self, key: &Fingerprint) -> Result<Option<Object>, Status> {
        for found in self.fleet.registry.store().find(RECORDS, &index(key)).map_err(Status::internal)? {
            let Ok(record) = serde_json::from_slice::<Record>(&found.data) else { continue };
            let node = self.node(&found.key.name)?;
            if let Some(node) = node.filter(|node| record.key == *key && meta::uid(node) == record.uid) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    fn record(&self, node: &str) -> Result<Option<(u64, Record)>, Status> {
        let found = self.fleet.registry.store().get(&Key::new(RECORDS, "", node)).map_err(Status::internal)?;
        Ok(found.and_then(|found| Some((found.revision, serde_json::from_slice(&found.data).ok()?))))
    }

    async fn keep(&self, node: &str, record: &Record) -> Result<(), Status> {
        let store = self.fleet.registry.store();
        let key = Key::new(RECORDS, "", node);
        let expect = if store.contains(&key) { Expect::Present } else { Expect::Absent };
        let data = serde_json::to_vec(record).map_err(Status::internal)?;
        let index = vec![index(&record.key)];
        let write = Write { key, expect, data: Some(data.into()), index, durability: Durability::Durable };
        store.commit(vec![write]).await.map(drop).map_err(Status::internal)
    }

    /// Removes the records of nodes that are gone. They count for nothing; this only tidies up.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tidy(&self) -> Result<(), Status> {
        let store = self.fleet.registry.store();
        for found in store.list(RECORDS, None, None, 0).map_err(Status::internal)?.records {
            let uid = serde_json::from_slice::<Record>(&found.data).map(|record| record.uid).unwrap_or_default();
            if self.node(&found.key.name)?.is_some_and(|node| meta::uid(&node) == uid) {
                continue;
            }
            let expect = Expect::Revision(found.revision);
            let write = Write { key: found.key, expect, data: None, index: Vec::new(), durability: Durability::Lazy };
            match store.commit(vec![write]).await {
                Ok(_) | Err(store::Error::Conflict { .. } | store::Error::NotFound(_)) => {}
                Err(error) => return Err(Status::internal(error)),
            }
        }
        Ok(())
    }
}

fn index(key: &Fingerprint) -> String {
    format!("key:{key}")
}

fn member(node: &Object) -> Member {
    Member {
        name: meta::name(node).to_owned(),
        pod_cidr: meta::str_at(node, "/spec/podCIDR").to_owned(),
        uid: Some(meta::uid(node).to_owned()),
    }
}

/// The Node object of a board that has joined but was not heard of yet.
fn new_node(name: &str, labels: &[(String, String)], pod_cidr: Cidr) -> Object {
    let mut node = Object::new();
    meta::set(&mut node, "/apiVersion", "v1");
    meta::set(&mut node, "/kind", "Node");
    meta::set(&mut node, "/metadata/name", name);
    meta::set_label(&mut node, "kubernetes.io/hostname", name);
    dress(&mut node, labels, pod_cidr);
    presence::mark_unknown(&mut node, presence::Why::NeverHeard, jiff::Timestamp::now());
    node
}

fn dress(node: &mut Object, labels: &[(String, String)], pod_cidr: Cidr) {
    for (key, value) in labels {
        meta::set_label(node, key, value);
    }
    if meta::str_at(node, "/spec/podCIDR").is_empty() {
        meta::set(node, "/spec/podCIDR", pod_cidr.to_string());
        meta::set(node, "/spec/podCIDRs", json!([pod_cidr]));
    }
    if meta::str_at(node, "/spec/providerID").is_empty() {
        let id = format!("umiak://{}", meta::name(node));
        meta::set(node, "/spec/providerID", id);
    }
}
