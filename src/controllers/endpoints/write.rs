//! Carries out a plan for slices.

use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::controllers::model::Meta;
use crate::controllers::{namespace_is_terminating, still_there};
use crate::kinds::endpoint_slice::{SERVICE_NAME, of_service};
use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::registry::{DeleteOptions, Registry, WriteOptions};

use super::MANAGED_BY;
use super::model::{Slice, note_trigger, set_list};
use super::packing::{Content, Plan};

/// Longest prefix of a generated name: five more characters make it 63.
const MAX_PREFIX: usize = 58;

/// The slices of one owner: what they all say beside their endpoints.
pub(super) struct Slices<'a> {
    /// Where they are.
    pub(super) registry: &'a Registry,
    /// EndpointSlices.
    pub(super) kind: &'a Arc<Kind>,
    /// As whom they are written.
    pub(super) options: &'a WriteOptions,
    /// The owner's metadata.
    pub(super) owner: &'a Meta,
    /// The owner's kind.
    pub(super) owner_kind: &'static str,
    /// `endpointslice.kubernetes.io/managed-by`
    pub(super) manager: &'static str,
    /// All labels but those that say whose and by whom.
    pub(super) labels: Object,
    /// Annotations, if they are the owner's.
    pub(super) annotations: Option<Value>,
    /// When the reason for a change came up.
    pub(super) trigger: Option<Timestamp>,
}

impl Slices<'_> {
    /// The slices of a Service that somebody manages.
    pub(super) fn of(registry: &Registry, kind: &Kind, service: &Meta, manager: &str) -> Result<Vec<Slice>, Status> {
        let mut slices: Vec<Slice> = registry.indexed_as(kind, &of_service(&service.namespace, &service.name))?;
        slices.retain(|s| s.metadata.labels.get(MANAGED_BY).is_some_and(|m| m == manager));
        Ok(slices)
    }

    fn labels(&self) -> Object {
        let mut labels = self.labels.clone();
        labels.insert(SERVICE_NAME.to_owned(), self.owner.name.as_str().into());
        labels.insert(MANAGED_BY.to_owned(), self.manager.into());
        labels
    }

    /// Whether a slice has to be written whatever its endpoints.
    pub(super) fn stale(&self, slice: &Slice) -> bool {
        let annotations = serde_json::to_value(&slice.metadata.annotations).unwrap_or_default();
        slice.metadata.labels != self.labels() || self.annotations.as_ref().is_some_and(|wanted| annotations != *wanted)
    }

    /// Parts those that can be kept from those of another owner of the name or another type of addresses.
    pub(super) fn part(&self, slices: Vec<Slice>) -> (Vec<Slice>, Vec<Slice>) {
        slices.into_iter().partition(|s| s.metadata.controlled_by(&self.owner.uid) && s.address_type == "IPv4")
    }

    /// Writes what the plan says, all at once.
    pub(super) async fn carry_out(&self, plan: Plan) -> Result<(), Status> {
        let creates = join_all(plan.create.into_iter().map(|content| self.create(content)));
        let updates = join_all(plan.update.into_iter().map(|(name, content)| self.update(name, content)));
        let deletes = join_all(plan.delete.iter().map(|name| self.delete(name)));
        let (created, updated, deleted) = tokio::join!(creates, updates, deletes);
        created.into_iter().chain(updated).chain(deleted).collect()
    }

    fn fill(&self, slice: &mut Object, content: &Content) {
        set_list(slice, "endpoints", &content.endpoints);
        set_list(slice, "ports", &content.ports);
        meta::set(slice, "/metadata/labels", self.labels());
        match &self.annotations {
            Some(annotations) => meta::set(slice, "/metadata/annotations", annotations.clone()),
            None => note_trigger(slice, self.trigger),
        }
    }

    async fn create(&self, content: Content) -> Result<(), Status> {
        let Meta { namespace, name, uid, .. } = self.owner;
        let prefix = name.get(..MAX_PREFIX - 1).unwrap_or(name).trim_end_matches(['-', '.']);
        let owner = json!({
            "apiVersion": "v1", "kind": self.owner_kind, "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        });
        let metadata =
            json!({"generateName": format!("{prefix}-"), "namespace": namespace, "ownerReferences": [owner]});
        let mut slice = Object::new();
        slice.insert("metadata".to_owned(), metadata);
        slice.insert("addressType".to_owned(), "IPv4".into());
        self.fill(&mut slice, &content);
        match self.registry.create(self.kind, namespace, slice, self.options).await {
            // The slice would go with its namespace.
            Err(status) if namespace_is_terminating(&status) => Ok(()),
            result => result.map(drop),
        }
    }

    async fn update(&self, name: String, content: Content) -> Result<(), Status> {
        let change = |slice: &mut Object| {
            self.fill(slice, &content);
            Ok(())
        };
        let updated = self.registry.modify(self.kind, &self.owner.namespace, &name, None, self.options, change);
        // One that was deleted meanwhile is heard of.
        still_there(updated.await).map(drop)
    }

    /// Deletes a slice.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Status> {
        let options = DeleteOptions { user: self.options.user.clone(), ..DeleteOptions::default() };
        still_there(self.registry.delete(self.kind, &self.owner.namespace, name, &options).await).map(drop)
    }
}
