//! What a group of transactions will do: expectations checked, revisions and rows assigned, nothing changed yet.

use std::{collections::HashMap, time::Instant};

use super::{
    Durability, Error, Expect, Key, Write,
    body::{Body, MAX_BODY},
    disk::{self, Op},
    handle::Shared,
    state::{Hold, Planned},
};

/// Bytes of lazy writes in memory above which they go to disk at once.
const MAX_DIRTY: usize = 4 << 20;

/// An object as the group has left it so far.
#[derive(Clone)]
struct Live {
    id: i64,
    revision: u64,
    body: Body,
    index: Box<str>,
    /// It had a row before this group.
    on_disk: bool,
}

/// One accepted write.
struct Step {
    change: Planned,
    durability: Durability,
    on_disk: bool,
}

/// See the module.
pub(super) struct Plan<'a> {
    shared: &'a Shared,
    disk: &'a disk::Writer,
    next_id: i64,
    revision: u64,
    dirty_bytes: usize,
    touched: HashMap<Key, Option<Live>>,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(shared: &'a Shared, disk: &'a disk::Writer, next_id: i64, dirty_bytes: usize) -> Self {
        let revision = shared.state().revision;
        Self { shared, disk, next_id, revision, dirty_bytes, touched: HashMap::new(), steps: Vec::new() }
    }

    /// Takes a transaction in, whole or not at all.
    pub(super) fn add(&mut self, writes: &[Write]) -> Result<Vec<u64>, Error> {
        let (steps, revision) = (self.steps.len(), self.revision);
        let mut undo = Vec::new();
        let result: Result<Vec<u64>, Error> = writes.iter().map(|write| self.step(write, &mut undo)).collect();
        if result.is_err() {
            self.steps.truncate(steps);
            self.revision = revision;
            for (key, before) in undo.into_iter().rev() {
                self.touched.insert(key, before);
            }
        }
        result
    }

    fn step(&mut self, write: &Write, undo: &mut Vec<(Key, Option<Live>)>) -> Result<u64, Error> {
        check(write)?;
        let key = &write.key;
        let old = self.live(key)?;
        match (write.expect, &old) {
            (Expect::Absent, Some(_)) => return Err(Error::Exists(key.clone())),
            (Expect::Revision(_) | Expect::Present, None) => return Err(Error::NotFound(key.clone())),
            (Expect::Revision(wanted), Some(old)) if wanted != old.revision => {
                return Err(Error::Conflict { key: key.clone(), actual: old.revision });
            }
            _ => {}
        }
        self.revision += 1;
        let revision = self.revision;
        let id = old.as_ref().map_or(self.next_id, |old| old.id);
        self.next_id = self.next_id.max(id + 1);
        let on_disk = old.as_ref().is_some_and(|old| old.on_disk);
        let index: Box<str> = write.index.join("\n").into();
        let body = write.data.as_deref().map(|data| self.shared.codec.encode(&key.resource, data));
        let live = body.clone().map(|body| Live { id, revision, body, index: index.clone(), on_disk });
        undo.push((key.clone(), self.touched.insert(key.clone(), live).flatten()));
        let previous = old.map(|old| (old.body, old.index));
        let change = Planned { key: key.clone(), id, revision, body, index, hold: None, previous };
        self.steps.push(Step { change, durability: write.durability, on_disk });
        Ok(revision)
    }

    /// An object with everything this group did to it.
    fn live(&mut self, key: &Key) -> Result<Option<Live>, Error> {
        if let Some(live) = self.touched.get(key) {
            return Ok(live.clone());
        }
        let live = self.load(key)?;
        self.touched.insert(key.clone(), live.clone());
        Ok(live)
    }

    fn load(&self, key: &Key) -> Result<Option<Live>, Error> {
        let (id, revision) = {
            let state = self.shared.state();
            let Some(entry) = state.entry(key) else { return Ok(None) };
            if let Some(held) = state.held(entry.id) {
                let on_disk = !matches!(held.hold, Hold::Volatile { .. } | Hold::Dirty { on_disk: false });
                let (body, index) = (held.body.clone(), held.index.clone());
                return Ok(Some(Live { id: entry.id, revision: entry.revision, body, index, on_disk }));
            }
            (entry.id, entry.revision)
        };
        let row = self.disk.row(id)?;
        Ok(Some(Live { id, revision, body: row.body, index: row.index.into(), on_disk: true }))
    }

    /// The next free row number, the changes in order, and what to do on disk.
    pub(super) fn finish(self) -> (i64, Vec<Planned>, HashMap<i64, Op>) {
        let now = Instant::now();
        let write_through = self.dirty_bytes > MAX_DIRTY;
        let mut ops = HashMap::new();
        let mut changes = Vec::with_capacity(self.steps.len());
        for Step { mut change, durability, on_disk } in self.steps {
            let id = change.id;
            let put = Op::of(&change);
            match (put, durability) {
                // A row that is written anyway is written as new as possible.
                (Some(put), Durability::Lazy) if write_through || matches!(ops.get(&id), Some(Op::Put { .. })) => {
                    ops.insert(id, put);
                }
                (Some(put), Durability::Durable) => drop(ops.insert(id, put)),
                (Some(_), Durability::Lazy) => change.hold = Some(Hold::Dirty { on_disk }),
                (Some(_), Durability::Volatile) => {
                    change.hold = Some(Hold::Volatile { written: now });
                    if on_disk || ops.contains_key(&id) {
                        ops.insert(id, Op::Remove);
                    }
                }
                (None, _) if on_disk || ops.contains_key(&id) => drop(ops.insert(id, Op::Remove)),
                (None, _) => {}
            }
            changes.push(change);
        }
        (self.next_id, changes, ops)
    }
}

/// What can be said without knowing what is stored.
fn check(write: &Write) -> Result<(), Error> {
    let reason = if write.data.as_ref().is_some_and(|data| data.len() > MAX_BODY) {
        "the object is larger than 3 MiB"
    } else if write.index.iter().any(|key| key.contains(['\n', '\r'])) {
        "a secondary index key has a line break"
    } else if write.data.is_none() && write.expect == Expect::Absent {
        "a delete cannot expect absence"
    } else {
        return Ok(());
    };
    Err(Error::Invalid { key: write.key.clone(), reason })
}
