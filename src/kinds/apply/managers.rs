//! The entries of `metadata.managedFields`: who owns what.

use serde_json::{Map, Value};

use super::set::{self, Set};
use super::{Operation, Writer};

/// Entries from updates that an object keeps; the oldest are merged beyond it.
pub(super) const MAX_UPDATERS: usize = 10;
/// Manager of the merged oldest entries.
const OLDEST: &str = "ancient-changes";

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    /// RFC 3339 in UTC with whole seconds, so that texts sort by time; empty if unknown.
    pub time: String,
    pub fields: Set,
}

impl Entry {
    /// An entry of a writer.
    pub(super) fn of(writer: &Writer, operation: Operation, fields: Set) -> Self {
        let manager = if writer.manager.is_empty() { "unknown" } else { writer.manager };
        Self {
            manager: manager.into(),
            operation,
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
            time: writer.time.into(),
            fields,
        }
    }

    /// Whether both are entries of one manager. An applier keeps its entry when it changes the version.
    pub(super) fn is_of(&self, other: &Entry) -> bool {
        (&self.manager, self.operation, &self.subresource) == (&other.manager, other.operation, &other.subresource)
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn decode(value: Value) -> Option<Self> {
        let Value::Object(mut map) = value else { return None };
        let mut text = |key: &str| match map.remove(key) {
            None => Some(String::new()),
            Some(Value::String(text)) => Some(text),
            Some(_) => None,
        };
        let operation = match text("operation")?.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = text("apiVersion").filter(|version| !version.is_empty())?;
        text("fieldsType").filter(|kind| kind == "FieldsV1")?;
        let (manager, subresource, time) = (text("manager")?, text("subresource")?, text("time")?);
        let fields = match map.remove("fieldsV1") {
            None => Set::new(),
            Some(Value::Object(fields)) => fields,
            Some(_) => return None,
        };
        Some(Self { manager, operation, api_version, subresource, time, fields })
    }

    fn encode(self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut map = Map::new();
        for (key, text) in [("manager", self.manager), ("subresource", self.subresource), ("time", self.time)] {
            if !text.is_empty() {
                map.insert(key.into(), text.into());
            }
        }
        map.insert("operation".into(), operation.into());
        map.insert("apiVersion".into(), self.api_version.into());
        map.insert("fieldsType".into(), "FieldsV1".into());
        map.insert("fieldsV1".into(), self.fields.into());
        map.into()
    }
}

/// Reads `managedFields`; `None` if an entry is malformed.
pub(super) fn decode(value: Value) -> Option<Vec<Entry>> {
    match value {
        Value::Array(items) => items.into_iter().map(Entry::decode).collect(),
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

/// Writes entries in their documented order: appliers first, then by time, manager, version and subresource.
pub(super) fn encode(mut entries: Vec<Entry>) -> Value {
    fn key(entry: &Entry) -> (Operation, [&str; 4]) {
        (entry.operation, [&entry.time, &entry.manager, &entry.api_version, &entry.subresource])
    }
    entries.sort_by(|a, b| key(a).cmp(&key(b)));
    entries.into_iter().map(Entry::encode).collect()
}

/// Merges the oldest updaters of a version until no more than [`MAX_UPDATERS`] are left.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let updater = |entry: &Entry| entry.operation == Operation::Update;
    let mut surplus = entries.iter().filter(|entry| updater(entry)).count().saturating_sub(MAX_UPDATERS);
    if surplus == 0 {
        return;
    }
    entries.sort_by(|a, b| (&a.time, &a.manager).cmp(&(&b.time, &b.manager)));
    let mut at = 0;
    while surplus > 0 && at < entries.len() {
        let first = |earlier: &Entry| updater(earlier) && earlier.api_version == entries[at].api_version;
        let merges = updater(&entries[at]);
        match entries[..at].iter().position(first) {
            Some(bucket) if merges => {
                let newer = entries.remove(at);
                let bucket = &mut entries[bucket];
                set::unite(&mut bucket.fields, &newer.fields);
                bucket.manager = OLDEST.into();
                bucket.subresource.clear();
                bucket.time = newer.time;
                surplus -= 1;
            }
            _ => at += 1,
        }
    }
}
