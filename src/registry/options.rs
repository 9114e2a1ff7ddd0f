//! What callers may ask of a verb.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::Value;

/// What happens to fields a kind does not have (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently: what controllers send is ours.
    #[default]
    Ignore,
    /// Dropped with a warning to the client.
    Warn,
    /// The request fails.
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Field manager recorded in `metadata.managedFields`.
    pub manager: String,
    /// Everything but the storing.
    pub dry_run: bool,
    /// Unknown and duplicate fields.
    pub validation: FieldValidation,
    /// Duplicate fields that the reader of the body found, worded for the client.
    pub duplicates: Vec<String>,
    /// Server-side apply takes over fields of other managers.
    pub force: bool,
    /// What is written can be worked out again: it is in memory at once and on disk within seconds.
    pub lazy: bool,
    /// Name of the user, for admission.
    pub user: String,
    /// Collects warnings for the client.
    pub warnings: Warnings,
}

impl WriteOptions {
    /// The options of a component of ours, such as `deployment-controller`.
    pub fn by(manager: &str) -> Self {
        Self { manager: manager.to_owned(), user: format!("system:{manager}"), ..Self::default() }
    }
}

/// Warnings on their way to the client, which sees each as a `Warning` header.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning.
    pub fn add(&self, text: impl Into<String>) {
        if let Ok(mut list) = self.0.lock() {
            let text = text.into();
            // A write that is tried again says everything again.
            if !list.contains(&text) {
                list.push(text);
            }
        }
    }

    /// Takes what was collected.
    pub fn take(&self) -> Vec<String> {
        self.0.lock().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default()
    }
}

/// Options of list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// Label selector as in the API, empty for all objects; for example `app=web,tier!=db`.
    pub labels: String,
    /// Field selector as in the API, empty for all objects; for example `spec.nodeName=pi-1`.
    pub fields: String,
    /// Most objects of one page; 0 for all.
    pub limit: usize,
    /// The token of the page before.
    pub next: String,
    /// The revision the list must show exactly; 410 if it is older than the kept history.
    pub exact: Option<u64>,
}

impl ListOptions {
    /// All objects of one namespace.
    pub fn within(namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..Self::default() }
    }

    /// With a label selector.
    pub fn labels(self, selector: &str) -> Self {
        Self { labels: selector.to_owned(), ..self }
    }

    /// With a field selector.
    pub fn fields(self, selector: &str) -> Self {
        Self { fields: selector.to_owned(), ..self }
    }
}

/// A patch and its type.
#[derive(Clone, Debug)]
pub struct Patch {
    /// How `body` is meant.
    pub kind: PatchType,
    /// The patch document, JSON.
    pub body: Bytes,
}

impl Patch {
    /// A JSON merge patch.
    pub fn merge(body: &Value) -> Self {
        Self { kind: PatchType::Merge, body: body.to_string().into() }
    }
}

/// The four types of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json` (RFC 6902)
    Json,
    /// `application/merge-patch+json` (RFC 7386)
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

/// Options of delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`; `None` for the kind's or object's own.
    pub grace: Option<i64>,
    /// What must hold of the object.
    pub preconditions: Preconditions,
    /// What happens to dependents; `None` for the default of the object.
    pub propagation: Option<Propagation>,
    /// Everything but the storing.
    pub dry_run: bool,
    /// Name of the user, for admission.
    pub user: String,
}

impl DeleteOptions {
    /// Removes at once, without a grace period.
    pub fn now() -> Self {
        Self { grace: Some(0), ..Self::default() }
    }

    /// Only this very object, never a later one of the same name.
    pub fn of(uid: &str) -> Self {
        Self { preconditions: Preconditions { uid: Some(uid.to_owned()), revision: None }, ..Self::default() }
    }
}

/// What must hold of an object for it to be deleted; else 409.
#[derive(Clone, Debug, Default)]
pub struct Preconditions {
    /// `uid`
    pub uid: Option<String>,
    /// `resourceVersion`
    pub revision: Option<String>,
}

/// `propagationPolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are deleted first.
    Foreground,
    /// Dependents are deleted afterwards.
    Background,
    /// Dependents stay.
    Orphan,
}
