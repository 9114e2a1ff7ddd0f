//! Server-side apply: who owns which field (`metadata.managedFields`), and merging applied configurations.
//!
//! Behaviour follows `sigs.k8s.io/structured-merge-diff` and `k8s.io/apimachinery/pkg/util/managedfields`. Objects are
//! stored in one version, so entries of other versions of a kind are taken to speak of the same fields.

mod compare;
mod managers;
mod merge;
mod owned;
mod set;
mod walk;

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::kinds::fields::{self, Place, Type};
use crate::kinds::schema::{self, TypeError};
use compare::Difference;
use managers::Entry;
use set::Set;

type Object = Map<String, Value>;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a request did to the fields it owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager; `unknown` is recorded for an empty one.
    pub manager: &'a str,
    /// Version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// Such as `status` or `scale`; empty for the object itself.
    pub subresource: &'a str,
    /// Now, as RFC 3339 in UTC with whole seconds: `2024-01-02T03:04:05Z`.
    pub time: &'a str,
}

/// Fields of the configuration that others own with another value.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// The other, as error texts describe it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// Path of the field, such as `.spec.replicas`.
    pub field: String,
}

/// Why a configuration cannot be applied.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Others own fields of the configuration (409, reason `Conflict`, one cause `FieldManagerConflict` a conflict).
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration sets `managedFields` (400).
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// The live object's `managedFields` are malformed (500).
    #[error("failed to decode managed fields")]
    LiveManagedFields,
    /// The configuration does not fit the type (500 upstream, without a reason).
    #[error("failed to create typed patch object ({object}): {violations}")]
    Config {
        /// `NAMESPACE/NAME; GROUP/VERSION, Kind=KIND`
        object: String,
        /// What does not fit.
        violations: String,
    },
    /// A value of the merged object does not fit its type (400).
    #[error(transparent)]
    Type(#[from] TypeError),
}

impl Error {
    /// HTTP status code the API server answers with.
    pub fn code(&self) -> u16 {
        match self {
            Error::Conflicts(_) => 409,
            Error::ManagedFields | Error::Type(_) => 400,
            Error::LiveManagedFields | Error::Config { .. } => 500,
        }
    }
}

impl Conflict {
    /// The cause for `Status.details.causes`.
    pub fn cause(&self) -> Value {
        json!({"reason": "FieldManagerConflict", "message": format!("conflict with {}", self.manager), "field": self.field})
    }
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", conflict.manager, conflict.field);
    }
    let mut lines = Vec::new();
    let mut manager = "";
    for conflict in conflicts {
        if conflict.manager != manager {
            lines.push(format!("conflicts with {}:", conflict.manager));
            manager = &conflict.manager;
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Records in `after` that a create, update or patch changed what differs from `before`. Both are in the form that
/// [`schema::conform`] gives. Without a difference the entries stay as they are; an object that has none gets none,
/// unless it is new.
pub fn update_manager(ty: &'static Type, before: Option<&Object>, after: &mut Object, writer: &Writer) {
    let live = before.map(managed_fields);
    let sent = take_managed_fields(after);
    let reset = sent.as_array().is_some_and(|entries| matches!(&entries[..], [Value::Object(only)] if only.is_empty()));
    // Clients that know nothing of managed fields leave them out; a subresource does not change them.
    let keep_live = !writer.subresource.is_empty() || (!reset && is_empty(&sent));
    let source = match (live, keep_live) {
        (Some(live), true) if *live != sent => live.clone(),
        _ => sent,
    };
    if reset || (before.is_some() && is_empty(&source)) {
        return;
    }
    let difference = match before {
        Some(before) => difference(ty, before, after),
        None => difference(ty, &Object::new(), after),
    };
    let Some(difference) = difference else { return set_managed_fields(after, source) };
    let entries = managers::decode(source).or_else(|| managers::decode(live?.clone())).unwrap_or_default();
    set_managed_fields(after, managers::encode(record_update(entries, difference, writer)));
}

/// Applies a configuration to the live object (`None`: it is created) and returns the new object, before defaulting.
///
/// What the request cannot change is left out of the configuration: the status of the object itself, the spec in its
/// status. For custom resources with a status subresource the caller leaves out the status.
///
/// # Errors
/// See [`Error`]. Nothing is changed then.
pub fn apply(
    ty: &'static Type,
    live: Option<&Object>,
    applied: &Object,
    writer: &Writer,
    force: bool,
) -> Result<Object, Error> {
    let applied = &without_reset(ty, applied, writer.subresource);
    check(ty, applied)?;
    let empty = Object::new();
    let live = live.unwrap_or(&empty);
    let mut entries = managers::decode(managed_fields(live).clone()).ok_or(Error::LiveManagedFields)?;
    if entries.is_empty() && !live.is_empty() {
        let before = Writer { manager: "before-first-apply", ..*writer };
        entries = difference(ty, &empty, live).map(|all| record_update(entries, all, &before)).unwrap_or_default();
    }
    let attempt = Attempt { ty, live, applied, writer };
    let mut merged = match attempt.run(entries.clone(), force) {
        Err(Error::Conflicts(conflicts)) if writer.manager == "kubectl" => {
            attempt.over_client_side_apply(entries, conflicts)?
        }
        result => result?,
    };
    if writer.manager == "kubectl" {
        renew_last_applied(&mut merged, applied);
    }
    Ok(merged)
}

fn without_reset<'a>(ty: &'static Type, applied: &'a Object, subresource: &str) -> Cow<'a, Object> {
    let reset = match subresource {
        "" if ty.field("status").is_some() => "status",
        "status" => "spec",
        _ => return Cow::Borrowed(applied),
    };
    let mut applied = Cow::Borrowed(applied);
    if applied.contains_key(reset) {
        applied.to_mut().remove(reset);
    }
    applied
}

fn check(ty: &'static Type, applied: &Object) -> Result<(), Error> {
    if !is_empty(managed_fields(applied)) {
        return Err(Error::ManagedFields);
    }
    let violations = owned::check(Place::Root(ty), applied);
    if violations.is_empty() {
        return Ok(());
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = |key: &str| text(applied.get("metadata").and_then(|metadata| metadata.get(key)));
    let (api_version, kind) = (text(applied.get("apiVersion")), text(applied.get("kind")));
    let version = if api_version.contains('/') { api_version } else { format!("/{api_version}") };
    Err(Error::Config {
        object: format!("{}/{}; {version}, Kind={kind}", metadata("namespace"), metadata("name")),
        violations: match &violations[..] {
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        },
    })
}

/// One application of a configuration.
struct Attempt<'a> {
    ty: &'static Type,
    live: &'a Object,
    applied: &'a Object,
    writer: &'a Writer<'a>,
}

impl Attempt<'_> {
    fn run(&self, mut entries: Vec<Entry>, force: bool) -> Result<Object, Error> {
        let root = Place::Root(self.ty);
        let mut mine = Entry::of(self.writer, Operation::Apply, owned::owned_fields(root, self.applied));
        let last = entries.iter().position(|entry| entry.is_of(&mine)).map(|at| entries.remove(at));
        let mut merged = merge::merge_objects(root, self.live, self.applied);
        take_managed_fields(&mut merged);
        if let Some(last) = &last {
            let others = entries.iter().map(|entry| &entry.fields).chain([&mine.fields]);
            prune(root, &mut merged, &last.fields, others);
        }
        self.conform(&mut merged)?;
        let difference = difference(self.ty, self.live, &merged);
        if let Some(difference) = &difference {
            take_over(&mut entries, difference, force)?;
        }
        set::subtract(&mut mine.fields, &UNTRACKED);
        match last {
            Some(last) if difference.is_none() && last.fields == mine.fields => mine.time = last.time,
            _ => {}
        }
        if !mine.fields.is_empty() {
            entries.push(mine);
        }
        set_managed_fields(&mut merged, managers::encode(entries));
        Ok(merged)
    }

    /// Quantities and times must be in their canonical form to compare with those of the live object.
    fn conform(&self, merged: &mut Object) -> Result<(), TypeError> {
        if std::ptr::eq(self.ty, fields::partial_object()) {
            schema::conform_metadata(merged)?;
        } else {
            schema::conform(self.ty, merged)?;
        }
        Ok(())
    }

    /// kubectl moving from client-side to server-side apply: what its annotation holds unchanged is its own.
    fn over_client_side_apply(&self, entries: Vec<Entry>, mut conflicts: Vec<Conflict>) -> Result<Object, Error> {
        let allowed = set::paths(&self.client_side_fields().unwrap_or_default());
        conflicts.retain(|conflict| !allowed.contains(&conflict.field));
        if conflicts.is_empty() { self.run(entries, true) } else { Err(Error::Conflicts(conflicts)) }
    }

    fn client_side_fields(&self) -> Option<Set> {
        let text = self.live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
        let last: Object = serde_json::from_str(text).ok()?;
        if last.get("apiVersion")? != self.writer.api_version {
            return None;
        }
        let root = Place::Root(self.ty);
        let mut owned = owned::owned_fields(root, &last);
        let Difference { changed, removed } = compare::objects(root, &last, self.live);
        for gone in changed.iter().chain(&removed) {
            set::subtract(&mut owned, gone);
        }
        Some(owned)
    }
}

/// Removes what the manager applied last and nobody owns any more.
fn prune<'a>(root: Place, merged: &mut Object, last: &Set, owners: impl Iterator<Item = &'a Set>) {
    let structs = |set: &Set| owned::with_structs(root, set);
    let all = |object: &Object| structs(&owned::owned_fields(root, object));
    let last = structs(last);
    let mut pruned = merged.clone();
    merge::remove(root, &mut pruned, &last);

    let mut kept = all(&pruned);
    for owner in owners {
        set::unite(&mut kept, &structs(owner));
    }
    let everything = all(merged);
    let mut unowned = everything.clone();
    set::subtract(&mut unowned, &kept);
    pruned.clone_from(merged);
    merge::remove(root, &mut pruned, &unowned);

    // What went with a removed parent, but was never the manager's, stays.
    let mut removed = everything;
    set::subtract(&mut removed, &all(&pruned));
    merge::remove(root, merged, &set::intersect(&removed, &last));
}

/// Takes what changed from the other managers.
fn take_over(entries: &mut Vec<Entry>, difference: &Difference, force: bool) -> Result<(), Error> {
    if let Some(changed) = &difference.changed {
        let mut conflicts = Vec::new();
        for entry in entries.iter() {
            let fields = set::paths(&set::intersect(&entry.fields, changed));
            conflicts.extend(fields.into_iter().map(|field| Conflict { manager: describe(entry), field }));
        }
        if !force && !conflicts.is_empty() {
            conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
            return Err(Error::Conflicts(conflicts));
        }
    }
    for entry in entries.iter_mut() {
        for gone in difference.changed.iter().chain(&difference.removed) {
            set::subtract(&mut entry.fields, gone);
        }
    }
    entries.retain(|entry| !entry.fields.is_empty());
    Ok(())
}

fn record_update(mut entries: Vec<Entry>, difference: Difference, writer: &Writer) -> Vec<Entry> {
    // Taking over by force has no conflicts.
    let _ = take_over(&mut entries, &difference, true);
    let mut fields = difference.changed.unwrap_or_default();
    set::subtract(&mut fields, &UNTRACKED);
    if fields.is_empty() {
        return entries;
    }
    let mine = Entry::of(writer, Operation::Update, fields);
    match entries.iter_mut().find(|entry| entry.is_of(&mine)) {
        Some(earlier) => {
            set::unite(&mut earlier.fields, &mine.fields);
            earlier.time = mine.time;
        }
        None => entries.push(mine),
    }
    managers::cap(&mut entries);
    entries
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", entry.subresource));
    }
    if entry.operation == Operation::Update {
        text.push_str(&format!(" using {}", entry.api_version));
    }
    text
}

/// Differences but for the managed fields themselves; `None` if there are none.
fn difference(ty: &'static Type, before: &Object, after: &Object) -> Option<Difference> {
    let mut found = compare::objects(Place::Root(ty), before, after);
    for set in [&mut found.changed, &mut found.removed] {
        if let Some(all) = set {
            set::subtract(all, &MANAGED_FIELDS);
            if all.is_empty() {
                *set = None;
            }
        }
    }
    (found.changed.is_some() || found.removed.is_some()).then_some(found)
}

/// Server-side apply updates kubectl's annotation where it exists, so that client-side apply can go on from it.
fn renew_last_applied(object: &mut Object, applied: &Object) {
    let annotation = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(|annotations| annotations.get_mut(LAST_APPLIED));
    let Some(annotation) = annotation.filter(|text| text.as_str().is_some_and(|text| !text.is_empty())) else { return };
    let mut config = applied.clone();
    if let Some(Value::Object(annotations)) = config.get_mut("metadata").and_then(|m| m.get_mut("annotations")) {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = format!("{}\n", Value::from(config)).into();
}

/// Fields that nobody owns: the system sets them, or they are the object's identity.
static UNTRACKED: LazyLock<Set> = LazyLock::new(|| {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let metadata: Set = metadata.iter().map(|name| (walk::field_element(name), json!({}))).collect();
    let root = [("apiVersion", Set::new()), ("kind", Set::new()), ("metadata", set::member(Some(metadata)))];
    root.into_iter().map(|(name, below)| (walk::field_element(name), below.into())).collect()
});

static MANAGED_FIELDS: LazyLock<Set> =
    LazyLock::new(|| Set::from_iter([("f:metadata".to_owned(), json!({"f:managedFields": {}}))]));

fn managed_fields(object: &Object) -> &Value {
    object.get("metadata").and_then(|metadata| metadata.get("managedFields")).unwrap_or(&Value::Null)
}

fn take_managed_fields(object: &mut Object) -> Value {
    match object.get_mut("metadata") {
        Some(Value::Object(metadata)) => metadata.remove("managedFields").unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

fn set_managed_fields(object: &mut Object, entries: Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata")
        && !is_empty(&entries)
    {
        metadata.insert("managedFields".into(), entries);
    }
}

fn is_empty(entries: &Value) -> bool {
    entries.is_null() || entries.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests;
