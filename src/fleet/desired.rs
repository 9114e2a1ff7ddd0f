//! What a node should have: its pods, the objects they use, the Services; everything when it asks, changes from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Fleet;
use super::changes::{News, Subscription};
use super::services::Feed;
use crate::kinds::Object;
use crate::kinds::meta;
use crate::kinds::status::Status;
use crate::link::channel;
use crate::link::known::KnownPod;
use crate::link::message::{Dependency, DesiredPod, Envelope, Reference, Sequence, ToNode, references};
use crate::registry::ListOptions;
use crate::store::Key;

/// Between a failed look at the registry and the next.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why the tale ended.
enum End {
    /// The carrier is gone.
    Gone,
    /// The history was too short, or the registry failed: begin anew.
    Lost(Status),
    /// The node asks for everything.
    Asked,
}

/// Tells the node all it should have, whenever it is `asked` to, and every change after that. Ends with the carrier.
pub(super) async fn keep(fleet: &Fleet, node: &str, asked: &Notify, to_node: channel::Sender<Envelope<ToNode>>) {
    asked.notified().await;
    // From before anything is looked up: a change may be told twice but none is missed.
    let changes = fleet.changes.subscribe(node);
    let (sequence, told) = (Sequence::start(), BTreeMap::new());
    let mut teller = Teller { fleet, node, to_node, sequence, told, changes };
    loop {
        match teller.tell(asked).await {
            End::Gone => return,
            End::Asked => {}
            End::Lost(status) => {
                if status.code != 410 {
                    tracing::error!(node, %status, "cannot see what the node should have");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}

/// How a pod is told.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// With everything it uses if it is new; without what the node holds if the pod has changed.
    IfChanged,
    /// With everything it uses.
    Whole,
    /// Without what the node holds if it has been here before.
    Known,
}

/// What the node was told of one pod.
struct Told {
    key: Key,
    substance: u64,
    uses: BTreeSet<Reference>,
}

struct Teller<'a> {
    fleet: &'a Fleet,
    node: &'a str,
    to_node: channel::Sender<Envelope<ToNode>>,
    sequence: Sequence,
    /// By UID.
    told: BTreeMap<String, Told>,
    changes: Subscription<'a>,
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        End::Lost(status)
    }
}

impl Teller<'_> {
    async fn tell(&mut self, asked: &Notify) -> End {
        match self.try_tell(asked).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_tell(&mut self, asked: &Notify) -> Result<std::convert::Infallible, End> {
        let mut feed = Feed::of(&self.fleet.cluster, self.node);
        self.send(ToNode::Welcome).await?;
        Box::pin(self.tell_pods()).await?;
        let mut complete = false;
        loop {
            // In this order: what concerns pods waits for no Service.
            tokio::select! {
                biased;
                () = asked.notified() => return Err(End::Asked),
                () = self.to_node.closed() => return Err(End::Gone),
                // Boxed: most of the time nothing changes.
                news = self.changes.next() => Box::pin(self.tell_news(news)).await?,
                () = feed.changed() => {}
                // Nobody else sends: there will still be room.
                room = has_room(&self.to_node), if feed.has_more() || (!complete && feed.is_whole()) => {
                    if !room {
                        return Err(End::Gone);
                    }
                    let message = feed.next().unwrap_or_else(|| {
                        complete = true;
                        ToNode::Complete { pods: self.told.keys().cloned().collect(), services: feed.names() }
                    });
                    self.send(message).await?;
                }
            }
        }
    }

    async fn tell_pods(&mut self) -> Result<(), End> {
        self.told.clear();
        let options = ListOptions::default().fields(&format!("spec.nodeName={}", self.node));
        for raw in self.fleet.registry.list(&self.fleet.kinds.pods, &options)?.items {
            let object = raw.object()?;
            self.tell_pod(raw.key, object, How::Known).await?;
        }
        self.forget_unused();
        Ok(())
    }

    async fn send(&mut self, message: ToNode) -> Result<(), End> {
        let envelope = self.sequence.wrap(message);
        self.to_node.send(envelope).await.map_err(|_| End::Gone)
    }

    async fn tell_news(&mut self, News { all, pods, objects, lacking }: News) -> Result<(), End> {
        if all {
            // The history was too short.
            return Err(End::Asked);
        }
        for key in pods {
            self.pod_changed(key).await?;
        }
        self.forget_unused();
        for reference in objects {
            self.object_changed(reference).await?;
        }
        for uid in lacking {
            // Of no pod but its own.
            let Some(key) = self.told.get(&uid).map(|told| told.key.clone()) else { continue };
            self.retell(key).await?;
        }
        Ok(())
    }

    async fn pod_changed(&mut self, key: Key) -> Result<(), End> {
        let pod = match self.fleet.registry.get(&self.fleet.kinds.pods, &key.namespace, &key.name) {
            Ok(pod) => Some(pod).filter(|pod| meta::str_at(pod, "/spec/nodeName") == self.node),
            Err(status) if status.code == 404 => None,
            Err(status) => return Err(status.into()),
        };
        // A name may come back as another pod.
        let uid = pod.as_ref().map(meta::uid).unwrap_or_default();
        let gone =
            self.told.iter().filter(|(known, told)| told.key == key && *known != uid).map(|(uid, _)| uid.clone());
        for uid in gone.collect::<Vec<_>>() {
            self.told.remove(&uid);
            self.send(ToNode::Remove { uid }).await?;
        }
        match pod {
            Some(pod) => self.tell_pod(key, pod, How::IfChanged).await,
            None => Ok(()),
        }
    }

    /// From now on the node hears of nothing but what its pods use.
    fn forget_unused(&mut self) {
        self.changes.uses_only(&self.told.values().flat_map(|told| &told.uses).collect());
    }

    async fn tell_pod(&mut self, key: Key, mut pod: Object, how: How) -> Result<(), End> {
        let uid = meta::uid(&pod).to_owned();
        if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let objects = self.dependencies(&pod)?;
        let uses: BTreeSet<Reference> = objects.iter().map(|d| d.reference.clone()).collect();
        let substance = substance(&pod);
        let unchanged = self.told.get(&uid).is_some_and(|t| t.substance == substance && t.uses == uses);
        if unchanged && how == How::IfChanged {
            return Ok(());
        }
        let before = self.told.insert(uid, Told { key, substance, uses });
        let whole = DesiredPod { pod, objects };
        let message = match how {
            How::IfChanged if before.is_none() => ToNode::Pod(whole),
            How::IfChanged | How::Known => KnownPod::of(whole).map_or_else(ToNode::Pod, ToNode::Known),
            How::Whole => ToNode::Pod(whole),
        };
        self.send(message).await
    }

    /// What the pod refers to, as it is now; bound volumes included.
    fn dependencies(&mut self, pod: &Object) -> Result<Vec<Dependency>, Status> {
        let mut found = Vec::new();
        let mut wanted = references(pod);
        while let Some(reference) = wanted.pop() {
            self.changes.uses(&reference);
            let object = self.look_up(&reference)?;
            if reference.resource == "persistentvolumeclaims"
                && let Some(claim) = &object
            {
                let volume = meta::str_at(claim, "/spec/volumeName").to_owned();
                if !volume.is_empty() {
                    let resource = "persistentvolumes".to_owned();
                    wanted.push(Reference { resource, namespace: String::new(), name: volume });
                }
            }
            found.push(Dependency { reference, object });
        }
        found.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(found)
    }

    fn look_up(&self, reference: &Reference) -> Result<Option<Object>, Status> {
        let Some(kind) = self.fleet.kinds.used(&reference.resource) else { return Ok(None) };
        match self.fleet.registry.get(kind, &reference.namespace, &reference.name) {
            Ok(object) => Ok(Some(bare(object))),
            Err(status) if status.code == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Tells all of a pod again.
    async fn retell(&mut self, key: Key) -> Result<(), End> {
        match self.fleet.registry.get(&self.fleet.kinds.pods, &key.namespace, &key.name) {
            Ok(pod) if meta::str_at(&pod, "/spec/nodeName") == self.node => self.tell_pod(key, pod, How::Whole).await,
            Err(status) if status.code != 404 => Err(status.into()),
            // That will be told.
            _ => Ok(()),
        }
    }

    async fn object_changed(&mut self, reference: Reference) -> Result<(), End> {
        let users: Vec<Key> =
            self.told.values().filter(|t| t.uses.contains(&reference)).map(|t| t.key.clone()).collect();
        if users.is_empty() {
            return Ok(());
        }
        if reference.resource == "persistentvolumeclaims" {
            // It may be bound to a volume now: what the pod uses has changed.
            for key in users {
                self.retell(key).await?;
            }
            self.forget_unused();
            return Ok(());
        }
        let object = self.look_up(&reference)?;
        self.send(ToNode::Object(Dependency { reference, object })).await
    }
}

/// Waits for room for a message; `false` when the carrier is gone.
async fn has_room(to_node: &channel::Sender<Envelope<ToNode>>) -> bool {
    to_node.reserve().await.is_ok()
}

/// Without what only the server needs.
fn bare(mut object: Object) -> Object {
    object.remove("status");
    let name = meta::name(&object).to_owned();
    let namespace = meta::namespace(&object).to_owned();
    object.insert("metadata".to_owned(), json!({"name": name, "namespace": namespace}));
    object
}

/// A number for all of a pod the node acts on. Its status is the node's own, but for conditions of other owners.
fn substance(pod: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    let metadata = pod.get("metadata").and_then(Value::as_object).into_iter().flatten();
    for (field, value) in metadata.filter(|(field, _)| *field != "resourceVersion" && *field != "managedFields") {
        (field, value.to_string()).hash(&mut hasher);
    }
    pod.get("spec").map(Value::to_string).hash(&mut hasher);
    let gates = meta::list_at(pod, "/spec/readinessGates");
    for kind in gates.iter().filter_map(|g| g.get("conditionType")?.as_str()) {
        meta::condition(pod, kind).and_then(|c| c.get("status")).map(Value::to_string).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut Object)) -> u64 {
        let mut pod = Object::new();
        meta::set(&mut pod, "/metadata/name", "p");
        meta::set(&mut pod, "/spec/readinessGates", json!([{"conditionType": "gate"}]));
        meta::set(&mut pod, "/status/conditions", json!([{"type": "Ready", "status": "False"}]));
        change(&mut pod);
        substance(&pod)
    }

    #[test]
    fn only_what_concerns_the_node_counts() {
        let before = of(|_| {});
        for (path, value) in [
            ("/metadata/resourceVersion", json!("7")),
            ("/metadata/managedFields", json!([])),
            ("/status/phase", json!("Running")),
            ("/status/conditions", json!([{"type": "Ready", "status": "True"}])),
        ] {
            assert_eq!(of(|pod| meta::set(pod, path, value)), before, "{path}");
        }
        for (path, value) in [
            ("/metadata/labels", json!({"a": "b"})),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            ("/spec/activeDeadlineSeconds", json!(5)),
            ("/status/conditions", json!([{"type": "gate", "status": "True"}])),
        ] {
            assert_ne!(of(|pod| meta::set(pod, path, value)), before, "{path}");
        }
    }
}
