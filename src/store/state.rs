//! What is in memory: the index of all objects, bodies that are not (yet) on disk, and the ring of changes.
//!
//! Only the writer thread changes it, under its lock and after COMMIT. Rows that a running transaction touches are
//! shadowed by their old bodies from before COMMIT until then, so a reader that holds the lock always sees index and
//! rows of the same revision.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    ops::Bound,
    sync::Arc,
    time::Instant,
};

use tokio::sync::Notify;

use super::{Error, Key, Limits, body::Body, disk::Reader};

/// Bookkeeping of one change in the ring beside its bodies, in bytes: an estimate.
const CHANGE_COST: usize = 160;

/// Where an object is, and its revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) revision: u64,
}

/// Why a body is in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Hold {
    /// The row is being changed by a transaction that is not published yet; this is what it was.
    Shadow,
    /// Newer than the row, or without one (`on_disk` false); to be flushed.
    Dirty { on_disk: bool },
    /// Never on disk.
    Volatile { written: Instant },
}

/// An object whose body is in memory.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) key: Key,
    pub(super) revision: u64,
    pub(super) index: Box<str>,
    pub(super) body: Body,
    pub(super) hold: Hold,
}

impl Held {
    fn written(&self) -> Option<Instant> {
        match self.hold {
            Hold::Volatile { written } => Some(written),
            Hold::Shadow | Hold::Dirty { .. } => None,
        }
    }
}

/// One change to be published. `index` are the keys of the new object, one a line.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) key: Key,
    pub(super) id: i64,
    pub(super) revision: u64,
    pub(super) body: Option<Body>,
    pub(super) index: Box<str>,
    pub(super) hold: Option<Hold>,
    pub(super) previous: Option<(Body, Box<str>)>,
}

/// One change in the ring.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) key: Key,
    pub(super) revision: u64,
    pub(super) body: Option<Body>,
    pub(super) previous: Option<Body>,
}

impl Past {
    /// Memory it is charged with. The body before is often shared with an older change; it counts all the same.
    fn cost(&self) -> usize {
        CHANGE_COST + [&self.body, &self.previous].into_iter().flatten().map(Body::len).sum::<usize>()
    }
}

/// One resource: its objects in order, and the changes to them that are still known.
#[derive(Debug)]
pub(super) struct Resource {
    name: Arc<str>,
    namespaces: BTreeMap<Arc<str>, BTreeMap<Box<str>, Entry>>,
    changes: VecDeque<Past>,
    /// A watch can start after this revision or any later one.
    pub(super) compacted: u64,
    /// Woken on every change.
    pub(super) changed: Arc<Notify>,
    volatile: VolatileSet,
}

/// The volatile objects of a resource by the revision of their last write, which is their order in time.
#[derive(Debug, Default)]
struct VolatileSet {
    by_age: BTreeMap<u64, i64>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    /// Of the newest published change.
    pub(super) revision: u64,
    opened_at: u64,
    resources: HashMap<Arc<str>, Resource>,
    held: HashMap<i64, Held>,
    references: BTreeSet<(u64, i64)>,
    hasher: RandomState,
    /// The resource of each change in the ring, oldest first.
    order: VecDeque<Arc<str>>,
    ring_bytes: usize,
    ring_limit: usize,
    limits: HashMap<String, Limits>,
    /// Reads rows; `None` once the store is closed.
    pub(super) reader: Option<Reader>,
}

impl Resource {
    fn new(name: Arc<str>, compacted: u64) -> Self {
        let (namespaces, changes) = Default::default();
        Self { name, namespaces, changes, compacted, changed: Arc::default(), volatile: VolatileSet::default() }
    }

    /// Objects of one namespace or all in order, those after a namespace and name only.
    pub(super) fn entries<'a>(
        &'a self,
        namespace: Option<&str>,
        after: Option<(&'a str, &'a str)>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a str, Entry)> {
        let low = match (namespace, after) {
            (None, None) => Bound::Unbounded,
            (Some(n), None) => Bound::Included(n),
            (None, Some((a, _))) => Bound::Included(a),
            (Some(n), Some((a, _))) => Bound::Included(n.max(a)),
        };
        // A high bound below the low one would panic.
        let high = match (namespace, low) {
            (Some(n), Bound::Included(low)) => Bound::Included(n.max(low)),
            _ => Bound::Unbounded,
        };
        let wanted = namespace.map(str::to_owned);
        let spaces = self.namespaces.range::<str, _>((low, high));
        spaces.filter(move |(n, _)| wanted.as_deref().is_none_or(|w| w == &***n)).flat_map(move |(n, objects)| {
            let low = match after {
                Some((a, name)) if a == &**n => Bound::Excluded(name),
                _ => Bound::Unbounded,
            };
            objects.range::<str, _>((low, Bound::Unbounded)).map(move |(name, entry)| (n, &**name, *entry))
        })
    }

    /// How many objects one namespace or all have.
    pub(super) fn count(&self, namespace: Option<&str>) -> usize {
        match namespace {
            Some(n) => self.namespaces.get(n).map_or(0, BTreeMap::len),
            None => self.namespaces.values().map(BTreeMap::len).sum(),
        }
    }

    /// Changes after a revision, oldest first.
    pub(super) fn changes_after(&self, revision: u64) -> impl Iterator<Item = &Past> {
        let start = self.changes.partition_point(|c| c.revision <= revision);
        self.changes.range(start..)
    }

    /// A key that shares what it can: the ring and what is held have thousands.
    fn shared(&self, key: Key) -> Key {
        let known = self.namespaces.get_key_value(&key.namespace).map(|(namespace, _)| namespace.clone());
        Key { resource: self.name.clone(), namespace: known.unwrap_or(key.namespace), name: key.name }
    }

    fn insert(&mut self, key: &Key, entry: Entry) {
        if !self.namespaces.contains_key(&key.namespace) {
            self.namespaces.insert(key.namespace.clone(), BTreeMap::new());
        }
        let Some(objects) = self.namespaces.get_mut(&key.namespace) else { return };
        match objects.get_mut(&*key.name) {
            Some(old) => *old = entry,
            None => drop(objects.insert((*key.name).into(), entry)),
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(objects) = self.namespaces.get_mut(&key.namespace) {
            objects.remove(&*key.name);
            if objects.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
    }
}

impl State {
    /// Builds the index from the rows. `revision` is where counting goes on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for two rows of one name.
    pub(super) fn load(
        reader: Reader,
        revision: u64,
        ring_limit: usize,
        limits: HashMap<String, Limits>,
    ) -> Result<(Self, i64), Error> {
        let mut state = Self {
            revision,
            opened_at: revision,
            resources: HashMap::new(),
            held: HashMap::new(),
            references: BTreeSet::new(),
            hasher: RandomState::new(),
            order: VecDeque::new(),
            ring_bytes: 0,
            ring_limit,
            limits,
            reader: None,
        };
        let (mut last_id, mut twice) = (0, None);
        let mut key = Key::new("", "", "");
        reader.scan(|id, resource, namespace, name, revision, index| {
            // Rows come grouped more often than not: share what the row before has.
            if *key.resource != *resource {
                key.resource =
                    state.resources.get_key_value(resource).map_or_else(|| resource.into(), |(k, _)| k.clone());
            }
            if *key.namespace != *namespace {
                key.namespace = namespace.into();
            }
            key.name = name.into();
            if state.entry(&key).is_some() {
                twice = Some(key.clone());
            }
            last_id = last_id.max(id);
            state.set_references(id, &key.resource, "", index);
            state.resource_mut(&key.resource).insert(&key, Entry { id, revision });
        })?;
        if let Some(key) = twice {
            return Err(Error::Corrupt { path: reader.path().into(), detail: format!("{key} is there twice") });
        }
        state.reader = Some(reader);
        Ok((state, last_id + 1))
    }

    /// Where an object is.
    pub(super) fn entry(&self, key: &Key) -> Option<Entry> {
        self.resources.get(&key.resource)?.namespaces.get(&key.namespace)?.get(&*key.name).copied()
    }

    /// An object's revision and body, from memory or its row.
    ///
    /// # Errors
    /// [`Error::Closed`], or the database's.
    pub(super) fn read(&self, id: i64) -> Result<(u64, Body), Error> {
        let reader = self.reader.as_ref().ok_or(Error::Closed)?;
        match self.held.get(&id) {
            Some(held) => Ok((held.revision, held.body.clone())),
            None => reader.row(id).map(|row| (row.revision, row.body)),
        }
    }

    /// As [`State::read`], for an object known by its number only.
    pub(super) fn read_named(&self, resource: &Arc<str>, id: i64) -> Result<(Key, u64, Body), Error> {
        let reader = self.reader.as_ref().ok_or(Error::Closed)?;
        if let Some(held) = self.held.get(&id) {
            return Ok((held.key.clone(), held.revision, held.body.clone()));
        }
        let (namespace, name, row) = reader.named_row(id)?;
        Ok((Key::new(resource.clone(), namespace, name), row.revision, row.body))
    }

    /// An object's body if it is in memory.
    pub(super) fn held(&self, id: i64) -> Option<&Held> {
        self.held.get(&id)
    }

    /// The name of a resource as its objects share it.
    pub(super) fn name_of(&self, resource: &str) -> Arc<str> {
        self.resources.get(resource).map_or_else(|| resource.into(), |r| r.name.clone())
    }

    /// A resource that has or had objects since the start.
    pub(super) fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// A resource, made if it is new.
    pub(super) fn resource_mut(&mut self, name: &Arc<str>) -> &mut Resource {
        let opened_at = self.opened_at;
        self.resources.entry(name.clone()).or_insert_with(|| Resource::new(name.clone(), opened_at))
    }

    /// Objects with a secondary index key, oldest first.
    pub(super) fn find(&self, resource: &str, index_key: &str) -> impl Iterator<Item = i64> {
        let hash = self.hash(resource, index_key);
        self.references.range((hash, i64::MIN)..=(hash, i64::MAX)).map(|(_, id)| *id)
    }

    fn hash(&self, resource: &str, index_key: &str) -> u64 {
        self.hasher.hash_one((resource, index_key))
    }

    /// Keeps the old bodies of rows that are about to change visible.
    pub(super) fn shadow(&mut self, id: i64, held: Held) {
        self.held.entry(id).or_insert(held);
    }

    /// Forgets the shadows of a transaction that failed.
    pub(super) fn unshadow(&mut self, ids: impl Iterator<Item = i64>) {
        for id in ids {
            if self.held.get(&id).is_some_and(|h| h.hold == Hold::Shadow) {
                self.held.remove(&id);
            }
        }
    }

    /// After a flush: the row has what memory had.
    pub(super) fn clean(&mut self, id: i64) {
        if self.held.get(&id).is_some_and(|h| matches!(h.hold, Hold::Dirty { .. })) {
            self.held.remove(&id);
        }
    }

    /// Makes a change visible to reads and watches.
    pub(super) fn publish(&mut self, change: Planned) {
        let Planned { key, id, revision, body, index, hold, previous } = change;
        let old_index = previous.as_ref().map_or("", |(_, index)| index);
        self.set_references(id, &key.resource, old_index, if body.is_some() { &index } else { "" });
        self.forget(id);
        let resource = self.resource_mut(&key.resource);
        match &body {
            Some(_) => resource.insert(&key, Entry { id, revision }),
            None => resource.remove(&key),
        }
        let key = resource.shared(key);
        if let (Some(hold), Some(body)) = (hold, &body) {
            if let Hold::Volatile { .. } = hold {
                resource.volatile.by_age.insert(revision, id);
                resource.volatile.bytes += body.len();
            }
            self.held.insert(id, Held { key: key.clone(), revision, index, body: body.clone(), hold });
        }
        self.revision = revision;
        self.remember(Past { key, revision, body, previous: previous.map(|(body, _)| body) });
    }

    /// Evicts volatile objects of a resource past its limits or lifetime, each as a delete, while `budget` lasts.
    pub(super) fn evict(&mut self, resource: &str, now: Instant, budget: &mut u64) {
        let limits = self.limits_of(resource);
        while *budget > 0 {
            let Some(set) = self.resources.get(resource).map(|r| &r.volatile) else { return };
            let Some(id) = set.by_age.first_key_value().map(|(_, id)| *id) else { return };
            let Some(held) = self.held.get(&id) else { return };
            let old = limits.ttl.is_some_and(|ttl| held.written().is_some_and(|written| written + ttl <= now));
            if !old && set.by_age.len() <= limits.count && set.bytes <= limits.bytes {
                return;
            }
            let previous = Some((held.body.clone(), held.index.clone()));
            let (key, revision) = (held.key.clone(), self.revision + 1);
            self.publish(Planned { key, id, revision, body: None, index: "".into(), hold: None, previous });
            *budget -= 1;
        }
    }

    /// Evicts what has outlived its time, at most `budget` objects.
    pub(super) fn expire(&mut self, now: Instant, mut budget: u64) {
        let names: Vec<Arc<str>> = self.resources.keys().cloned().collect();
        for name in names {
            self.evict(&name, now, &mut budget);
        }
    }

    /// When to expire next. A sixtieth of the lifetime late, so that a stream of objects is not a stream of wake-ups.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let deadlines = self.resources.values().filter_map(|r| {
            let ttl = self.limits_of(&r.name).ttl?;
            let (_, id) = r.volatile.by_age.first_key_value()?;
            Some(self.held.get(id)?.written()? + ttl + ttl / 60)
        });
        deadlines.min()
    }

    fn limits_of(&self, resource: &str) -> Limits {
        self.limits.get(resource).copied().unwrap_or_default()
    }

    fn set_references(&mut self, id: i64, resource: &str, old: &str, new: &str) {
        if old == new {
            return;
        }
        for key in old.lines() {
            let hash = self.hash(resource, key);
            self.references.remove(&(hash, id));
        }
        for key in new.lines() {
            let hash = self.hash(resource, key);
            self.references.insert((hash, id));
        }
    }

    fn forget(&mut self, id: i64) {
        let Some(held) = self.held.remove(&id) else { return };
        if let (Hold::Volatile { .. }, Some(resource)) = (held.hold, self.resources.get_mut(&held.key.resource)) {
            resource.volatile.by_age.remove(&held.revision);
            resource.volatile.bytes -= held.body.len();
        }
    }

    fn remember(&mut self, change: Past) {
        self.ring_bytes += change.cost();
        let resource = self.resource_mut(&change.key.resource);
        let name = resource.name.clone();
        resource.changes.push_back(change);
        resource.changed.notify_waiters();
        self.order.push_back(name);
        while self.ring_bytes > self.ring_limit {
            let Some(resource) = self.order.pop_front().and_then(|name| self.resources.get_mut(&name)) else { return };
            let Some(oldest) = resource.changes.pop_front() else { return };
            resource.compacted = oldest.revision;
            self.ring_bytes -= oldest.cost();
        }
    }

    /// Gives back memory that is not needed at rest.
    pub(super) fn shrink(&mut self) {
        if let Some(reader) = &self.reader {
            reader.shrink();
        }
        self.order.shrink_to_fit();
        self.resources.values_mut().for_each(|resource| resource.changes.shrink_to_fit());
    }

    /// Wakes every watch, to see that the store is closed.
    pub(super) fn wake_all(&self) {
        for resource in self.resources.values() {
            resource.changed.notify_waiters();
        }
    }
}
