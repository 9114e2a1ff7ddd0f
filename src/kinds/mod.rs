//! The Kubernetes model as data: the field table, the kind table, and per kind a small file of hooks.
//!
//! A new kind is a row in [`table`] and, if it has rules, a file with its [`Hooks`]. Nothing else changes.

pub mod apply;
pub mod check;
pub mod config_map;
pub mod deployment;
pub mod duration;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod field_selector;
pub mod fields;
pub mod format;
pub mod hash;
pub mod lease;
pub mod meta;
pub mod metadata;
pub mod metrics;
pub mod names;
pub mod namespace;
pub mod node;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod protobuf;
pub mod quantity;
pub mod replica_set;
pub mod replication_controller;
pub mod scale;
pub mod schema;
pub mod secret;
pub mod selector;
pub mod service;
pub mod service_account;
pub mod status;
pub mod table;
pub mod unsupported;
pub mod workload;

#[cfg(test)]
mod hooks_tests;

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Map, Value};

use status::FieldError;

/// An API object as JSON. No struct stands between a client and what is stored, so no field is lost.
pub type Object = Map<String, Value>;

/// One served resource: a row of the kind table.
#[derive(Clone)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: Cow<'static, str>,
    /// API version, for example `v1`.
    pub version: Cow<'static, str>,
    /// CamelCase kind, for example `Pod`.
    pub kind: Cow<'static, str>,
    /// Plural resource name in URLs, for example `pods`.
    pub plural: Cow<'static, str>,
    /// Singular resource name, for example `pod`.
    pub singular: Cow<'static, str>,
    /// Short names kubectl accepts, for example `po`.
    pub short_names: Vec<Cow<'static, str>>,
    /// Categories, for example `all`.
    pub categories: Vec<Cow<'static, str>>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Subresources served beside the object itself.
    pub subresources: &'static [Subresource],
    /// Never written to disk (Lease, Event): lost on restart by design, bounded in memory.
    pub volatile: bool,
    /// Defaults, validation, table cells and the rest of what is special about this kind.
    pub hooks: &'static dyn Hooks,
}

/// A subresource of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`: only the status (and metadata such as labels) changes.
    Status,
    /// `/scale` as `autoscaling/v1 Scale`.
    Scale,
    /// `pods/binding`.
    Binding,
    /// `pods/eviction`.
    Eviction,
    /// `pods/ephemeralcontainers`, `serviceaccounts/token`, `namespaces/finalize`, `pods/log`, `pods/exec`, …: by name.
    Other(&'static str),
}

/// One column of a kind's table (`kubectl get`).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading, for example `Ready`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date`.
    pub kind: &'static str,
    /// OpenAPI format: empty or `name`.
    pub format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: u8,
}

/// What is special about a kind. Every method has the behaviour of a kind without rules.
pub trait Hooks: Sync + Send {
    /// Fills in the documented defaults; idempotent.
    fn default(&self, _object: &mut Object) {}

    /// Drops what a client may not set on create (status) and sets `metadata.generation` where the kind has one.
    fn prepare_create(&self, _object: &mut Object) {}

    /// On an update of the object itself: keeps the old status, raises `metadata.generation` when the spec changed.
    fn prepare_update(&self, _new: &mut Object, _old: &Object) {}

    /// Every violated rule of a new object, in field order.
    fn validate(&self, _object: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Every violated rule of a change, immutable fields among them. [`Hooks::validate`] has run already.
    fn validate_update(&self, _new: &Object, _old: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// The table's columns after `Name`, `Age` included. Where one of them is `Name` itself (Event), the table has no
    /// leading `Name` ([`Kind::leads_with_name`]).
    fn columns(&self) -> &'static [Column];

    /// One row's cells, one for each of [`Hooks::columns`].
    fn cells(&self, _object: &Object, now: Timestamp) -> Vec<Value>;

    /// The value of a field selector such as `spec.nodeName`; `None` if the kind does not support that field.
    /// `metadata.name` and `metadata.namespace` are handled by the caller.
    fn selectable(&self, _object: &Object, _field: &str) -> Option<String> {
        None
    }

    /// Secondary index keys beside the owner (`owner:UID`, added by the caller), for example `node:NAME` of a pod.
    fn index(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Seconds an object stays with a `deletionTimestamp` before it is removed; `None`: removed at once.
    /// `requested` is the client's `gracePeriodSeconds`.
    fn grace(&self, _object: &Object, _requested: Option<i64>) -> Option<i64> {
        None
    }
}
